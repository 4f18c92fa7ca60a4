"""The tiny checkpoints, the record of what ran, and what the catalog and the docs say about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fovea
from models.catalog import load_catalog
from models.proof import families as _families  # noqa: F401  fills RECIPES
from models.proof.run import RESULTS, known, markdown, prove_all
from models.proof.tiny import RECIPES, merged
from models.proof.worker import reason

ROOT = Path(__file__).resolve().parents[2]
RESULT: dict[str, Any] = json.loads(RESULTS.read_text())


def test_every_architecture_of_the_catalog_has_a_recipe() -> None:
    """The two embedded models are run by every other end-to-end test."""
    catalog = load_catalog()
    needed = {(f.family, v.config.model_class) for f, v in catalog.variants() if f.role != "embedded"}
    has = set()
    for name in RECIPES:
        family, variant = catalog.find(name)
        assert variant is not None and variant.name == name
        has.add((family.family, variant.config.model_class))
    assert has == needed


def test_the_record_is_of_every_recipe_and_says_where_and_when() -> None:
    assert [row["variant"] for row in RESULT["rows"]] == known()
    assert RESULT["weights"] == "random" and RESULT["finished"] and RESULT["hardware"]["cpu"]
    for row in RESULT["rows"]:
        assert row["result"] in ("ran", "refused", "not run"), row
        assert bool(row.get("reason")) is (row["result"] != "ran")


def test_the_catalog_says_ran_small_exactly_where_it_ran() -> None:
    ran = {load_catalog().find(row["variant"])[0].family for row in RESULT["rows"] if row["result"] == "ran"}
    says = {f.family for f in load_catalog().families if f.engine.evidence == "ran-small"}
    assert says == ran


def test_the_table_of_the_docs_is_the_record() -> None:
    assert markdown(RESULT) in (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "gemma-3-4b", "whisper-tiny"])
def test_a_tiny_checkpoint_keeps_its_familys_structure(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer

    RECIPES[name].build(RECIPES[name], tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4 * 2**20
    _, variant = load_catalog().find(name)
    assert variant is not None
    made = json.loads((tmp_path / "config.json").read_text())
    assert made["architectures"] == [variant.config.model_class]
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config).__name__ == variant.config.config_class
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__.startswith(
        type(config).__name__.removesuffix("Config")
    )
    text = "Was kostet das? 42,10 €\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_tiny_checkpoint_is_the_same_every_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        RECIPES["llava-1.5-7b"].build(RECIPES["llava-1.5-7b"], tmp_path / folder)
    one, two = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("a", "b"))
    assert one == two


def test_merged_keeps_what_is_not_named() -> None:
    base = {"text": {"layers": 32, "act": "gelu"}, "tie": True}
    assert merged(base, {"text": {"layers": 2}}) == {"text": {"layers": 2, "act": "gelu"}, "tie": True}
    assert base["text"] == {"layers": 32, "act": "gelu"}


def test_the_reason_is_the_engines_and_names_no_folder(tmp_path: Path) -> None:
    error = ValueError(f"1 validation error\n  Value error, {tmp_path} is not supported. Supported architectures: a, b")
    assert reason(error, tmp_path) == "ValueError: the checkpoint is not supported."
    assert reason(RuntimeError(), tmp_path) == "RuntimeError:"


WORKER = """
import json, sys, os
for name in sys.argv[2:]:
    print(json.dumps({"begin": name}), flush=True)
    if name == "b":
        os.kill(os.getpid(), 9)
    print(json.dumps({"variant": name, "result": "ran"}), flush=True)
"""


def test_a_crash_costs_its_own_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr("models.proof.run.WORKER", [str(script)])
    rows = list(prove_all(["a", "b", "c"], tmp_path))
    assert [(r["variant"], r["result"]) for r in rows] == [("a", "ran"), ("b", "crashed"), ("c", "ran")]
    assert rows[1]["reason"] == "the process ended with -9"


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["models", "prove", "qwen2.5-vl-9b"]) == 2
    assert "has no recipe" in capsys.readouterr().err
