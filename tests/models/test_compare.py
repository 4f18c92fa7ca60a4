"""Paired comparison of two evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fovea
from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.compare import compare, read_evaluation, verdict
from models.evaluation.scorecard import scorecard
from models.golden import load_golden
from models.registry import open_registry
from models.registry.governance import checklist
from models.support.errors import UsageError
from tests.models.openai_simulator import OpenAISimulator, Reply
from tests.models.registry.conftest import checkpoint

GOLDEN = load_golden("easy-vqa")
ITEMS = {(i.question, i.image_bytes()): i for i in GOLDEN.items}


def run(out: Path, wrong: Any, **changes: Any) -> Path:
    """Evaluate a simulated model that is wrong on the items that `wrong` picks."""

    def answer(question: str, image: bytes) -> Reply:
        item = ITEMS[question, image]
        return ("nothing" if wrong(item) else item.expected), 0.9

    with OpenAISimulator(answer) as sim:
        values: dict[str, Any] = {
            "url": sim.url,
            "model": "sim",
            "golden": "easy-vqa",
            "out": out,
            "limit": 600,
            "seed": 1,
        }
        evaluate(EvaluationSettings(**(values | changes)))
    return out


def number(item: Any) -> int:
    return int(item.id[1:])


def test_counts_by_hand(tmp_path: Path) -> None:
    first = read_evaluation(run(tmp_path / "a", lambda i: number(i) % 10 == 0))
    second = read_evaluation(
        run(tmp_path / "b", lambda i: number(i) % 10 == 0 or (i.category == "color" and number(i) % 2))
    )
    result = compare(first, second)
    items = GOLDEN.sample(600, 1)
    a = [number(i) % 10 != 0 for i in items]
    b = [ok and not (i.category == "color" and number(i) % 2) for i, ok in zip(items, a, strict=True)]
    lost = sum(x and not y for x, y in zip(a, b, strict=True))
    assert result["items"] == 600
    assert result["mcnemar"]["only_first"] == lost == len(result["flips"]["lost"]) and result["flips"]["won"] == []
    assert result["difference"]["value"] == pytest.approx((sum(b) - sum(a)) / 600)
    assert result["difference"]["low"] < result["difference"]["value"] < result["difference"]["high"] < 0
    assert result["by_category"]["shape"]["difference"]["value"] == 0
    assert result["by_category"]["color"]["difference"]["value"] < -0.3
    assert sum(g["first"]["n"] for g in result["by_category"].values()) == 600
    assert result["flips"]["changed_answer"]["value"] == lost / 600
    holds, text = verdict(result, 0.01)
    assert not holds and "not shown to be within a drop of 1 points" in text
    assert verdict(result, 0.5)[0] and verdict(result, None)[0]
    assert [result[side]["model"] for side in ("first", "second")] == ["sim (a)", "sim (b)"]


def test_equal_models_are_not_told_apart(tmp_path: Path) -> None:
    one = read_evaluation(run(tmp_path / "a", lambda i: number(i) % 7 == 0))
    result = compare(one, one)
    assert (
        result["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 600}
        and result["mcnemar"]["p_value"] == 1.0
    )


def test_only_common_items_count(tmp_path: Path) -> None:
    first = read_evaluation(run(tmp_path / "a", lambda i: False, limit=300))
    second = read_evaluation(run(tmp_path / "b", lambda i: False, limit=300, seed=2))
    common = {i.id for i in GOLDEN.sample(300, 1)} & {i.id for i in GOLDEN.sample(300, 2)}
    assert compare(first, second)["items"] == len(common) > 0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a", lambda i: False), run(tmp_path / "b", lambda i: i.category == "shape")
    words = ["models", "compare", str(a), str(b), "--out", str(tmp_path / "c")]
    assert fovea.main([*words, "--max-drop", "0.02"]) == 1
    assert "shape" in capsys.readouterr().out
    assert fovea.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "c" / "report.json").read_text())
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Points lost by category" in page and "data:image/png;base64," in page
    assert fovea.main([*words, "--max-drop", "3"]) == 2
    assert fovea.main(["models", "compare", str(a), str(tmp_path)]) == 2
    assert "holds no finished evaluation" in capsys.readouterr().err


def test_another_golden_set_is_refused(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda i: False, limit=5)
    report = json.loads((a / "report.json").read_text())
    report["golden"]["digest"] = "0" * 64
    b = tmp_path / "b"
    b.mkdir()
    (b / "answers.jsonl").write_bytes((a / "answers.jsonl").read_bytes())
    (b / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="the golden sets differ"):
        compare(read_evaluation(a), read_evaluation(b))
    with pytest.raises(UsageError, match="has changed since"):
        compare(read_evaluation(b), read_evaluation(b))


class TestScorecard:
    def folders(self, tmp_path: Path) -> list[Path]:
        good = run(tmp_path / "good", lambda i: False, limit=200)
        return [run(tmp_path / "bad", lambda i: number(i) % 2 == 0, limit=200), good]

    def test_order_scores_and_domination(self, tmp_path: Path) -> None:
        bad, good = (read_evaluation(f) for f in self.folders(tmp_path))
        result = scorecard([bad, good], {"accuracy": 0.75, "availability": 0.25})
        first, second = result["candidates"]
        assert first["folder"] == str(good.folder) and first["scores"] == {"accuracy": 1.0, "availability": 1.0}
        assert first["total"] == 1.0 and first["dominated_by"] == []
        wrong = sum(number(i) % 2 == 0 for i in GOLDEN.sample(200, 1)) / 200
        assert second["total"] == pytest.approx(0.75 * (1 - wrong) + 0.25) and second["dominated_by"] == ["sim"]
        assert result["units"] == {"accuracy": "share right", "availability": "share answered"}

    def test_less_is_better_and_missing_is_not_good(self, tmp_path: Path) -> None:
        bad, good = (read_evaluation(f) for f in self.folders(tmp_path))
        bad.report["latency_ms"]["p95"]["value"], good.report["latency_ms"]["p95"]["value"] = 10.0, 40.0
        rows = scorecard([bad, good], {"latency_p95": 1.0})["candidates"]
        assert [r["scores"]["latency_p95"] for r in rows] == [1.0, 0.25]
        rows = scorecard([bad, good], {"usd_per_1k": 0.5, "robustness": 0.5})["candidates"]
        assert all(r["total"] == 0 and r["missing"] == ["usd_per_1k", "robustness"] for r in rows)

    def test_versions_are_weighed_by_their_governance_too(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A card and a licence lift one version above an equal one; slices by language are read from the reports."""
        registry = open_registry(tmp_path / "store", tmp_path / "cache")
        folders = self.folders(tmp_path)
        held = {}
        for folder, content in zip(folders, (b"1" * 8, b"2" * 8), strict=True):
            source = checkpoint(tmp_path / content.decode(), content)
            if content[:1] == b"2":
                (source / "README.md").write_text("card")
            version = registry.register(source, "m", by="ada", licence="MIT" if content[:1] == b"2" else None)
            report = json.loads((folder / "report.json").read_text())
            report["target"] = {"name": "m", "version": version.number, "digest": version.digest}
            report["by_tag"] = {"language=en": {"value": 0.8}, "language=de": {"value": 0.6}}
            report["explanation"] = {"right_for_the_right_reason": {"value": 0.7}}
            (folder / "report.json").write_text(json.dumps(report))
            rows = checklist(registry, version)
            held[str(folder)] = sum(row["holds"] for row in rows) / len(rows)
        words = ["models", "scorecard", *map(str, folders), "--store", str(tmp_path / "store"), "--json"]
        assert fovea.main(words) == 0
        result = json.loads(capsys.readouterr().out)
        assert {"governance", "languages", "explanation"} <= set(result["weights"])
        values = {row["folder"]: row["values"] for row in result["candidates"]}
        assert {folder: value["governance"] for folder, value in values.items()} == held
        assert held[str(folders[1])] > held[str(folders[0])] > 0
        assert all(v["languages"] == pytest.approx(0.75) and v["explanation"] == 0.7 for v in values.values())
        assert (
            fovea.main([*words[:-2], str(tmp_path / "none"), "--json"]) == 0
        )  # a registry that does not know them gives no figure
        assert "governance" not in json.loads(capsys.readouterr().out)["weights"]

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folders = [str(f) for f in self.folders(tmp_path)]
        weights = tmp_path / "w.yaml"
        weights.write_text("accuracy: 3\nlatency_p95: 1")
        assert fovea.main(["models", "scorecard", *folders, "--weights", str(weights), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["weights"] == {"accuracy": 0.75, "latency_p95": 0.25}
        assert fovea.main(["models", "scorecard", *folders]) == 0
        out = capsys.readouterr().out
        # nobody has a price or a damaged slice, so that neither is weighed
        assert "accuracy (25%)" in out and "usd_per_1k" not in out
        for text, message in (
            ("speed: 1", "unknown dimension"),
            ("accuracy: -1", "0 or more"),
            ("accuracy: 0", "all weights are 0"),
            ("[", "not YAML"),
            ("- 1", "must be dimension: weight"),
        ):
            weights.write_text(text)
            assert fovea.main(["models", "scorecard", *folders, "--weights", str(weights)]) == 2
            assert message in capsys.readouterr().err
        assert fovea.main(["models", "scorecard", folders[0]]) == 2
        assert "at least two" in capsys.readouterr().err


def test_fields_of_json_answers(tmp_path: Path) -> None:
    """The receipts, answered with the truth but for the currency."""
    receipts = {i.image_bytes(): i for i in load_golden("receipts").items}

    def answer(question: str, image: bytes) -> Reply:
        expected = receipts[image].expected
        return (json.dumps(expected | {"currency": "XXX"}) if expected else "Not a receipt."), 0.9

    with OpenAISimulator(answer) as sim:
        report = evaluate(EvaluationSettings(url=sim.url, model="sim", golden="receipts", out=tmp_path, max_tokens=200))
    assert report["by_field"]["currency"]["value"] == 0.0
    assert all(report["by_field"][f]["value"] == 1.0 for f in ("merchant", "date", "items", "total"))
    assert report["by_category"]["wrong_page"]["value"] == 1.0 and report["accuracy"]["value"] == 20 / 240
    assert report["by_tag"]["perturbation=blur"]["n"] == 20
