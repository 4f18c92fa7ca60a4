"""`fovea models list | show`: arguments and printing."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from models.support.terminal import print_json, print_table

if TYPE_CHECKING:
    from models.catalog.schema import Family, Variant


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 10**9 else f"{count / 1e6:.1f}M"


def add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", help="only embedded, vision-language, speech, retrieval or safety")
    parser.set_defaults(run=run_list)


def run_list(args: argparse.Namespace) -> int:
    from models.catalog import load_catalog

    catalog = load_catalog()
    roles = list(dict.fromkeys(f.role for f in catalog.families))
    if args.role is not None and args.role not in roles:
        raise UsageError("unknown role", field="role", value=args.role, fix=f"one of {', '.join(roles)}")
    rows = [(f, v) for f, v in catalog.variants() if args.role in (None, f.role)]
    if args.json:
        keys = ("name", "hub", "licence", "context", "confidence")
        listed = [
            {"family": f.family, "role": f.role, **{k: getattr(v, k) for k in keys}, "parameters": v.parameters.total}
            for f, v in rows
        ]
        print_json({"models": listed})
        return 0
    head = ["name", "role", "inputs", "parameters", "context", "vLLM", "licence"]
    print_table(
        head,
        [
            [v.name, f.role, "+".join(f.inputs), _billions(v.parameters.total), v.context, f.engine.evidence, v.licence]
            for f, v in rows
        ],
    )
    return 0


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a family, a model or a hub id: qwen2.5-vl, qwen2.5-vl-7b, google/gemma-3-4b-it")
    parser.add_argument("--recount", action="store_true", help="build the architecture (no weights) and count again")
    parser.set_defaults(run=run_show)


def run_show(args: argparse.Namespace) -> int:
    from models.catalog import load_catalog

    family, variant = load_catalog().find(args.name)
    chosen = [variant] if variant else list(family.variants)
    differing: dict[str, Any] = {}
    if args.recount:
        from models.catalog.count import count

        for v in chosen:
            counted = count(family, v)
            stated = {part: getattr(v.parameters, part) for part in counted}
            if counted != stated:
                differing[v.name] = {"counted": counted, "catalog": stated}
    if args.json:
        shown = family.model_dump(mode="json", exclude={"variants"})
        print_json({**shown, "variants": [v.model_dump(mode="json") for v in chosen], "recount_differs": differing})
        return 1 if differing else 0
    _show(family, chosen)
    if args.recount:
        for name, two in differing.items():
            print(f"{name}: counted {two['counted']}, the catalog says {two['catalog']}")
        print(f"recount: {len(differing)} of {len(chosen)} differ")
    return 1 if differing else 0


def _show(family: Family, variants: list[Variant]) -> None:
    print(f"{family.title} ({family.maker}), {family.role}\n{family.summary}\n")
    engine = family.engine
    flags = " ".join(f"--{k}" if v is True else f"--{k} {_shell(v)}" for k, v in engine.args.items())
    chat = family.chat
    lines: list[tuple[str, str | None]] = [
        ("inputs", f"{', '.join(family.inputs)} -> {family.output}"),
        ("prompt", f"{chat.form}: {chat.example!r}{'; ' + chat.note if chat.note else ''}"),
        ("engine", f"{engine.architecture} ({engine.evidence}) {flags}"),
        ("", engine.note),
        ("good at", "; ".join(family.good_at)),
        ("bad at", "; ".join(family.bad_at)),
    ]
    if family.quantize:
        q = family.quantize
        lines += [("quantize", f"{', '.join(q.schemes)}; targets {q.targets}, not {q.ignore}"), ("", q.note)]
    if family.lora:
        lines += [("LoRA", ", ".join(family.lora.targets)), ("", family.lora.note)]
    for label, text in lines:
        if text:
            print(f"{label:<9} {text}")
    for v in variants:
        print()
        _show_variant(v)
    print("\nsources   " + "\n          ".join(family.sources))


def _shell(value: object) -> str:
    text = str(value)
    return f"'{text}'" if re.search(r"[\s{}\"]", text) else text


def _show_variant(v: Variant) -> None:
    from models.fit import kv_bytes, weight_bytes

    p, d = v.parameters, v.decoder
    parts = [f"{part} {_billions(getattr(p, part))}" for part in ("vision", "audio", "projector", "language")]
    parts += [f"embeddings {_billions(p.embeddings)} of it"] + ([f"active {_billions(p.active)}"] if p.active else [])
    local = f", {d.window_layers} of them local to {d.window:,} tokens" if d.window else ""
    weights = ", ".join(f"{s} {weight_bytes(v, s) / 2**30:.2f}" for s in ("bf16", "w8a8", "w4a16"))
    print(f"{v.name}  {v.hub or ''}{'  (gated)' if v.gated else ''}")
    revision = f"{v.revision.commit} ({v.revision.confidence})" if v.revision.commit else "none"
    print(f"  revision    {revision}: {v.revision.note}")
    print(f"  licence     {v.licence}")
    print(f"  parameters  {_billions(p.total)} = {', '.join(x for x in parts if ' 0.0M' not in x)}; {p.how}")
    print(f"  weights     GiB: {weights}")
    print(f"  KV cache    {d.layers} layers{local} x {d.kv_heads} KV heads x {d.head_dim}: ", end="")
    print(f"{kv_bytes(d, 1024) / 1024 / 1024:.1f} KiB a token at 1,024 tokens, context {v.context:,}")
    if v.image is not None:
        rule = v.image.rule + (f" ({v.image.name})" if v.image.rule == "table" else "")
        sizes = ", ".join(f"{w}x{h} {v.image.tokens(w, h):,}" for w, h in ((512, 512), (1024, 1024), (1920, 1080)))
        print(f"  image       {rule}: tokens at {sizes}")
    if v.confidence != "high" or v.note:
        print(f"  note        confidence {v.confidence}{'; ' + v.note if v.note else ''}")
