"""`fovea loadtest rehearse`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loadtest.commands import common
from models.support.errors import UsageError

EXAMPLES = """
examples:
  fovea loadtest rehearse --url http://127.0.0.1:8000/v1 --model m --rate 5
  fovea loadtest rehearse --url http://127.0.0.1:8000/v1 --model m --drill replica-killed --kill-command "kubectl
  delete pod x"

With --upstream URL --proxy-port P the faults happen between the stack and its upstream: let the stack's upstream be
http://127.0.0.1:P, and its clients must not notice.  The exit code is 1 when a drill fails.
"""


# For the help alone: asking the drills themselves would import numpy and the whole load generator.
NAMES = (
    "corrupted-image, truncated-image, not-an-image, oversized-prompt, contradiction, upstream-slow, upstream-429, "
    "upstream-500, upstream-cut, replica-killed, cache-gone"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    common.add_target(parser)
    drills = parser.add_argument_group("drills")
    drills.add_argument(
        "--drill", action="append", default=[], metavar="NAME", help=f"repeatable: {NAMES}; default: all"
    )
    drills.add_argument("--rate", type=float, default=5.0, help="steady requests per second (default: 5)")
    drills.add_argument(
        "--part", type=float, default=10.0, metavar="S", help="seconds before, during, after (default: 10)"
    )
    drills.add_argument(
        "--bad-rate", type=float, default=2.0, metavar="R", help="broken requests per second (default: 2)"
    )
    drills.add_argument(
        "--tolerate", type=float, default=0.01, metavar="SHARE", help="steady failures allowed (default: 0.01)"
    )
    drills.add_argument(
        "--slower", type=float, default=3.0, metavar="X", help="P50 that counts as the same speed (default: 3 times)"
    )
    drills.add_argument("--upstream", metavar="URL", help="the stack's real upstream, for faults behind the stack")
    drills.add_argument("--proxy-port", type=int, default=0, metavar="P", help="where the proxy for --upstream listens")
    drills.add_argument("--kill-command", metavar="CMD", help="shell command that kills a replica")
    drills.add_argument("--cache-stop-command", metavar="CMD", help="shell command that stops the cache store")
    drills.add_argument("--cache-start-command", metavar="CMD", help="shell command that starts it again")
    common.add_traffic(parser)
    common.add_generator(parser)
    common.add_hardware(parser)
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the drills, print and write the verdicts."""
    from loadtest.drills import DRILLS, rehearse
    from loadtest.faultproxy import FaultProxy
    from loadtest.rehearse import Setting, Verdict
    from models.support.errors import CheckFailed, FoveaError

    common.positive(args, "rate", "part", "bad_rate", "slower")
    common.check_out(args.out)
    if args.upstream and not args.proxy_port:
        raise UsageError(
            "needs --proxy-port, the port that the stack has as its upstream",
            field="--upstream",
            fix="give the port, and let the stack ask http://127.0.0.1:PORT",
        )
    given = {"kill": args.kill_command, "cache-stop": args.cache_stop_command, "cache-start": args.cache_start_command}

    verdicts: list[Verdict] = []
    stopped: FoveaError | KeyboardInterrupt | None = None
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(args.upstream, args.proxy_port)) if args.upstream else None
        setting = Setting(
            config=common.base_config(args),
            steady={**common.class_values(args), "rate": args.rate},
            part_s=args.part,
            bad_rate=args.bad_rate,
            tolerate=args.tolerate,
            slower=args.slower,
            proxy=proxy,
            commands={name: command for name, command in given.items() if command},
        )
        try:
            for verdict in rehearse(args.drill or list(DRILLS), setting):
                verdicts.append(verdict)
                if not args.quiet:
                    print(f"{verdict.verdict:8} {verdict.name}: {'; '.join(verdict.evidence)}", file=sys.stderr)
        except (FoveaError, KeyboardInterrupt) as error:
            stopped = error
    data = report_of(verdicts, args, partial=stopped is not None)
    if verdicts:
        common.publish(args, data, terminal, write)
    if isinstance(stopped, FoveaError):
        raise stopped
    if stopped is not None:
        return 130
    wrong = [v.name for v in verdicts if v.verdict == "failed"]
    if wrong:
        raise CheckFailed(
            f"drills failed: {', '.join(wrong)}", fix="the report says what was expected and what was seen"
        )
    if all(v.verdict == "skipped" for v in verdicts):
        raise CheckFailed("every drill was skipped", fix="give the commands that the drills need")
    return 0


def report_of(verdicts: list[Any], args: argparse.Namespace, partial: bool) -> dict[str, Any]:
    """Return the content of rehearse.json."""
    import datetime as dt

    from models.evaluation.context import hardware, versions

    return {
        "schema_version": "1.0",
        "kind": "rehearse",
        "command": common.command_line(),
        "partial": partial,
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seed": args.seed,
        "target": {"url": args.url, "model": args.model, "upstream": args.upstream},
        "drills": [v.to_dict() for v in verdicts],
        "versions": versions(),
        "hardware": hardware(),
    }


