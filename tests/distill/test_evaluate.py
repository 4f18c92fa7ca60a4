"""The comparison: served arms are simulated here (a wire format, no model), everything after their answers is real."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.evaluate import ask as ask_module
from distill.evaluate.arms import Arm, arms_of, checkpoint_digest
from distill.evaluate.cascade import Both, cascade
from distill.evaluate.pictures import hidden, variant
from distill.evaluate.run import evaluate_student
from distill.report import money, write_report
from distill.steps import run_steps
from distill.work import Work, open_work
from models.golden import load_golden
from models.registry import open_registry
from models.support.errors import UsageError
from tests.distill.simulator import COLOURS, colour_of, picture, write_recipe
from tests.distill.training import EMBEDDED, training_work
from tests.models.openai_simulator import OpenAISimulator, Reply
from tests.models.vendor_simulator import Script, VendorSimulator

QWEN = EMBEDDED / "qwen2_5_vl"
N = 60


def golden(folder: Path) -> None:
    """Sixty pictures of squares with the true colour: more than forty, so that there is a cascade."""
    (folder / "truth/pictures").mkdir(parents=True)
    lines = []
    for i in range(N):
        colour = list(COLOURS)[i % 3]
        (folder / f"truth/pictures/{i}.png").write_bytes(picture(colour, i))
        lines.append({"id": f"g{i}", "image": f"pictures/{i}.png", "question": f"Colour of {i}?", "expected": colour,
                      "category": "even" if i % 2 == 0 else "odd"})  # fmt: skip
    (folder / "truth/golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def proof_work(folder: Path, **evaluate: Any) -> Work:
    """A work whose student is already trained: the embedded model stands for it, and its teacher is a folder too."""
    folder.mkdir(exist_ok=True)
    training_work(folder)
    golden(folder)
    student = folder / "out/train/student"
    shutil.copytree(QWEN, student)
    (folder / "out/train/report.json").write_text(json.dumps({"usd": "0.50"} | _trained()))
    section = {"golden": ["truth"], "usd_per_hour": "0.40", "robust_items": 30, "concurrency": 4} | evaluate
    recipe = json.loads(json.dumps(open_work(folder / "recipe.yaml", folder / "out").recipe.model_dump(mode="json")))
    teacher = {"checkpoint": str(EMBEDDED / "paligemma"), "model": "teacher", "vendor_url": None, "api_key_env": None}
    path = write_recipe(folder, "http://127.0.0.1:9", teacher=teacher, student=recipe["student"],
                        train=recipe["train"], evaluate=section)  # fmt: skip
    return open_work(path, folder / "out")


def _trained() -> dict[str, Any]:
    figures: dict[str, Any] = {"rows": 8, "parameters_trained": 10, "parameters": 10, "method": "full"}
    return figures | {"steps": 6, "seconds": 1800.0}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serve arms by simulators: the teacher is always right, the student unsure and wrong where a number ends in 7."""
    started: list[str] = []

    def answer(arm: str, question: str, image: bytes) -> Reply:
        seen = colour_of(image)
        if arm == "teacher":
            return seen, 0.99
        if arm == "base":
            return "red", 0.5
        if seen == "unknown":
            return "red", 0.4
        if arm == "seed-7":
            return ("purple", 0.3) if "8?" in question or "1?" in question else (seen, 0.95)
        return ("purple", 0.3) if "7?" in question else (seen, 0.95)

    @contextmanager
    def address(arm: Arm) -> Iterator[str]:
        started.append(arm.name)
        with OpenAISimulator(lambda q, i: answer(arm.name, q, i), model=arm.model) as sim:
            yield sim.url

    monkeypatch.setattr(ask_module, "address", address)
    return started


