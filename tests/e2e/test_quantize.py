"""Quantization with the real tools: llm-compressor in its own environment, vLLM on the result, the gate on both.

These need `.venv-quantize` (`make setup-quantize`); without it they are skipped, and say so.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fovea import main
from models.golden import GoldenSet, load_golden
from models.golden.sets import export
from models.registry import Policy, open_registry
from models.registry.schema import Requirement
from models.support.errors import CheckFailed
from quantize import artifact
from quantize.calibration import draw
from quantize.hardware import find_machine, load_table
from quantize.request import JobRequest, JobResult
from quantize.runner import FOLDER, read_reply
from quantize.schemes import choose_group, find_scheme
from quantize.scope import plan_scope
from tests.quantize.checkpoints import EMBEDDED, ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (FOLDER / "fovea-setup.json").exists(), reason="no .venv-quantize: run make setup-quantize"),
]
# speed is not looked at here: nothing is compiled
EAGER = "--engine-args=--enforce-eager"
SAMPLES, GOLDEN, JOB_ITEMS = 64, 600, 16


def fovea_quantize(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "fovea.py"), "quantize", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Job:
    """One job on an embedded checkpoint."""

    family: str
    scheme: str
    method: str
    vision: bool = False

    def request(self, work: Path, calibration: Path) -> JobRequest:
        staged = work / "staged"
        staged.mkdir(parents=True)
        kind, scope = find_scheme(self.scheme), plan_scope(EMBEDDED / self.family, vision=self.vision)
        return JobRequest(
            model=EMBEDDED / self.family, staging=staged, architecture=scope.architecture, scheme=self.scheme,
            tool="llmcompressor", method=self.method, group=choose_group(kind, scope.widths, None),
            expected=sorted(scope.expected), kept=scope.kept, ignore=scope.ignore, forced=scope.forced,
            calibration=calibration if kind.needs_calibration(self.method) else None,
        )  # fmt: skip


W8A8, AWQ = Job("paligemma", "w8a8", "gptq"), Job("paligemma", "w4a16", "awq")
TOWER, REFUSED = Job("qwen2_5_vl", "fp8", "rtn", vision=True), Job("qwen2_5_vl", "w8a8", "rtn")

# the jobs one after the other in one process: its imports take longer than a job; before the last of them the kernel is
# told to refuse files beyond a megabyte
ONE_PROCESS = """
import resource, sys
from quantize.job import main
for work in sys.argv[1:]:
    if work == sys.argv[-1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    main([f"{work}/request.json", f"{work}/reply.json"])
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Path]:
    """The folder of each job, with its reply."""
    folder = tmp_path_factory.mktemp("jobs")
    chosen = draw("easy-vqa-train", 32, 0).items[:JOB_ITEMS]
    export(GoldenSet("calibration", chosen, source="easy-vqa-train"), folder / "calibration")
    found = {job: folder / str(number) for number, job in enumerate((W8A8, AWQ, TOWER, REFUSED))}
    for job, work in found.items():
        work.mkdir()
        (work / "request.json").write_text(job.request(work, folder / "calibration").model_dump_json())
    words = [str(FOLDER / "bin" / "python"), "-c", ONE_PROCESS, *map(str, found.values())]
    done = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def result_of(work: Path) -> JobResult:
    return read_reply(work / "reply.json", 0, work / "job.log")


@pytest.mark.parametrize(("job", "worst", "ratio"), [(W8A8, 0.03, 0.52), (AWQ, None, 0.27)])
def test_the_file_is_what_was_asked_for(jobs: dict[Job, Path], job: Job, worst: float | None, ratio: float) -> None:
    result = result_of(jobs[job])
    done = [m for m in result.modules if m.quantized]
    kept = [m for m in result.modules if not m.quantized]
    assert len(done) == 28 and {m.part for m in done} == {"language"}
    assert {m.part for m in kept} == {"vision", "projector"} and all(m.error == 0.0 for m in kept)
    assert result.quantized_bytes_after / result.quantized_bytes_before <= ratio
    if worst is None:
        assert result.changed and all("layernorm" in name for name in result.changed)
    else:
        errors = [m.error for m in done]
        assert all(e is not None and 0 < e < worst for e in errors)
        assert result.changed == []
    assert result.calibration is not None
    assert result.calibration.image_tokens == {64: JOB_ITEMS}


