"""The `fovea` command: one sub-command per folder, each imported only when it is asked for.

Exit codes: 0 ok, 1 the check failed, 2 bad usage or input.  Every command takes `--json`: standard output is then one
JSON document, the result or else the error (of `serve` and `batch watch`, one object a line).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, TextIO, cast

from models.support.errors import FoveaError

__version__ = "0.1.0"

# sub-command -> (module that holds `add_arguments(parser)`, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serving.cli", "serve the models of a stack file"),
    "keys": ("serving.keys_cli", "make, list, rotate and revoke API keys"),
    "cache": ("serving.recall.cli", "count kept answers, or let some be forgotten"),
    "batch": ("serving.batches.cli", "submit, watch, cancel batches of requests, fetch their results"),
    "ask": ("serving.ask", "ask a served model about one image"),
    "models": ("models.cli", "evaluate models, count image tokens, look up prices"),
    "bill": ("models.cost.bill_cli", "make the bill of a period from the journal of the servers"),
    "loadtest": ("loadtest.cli", "measure latency, capacity and $/query"),
    "quantize": ("quantize.cli", "make a checkpoint smaller, and decide on the served one whether it may replace it"),
    "distill": ("distill.cli", "teach a small model by a large one: collect, filter, train, evaluate, export"),
    "doctor": ("serving.doctor", "check this machine: versions, CPU/GPU, ports, memory, disk, hub"),
}


STREAMS = ("serve", "batch")  # with --json they print objects as things happen, an error being the last


class _Noted:
    """Standard output that remembers whether anything was written."""

    def __init__(self, out: TextIO):
        self.out, self.written = out, False

    def write(self, text: str) -> int:
        self.written = self.written or bool(text)
        return self.out.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.out, name)


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only `command`'s own arguments are filled in (its module is imported)."""
    parser = argparse.ArgumentParser(prog="fovea", description="Self-hosted serving of vision-language models.")
    parser.add_argument("--version", action="version", version=f"fovea {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        child = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            importlib.import_module(module).add_arguments(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.  A `FoveaError` becomes one line on stderr."""
    args_list = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in args_list if not a.startswith("-")), None)
    args = build_parser(command).parse_args(args_list)
    out = _Noted(sys.stdout)
    try:
        with redirect_stdout(cast(TextIO, out)):
            return int(args.run(args))
    except FoveaError as error:
        # a check that fails after its report was printed must not add a second document to it
        if getattr(args, "json", False) and (not out.written or args.command in STREAMS):
            print(json.dumps({"error": error.as_dict()}))
        print(f"fovea {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has seen enough
        return 0
    except KeyboardInterrupt as stop:
        print(f"fovea: interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
