"""The documentation's own recipe and rows are taken as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from distill.filters.base import FILTERS, ORDER, filters_in_order
from distill.recipe.load import parse_recipe
from distill.rows import HumanLabel, Row

TEXT = (Path(__file__).resolve().parents[2] / "docs/distill.md").read_text()


def test_the_recipe() -> None:
    sections = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
    recipe = parse_recipe({key: value for one in sections for key, value in one.items()})
    assert recipe.budget.rounds is not None and recipe.filters.balance is not None
    assert recipe.train is not None and recipe.evaluate is not None and recipe.export is not None


def test_the_rows() -> None:
    row, human = re.findall(r"```\n(\{.*?\})\n```", TEXT)
    assert Row.model_validate_json(row).id == HumanLabel.model_validate_json(human).id == "r-1"


def test_every_filter_is_described_in_its_order() -> None:
    titles = re.findall(r"^\| ([A-Z][\w ]+) \|", TEXT, re.MULTILINE)
    assert titles == [entry.title for entry in filters_in_order().values()]
    assert sorted(ORDER) == sorted(FILTERS)