def test_everything_is_compared_on_the_same_items(tmp_path: Path, served: list[str]) -> None:
    work = proof_work(tmp_path, variants=["{question} please"], repeats=1)
    report = evaluate_student(work)
    assert served == ["teacher", "base", "student"]
    arms = report["arms"]
    assert arms["teacher"]["accuracy"]["value"] == 1 and arms["student"]["accuracy"]["value"] == 54 / 60
    assert arms["base"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert arms["student"]["parameters"] == 2_930_944 and arms["student"]["digest"] == checkpoint_digest(QWEN)
    against = report["student_against"]
    ratio = against["teacher"]["accuracy_ratio"]
    assert ratio["value"] == 0.9 and ratio["low"] < 0.9 < ratio["high"] and ratio["n"] == N
    compared = against["teacher"]["sets"]["truth"]
    assert compared["difference"]["value"] == pytest.approx(-0.1) and compared["mcnemar"]["only_first"] == 6
    assert compared["by_category"]["odd"]["difference"]["value"] == pytest.approx(-0.2)
    assert compared["by_category"]["even"]["difference"]["value"] == 0
    assert against["base"]["accuracy_ratio"]["value"] == pytest.approx(2.7)
    # hidden: one answer whatever is asked; the true pictures of the same items are right
    shown = report["pictures"]["truth"]
    assert shown["hidden"]["accuracy"]["value"] < 0.7 < shown["hidden"]["with_the_true_picture"]["value"]
    assert sum(f["n"] for f in shown["damaged"]["by_damage"].values()) == 30
    steady = report["consistency"]["truth"]
    assert steady["same_answer"]["value"] == 1 and len(steady["accuracy"]) == 3
    # the cascade passes on what the student is unsure of, which is what it has wrong
    kept = report["cascade"]["kept"]
    assert kept["accuracy"]["value"] >= 0.97 and kept["passed_on"]["value"] < 0.3
    assert report["targets"]["keep"] == {"wanted": 0.97, "measured": 0.9, "holds": False}

    again = evaluate_student(work)
    assert served == ["teacher", "base", "student"]  # nobody was started again
    assert again["arms"]["student"]["accuracy"] == arms["student"]["accuracy"]

    whole = write_report(work)
    page = (tmp_path / "out/report.html").read_text()
    assert whole["money"]["training_usd"] == "0.50" and "missed: accuracy kept" in page
    for words in ("Teacher to student", "Student minus teacher", "Asked again", "items in 3 runs",
                  "Without the picture", "Cascade", "Where they differ", "lost 6, 6 shown", "purple"):  # fmt: skip
        assert words in page
    assert (
        "http:" not in page
        and "https:" not in page
        and "<script" not in page
        and page.count("data:image/jpeg;base64,") == 6
    )


async def test_a_vendors_teacher_is_asked_where_it_is(
    tmp_path: Path, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = proof_work(tmp_path, base=False, robust_items=0)
    real = ask_module.address

    @contextmanager
    def address(arm: Arm) -> Iterator[str]:
        if arm.folder is None:
            yield str(arm.url)
            return
        with real(arm) as url:
            yield url

    monkeypatch.setattr(ask_module, "address", address)
    recipe = work.recipe.model_dump(mode="json")
    script = Script(text="red", input_tokens=100, output_tokens=2)
    async with VendorSimulator("openai", script) as sim:
        form: dict[str, Any] = {k: recipe[k] for k in ("student", "train")}
        with pytest.raises(UsageError, match=r"evaluate\.max_usd"):
            open_work(write_recipe(tmp_path, sim.base_url, evaluate=recipe["evaluate"], **form), tmp_path / "out")
        section = recipe["evaluate"] | {"max_usd": "0.50"}
        work = open_work(write_recipe(tmp_path, sim.base_url, evaluate=section, **form), tmp_path / "out")
        report = await asyncio.to_thread(evaluate_student, work)
    teacher = report["arms"]["teacher"]
    assert served == ["student"] and teacher["digest"] is None
    assert teacher["accuracy"]["value"] == pytest.approx(1 / 3)
    # the vendor's own price, not the machine's
    assert Decimal(teacher["usd_per_query"]) == (100 * Decimal("0.15") + 2 * Decimal("0.60")) / 10**6


def test_other_weights_are_asked_anew(tmp_path: Path, served: list[str]) -> None:
    work = proof_work(tmp_path, base=False, robust_items=0)
    evaluate_student(work)
    weights = tmp_path / "out/train/student/model.safetensors"
    shutil.copy(EMBEDDED / "paligemma/model.safetensors", weights)
    evaluate_student(work)
    assert served == ["teacher", "student", "student"]


def test_what_is_not_there(tmp_path: Path, served: list[str]) -> None:
    work = proof_work(tmp_path, also={"int8": "nowhere"})
    with pytest.raises(UsageError, match="int8: no checkpoint in this folder"):
        arms_of(work)
    shutil.rmtree(tmp_path / "out/train/student")
    with pytest.raises(UsageError, match=r"there is no student yet; run fovea distill train"):
        evaluate_student(work)
    with pytest.raises(UsageError, match="evaluate needs a student that was trained"):
        open_work(write_recipe(tmp_path, "http://x", evaluate={"golden": ["x"], "usd_per_hour": "1"}), tmp_path / "o")


def test_the_student_in_fewer_bits(tmp_path: Path, served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`fovea quantize run` is asked for it once, with the student's training rows (really: make prove-distill)."""
    from distill.evaluate import made

    commands: list[list[str]] = []
    code = 0

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if code == 0:
            out = Path(command[command.index("--out") + 1])
            shutil.copytree(QWEN, out)
            (out / "manifest.json").write_text("{}")
        return subprocess.CompletedProcess(command, code, "", "error: scheme: not on this machine\n")

    monkeypatch.setattr(made, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(made, "FEWEST", 4)
    also = {"int8": {"scheme": "w8a8", "samples": 32}}
    work = proof_work(tmp_path, also=also, base=False, robust_items=0)
    report = evaluate_student(work)
    assert served == ["teacher", "student", "int8"] and list(report["arms"]) == served
    assert report["arms"]["int8"]["bytes"] == report["arms"]["student"]["bytes"]
    (command,) = commands
    assert command[command.index("--scheme") + 1] == "w8a8"
    calibration = load_golden(command[command.index("--calibration") + 1])
    assert {item.category for item in calibration.items} == {"red", "green", "blue"} and len(calibration.items) == 8
    evaluate_student(work)
    assert len(commands) == 1
    code = 2
    with pytest.raises(UsageError, match=r"evaluate\.also\.int4: fovea quantize: error: scheme: not on this machine"):
        evaluate_student(proof_work(tmp_path / "again", also={"int4": {"scheme": "w4a16"}}, base=False))
    with pytest.raises(UsageError, match="scheme"):
        proof_work(tmp_path / "typo", also={"int4": {"scheme": "w4a61"}})


def test_a_student_of_another_seed(tmp_path: Path, served: list[str]) -> None:
    """It is trained by the train step, on the same rows; the answers are the simulator's."""
    work = proof_work(tmp_path, seeds=[7], base=False, robust_items=0)
    report = evaluate_student(work)
    assert served == ["teacher", "student", "seed-7"] == list(report["arms"])
    assert len({report["arms"][name]["digest"] for name in served}) == 3
    trained = json.loads((tmp_path / "out/seeds/7/train/report.json").read_text())
    assert trained["seed"] == 7 and trained["steps"] == 6 and trained["rows"] == 8
    over = report["seeds"]["truth"]
    assert {name: figure["value"] for name, figure in over["accuracy"].items()} == {"student": 0.9, "seed-7": 0.8}
    assert over["mean"] == pytest.approx(0.85) and over["sd"] == pytest.approx(0.1 / 2**0.5)
    assert over["same_answer"]["value"] == pytest.approx(42 / 60)
    write_report(work)
    assert "standard deviation 0.0707" in (tmp_path / "out/report.html").read_text()
    evaluate_student(work)
    assert served == ["teacher", "student", "seed-7"]  # nobody was trained or started again
    for seeds in ([0], [7, 7]):
        with pytest.raises(UsageError, match=r"evaluate\.seeds names a seed twice, or the recipe's own"):
            proof_work(tmp_path / f"bad{len(seeds)}", seeds=seeds)


def test_a_version_of_every_precision(tmp_path: Path, served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The student and what was made of it are registered, each with its own answers and the same gate."""
    (tmp_path / "int8").mkdir()
    for file in QWEN.iterdir():
        shutil.copy(file, tmp_path / "int8")
    config = json.loads((QWEN / "config.json").read_text())
    (tmp_path / "int8/config.json").write_text(json.dumps(config | {"other": 1}))  # other files, another digest
    work = proof_work(tmp_path, also={"int8": "int8"}, base=False, robust_items=0)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["export"] = {"name": "squares", "by": "test", "store": "store", "also": ["int8"], "min_accuracy": 0.95}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work = open_work(tmp_path / "recipe.yaml", tmp_path / "out")
    same = {"items": 2, "steps": 4, "worst": 0.01, "mean": 0.001, "greedy": 1.0, "by_item": []}
    monkeypatch.setattr("distill.evaluate.ask.parity", lambda *_: same)  # the real one: tests/e2e
    for _ in range(2):
        report = run_steps(work, ["evaluate", "export"])["export"]
        assert report["version"] == "squares@1" and report["also"]["int8"]["version"] == "squares-int8@1"
        # 0.9 of sixty items is not surely 0.95, and sixty are too few: for both of them
        assert len(report["refused_for"]) >= 1 and report["also"]["int8"]["refused_for"] == report["refused_for"]
    registry = open_registry(str(tmp_path / "store"))
    made = registry.find("squares-int8@1")
    assert made.parent == "squares@1" and made.digest == checkpoint_digest(tmp_path / "int8")
    assert len(registry.state("squares-int8").reports[1]) == 1
    assert "squares@1, squares-int8@1" in (tmp_path / "out/report.html").read_text()
    recipe["export"]["also"] = ["int4"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UsageError, match=r"export\.also names 'int4', which is not in evaluate\.also"):
        open_work(tmp_path / "recipe.yaml", tmp_path / "out")
    with pytest.raises(UsageError, match=r"evaluate\.also: 'student' is the name of another of the compared"):
        proof_work(tmp_path / "taken", also={"student": "int8"})


def test_a_pruned_base_is_what_training_began_with(tmp_path: Path, served: list[str]) -> None:
    proof_work(tmp_path, robust_items=0)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["train"] |= {"prune": {"layers": 2}, "method": "full"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work = open_work(tmp_path / "recipe.yaml", tmp_path / "out")
    base = next(arm for arm in arms_of(work) if arm.name == "base")
    assert base.folder is not None and json.loads((base.folder / "config.json").read_text())["text_config"][
        "num_hidden_layers"
    ] == 2  # fmt: skip
    written = (base.folder / "model.safetensors").stat().st_mtime_ns
    arms_of(work)
    assert (base.folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_digest_is_the_registrys(tmp_path: Path) -> None:
    version = open_registry(str(tmp_path / "store")).register(QWEN, "m", by="test")
    assert version.digest == checkpoint_digest(QWEN)


def test_changed_pictures_are_a_set_of_their_own(tmp_path: Path) -> None:
    golden(tmp_path)
    truth = load_golden(tmp_path / "truth")
    made = load_golden(variant(truth, "hidden", 20, 1, tmp_path / "hidden"))
    assert len(made.items) == 20 and {item.id for item in made.items} <= {item.id for item in truth.items}
    assert len({item.image.digest for item in made.items}) == 1 and made.digest != truth.digest
    grey, kind = hidden(Image.new("RGB", (30, 20), "red"), None)  # type: ignore[arg-type]
    assert grey.size == (30, 20) and kind == "hidden" and grey.getpixel((3, 3)) == (127, 127, 127)
    again = load_golden(variant(truth, "damaged", 20, 1, tmp_path / "a"))
    assert again.digest == load_golden(variant(truth, "damaged", 20, 1, tmp_path / "b")).digest


def test_payback() -> None:
    arms = {"teacher": {"usd_per_query": "0.001"}, "student": {"usd_per_query": "0.0002"}}
    steps: dict[str, Any] = {"collect": {"spent_usd": "2.00"}, "train": {"usd": "0.40"}, "evaluate": {"arms": arms}}
    found = money(steps)
    assert found["payback_queries"] == 3000 and Decimal(found["saved_usd_per_query"]) == Decimal("0.0008")
    arms["student"]["usd_per_query"] = "0.002"
    assert money(steps)["payback_queries"] is None


items = st.lists(
    st.tuples(st.floats(0, 1, allow_nan=False), st.booleans(), st.booleans()), min_size=40, max_size=120
)  # fmt: skip


@given(items, st.floats(0.5, 1))
@settings(max_examples=50, deadline=None)
def test_the_cascade_is_what_it_says(found: list[tuple[float, bool, bool]], keep: float) -> None:
    both = [Both(str(i), *one) for i, one in enumerate(found)]
    student, teacher = Decimal("0.0001"), Decimal("0.001")
    result = cascade(both, student, teacher, keep)
    assert result is not None and result["n_chosen_on"] + result["n_measured_on"] == len(both)
    first, last = result["curve"][0], result["curve"][-1]
    assert first["passed_on"]["value"] == 0 and Decimal(first["usd_per_query"]) == student
    assert first["accuracy"]["value"] == sum(i.student for i in both) / len(both)
    assert last["passed_on"]["value"] == 1 and Decimal(last["usd_per_query"]) == student + teacher
    assert last["accuracy"]["value"] == sum(i.teacher for i in both) / len(both)
    passed = [row["passed_on"]["value"] for row in result["curve"]]
    assert passed == sorted(passed)
    if result["cheapest"] is None:  # nobody was right on the half that chooses
        assert result["kept"] is None
    else:
        assert 0 <= result["cheapest"]["passed_on"]["value"] <= 1


def test_a_cascade_of_few_says_nothing() -> None:
    assert cascade([Both("a", 0.5, True, True)] * 39, Decimal(1), Decimal(2), 0.9) is None
