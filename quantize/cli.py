"""`fovea quantize run | gate | ladder | advise | schemes`: arguments and printing, without the work."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    sub = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text, add, run in (
        ("run", "make a quantized checkpoint and prove that it loads and answers", _add_run, _run),
        ("gate", "compare a quantized checkpoint with its parent, both served; exit code 1 unless it passes", _add_gate,
         _gate),
        ("ladder", "try schemes from the smallest up until one passes the gate", _add_ladder, _ladder),
        ("advise", "what fits on a GPU and which scheme to take", _add_advise, _advise),
        ("schemes", "every scheme on every machine, with its kernel", _add_schemes, _schemes),
    ):  # fmt: skip
        child = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add(child)
        child.add_argument("--json", action="store_true", help="print JSON on stdout")
        child.set_defaults(run=run)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the 16-bit checkpoint: embedded:qwen2_5_vl, embedded:paligemma, or a folder")


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    text = "pictures and questions to calibrate on: a golden set (name, folder, .jsonl), or easy-vqa-train"
    parser.add_argument("--calibration", metavar="DATA", help=text)
    parser.add_argument("--samples", type=int, default=256, help="items to calibrate on (256)")
    parser.add_argument("--traffic", metavar="SET", help="a golden set of real traffic: warn where it is unlike DATA")
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration items and the golden items (0)")
    text = "where it will be served: here, cpu, a GPU (H100), a compute capability (9.0); checked before any work"
    parser.add_argument("--target", default="here", help=text)
    parser.add_argument("--max-tokens", type=int, default=2048, help="longest calibration prompt (2048)")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-model-len", type=int, default=2048, help="context that the engine serves (2048)")
    parser.add_argument("--kv-gib", type=int, default=1, help="KV cache on a CPU, GiB (1)")
    parser.add_argument("--kv-dtype", choices=("auto", "fp8"), default="auto", help="KV cache: 16 bits (auto) or fp8")
    text = "more of vLLM's own arguments, for both sides: --engine-args='--tensor-parallel-size 2'"
    parser.add_argument("--engine-args", metavar="WORDS", default="", help=text)


def _add_golden(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--golden", required=required, help="golden set to compare on: a name, a folder, a .jsonl file")
    parser.add_argument("--limit", type=int, help="compare on that many items, drawn by the seed")
    parser.add_argument("--concurrency", type=int, default=32, help="requests in flight (32)")
    parser.add_argument("--thresholds", type=Path, metavar="FILE", help="limits other than the shipped ones (YAML)")
    text = "longest latency of a good answer: adds goodput and the highest rate that keeps it (minutes a side)"
    parser.add_argument("--slo-ms", type=float, help=text)
    parser.add_argument("--usd-per-hour", type=float, help="price of the serving machine: adds $/query to the report")
    text = "where parents' answers are kept: each is asked once (parents, beside the report's folder)"
    parser.add_argument("--parents", type=Path, metavar="DIR", help=text)


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--register", metavar="NAME", help="register it as a version of NAME when it passes the gate")
    parser.add_argument("--store", help="the registry: a folder or URL (FOVEA_REGISTRY, or runs/registry)")
    parser.add_argument("--by", default=None, help="who registers it (the user's name)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--scheme", default="w4a16", help="w4a16 (default), w8a8, fp8, nf4, bnb-int8, w2-trial")
    parser.add_argument("--method", help="gptq, awq, smoothquant or rtn; each scheme has its default")
    parser.add_argument("--group", type=int, help="weights per scale: 128, 64 or 32; by default the largest that fits")
    parser.add_argument("--quantize-vision", action="store_true", help="the vision tower too (costs accuracy)")
    _add_calibration(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--replace", action="store_true", help="replace a quantized checkpoint at --out")
    _add_golden(parser, required=False)
    parser.add_argument("--report", type=Path, help="folder of the gate's report (OUT-gate); with --golden")
    _add_register(parser)
    _add_engine(parser)


def _add_gate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("candidate", type=Path, help="folder that `fovea quantize run` wrote")
    _add_golden(parser, required=True)
    parser.add_argument("--seed", type=int, default=0, help="draws the golden items (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json and report.html")
    _add_register(parser)
    _add_engine(parser)


def _add_ladder(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--rungs", help="comma-separated SCHEME[:METHOD[:GROUP]], smallest first; by default all that run"
    )
    _add_calibration(parser)
    _add_golden(parser, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints and the reports")
    _add_register(parser)
    _add_engine(parser)


def _add_advise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model of the catalog: `fovea models list`")
    parser.add_argument("--gpu", help="GPU by name: H100, L4, B200")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of one GPU, instead of or over --gpu's")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time (8)")
    parser.add_argument("--image", default="1024x1024", help="picture of a request (1024x1024)")
    parser.add_argument("--images", type=int, default=1, help="pictures in a request (1)")
    parser.add_argument("--context", type=int, help="tokens of a request, pictures and answer included")


def _add_schemes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", help="only this machine: here, cpu, H100, 9.0")


def interruptible() -> None:
    """Let SIGTERM end the work as Ctrl-C does, so that nothing half-written stays."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _say(args: argparse.Namespace) -> Any:
    def say(text: str) -> None:
        print(f"quantize: {text}", file=sys.stderr, flush=True)

    return say


