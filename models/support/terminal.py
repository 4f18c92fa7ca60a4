"""What commands print: one JSON object, or aligned columns."""

from __future__ import annotations

import json
from collections.abc import Sequence


def print_json(value: object) -> None:
    """Print as JSON; money (Decimal) and dates become text, so that no digit is lost."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_either(as_json: bool, data: object, text: str) -> None:
    """Print `data` as JSON, or else `text`."""
    if as_json:
        print_json(data)
    else:
        print(text)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns; numbers to the right."""
    cells = [[("" if v is None else str(v)) for v in row] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(head, *cells, strict=True)]
    numeric = [all(row[i].replace(".", "", 1).isdigit() or not row[i] for row in cells) for i in range(len(head))]
    for row in [list(head), *cells]:
        aligned = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        print("  ".join(aligned).rstrip())


def whole_number(text: str) -> int:
    """argparse type: an int; what range is right is decided by whoever uses it."""
    return int(text)
