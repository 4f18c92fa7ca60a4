"""Values: one vocabulary with `fovea serve`, closed everywhere, and nothing generated is out of date."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scripts import chart
from scripts.chart_values import Values
from tests.helm.chart import CHART, HELMS, ROOT, template


def test_generated_files_are_in_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert chart.main(["--check"]) == 0, f"run `python -m scripts.chart`: {capsys.readouterr().out}"


def test_the_stack_section_is_what_fovea_serve_reads() -> None:
    command = [sys.executable, str(ROOT / "fovea.py"), "serve", "--schema"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ours = chart.stack_part(json.loads((CHART / "values.schema.json").read_text()))
    assert set(ours["$defs"]) - {"Stack"} == set(printed["$defs"])
    assert {k: v for k, v in ours.items() if k != "$defs"} == {k: v for k, v in printed.items() if k != "$defs"}
    for name, definition in printed["$defs"].items():
        assert ours["$defs"][name] == definition


def objects(node: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object schema with properties of its own."""
    if isinstance(node, dict):
        if "properties" in node and node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}.{key}")
    elif isinstance(node, list):
        for value in node:
            yield from objects(value, path)


def test_the_schema_is_closed_everywhere() -> None:
    found = list(objects(json.loads((CHART / "values.schema.json").read_text())))
    assert len(found) > 30
    assert [path for path, node in found if node.get("additionalProperties") is not False] == []


def test_values_yaml_lists_every_value_with_the_models_default() -> None:
    """What values.yaml says, and what a missing key would mean, are the same; `global` is Helm's own."""
    given = yaml.safe_load((CHART / "values.yaml").read_text())
    required = {key: given[key] for key in ("stack", "workerGroups")}
    default = Values.model_validate(required).model_dump(by_alias=True, exclude_none=True)
    for values in (default, given):
        del values["stack"], values["workerGroups"]
    assert given == {key: value for key, value in default.items() if key != "global"}


TYPOS = [
    ({"replica": 3}, "replica"),
    ({"proxy": {"maxConection": 1}}, "maxConection"),
    ({"stack": {"limts": {}}}, "limts"),
    ({"stack": {"limits": {"bodybytes": 1}}}, "bodybytes"),
    ({"stack": {"models": [{"name": "a", "source": "b", "gpu": 1}]}}, "gpu"),
    ({"observability": {"rules": {"slo": {"p99Seconds": 1}}}}, "p99Seconds"),
    ({"workerGroups": [{"name": "a", "models": ["a"], "resources": {"limit": {}}}]}, "limit"),
]


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(("values", "name"), TYPOS, ids=[name for _, name in TYPOS])
def test_a_typo_fails_with_its_name(version: str, values: dict[str, Any], name: str) -> None:
    done = template(values, version=version)
    assert done.returncode != 0 and name in done.stderr and done.stdout == ""
