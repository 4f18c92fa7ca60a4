"""The gate from served answers to verdict and page; the engine is a simulator (tests/e2e has the real one)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from models.golden import GoldenItem, load_golden
from models.support.errors import UsageError
from quantize import artifact
from quantize.calibration import describe
from quantize.engine import EngineSettings, Held, Served
from quantize.gate import GateSettings, run_gate
from quantize.gate_report import print_gate
from quantize.gate_rows import rate_at_slo
from quantize.ladder import Rung, step_of
from quantize.ladder_page import write_ladder_page
from quantize.probe import Probe
from tests.models.openai_simulator import OpenAISimulator
from tests.quantize.checkpoints import EMBEDDED, change_config, copy_of

LIMIT = 600


@cache
def known_items() -> dict[tuple[str, str], GoldenItem]:
    return {(i.question, i.image.digest): i for i in load_golden("easy-vqa").items}


class Engines:
    """Stands in for `served`: a simulator per checkpoint, which answers by `wrong` (item -> is it wrong?)."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.searched: list[tuple[str, float]] = []
        self.wrong: dict[str, Callable[[GoldenItem], bool]] = {}
        self.items = known_items()

    @contextmanager
    def served(self, folder: Path, name: str, log: Path, settings: Any = None) -> Iterator[Any]:
        import hashlib

        self.started.append(name)

        def answer(question: str, image: bytes) -> tuple[str, float]:
            item = self.items[(question, hashlib.sha256(image).hexdigest())]
            bad = self.wrong.get(name, lambda item: False)(item)
            return ("nonsense", 0.6) if bad else (str(item.expected), 0.95)

        with OpenAISimulator(answer, model=name) as simulator:
            kernels = {"CompressedTensorsWNA16": "CPUWNA16LinearKernel"}
            yield Served(simulator.url, name, os.getpid(), 1.0, kernels, weights_gib=0.25, kv_tokens=1_048_576)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    found = Engines()
    monkeypatch.setattr("quantize.gate.served", found.served)

    def probed(url: str, name: str, items: list[GoldenItem]) -> Probe:
        logs = {"yes": -0.1 if name == "parent" else -0.2, "no": -2.4 if name == "parent" else -1.8}
        return Probe({i.id: logs for i in items}, [20.0] * 50, [12.0] * 50, [40] * 50)

    def searched(url: str, name: str, golden: str, out: Path, **more: Any) -> dict[str, Any]:
        found.searched.append((name, more["slo_ms"]))
        rate: dict[str, Any] = {"certified_per_s": 40.0, "best_per_s": 45.0, "broken_per_s": 50.0, "reason": None}
        if name == "parent":
            rate = {"certified_per_s": None, "best_per_s": 20.0, "broken_per_s": 25.0, "reason": "a queue grew"}
        return {"slo": "p95", "slo_ms": more["slo_ms"], "confidence": 0.95, **rate}

    monkeypatch.setattr("quantize.gate.probe", probed)
    monkeypatch.setattr("quantize.gate.highest_rate", searched)
    return found


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    folder = copy_of("qwen2_5_vl", tmp_path / "candidate")
    change_config(folder, quantization_config={"quant_method": "compressed-tensors"})
    module = {
        "name": "layers.0.x",
        "part": "language",
        "quantized": True,
        "shape": [2, 2],
        "stored": "I8",
        "error": 0.01,
    }
    manifest = {
        "kind": artifact.KIND, "scheme": "w8a8", "method": "gptq", "group": None, "family": "qwen2.5-vl",
        "parent": {"files": artifact.files_of(EMBEDDED / "qwen2_5_vl")}, "calibration": None,
        "modules": [module], "size": {"quantized_ratio": 0.5, "ratio": 0.7}, "versions": {"job": {"torch": "2"}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def gate(candidate: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings = GateSettings(
        parent="embedded:qwen2_5_vl", candidate=candidate, golden="easy-vqa", out=out, limit=LIMIT, **more
    )
    return run_gate(settings)


def test_an_equal_candidate_passes_when_the_items_suffice(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    report = gate(candidate, tmp_path / "out", usd_per_hour=3.6, slo_ms=1e6)
    assert report["verdict"]["outcome"] == "pass"
    assert report["recovery"]["value"] == 1.0 and report["recovery"]["low"] >= 0.99
    assert report["flips"] == {"lost": [], "won": [], "changed_answer": report["flips"]["changed_answer"]}
    side = report["sides"]["candidate"]
    assert side["within_slo"]["value"] == 1.0 and side["goodput_per_s"] == side["requests_per_s"]
    assert side["usd_per_query"] == pytest.approx(0.001 / side["requests_per_s"])
    assert side["picture"]["picture_ms"] == 8.0 and side["picture"]["share"] == pytest.approx(0.4)
    assert report["divergence_nats"]["value"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("<b>Pass</b>", "Recovery by category", "layers.0.x", "CPUWNA16LinearKernel", "$ per 1,000 queries"):
        assert words in page
    parts = side["bytes_by_part"]
    assert sum(parts.values()) == side["bytes"] and parts["vision"] > parts["projector"] > 0
    tower = f"{parts['vision'] / 1e6:.2f} MB, {100 * parts['vision'] / side['bytes']:.0f} %"
    for words in (tower, "1,048,576 tokens", "0.25 GiB", "40.0 (95 % sure)", "about 20.0, not shown: a queue grew"):
        assert words in page


def test_the_terminal_has_a_row_per_figure(
    engines: Engines, candidate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_gate(gate(candidate, tmp_path / "out", usd_per_hour=3.6, slo_ms=250), tmp_path / "out")
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "about 20.0, not shown: a queue grew" in lines["highest rate with p95 under 250 ms, 1/s"]
    assert lines["$ per 1,000 queries at the highest rate"].split()[-1] == "$0.02500"
    assert "8.0 ms (8.0 to 8.0), 40 % (n = 50)" in lines["of it, the picture"]
    assert lines["engine memory"].count("GiB") == 2
    print_gate(gate(candidate, tmp_path / "out"), tmp_path / "out")
    plain = capsys.readouterr().out
    assert "highest rate" not in plain and "$" not in plain


def test_a_rate_that_nothing_broke_is_a_lower_bound() -> None:
    found = {"certified_per_s": 100.0, "best_per_s": 100.0, "broken_per_s": None, "reason": None, "confidence": 0.95}
    assert rate_at_slo(found) == "100.0 or more: none tried broke it (95 % sure)"
    assert rate_at_slo(found | {"certified_per_s": None, "best_per_s": None, "reason": "late"}) == "none: late"
    assert rate_at_slo(None) == "not measured"


def test_the_highest_rate_is_searched_once_for_each_slo(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    gate(candidate, tmp_path / "out")
    assert engines.searched == []
    report = gate(candidate, tmp_path / "out", slo_ms=500, usd_per_hour=3.6)
    gate(candidate, tmp_path / "out", slo_ms=500)
    assert engines.searched == [("parent", 500), ("candidate", 500)]
    # the answers of the first call are taken up, only the rate is new
    assert engines.started == ["parent", "candidate"] * 2
    assert report["sides"]["candidate"]["usd_per_query_at_slo"] == pytest.approx(0.001 / 40)
    assert report["sides"]["parent"]["usd_per_query_at_slo"] is None
    gate(candidate, tmp_path / "out", slo_ms=250)
    assert engines.searched[2:] == [("parent", 250), ("candidate", 250)]


def test_a_lost_category_fails_and_is_named(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    engines.wrong["candidate"] = lambda item: item.category == "shape"
    report = gate(candidate, tmp_path / "out")
    assert report["verdict"]["outcome"] == "fail"
    assert report["verdict"]["failed_categories"] == ["shape"]
    lost = set(report["flips"]["lost"])
    assert lost == {i.id for i in load_golden("easy-vqa").sample(LIMIT, 0) if i.category == "shape"}
    assert "categories that failed: shape" in (tmp_path / "out" / "report.html").read_text()


def test_the_ladder_s_page_has_every_rung_beside_the_parent(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    reports = [gate(candidate, tmp_path / "good", usd_per_hour=3.6, slo_ms=1e6)]
    engines.wrong["candidate"] = lambda item: item.category == "shape"
    reports.insert(0, gate(candidate, tmp_path / "bad", usd_per_hour=3.6, slo_ms=1e6))
    rungs = [Rung("w2-trial", "rtn"), Rung("w8a8", "gptq")]
    pages = [tmp_path / name / "report.html" for name in ("bad", "good")]
    steps = [step_of(r, candidate, p, report) for r, p, report in zip(rungs, pages, reports, strict=True)]
    result = {"model": "embedded:qwen2_5_vl", "passed": "w8a8-gptq", "steps": steps}
    write_ladder_page(tmp_path / "ladder.html", result, reports)
    page = (tmp_path / "ladder.html").read_text()
    for words in (
        "<b>w8a8-gptq passed</b>",
        "bad/report.html, good/report.html",
        "of it, the vision tower",
        "8.0 ms (8.0 to 8.0), 40 %",
    ):
        assert words in page
    row = page.partition('<td class="text">shape</td>')[2].partition("</tr>")[0]
    assert row.count("100.0 %") == 2 and "0.0 % (failed)" in row
    money = page.partition('<td class="text">$ per 1,000 queries at the highest rate</td>')[2].partition("</tr>")[0]
    assert money.count("$0.02500") == 2 and money.count("<td>") == 3
    write_ladder_page(tmp_path / "none.html", result | {"passed": None, "steps": steps[:1]}, reports[:1])
    assert "<b>None passed</b>" in (tmp_path / "none.html").read_text()


def test_a_few_flips_are_not_enough_to_tell(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    lost = {i.id for i in load_golden("easy-vqa").sample(LIMIT, 0)[:4]}
    engines.wrong["candidate"] = lambda item: item.id in lost
    report = gate(candidate, tmp_path / "out")
    assert report["verdict"]["outcome"] == "not enough items"
    assert set(report["flips"]["lost"]) == lost


def test_what_was_measured_is_not_measured_again(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    first = gate(candidate, tmp_path / "out")
    again = gate(candidate, tmp_path / "out")
    assert engines.started == ["parent", "candidate"]
    assert again["recovery"] == first["recovery"]
    change_config(candidate, quantization_config={"quant_method": "other"})
    gate(candidate, tmp_path / "out")
    assert engines.started == ["parent", "candidate", "candidate"]


def test_a_parent_is_asked_once_for_all_its_candidates(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        gate(candidate, tmp_path / name)
    assert engines.started == ["parent", "candidate", "candidate"]
    # the same content under another name is the same parent; other questions or another engine are not
    copy = copy_of("qwen2_5_vl", tmp_path / "copy")
    settings = GateSettings(str(copy), candidate, "easy-vqa", tmp_path / "c", limit=LIMIT)
    run_gate(settings)
    assert engines.started[3:] == ["candidate"]
    run_gate(replace(settings, limit=400, out=tmp_path / "d"))
    run_gate(replace(settings, engine=EngineSettings(kv_dtype="fp8"), out=tmp_path / "e"))
    assert engines.started[4:] == ["parent", "candidate"] * 2
    run_gate(replace(settings, out=tmp_path / "far" / "f", parents=tmp_path / "parents"))
    assert engines.started[8:] == ["candidate"]


def test_answers_of_the_same_content_elsewhere_are_not_continued(
    engines: Engines, candidate: Path, tmp_path: Path
) -> None:
    settings = GateSettings("embedded:qwen2_5_vl", candidate, "easy-vqa", tmp_path / "out", limit=LIMIT)
    run_gate(settings)
    (place,) = (p for p in (tmp_path / "parents").iterdir() if p.is_dir())
    (place / "side.json").unlink()  # as if it had been interrupted, and begun from another folder
    run = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps(run | {"root": "/elsewhere"}))
    report = run_gate(settings)
    assert engines.started == ["parent", "candidate", "parent"]
    assert report["golden"]["asked"] == LIMIT


def test_an_engine_that_serves_the_candidate_already_is_asked_first_and_ended(
    engines: Engines,
    candidate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("quantize.engine.served", engines.served)
    settings = GateSettings("embedded:qwen2_5_vl", candidate, "easy-vqa", tmp_path / "out", limit=LIMIT)
    told: list[str] = []
    with Held(tmp_path / "log") as held:
        held.start(candidate, "candidate", EngineSettings())
        report = run_gate(settings, told.append, held)
        assert held.engine is None
    assert engines.started == ["candidate", "parent"]
    assert report["verdict"]["outcome"] == "pass"
    assert [line.split(":")[0] for line in told] == ["candidate", "candidate", "parent", "parent", "parent"]
    # what was asked first is not what stands first
    monkeypatch.setitem(report["sides"]["parent"], "weights_gib", 0.5)
    print_gate(report, tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["parent", "candidate"] in lines
    assert ["of", "it,", "weights", "0.50", "GiB", "0.25", "GiB"] in lines


def test_calibrated_pictures_are_left_out(engines: Engines, candidate: Path, tmp_path: Path) -> None:
    sample = load_golden("easy-vqa").sample(LIMIT, 0)
    seen = [sample[0].image.digest, sample[1].image.digest]
    manifest = artifact.read_manifest(candidate)
    golden = load_golden("easy-vqa")
    calibration = describe(golden, [i for i in sample if i.category == "color"], "s", 0) | {"images": seen}
    calibration["megapixels"]["p50"] *= 4
    manifest["calibration"] = calibration | {"processor": {"image_tokens": {"16": 2}}}
    (candidate / "manifest.json").write_text(json.dumps(manifest))
    report = gate(candidate, tmp_path / "out")
    size, categories = report["warnings"]
    assert size.startswith("median picture size of the golden set is 0.004096 megapixels, of the calibration 0.01638")
    assert categories == "categories of the golden set that the calibration lacks: shape, yes_no"
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Warning: {categories}." in page and "megapixels" in page
    left = sum(1 for i in sample if i.image.digest not in seen)
    assert report["golden"]["asked"] == left < LIMIT
    assert report["golden"]["excluded"] == LIMIT - left
    manifest["calibration"]["images"] = [i.image.digest for i in sample]
    (candidate / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="every picture was used to calibrate"):
        gate(candidate, tmp_path / "out")


def test_another_parent_or_no_quantized_checkpoint_is_refused(candidate: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the checkpoint that the candidate was made of"):
        run_gate(GateSettings("embedded:paligemma", candidate, "easy-vqa", tmp_path / "out"))
    with pytest.raises(UsageError, match="was not quantized by fovea"):
        run_gate(GateSettings("embedded:paligemma", EMBEDDED / "paligemma", "easy-vqa", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_price_must_be_one(tmp_path: Path, price: float) -> None:
    with pytest.raises(UsageError, match="must be dollars"):
        GateSettings("embedded:paligemma", tmp_path, "easy-vqa", tmp_path / "out", usd_per_hour=price)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"concurrency": 0}, "concurrency"), ({"limit": 0}, "limit"), ({"max_tokens": 0}, "max_tokens"),
     ({"slo_ms": 0.0}, "slo-ms")],
)  # fmt: skip
def test_what_both_sides_are_asked_is_checked_before_anything_is_served(
    tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        GateSettings("embedded:paligemma", tmp_path, "easy-vqa", tmp_path / "out", **wrong)
