"""Evaluation against a simulator of an OpenAI-compatible server: scores, resuming, retries and errors."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fovea
from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.answers import Answer, AnswerLog
from models.evaluation.client import parse_answer
from models.evaluation.score import score
from models.golden import GoldenItem, load_golden
from models.support.errors import CheckFailed, UsageError
from tests.models.openai_simulator import OpenAISimulator, Reply

GOLDEN = load_golden("easy-vqa")
TRUTH: dict[tuple[str, bytes], str] = {}


def truth(question: str, image: bytes) -> str:
    if not TRUTH:
        TRUTH.update({(i.question, i.image_bytes()): i.expected for i in GOLDEN.items})
    return TRUTH[question, image]


def always_right(question: str, image: bytes) -> Reply:
    return truth(question, image).upper() + ".", 0.95


def settings(sim: OpenAISimulator, out: Path, **changes: Any) -> EvaluationSettings:
    values: dict[str, Any] = {
        "url": sim.url,
        "model": "sim",
        "golden": "easy-vqa",
        "out": out,
        "limit": 60,
        "timeout_s": 5.0,
    }
    return EvaluationSettings(**(values | changes))


class TestRun:
    def test_scores_and_files(self, tmp_path: Path) -> None:
        # colours right, everything else "circle"
        def answer(question: str, image: bytes) -> Reply:
            right = truth(question, image)
            return (right, 0.9) if "color" in question else ("circle", 0.6)

        with OpenAISimulator(answer) as sim:
            report = evaluate(settings(sim, tmp_path, limit=400, seed=5))
        items = GOLDEN.sample(400, 5)
        expected = sum(1 for i in items if "color" in i.question or i.expected == "circle")
        assert report["accuracy"]["value"] == expected / 400 and report["accuracy"]["n"] == 400
        assert report["by_category"]["color"]["value"] == 1.0
        assert sum(f["n"] for f in report["by_category"].values()) == 400
        assert report["errors"] == {} and report["answered"] == 400
        assert report["tokens"] == {"prompt": 8000, "completion": 800}
        assert report["golden"]["digest"] == GOLDEN.digest
        # two levels of confidence: 0.9 for colours (all right) and 0.6 for the rest
        colors = report["by_category"]["color"]["n"]
        rest = (expected - colors) / (400 - colors)
        bins = report["calibration"]["bins"]
        assert (
            len(bins) == 15
            and bins[0]["confidence"] == pytest.approx(0.6)
            and bins[0]["accuracy"] == pytest.approx(rest)
        )
        assert report["calibration"]["ece"]["value"] == pytest.approx(abs(0.6 - rest), abs=0.1)
        assert report["risk_coverage"]["risk"][-1] == pytest.approx(1 - expected / 400)
        assert report["latency_ms"]["p50"]["value"] > 0
        assert report["latency_ms"]["p99"] == {
            "value": None,
            "low": None,
            "high": None,
            "n": 400,
            "note": "n too small",
        }
        assert json.loads((tmp_path / "report.json").read_text()) == report
        page = (tmp_path / "report.html").read_text()
        assert "Reliability" in page and "data:image/png;base64," in page and "<script" not in page
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 400

    def test_request_form(self, tmp_path: Path) -> None:
        with OpenAISimulator(always_right) as sim:
            evaluate(settings(sim, tmp_path, limit=3, max_tokens=7))
            body = sim.requests[0]
        assert (body["temperature"], body["max_tokens"], body["logprobs"], body["stream"]) == (0, 7, True, False)
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]

    def test_continues_where_it_stopped(self, tmp_path: Path) -> None:
        # after 20 answers nothing but rejections that cannot be retried: those items are asked again next time
        with OpenAISimulator(always_right, fault=lambda n: None if n < 20 else 400) as sim:
            first = evaluate(settings(sim, tmp_path, concurrency=1))
        assert first["answered"] == 20 and first["errors"] == {"http_400": 40}
        assert first["accuracy"]["value"] == 20 / 60 and first["accuracy_answered"]["value"] == 1.0
        with (tmp_path / "answers.jsonl").open("ab") as file:
            file.write(b'{"id":"q0')  # killed while writing
        with OpenAISimulator(always_right) as sim:
            second = evaluate(settings(sim, tmp_path))
            assert len(sim.requests) == 40
        assert second["accuracy"]["value"] == 1.0 and second["answered"] == 60
        assert second["run"]["asked_now"] == 40 and second["run"]["continued_from"] == 20
        with OpenAISimulator(always_right) as sim:
            third = evaluate(settings(sim, tmp_path))
            assert len(sim.requests) == 0
            assert third["accuracy"] == second["accuracy"] and third["run"]["requests_per_s"] is None
            evaluate(settings(sim, tmp_path, limit=80))
            # another draw: only the items that it does not share are asked
            assert 20 <= len(sim.requests) <= 80
            again = len(sim.requests)
            evaluate(settings(sim, tmp_path, fresh=True))
            assert len(sim.requests) == again + 60

    def test_a_folder_belongs_to_one_evaluation(self, tmp_path: Path) -> None:
        with OpenAISimulator(always_right) as sim:
            evaluate(settings(sim, tmp_path, limit=2))
            with pytest.raises(UsageError, match=r"another evaluation \(request differ\)"):
                evaluate(settings(sim, tmp_path, limit=2, max_tokens=3))
            sim.root = "/another/checkpoint"
            with pytest.raises(UsageError, match=r"another evaluation \(root differ\)"):
                evaluate(settings(sim, tmp_path, limit=2))
            sim.root = None
            (tmp_path / "run.json").write_text("{")
            with pytest.raises(UsageError, match=r"run\.json is damaged"):
                evaluate(settings(sim, tmp_path, limit=2))
            (tmp_path / "run.json").unlink()
            with pytest.raises(UsageError, match=r"without a run\.json"):
                evaluate(settings(sim, tmp_path, limit=2))
            evaluate(settings(sim, tmp_path, limit=2, fresh=True))
            (tmp_path / "answers.jsonl").write_bytes(b'{"id": 1, "nonsense": 2}\n')
            with pytest.raises(UsageError, match="damaged on line 1"):
                evaluate(settings(sim, tmp_path, limit=2))

    @pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
    def test_passing_trouble_is_retried(self, tmp_path: Path, fault: int | str) -> None:
        with OpenAISimulator(always_right, fault=lambda n: fault if n % 3 == 0 else None) as sim:
            sim.retry_after = "0"
            report = evaluate(settings(sim, tmp_path, limit=12, concurrency=1))  # so that no item meets three faults
        assert report["accuracy"]["value"] == 1.0 and report["errors"] == {}
        attempts = [json.loads(line)["attempts"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert max(attempts) >= 2

    @pytest.mark.parametrize(("fault", "kind"), [(422, "http_422"), ("garbage", "bad_response")])
    def test_an_item_that_fails_counts_as_wrong(self, tmp_path: Path, fault: int | str, kind: str) -> None:
        with OpenAISimulator(always_right, fault=lambda n: fault if n < 3 else None) as sim:
            report = evaluate(settings(sim, tmp_path, limit=30, concurrency=1))
        assert report["errors"] == {kind: 3}
        assert report["accuracy"]["value"] == 0.9

    def test_without_logprobs_there_is_no_calibration(self, tmp_path: Path) -> None:
        with OpenAISimulator(always_right, fault=lambda n: "no_logprobs") as sim:
            report = evaluate(settings(sim, tmp_path))
        assert report["calibration"] is None and report["risk_coverage"] is None
        assert "no logprobs" in (tmp_path / "report.html").read_text()

    def test_timeout(self, tmp_path: Path) -> None:
        with OpenAISimulator(always_right, fault=lambda n: "hang" if n < 4 else None) as sim:
            report = evaluate(settings(sim, tmp_path, limit=3, concurrency=1, timeout_s=0.2))
        assert report["errors"] == {"timeout": 1} and report["answered"] == 2

    def test_server_that_dies_half_way_keeps_the_answers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("models.evaluation.client.FIRST_PAUSE_S", 0.001)
        with (
            OpenAISimulator(always_right, fault=lambda n: None if n < 10 else "cut") as sim,
            pytest.raises(CheckFailed) as caught,
        ):
            evaluate(settings(sim, tmp_path))
        assert "stopped answering" in str(caught.value)
        with OpenAISimulator(always_right) as sim:
            report = evaluate(settings(sim, tmp_path))
        assert report["accuracy"]["value"] == 1.0 and report["run"]["continued_from"] >= 8

    def test_nothing_answered_is_a_failed_check(self, tmp_path: Path) -> None:
        with (
            OpenAISimulator(always_right, fault=lambda n: 400) as sim,
            pytest.raises(CheckFailed, match="60 x http_400"),
        ):
            evaluate(settings(sim, tmp_path))

    def test_own_set_with_tags(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(GOLDEN.items[0].image_bytes())
        rows = [
            {
                "id": str(n),
                "image": "a.png",
                "question": "what shape?",
                "expected": ["circle", "round"],
                "accept": {"rule": "set"},
                "tags": {"perturbation": "blur" if n % 2 else "none"},
                "category": "shape",
            }
            for n in range(10)
        ]
        (tmp_path / "golden.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
        with OpenAISimulator(lambda question, image: ("Round", 1.0)) as sim:
            report = evaluate(settings(sim, tmp_path / "out", golden=str(tmp_path), limit=None))
        assert report["accuracy"]["value"] == 1.0
        assert {k: v["n"] for k, v in report["by_tag"].items()} == {"perturbation=blur": 5, "perturbation=none": 5}


class TestErrors:
    """Exit code 2, one line, and no folder left behind."""

    def run(self, capsys: pytest.CaptureFixture[str], out: Path, *words: str) -> str:
        assert fovea.main(["models", "evaluate", *words, "--out", str(out)]) == 2
        assert not out.exists()
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    def test_dead_url(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
            assert "nothing answers there" in self.run(
                capsys, tmp_path / "o", url, "--model", "m", "--golden", "easy-vqa"
            )

    def test_unknown_model(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        with OpenAISimulator(always_right) as sim:
            message = self.run(capsys, tmp_path / "o", sim.url, "--model", "simm", "--golden", "easy-vqa")
        assert "does not have this model" in message and "the server has sim" in message

    def test_golden_not_found(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        message = self.run(capsys, tmp_path / "o", "http://127.0.0.1:1", "--model", "m", "--golden", "none")
        assert "golden set not found" in message

    def test_key_refused(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with OpenAISimulator(always_right, key="secret") as sim:
            message = self.run(capsys, tmp_path / "o", sim.url, "--model", "sim", "--golden", "easy-vqa")
        assert "refused the key (401)" in message and "wrong" not in message

    @pytest.mark.parametrize(
        ("words", "field"),
        [
            (["ftp://x", "--model", "m", "--golden", "easy-vqa"], "url"),
            (["http://x", "--model", " ", "--golden", "easy-vqa"], "model"),
            (["http://x", "--model", "m", "--golden", "easy-vqa", "--limit", "0"], "limit"),
            (["http://x", "--model", "m", "--golden", "easy-vqa", "--concurrency", "0"], "concurrency"),
            (["http://x", "--model", "m", "--golden", "easy-vqa", "--max-tokens", "-3"], "max_tokens"),
            (["http://x", "--model", "m", "--golden", "easy-vqa", "--timeout", "nan"], "timeout"),
        ],
    )
    def test_bad_option(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], field: str) -> None:
        assert f"fovea models: {field}: " in self.run(capsys, tmp_path / "o", *words)

    def test_model_refused_without_a_list(self, tmp_path: Path) -> None:
        with (
            OpenAISimulator(always_right, list_models=False) as sim,
            pytest.raises(UsageError, match="does not have this model"),
        ):
            evaluate(settings(sim, tmp_path, model="other"))

    def test_key_is_sent_and_never_written(self, tmp_path: Path) -> None:
        with OpenAISimulator(always_right, key="s3cret") as sim:
            evaluate(settings(sim, tmp_path, limit=2, api_key="s3cret"))
        assert all("s3cret" not in path.read_text() for path in tmp_path.iterdir())

    def test_out_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "o").write_text("x")
        with OpenAISimulator(always_right) as sim, pytest.raises(UsageError, match="cannot use the folder"):
            evaluate(settings(sim, tmp_path / "o"))


def test_cli_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with OpenAISimulator(always_right) as sim:
        words = [
            "models",
            "evaluate",
            sim.url.removesuffix("/v1"),
            "--model",
            "sim",
            "--golden",
            "easy-vqa",
            "--limit",
            "5",
        ]
        assert fovea.main([*words, "--out", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"]["value"] == 1.0
        assert fovea.main([*words, "--out", str(tmp_path)]) == 0
        assert "accuracy    1.0000" in capsys.readouterr().out


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.floats() | st.text(max_size=4),
        lambda s: (
            st.lists(s, max_size=2)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "logprobs", "logprob", "usage", "prompt_tokens"]), s
            )
        ),
    ).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_an_answer_or_a_bad_response(content: bytes) -> None:
    answer = parse_answer("id", content, 1.0)
    assert answer.error == "bad_response" or answer.text is not None
    assert answer.confidence is None or 0 <= answer.confidence <= 1
    assert orjson.dumps(answer.__dict__)


def test_log_round_trip(tmp_path: Path) -> None:
    answers = [Answer("a", "x", 1.5, 0.5, "stop", 1, 2), Answer("b", None, None, error="timeout", attempts=4)]
    with AnswerLog(tmp_path, {"k": 1}) as log:
        for answer in answers:
            log.add(answer)
    with AnswerLog(tmp_path, {"k": 1}) as log:
        assert log.done == {"a": answers[0]}


def test_score_of_nothing() -> None:
    items: list[GoldenItem] = GOLDEN.items[:3]
    report = score(items, {})
    assert report["accuracy"]["value"] == 0.0 and report["errors"] == {"not_asked": 3}
    assert report["accuracy_answered"]["value"] is None


@pytest.mark.parametrize(
    ("target", "version"),
    [("vqa@live", True), ("vqa@12", True), ("a.b-c@canary", True), ("vqa", False), ("http://u@h:1/v1", False)],
)
def test_what_is_a_registry_version(target: str, version: bool) -> None:
    from models.evaluation.target import is_version

    assert is_version(target) is version


def test_a_report_names_the_registry_version_that_answered(tmp_path: Path) -> None:
    mark = {"name": "m", "version": 3, "digest": "d" * 64}
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "fovea-version.json").write_text(json.dumps(mark))
    with OpenAISimulator(lambda question, image: ("red", 0.9)) as sim:
        sim.root = str(tmp_path / "served")
        values: dict[str, Any] = {"url": sim.url, "model": "sim", "golden": "easy-vqa", "limit": 5}
        assert evaluate(EvaluationSettings(**values, out=tmp_path / "a"))["target"] == mark
        sim.root = "/nowhere"
        assert evaluate(EvaluationSettings(**values, out=tmp_path / "b"))["target"] is None