def test_the_tower_is_quantized_only_by_force(jobs: dict[Job, Path]) -> None:
    result = result_of(jobs[TOWER])
    done = [m for m in result.modules if m.quantized]
    assert {m.part for m in done} == {"language", "vision"}
    assert {m.part for m in result.modules if not m.quantized} == {"projector"}
    assert all(m.error is not None and 0 < m.error < 0.05 for m in done) and result.changed == []


def test_a_disk_that_refuses_is_one_error(jobs: dict[Job, Path]) -> None:
    with pytest.raises(CheckFailed, match=r"cannot save: File too large.*free space"):
        result_of(jobs[REFUSED])


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["run", "embedded:qwen2_5_vl", "--calibration", "easy-vqa-train", "--samples", "256", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "fovea.py"), "quantize", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "loading the checkpoint" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []


@dataclass
class Made:
    """What one `fovea quantize run` left: the checkpoint, the gate's report, the registry."""

    out: Path
    report: dict[str, Any]
    store: Path


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """From the embedded 16-bit checkpoint to a gated INT4 version in the registry, by one command."""
    folder = tmp_path_factory.mktemp("quantized")
    words = ["run", "embedded:qwen2_5_vl", "--scheme", "w4a16", "--calibration", "easy-vqa-train", EAGER]
    words += ["--samples", str(SAMPLES), "--golden", "easy-vqa", "--limit", str(GOLDEN), "--usd-per-hour", "1"]
    words += ["--out", str(folder / "w4a16-gptq"), "--register", "fovea-qwen"]
    words += ["--store", str(folder / "registry"), "--by", "tester"]
    done = fovea_quantize(*words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["registered"] == {
        "parent": "fovea-qwen@1",
        "version": "fovea-qwen@2",
        "store": str(folder / "registry"),
    }
    report = json.loads((folder / "w4a16-gptq-gate" / "report.json").read_text())
    assert report == told["gate"]
    return Made(folder / "w4a16-gptq", report, folder / "registry")


def test_the_command_makes_a_checkpoint_that_answers(int4: Made) -> None:
    manifest = artifact.read_manifest(int4.out)
    done = [m for m in manifest["modules"] if m["quantized"]]
    assert len(done) == 28 and all(m["part"] == "language" and 0 < m["error"] < 0.25 for m in done)
    assert manifest["size"]["quantized_ratio"] <= 0.28
    assert manifest["calibration"]["processor"]["image_tokens"] == {"16": SAMPLES}
    assert manifest["files"] == artifact.files_of(int4.out)
    assert manifest["parent"]["files"] == artifact.files_of(EMBEDDED / "qwen2_5_vl")
    accepted = manifest["accepted"]
    assert accepted["prompt_tokens"] == accepted["calibration_prompt_tokens"]
    first = manifest["calibration"]["processor"]["first_item"]
    item = next(i for i in draw("easy-vqa-train", SAMPLES, 0).items if i.id == first)
    assert item.question == accepted["question"] and item.check(accepted["answer"])
    # the kernel that the table promises for this machine: `CPUWNA16LinearKernel (vec)`
    wanted = load_table().row("w4a16", find_machine("here")).kernel.split()[0]
    assert set(accepted["kernels"].values()) == {wanted}
    assert not [p for p in int4.out.parent.iterdir() if p.name.startswith(".")]


def test_the_gate_decides_on_what_is_served(int4: Made) -> None:
    report = int4.report
    assert report["verdict"]["outcome"] == "pass"
    assert report["golden"]["asked"] + report["golden"]["excluded"] == GOLDEN
    parent, candidate = report["sides"]["parent"], report["sides"]["candidate"]
    assert parent["accuracy"]["value"] > 0.95 and candidate["accuracy"]["value"] > 0.9
    assert report["recovery"]["low"] <= report["recovery"]["value"] <= report["recovery"]["high"]
    assert set(report["by_category"]) == {"color", "shape", "yes_no"}
    assert 0 < report["divergence_nats"]["value"] < 1 and report["divergence_nats"]["n"] == 200
    assert candidate["bytes"] < parent["bytes"]
    assert candidate["usd_per_query"] == pytest.approx(1 / 3600 / candidate["requests_per_s"])
    assert parent["picture"]["n"] > 100 and parent["kv_tokens"] > 2048
    assert candidate["bytes_by_part"]["language"] < 0.3 * parent["bytes_by_part"]["language"]
    assert candidate["bytes_by_part"]["vision"] == parent["bytes_by_part"]["vision"] > 0
    page = (int4.out.with_name("w4a16-gptq-gate") / "report.html").read_text()
    assert "<b>Pass</b>" in page and "layers.0.mlp.down_proj" in page


def test_the_version_knows_its_parent_and_its_reports(int4: Made) -> None:
    registry = open_registry(int4.store)
    version = registry.find("fovea-qwen@2")
    assert version.parent == "fovea-qwen@1" and version.files["model.safetensors"].sha256
    reports = registry.state("fovea-qwen").reports
    assert reports[2][-1]["accuracy"]["n"] == GOLDEN == reports[1][-1]["accuracy"]["n"]
    assert registry.verify(["fovea-qwen"]) == []


def test_live_goes_back_to_the_parent(int4: Made) -> None:
    registry = open_registry(int4.store)
    registry.set_policy("fovea-qwen", Policy(require=[Requirement(golden="easy-vqa", min_accuracy=0.9, max_drop=0.03)]))
    for ref in ("fovea-qwen@1", "fovea-qwen@2"):
        registry.promote(ref, "canary", by="tester")
        registry.promote(ref, "live", by="tester")
    assert registry.find("fovea-qwen@live").ref == "fovea-qwen@2"
    registry.rollback("fovea-qwen", by="tester")
    assert registry.find("fovea-qwen@live").ref == "fovea-qwen@1"


def test_the_ladder_refuses_a_broken_rung_names_its_category_and_takes_the_next(int4: Made) -> None:
    # what the command above made and measured is taken up, so that one engine is started, for the broken rung
    folder = int4.out.parent
    words = ["ladder", "embedded:qwen2_5_vl", "--rungs", "w2-trial,w4a16:gptq", "--out", str(folder), EAGER]
    words += ["--register", "ladder", "--store", str(folder / "ladder-registry"), "--by", "tester"]
    done = fovea_quantize(*words, "--golden", "easy-vqa", "--limit", str(GOLDEN), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("parent: measured before") == 2 and "starting vLLM" not in done.stderr
    told = json.loads(done.stdout)
    assert told["registered"]["version"] == "ladder@2" and told["registered"]["parent"] == "ladder@1"
    assert told["passed"] == "w4a16-gptq" and [s["outcome"] for s in told["steps"]] == ["fail", "pass"]
    report = json.loads((folder / "w2-trial-rtn-gate" / "report.json").read_text())
    failed = report["verdict"]["failed_categories"]
    assert failed and f"categories that failed: {', '.join(failed)}" in told["steps"][0]["sentence"]
    assert report["sides"]["candidate"]["accuracy"]["value"] < report["sides"]["parent"]["accuracy"]["value"]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back what a command's own SIGTERM handler replaced in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run", "embedded:qwen2_5_vl", "--out", "{out}"], 2, "calibration: gptq needs pictures"),
        (["run", "embedded:qwen3", "--out", "{out}"], 2, "no such embedded model"),
        (
            ["run", "embedded:qwen2_5_vl", "--scheme", "w8a8", "--target", "B200", "--out", "{out}"],
            2,
            "use --scheme fp8",
        ),
        (["run", "embedded:qwen2_5_vl", "--scheme", "w3", "--out", "{out}"], 2, "unknown scheme"),
        (["run", "embedded:qwen2_5_vl", "--group", "128", "--method", "rtn", "--out", "{out}"], 2, "does not divide"),
        (["gate", "embedded:qwen2_5_vl", "{here}", "--golden", "easy-vqa", "--out", "{out}"], 2, "no checkpoint"),
        (
            ["ladder", "embedded:qwen2_5_vl", "--golden", "easy-vqa", "--rungs", "w4a16:x", "--out", "{out}"],
            2,
            "method",
        ),
        (["advise", "qwen2.5-vl-7b"], 2, "which GPU"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], handlers: None, words: list[str], code: int, told: str
) -> None:
    assert main(["quantize", *[w.format(out=tmp_path / "out", here=tmp_path) for w in words]]) == code
    said = capsys.readouterr().err
    assert told in said and len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_golden_items_whose_picture_was_calibrated_on_are_left_out() -> None:
    seen = {i.image.digest for i in draw("easy-vqa", 256, 0).items}
    left = [i for i in load_golden("easy-vqa").items if i.image.digest not in seen]
    assert 0 < len(left) < 9673
