"""`fovea models list | show | fit | recommend`: arguments and printing, without the work."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError

if TYPE_CHECKING:
    from models.catalog.schema import Family, Variant
    from models.fit import Fit, Gpu, Load
    from models.recommend import Recommendation


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _table(head: list[str], rows: Iterable[list[object]]) -> None:
    from models.cli import print_table

    print_table(head, list(rows))


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
        _print_json({"models": listed})
        return 0
    head = ["name", "role", "inputs", "parameters", "context", "vLLM", "licence"]
    _table(
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
        _print_json({**shown, "variants": [v.model_dump(mode="json") for v in chosen], "recount_differs": differing})
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


def image_size(text: str) -> tuple[int, int]:
    """argparse type: `1024x768` pixels."""
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, for example 1024x768")
    return int(match[1]), int(match[2])


def add_fit(parser: argparse.ArgumentParser) -> None:
    from models.fit_defaults import OVERHEAD_GIB, UTILIZATION

    parser.add_argument("name", help="a model, a hub id, or a family (all its sizes in one table)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gpu", help="L4, A10G, T4, L40S, A100-40, A100-80, H100, H200, B200, RTX-4090, RTX-5090")
    where.add_argument("--memory", type=float, metavar="GIB", help="memory of one GPU instead")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the model, tensor parallel (1)")
    parser.add_argument("--concurrency", type=int, default=1, help="requests in flight (1)")
    parser.add_argument("--image", type=image_size, metavar="WxH", help="size of each image in pixels (none)")
    parser.add_argument("--images", type=int, default=1, help="images in one request, with --image (1)")
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="tokens of one request, all told (its images and 1,024)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--scheme", default="bf16", help="bf16 (default), fp16, fp32, w8a8, fp8 or w4a16")
    how.add_argument("--dtype", dest="scheme", help="the same: bfloat16, float16, float32")
    parser.add_argument("--kv-dtype", default="auto", help="auto (as the weights' 16 bits, default) or fp8")
    parser.add_argument("--batched-tokens", type=int, help="max_num_batched_tokens (vLLM's default for the GPU)")
    parser.add_argument("--max-num-seqs", type=int, help="max_num_seqs (vLLM's default for the GPU)")
    parser.add_argument("--utilization", type=float, default=UTILIZATION, help=f"share of memory ({UTILIZATION})")
    parser.add_argument("--overhead", type=float, default=OVERHEAD_GIB, metavar="GIB", help=f"({OVERHEAD_GIB})")
    parser.set_defaults(run=run_fit)


def run_fit(args: argparse.Namespace) -> int:
    from models.catalog import load_catalog
    from models.fit import Load, find_gpu, fit

    gpu = find_gpu(args.gpu) if args.gpu else None
    memory = gpu.memory_gib if gpu else args.memory
    load = Load(
        concurrency=args.concurrency,
        image=args.image,
        images=args.images,
        context=args.context,
        scheme=args.scheme,
        kv_dtype=args.kv_dtype,
        batched_tokens=args.batched_tokens,
        sequences=args.max_num_seqs,
        gpus=args.gpus,
        utilization=args.utilization,
        overhead_gib=args.overhead,
    )
    family, variant = load_catalog().find(args.name)
    if variant is None:
        return _fit_family(family, memory, load, gpu, args.json)
    result = fit(variant, memory, load, gpu=gpu)
    return _print_fit(variant, result, memory, load, gpu, args.json)


def _print_fit(variant: Variant, result: Fit, memory: float, load: Load, gpu: Gpu | None, as_json: bool) -> int:
    from models.fit import advice, gib

    would = [] if result.fits else advice(variant, memory, load, gpu=gpu)
    if as_json:
        _print_json({**result.as_dict(), "would_fit": would})
        return 0 if result.fits else 1
    where = f"{load.gpus} x {gpu.name if gpu else f'{memory:g} GiB'}"
    print(f"{variant.name}, {result.scheme}, on {where}\n" + "\n".join(result.lines))
    print(f"{'sum':<12} {gib(result.needed):>11}")
    if result.fits:
        print(f"fits; {result.max_concurrency:,} such requests fit at once")
    elif result.max_concurrency:
        print(f"does not fit; only {result.max_concurrency:,} such requests fit at once")
    else:
        print("does not fit, not even with one request")
    if not result.fits:
        print(f"would fit: {', or '.join(would) if would else 'with none of the schemes and GPUs known here'}")
    for note in result.notes:
        print(f"note: {note}")
    return 0 if result.fits else 1


def _fit_family(family: Family, memory: float, load: Load, gpu: Gpu | None, as_json: bool) -> int:
    """One row a size; exit code 0 when at least one fits."""
    from models.fit import fit

    rows: list[dict[str, Any]] = []
    for variant in family.variants:
        try:
            rows.append(fit(variant, memory, load, gpu=gpu).as_dict())
        except UsageError as error:
            rows.append({"model": variant.name, "error": str(error)})
    if as_json:
        _print_json({"family": family.family, "rows": rows})
    else:

        def size(row: dict[str, Any], key: str) -> str:
            return f"{row[key] / 2**30:.2f}"

        keys = ("budget", "weights", "activations", "overhead", "kv", "needed")
        table: list[list[object]] = [
            [row["model"], *(size(row, k) for k in keys), "yes" if row["fits"] else "no", row["max_concurrency"]]
            if "error" not in row
            else [row["model"], *[""] * len(keys), row["error"], ""]
            for row in rows
        ]
        print("GiB of one GPU; at once: such requests that fit together")
        _table(["model", *keys, "fits", "at once"], table)
    return 0 if any(row.get("fits") for row in rows) else 1


def add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--use", help="documents, reasoning, coding, support, cataloging, manufacturing or classification"
    )
    parser.add_argument("--on-premises", help="must data stay on premises: no (default), some or yes")
    parser.add_argument("--latency", help="relaxed (default) or sub-second")
    parser.add_argument("--offline", action=argparse.BooleanOptionalAction, help="must work without a network")
    parser.add_argument("--queries", type=int, metavar="N", help="queries a month (10,000)")
    parser.add_argument("--enterprise-support", action=argparse.BooleanOptionalAction, help="a vendor's SLA is needed")
    parser.add_argument("--corpus", action=argparse.BooleanOptionalAction, help="a corpus of documents is searched")
    parser.add_argument("--scope", help="broad (default), mixed or narrow task")
    parser.add_argument("--high-stakes", action=argparse.BooleanOptionalAction, help="high-risk or regulated decisions")
    parser.add_argument("--ask", action="store_true", help="ask every question that no flag answers")
    parser.set_defaults(run=run_recommend)


def run_recommend(args: argparse.Namespace) -> int:
    from models.recommend import QUESTIONS, Answers, recommend

    given = {name: getattr(args, name) for name in QUESTIONS if getattr(args, name) is not None}
    if args.ask or (not given and sys.stdin.isatty() and not args.json):
        given |= _ask([name for name in QUESTIONS if name not in given])
    if "use" not in given:
        fix = "--use documents, say; or --ask for the questions"
        raise UsageError("is required", field="use", fix=fix)
    result = recommend(Answers(**given))
    if args.json:
        _print_json(result.as_dict())
    else:
        _print_recommendation(result)
    return 0


def _ask(names: list[str]) -> dict[str, Any]:
    """Ask on the terminal; an empty line takes the default, a wrong answer is asked again."""
    from models.recommend import CHOICES, QUESTIONS, Answers

    defaults = Answers(use="documents")
    found: dict[str, Any] = {}
    for name in names:
        default = getattr(defaults, name)
        options = CHOICES.get(name) or (("yes", "no") if isinstance(default, bool) else ())
        shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
        choice = f" ({'/'.join(options)})" if options else ""
        while name not in found:
            try:
                text = input(f"{QUESTIONS[name]}?{choice} [{shown}] ").strip().casefold() or str(shown)
            except EOFError:
                fix = "answer all questions, or give flags"
                raise UsageError("the questions ended early", field=name, fix=fix) from None
            if isinstance(default, bool):
                if text in ("y", "yes", "n", "no"):
                    found[name] = text.startswith("y")
            elif isinstance(default, int):
                digits = text.replace(",", "")
                if digits.isdigit() and int(digits) > 0:
                    found[name] = int(digits)
            elif text in options:
                found[name] = text
            if name not in found:
                print(f"  one of {', '.join(options)}" if options else "  a whole number above 0")
    return found


def _print_recommendation(r: Recommendation) -> None:
    from models.recommend import ARCHITECTURES, PATTERNS

    title, trade = ARCHITECTURES[r.architecture]
    print(f"model         {r.primary.name} ({r.primary.kind})")
    for role, option in r.companions.items():
        print(f"{'':<13} {option.name} for: {role}")
    print(f"runner-up     {r.runner_up.name if r.runner_up else 'none'}")
    print(f"pattern       {r.pattern}: {PATTERNS[r.pattern]}")
    print(f"architecture  {title}: {trade}")
    print("why")
    for reason in r.why:
        print(f"  {reason}")
    print("what would change it")
    for change in r.changes or ["no single other answer"]:
        print(f"  {change}")
    for note in r.notes:
        print(f"note: {note}")
    for option in (r.primary, *r.companions.values()):
        if option.catalog:
            print(f"next: fovea models fit {option.catalog} --gpu H100 --image 1024x1024 --concurrency 16")
            break
