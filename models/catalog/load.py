"""Read the catalog and find what a user means by a name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models.catalog.schema import Family, Variant
from models.support.errors import UsageError

FOLDER = Path(__file__).parent


def _key(name: str) -> str:
    """`Qwen/Qwen2.5-VL-7B-Instruct` and `qwen2_5_vl 7b` compare equal to `qwen2.5-vl-7b`."""
    plain = name.strip().casefold().rsplit("/", 1)[-1]
    return re.sub(r"[\s._\-]+", "", re.sub(r"-(instruct|it|hf)\b", "", plain))


@dataclass(frozen=True)
class Catalog:
    """All families, by the name of their file."""

    families: tuple[Family, ...]

    def variants(self) -> Iterator[tuple[Family, Variant]]:
        """Every checkpoint with its family."""
        for family in self.families:
            for variant in family.variants:
                yield family, variant

    def find(self, name: str) -> tuple[Family, Variant | None]:
        """Return the family, and the variant where `name` is one (its name, its hub id, or its hub id's last part).

        Raises:
            UsageError: unknown; the closest names are offered.
        """
        wanted = _key(name)
        for family in self.families:
            if wanted in {_key(family.family), *(_key(alias) for alias in family.aliases)}:
                return family, family.variants[0] if len(family.variants) == 1 else None
        for family, variant in self.variants():
            if wanted in {_key(variant.name), _key(variant.hub or "")} - {""}:
                return family, variant
        raise UsageError("unknown model", field="name", value=name, fix=self._closest(name))

    def variant(self, name: str) -> Variant:
        """Return the variant.  Raises UsageError as `find`, and for a family of several variants (they are named)."""
        family, variant = self.find(name)
        if variant is None:
            names = ", ".join(v.name for v in family.variants)
            raise UsageError("is a family of several checkpoints", field="name", value=name, fix=f"one of {names}")
        return variant

    def _closest(self, name: str) -> str:
        names = {_key(f.family): f.family for f in self.families}
        names |= {_key(alias): f.family for f in self.families for alias in f.aliases}
        names |= {_key(v.name): v.name for _, v in self.variants()}
        wanted = _key(name)
        close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
        close += [key for key in names if len(wanted) >= 3 and wanted in key and key not in close]
        found = list(dict.fromkeys(names[key] for key in close))[:4]
        return f"did you mean {', '.join(found)}?" if found else "`fovea models list` shows the catalog"


def read_family(path: Path) -> Family:
    """Return one file of the catalog.

    Raises:
        UsageError: it cannot be read, is no YAML, or a key is wrong; the error names file, key and value.
    """
    try:
        # the C loader where libyaml is there: the whole catalog is read for every command
        data: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="name an existing file") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise UsageError(f"not YAML: {reason}", field=str(path)) from error
    try:
        return Family.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        value = first["input"] if isinstance(first["input"], str | int | float) else None
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        raise UsageError(reason, field=f"{path.name}: {key}", value=value, fix="correct the file") from error


@lru_cache(maxsize=4)
def load_catalog(folder: Path = FOLDER) -> Catalog:
    """Return every family of `folder`, sorted by role and name.

    Raises:
        UsageError: a file is wrong, or two files use one name.
    """
    families = [read_family(path) for path in sorted(folder.glob("*.yaml"))]
    seen: dict[str, str] = {}
    for family in families:
        own = {_key(name) for name in (family.family, *family.aliases, *(v.name for v in family.variants))}
        for name in own:
            if name in seen:
                raise UsageError(
                    "two files of the catalog use one name", field=name, value=f"{seen[name]}, {family.family}"
                )
            seen[name] = family.family
    order = ["embedded", "vision-language", "speech", "retrieval", "safety"]
    return Catalog(tuple(sorted(families, key=lambda f: (order.index(f.role), f.family))))
