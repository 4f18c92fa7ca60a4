"""Find a golden set by name, or read one from a folder or a JSONL file.

The format, one JSON object a line (UTF-8; blank lines and lines that start with `#` are skipped):

```
{"id": "r-001", "image": "images/r-001.jpg", "question": "What is the total?", "expected": 42.10,
 "accept": {"rule": "numeric", "abs": 0.005}, "category": "total", "split": "test", "tags": {"perturbation": "blur"}}
```

`id`, `image` (relative to the file), `question` and `expected` are required.  `accept` defaults to
`{"rule": "normalized"}`, `category` to `all`, `split` to `test`.  A folder holds `golden.jsonl` and its images.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.golden.easy_vqa import load_easy_vqa
from models.golden.rules import RULES, normalize
from models.golden.sets import GoldenItem, GoldenSet, ImageRef
from models.golden.structured import JsonFields
from models.support.errors import UsageError

FILE_NAME = "golden.jsonl"
SPLITS = ("train", "validation", "test")
_REQUIRED = ("id", "image", "question", "expected")
_KNOWN = frozenset({*_REQUIRED, "accept", "category", "split", "tags", "evidence", "labels"})


def _receipts() -> GoldenSet:
    from models.golden.rendered.receipts import build

    return build()


def _modems() -> GoldenSet:
    from models.golden.rendered.modems import build

    return build()


BUILTIN: dict[str, Callable[[], GoldenSet]] = {"easy-vqa": load_easy_vqa, "receipts": _receipts, "modems": _modems}


def builtin_names() -> list[str]:
    """Return the names that `load_golden` knows without a file."""
    return sorted(BUILTIN)


def load_golden(name_or_path: str | Path) -> GoldenSet:
    """Return the golden set with this name, or the one at this path (a folder or a `.jsonl` file).

    Raises:
        UsageError: no such name or path, or the file is wrong; the error names the line, the key and the fix.
    """
    if str(name_or_path) in BUILTIN:
        return BUILTIN[str(name_or_path)]()
    path = Path(name_or_path)
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UsageError(f"the folder has no {FILE_NAME}", field="golden", value=str(path), fix=f"add {FILE_NAME}")
        return read_jsonl(path / FILE_NAME, name=path.resolve().name)
    if path.is_file():
        return read_jsonl(path, name=path.stem)
    close = difflib.get_close_matches(str(name_or_path), BUILTIN, n=3)
    fix = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"name one of {', '.join(BUILTIN)}, a folder or a .jsonl file"
    )
    raise UsageError("golden set not found", field="golden", value=str(name_or_path), fix=fix)


def read_jsonl(path: Path, *, name: str) -> GoldenSet:
    """Read a set from `path`; images are found relative to its folder.

    Raises:
        UsageError: the first thing that is wrong, with its line number.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", field=str(path), fix="save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path)) from error
    images: dict[Path, ImageRef] = {}
    first_line: dict[str, int] = {}
    items: list[GoldenItem] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}:{number}"
        item = _parse_item(line, where, path.parent, images)
        if item.id in first_line:
            raise UsageError(
                f"the id is already used on line {first_line[item.id]}",
                field=where,
                value=item.id,
                fix="ids must be unique",
            )
        first_line[item.id] = number
        items.append(item)
    if not items:
        raise UsageError("the golden set has no items", field=str(path), fix="add one JSON object a line")
    return GoldenSet(name, items, source=str(path))


def _parse_item(line: str, where: str, folder: Path, images: dict[Path, ImageRef]) -> GoldenItem:
    """Return the item on one line, or raise a UsageError that names `where`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UsageError(f"broken line, not JSON: {reason}", field=where, fix="one JSON object a line") from error
    if not isinstance(row, dict):
        raise UsageError("not a JSON object", field=where, fix='write {"id": ..., "image": ..., ...}')
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        raise UsageError(f"missing {', '.join(missing)}", field=where, fix="add it")
    unknown = sorted(row.keys() - _KNOWN)
    if unknown:
        raise UsageError("unknown key", field=where, value=unknown[0], fix=f"known keys: {', '.join(sorted(_KNOWN))}")
    for key in ("id", "image", "question", "category", "split"):
        if key in row and (not isinstance(row[key], str) or not row[key].strip()):
            raise UsageError(f"{key} must be a non-empty string", field=where, value=row[key])
    if row.get("split", "test") not in SPLITS:
        raise UsageError("unknown split", field=where, value=row["split"], fix=f"one of {', '.join(SPLITS)}")
    tags = row.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(v, str) for v in tags.values()):
        raise UsageError("tags must be an object of strings", field=where, value=tags)
    evidence, labels = row.get("evidence", []), row.get("labels", [])
    if not isinstance(evidence, list) or not all(isinstance(v, str) and normalize(v) for v in evidence):
        raise UsageError("evidence must be a list of phrases", field=where, value=evidence)
    if not isinstance(labels, list) or not all(v is None or (isinstance(v, str) and v.strip()) for v in labels):
        raise UsageError("labels must be a list of strings or null", field=where, value=labels)
    rule, options = _parse_accept(row.get("accept", {"rule": "normalized"}), row["expected"], where)
    return GoldenItem(
        id=row["id"],
        image=_image(row["image"], where, folder, images),
        question=row["question"],
        category=row.get("category", "all"),
        expected=row["expected"],
        rule=rule,
        options=options,
        split=row.get("split", "test"),
        tags=tags,
        evidence=tuple(evidence),
        labels=tuple(labels),
    )


def _parse_accept(accept: Any, expected: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(accept, dict) or not isinstance(accept.get("rule"), str):
        raise UsageError(
            "accept must be an object with a rule", field=where, value=accept, fix='{"rule": "normalized"}'
        )
    options = {key: value for key, value in accept.items() if key != "rule"}
    rule = RULES.get(accept["rule"])
    if rule is None:
        raise UsageError("unknown acceptance rule", field=where, value=accept["rule"], fix=f"one of {', '.join(RULES)}")
    unknown = sorted(options.keys() - rule.known_options)
    if unknown:
        known = ", ".join(sorted(rule.known_options)) or "none"
        raise UsageError(
            f"rule {rule.name} has no option of this name", field=where, value=unknown[0], fix=f"options: {known}"
        )
    problem = rule.validate(expected, options)
    if problem is not None:
        raise UsageError(problem, field=where, value=expected)
    # The label itself must be acceptable, otherwise the set can never be answered right.
    own = json.dumps(expected) if rule.name == JsonFields.name else str(expected)
    if expected is not None and not isinstance(expected, list) and not rule.check(own, expected, options):
        raise UsageError(
            "the expected answer is outside its own acceptable range",
            field=where,
            value=expected,
            fix="correct accept or expected",
        )
    return rule.name, options


def _image(name: str, where: str, folder: Path, images: dict[Path, ImageRef]) -> ImageRef:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(
            "the image must lie in the set's own folder", field=where, value=name, fix="use a relative path"
        )
    path = folder / path
    if path not in images:
        try:
            images[path] = ImageRef.open(path)
        except ValueError as error:
            raise UsageError(str(error), field=where, value=name, fix="add the file or remove the line") from error
    return images[path]
