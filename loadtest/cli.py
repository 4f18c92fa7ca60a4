"""`fovea loadtest`: run, capacity, compare, rehearse, cost, roi."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

# sub-command -> (module with `add_arguments(parser)`, one line of help)
COMMANDS = {
    "run": ("loadtest.commands.run", "put load on a server and report latency, errors, accuracy and dollars"),
    "capacity": ("loadtest.commands.capacity", "find the highest rate that keeps an SLO, with a confidence"),
    "compare": ("loadtest.commands.compare", "tell whether one run is better than another, and gate on it"),
    "rehearse": ("loadtest.commands.rehearse", "break things while load runs, and see what happens"),
    "cost": ("loadtest.commands.cost", "price a right answer along its whole path, against every vendor"),
    "roi": ("loadtest.commands.roi", "compute benefits, costs, return, break-even and KPIs, each with its source"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands.  Each one's module is imported only when it is chosen, or its help asked for."""
    sub = parser.add_subparsers(dest="loadtest_command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        child = _Lazy(sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + "."), module)
        child.install()


class _Lazy:
    """Fills a sub-parser in at the moment when it parses."""

    def __init__(self, parser: argparse.ArgumentParser, module: str):
        self.parser, self.module = parser, module

    def install(self) -> None:
        original: Callable[..., object] = self.parser.parse_known_args

        def parse(args: object = None, namespace: object = None) -> object:
            self.parser.parse_known_args = original  # type: ignore[method-assign,assignment]
            importlib.import_module(self.module).add_arguments(self.parser)
            return original(args, namespace)

        self.parser.parse_known_args = parse  # type: ignore[method-assign,assignment]
