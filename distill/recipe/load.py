"""Read a recipe; whatever is wrong with it becomes one error that names the field, the value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from distill.recipe.schema import Recipe
from models.support.errors import UsageError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that is written twice: YAML would keep the last and say nothing."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is written twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_recipe(path: Path | str) -> Recipe:
    """Return the recipe at `path`.

    Raises:
        UsageError: the file cannot be read, is not YAML, or a field is wrong (a misspelt one: closest name).
    """
    file = Path(path)
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="name an existing recipe") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        reason = getattr(error, "problem", None) or type(error).__name__
        raise UsageError(f"not a YAML recipe: {reason}", field=where) from error
    return parse_recipe(data, where=str(path))


def parse_recipe(data: object, *, where: str = "recipe") -> Recipe:
    """Return the recipe in `data`.  Raises UsageError naming the first field at fault."""
    if not isinstance(data, dict):
        raise UsageError("must be a mapping of sections", field=where, value=type(data).__name__, fix="write name: ...")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        # a misspelt key makes the right one missing too: the misspelling is the fault to name
        errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        first = errors[0]
        field = ".".join(str(part) for part in first["loc"])
        fix = None
        if first["type"] == "extra_forbidden":
            known = _fields_at(Recipe, first["loc"][:-1])
            close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
            fix = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        elif first["type"] == "missing":
            fix = "add it"
        message = first["msg"].removeprefix("Value error, ")
        message = {"Extra inputs are not permitted": "unknown field", "Field required": "is missing"}.get(
            message, message[:1].lower() + message[1:]
        )
        value = first["input"] if isinstance(first["input"], str | int | float | bool) else None
        raise UsageError(message, field=f"{where}: {field}" if field else where, value=value, fix=fix) from error


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the field names of the section that lies at `path` below `model`."""
    for part in path:
        info = model.model_fields.get(part) if isinstance(part, str) else None
        if info is None:
            continue  # the index of a list, or the key of a mapping: its section was taken from the annotation
        found = _section_of(info.annotation)
        if found is not None:
            model = found
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section inside an annotation such as `list[Teacher]` or `Judge | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_of(a)) is not None), None)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe (draft 2020-12), every field with its description."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
