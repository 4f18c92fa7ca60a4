"""`fovea loadtest roi`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML: benefits, costs, KPIs, data")
