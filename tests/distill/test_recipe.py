"""The recipe: closed, described, and one clear error for whatever is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill.recipe import load_recipe, recipe_schema
from distill.recipe.load import parse_recipe
from models.support.errors import UsageError

LEAST: dict[str, Any] = {
    "name": "shapes",
    "task": {"description": "Name the shape."},
    "data": {"rows": "rows.jsonl"},
    "teachers": [{"name": "mini", "model": "openai/gpt-4o-mini"}],
    "budget": {"max_usd": "5.00"},
}


def with_value(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(LEAST)
    *parents, last = path.split(".")
    at: Any = data
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[int(last) if isinstance(at, list) else last] = value
    return data


def test_the_least_recipe_has_the_promised_defaults() -> None:
    recipe = parse_recipe(LEAST)
    assert recipe.data.max_synthetic_share == 0.3 and recipe.data.max_broken_rows == 0
    assert str(recipe.budget.max_usd) == "5.00" and recipe.teachers[0].licence.training == "unclear"


@pytest.mark.parametrize(
    ("path", "value", "field", "fix"),
    [
        ("taks", {}, "taks", "did you mean 'task'?"),
        ("budget.max_used", "5", "budget.max_used", "did you mean 'max_usd'?"),
        ("teachers.0.sample", 3, "teachers.0.sample", "did you mean 'samples'?"),
        ("filters.agreement.min_shares", 0.5, "filters.agreement.min_shares", "did you mean 'min_share'?"),
        ("filters.dedup", {}, "filters.dedup", "known here: "),
        ("task.units", {"total": {"unti": "kg"}}, "task.units.total.unti", "did you mean 'unit'?"),
        ("budget.rounds", {"probe": {"kindd": "nearest"}}, "budget.rounds.probe.kindd", "did you mean 'kind'?"),
    ],
)
def test_a_typo_names_the_field_and_the_closest_name(path: str, value: Any, field: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(with_value(path, value), where="r.yaml")
    assert caught.value.field == f"r.yaml: {field}" and str(caught.value.fix).startswith(fix)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("budget.max_usd", "0", "must be above 0"),
        ("budget.max_usd", 0, "must be above 0"),
        ("budget.max_usd", "-1", "must not be negative"),
        ("budget.max_usd", 5.5, "quoted decimal text"),
        ("budget.max_usd", "NaN", "finite"),
        ("budget.max_usd", "much", "not a decimal number"),
        ("data.max_synthetic_share", 1.5, "less than or equal to 1"),
        ("name", "../x", "letters, digits"),
        ("student.model", "qwen2.5-vl-3", "unknown model; did you mean"),
        ("student.model", "whisper-large-v3", "it takes no pictures"),
        ("teachers", [], "at least 1"),
        ("teachers", [{"name": "a", "model": "m"}] * 2, "two teachers are called 'a'"),
        ("filters.agreement", {"min_teachers": 2}, "there are 1 teachers"),
        ("task.answer_schema", {"type": "strng"}, "not a JSON Schema"),
        ("task.accept", {"rule": "near"}, "rule must be one of"),
        ("task.accept", {"rule": "numeric", "abss": 1}, "no option 'abss'"),
        ("task.units", {"t": {"minimum": 2, "maximum": 1}}, "minimum is above maximum"),
        ("task.units", {"t": {"unit": "kg", "others": {"g": 0}}}, "must be above 0"),
        ("teachers.0.licence", {"training": "forbidden"}, "must not train a model"),
        ("teachers.0.price", {"input": "1", "output": "1"}, "is for a self-hosted model"),
        ("budget.rounds", {"probe": {"kind": "command"}}, "command is given if"),
    ],
)
def test_bad_values(path: str, value: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_recipe(with_value(path, value))
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(UsageError, match="budget: is missing"):
        parse_recipe({k: v for k, v in LEAST.items() if k != "budget"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nname: b\n", r"r.yaml:2: not a YAML recipe: the key 'name' is written twice"),
        ("name: [", "not a YAML recipe"),
        ("just text", "must be a mapping"),
        ("? [a]\n: 1\n", "a key must be text"),
        ("!!python/object:os.system {}", "not a YAML recipe"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=says):
        load_recipe(tmp_path / "r.yaml")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read: No such file"):
        load_recipe(tmp_path / "none.yaml")


def fields(schema: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for title, part in {"Recipe": schema, **schema["$defs"]}.items():
        for name, field in part["properties"].items():
            yield f"{title}.{name}", field


def test_schema_describes_every_field_and_takes_what_the_reader_takes() -> None:
    schema = recipe_schema()
    found = dict(fields(schema))
    assert len(found) > 60
    assert [name for name, field in found.items() if len(field.get("description", "")) < 8] == []
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(LEAST, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(with_value("taks", {}), schema)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=8), s, max_size=3),
)
PLACES = ["name", "task", "data.rows", "teachers.0", "budget.max_usd", "filters", "task.accept"]


@given(ANYTHING, st.sampled_from(PLACES))
def test_anything_is_a_recipe_or_one_error(value: Any, path: str) -> None:
    try:
        parse_recipe(with_value(path, value))
    except UsageError as error:
        assert error.field


def test_a_file_reads_as_its_data(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(LEAST))
    assert load_recipe(tmp_path / "r.yaml") == parse_recipe(LEAST)