def counts(data: dict[str, Any]) -> str:
    """Return how many drills passed, failed and were skipped."""
    found = [d["verdict"] for d in data["drills"]]
    text = ", ".join(f"{found.count(word)} {word}" for word in ("passed", "failed", "skipped"))
    return text + (" (partial: stopped before the end)" if data["partial"] else "")


def terminal(data: dict[str, Any]) -> str:
    """Return the verdicts for a terminal."""
    from loadtest.text_report import columns

    rows = [
        [d["name"], d["verdict"].upper() if d["verdict"] == "failed" else d["verdict"], d["expectation"]]
        for d in data["drills"]
    ]
    lines = [counts(data), "", columns(["drill", "verdict", "expectation"], rows)]
    for drill in data["drills"]:
        if drill["verdict"] != "passed":
            lines += [f"{drill['name']}: {text}" for text in drill["evidence"]]
    return "\n".join(lines)


def write(data: dict[str, Any], folder: Path) -> None:
    """Write rehearse.json, rehearse.html and rehearse.md."""
    from models.support.files import atomic_write, write_json

    write_json(folder / "rehearse.json", data)
    for name, text in (("rehearse.html", page(data)), ("rehearse.md", markdown(data))):
        with atomic_write(folder / name) as file:
            file.write(text)


def markdown(data: dict[str, Any]) -> str:
    """Return the verdicts for a pull-request comment."""
    from loadtest.text_report import md_table

    sign = {"passed": "✅", "failed": "❌", "skipped": "–"}
    rows = [[d["name"], f"{sign[d['verdict']]} {d['verdict']}", d["expectation"]] for d in data["drills"]]
    parts = [f"### Failure drills of `{data['target']['model']}`: {counts(data)}", ""]
    parts.append(md_table(["drill", "verdict", "expectation"], rows))
    for drill in data["drills"]:
        if drill["verdict"] == "failed":
            parts += ["", f"**{drill['name']}**", *(f"- {text}" for text in drill["evidence"])]
    return "\n".join(parts) + "\n"


def page(data: dict[str, Any]) -> str:
    """Return the HTML report: what failed first."""
    from models.support.html import Page, details, table

    out = Page(f"Failure drills: {data['target']['model']}", f"{data['target']['url']} · {data['finished']}")
    found = [d["verdict"] for d in data["drills"]]
    kind = "bad" if "failed" in found else "warn" if data["partial"] or "skipped" in found else "ok"
    out.verdict(kind, counts(data))
    rows = [[d["name"].replace("-", " "), d["verdict"], d["expectation"]] for d in data["drills"]]
    out.add(table(["drill", "verdict", "expectation"], rows, (0, 1, 2)))
    order = {"failed": 0, "passed": 1, "skipped": 2}
    for drill in sorted(data["drills"], key=lambda d: order[d["verdict"]]):
        _drill(out, drill)
    setup = {k: data[k] for k in ("target", "seed", "versions", "hardware")}
    out.add(details("Set-up", table(["", ""], [[k, json.dumps(v)] for k, v in setup.items()], (0, 1))))
    out.code(data["command"])
    return out.render()


def _drill(out: Any, drill: dict[str, Any]) -> None:
    from loadtest.html_report import figures_table
    from loadtest.text_report import number
    from models.support.html import Axis, Series, line

    out.section(f"{drill['name'].replace('-', ' ').capitalize()}: {drill['verdict']}", drill["expectation"])
    wrong = [text.removeprefix("NOT: ") for text in drill["evidence"] if text.startswith("NOT: ")]
    for text in wrong:
        out.verdict("bad", text)
    for text in drill["evidence"]:
        if not text.startswith("NOT: "):
            out.text(text, note=True)
    parts = [(name, drill["numbers"][name]) for name in ("before", "during", "after") if name in drill["numbers"]]
    if not parts:
        return
    rows = [[name, f"{p['requests']:,}", f"{p['errors']:,}", number(p["p50_ms"])] for name, p in parts]
    out.add(figures_table(["steady traffic", "requests", "errors", "P50 ms"], rows))
    marks = [(drill["marks"][0], "fault begins"), (drill["marks"][1], "ends")]
    x = Axis("s", lowest=0.0)
    some = [r for r in drill["timeline"] if r["p50_ms"] is not None]
    t = [r["t"] for r in some]
    latency = [Series("P50", t, [r["p50_ms"] for r in some]), Series("P99", t, [r["p99_ms"] for r in some])]
    t = [r["t"] for r in drill["timeline"]]
    rates = [
        Series("offered", t, [r["offered_rps"] for r in drill["timeline"]]),
        Series("answered", t, [r["done_rps"] for r in drill["timeline"]]),
    ]
    out.add(
        line(latency, title="Steady traffic, latency", x=x, y=Axis("ms", log=True), vertical=marks),
        line(rates, title="Steady traffic, rate", x=Axis("s", lowest=0.0), y=Axis("1/s", lowest=0.0), vertical=marks),
    )