def _run(args: argparse.Namespace) -> int:
    from models.support.errors import UsageError
    from quantize.engine import Held
    from quantize.run import quantize
    from quantize.settings import gate_settings, run_settings

    interruptible()
    for name in ("report", "register"):
        if args.golden is None and getattr(args, name) is not None:
            raise UsageError("is the gate's", field=name, value=str(getattr(args, name)), fix="give --golden too")
    settings = run_settings(
        args,
        out=args.out,
        scheme=args.scheme,
        method=args.method,
        group=args.group,
        vision=args.quantize_vision,
        replace=args.replace,
    )
    if args.golden is None:
        _print_run(args, quantize(settings, _say(args)))
        return 0
    _check_comparison(args, args.scheme)
    comparison = gate_settings(args, args.out, args.report or args.out.with_name(f"{args.out.name}-gate"))
    with Held(comparison.out / "candidate.log") as held:
        manifest = quantize(settings, _say(args), held)
        _print_run(args, manifest)
        return _decide(args, comparison, manifest, held)


def _check_comparison(args: argparse.Namespace, *schemes: str) -> None:
    """Find out before the work that the golden set, the limits or the registry are wrong.  Raises UsageError."""
    from models.golden import load_golden
    from quantize.publish import check_register
    from quantize.verdict import load_thresholds

    load_golden(args.golden).sample(args.limit, args.seed)
    for scheme in schemes:
        load_thresholds(scheme, args.thresholds)
    if args.register is not None:
        check_register(args.register, args.store)


def _print_run(args: argparse.Namespace, manifest: dict[str, Any]) -> None:
    if args.json and args.golden is None:
        print(json.dumps(manifest, indent=2))
        return
    size, done = manifest["size"], [m for m in manifest["modules"] if m["quantized"]]
    group = f", groups of {manifest['group']}" if manifest["group"] else ""
    told = sys.stderr if args.json else sys.stdout
    errors = [m["error"] for m in done if m["error"] is not None]
    print(f"{manifest['scheme']} by {manifest['method']}{group}: {args.out}", file=told)
    parts = f"{100 * size['quantized_ratio']:.1f} % of the quantized part's bytes, {100 * size['ratio']:.1f} % of all"
    print(f"size        {size['bytes'] / 1e6:.2f} MB of {size['parent_bytes'] / 1e6:.2f} MB: {parts}", file=told)
    kept = len(manifest["modules"]) - len(done)
    worst = f", relative error {min(errors):.4f} to {max(errors):.4f}" if errors else ""
    print(f"modules     {len(done)} quantized{worst}; {kept} linear modules kept, bit for bit", file=told)
    accepted = manifest["accepted"]
    kernels = ", ".join(sorted(set(accepted["kernels"].values()))) or "vLLM logged no kernel"
    print(f"served      {accepted['question']!r} -> {accepted['answer']!r} ({kernels})", file=told)
    print(f"took        {manifest['seconds']['total']:.0f} s", file=told)


def _decide(args: argparse.Namespace, settings: Any, manifest: dict[str, Any] | None = None, held: Any = None) -> int:
    from quantize.gate import run_gate
    from quantize.gate_report import print_gate

    report = run_gate(settings, _say(args), held)
    passed = report["verdict"]["outcome"] == "pass"
    registered = _register(args, settings.candidate, report) if passed and args.register else None
    if args.json:
        more = {} if registered is None else {"registered": registered}
        print(
            json.dumps(
                {**report, **more} if manifest is None else {"manifest": manifest, "gate": report, **more}, indent=2
            )
        )
    else:
        print_gate(report, settings.out)
        _print_registered(registered)
    return 0 if passed else 1


def _register(args: argparse.Namespace, candidate: Path, report: dict[str, Any]) -> dict[str, str]:
    import getpass

    from quantize.publish import publish
    from quantize.run import checkpoint_folder

    by = args.by or getpass.getuser()
    return publish(args.register, checkpoint_folder(args.model), candidate, report, by=by, store=args.store)


def _print_registered(registered: dict[str, str] | None) -> None:
    if registered is not None:
        print(f"registered  {registered['version']}, made from {registered['parent']}, in {registered['store']}")
        print(f"serve it    source: registry:{registered['version']}, as a model's line in stack.yaml")


def _gate(args: argparse.Namespace) -> int:
    from quantize.settings import gate_settings

    interruptible()
    _check_comparison(args)
    return _decide(args, gate_settings(args, args.candidate, args.out))


def _ladder(args: argparse.Namespace) -> int:
    from quantize.ladder import climb, parse_rungs, print_ladder

    interruptible()
    rungs = parse_rungs(args.rungs, args.target)
    _check_comparison(args, *(rung.scheme for rung in rungs))
    result = climb(args, rungs, _say(args))
    registered = None
    if result["passed"] is not None and args.register:
        step = result["steps"][-1]
        report = json.loads(Path(step["report"]).with_suffix(".json").read_text("utf-8"))
        registered = _register(args, Path(step["folder"]), report)
    if args.json:
        print(json.dumps(result if registered is None else {**result, "registered": registered}, indent=2))
    else:
        print_ladder(result, args.out)
        _print_registered(registered)
    return 0 if result["passed"] is not None else 1


def _advise(args: argparse.Namespace) -> int:
    from quantize.advise import advise, print_advice

    found = advise(args)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print_advice(found)
    return 0 if found["choice"] is not None else 1


def _schemes(args: argparse.Namespace) -> int:
    from quantize.advise import print_schemes, scheme_table

    rows = scheme_table(args.target)
    if args.json:
        print(json.dumps({"schemes": rows}, indent=2))
    else:
        print_schemes(rows)
    return 0
