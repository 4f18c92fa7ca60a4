"""Answers from a batch job: what Ray yields here is made up, what becomes of it (dollars, journal, rows) is real.

The job itself, Ray Data with vLLM, starts five processes and an engine: `FOVEA_VOLUME=1` runs it too, for a minute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from distill.collect import volume
from distill.collect.buy import Question
from distill.labels import read_labels
from distill.recipe.ask import Teacher
from distill.steps import run_steps
from distill.work import Work, open_work
from models.support.errors import CheckFailed, UsageError
from tests.distill.simulator import write_data, write_recipe
from tests.distill.training import EMBEDDED

N = 6


def volume_work(folder: Path, *, usd: str = "1.00", **more: Any) -> Work:
    rows = write_data(folder, N)
    teacher = {
        "checkpoint": str(EMBEDDED / "qwen2_5_vl"), "model": "own", "vendor_url": None, "api_key_env": None,
        "attempts": None, "temperature": 0, "max_tokens": 8, "volume": {"batch": 4},
        "price": {"input": "1.00", "output": "10.00", "image_tokens_at_most": 100},
        "licence": {"training": "allowed"},
    } | more  # fmt: skip
    assert len(rows) == N
    recipe = write_recipe(folder, "", teacher=teacher, prompts={"reply": "text"}, budget={"max_usd": usd})
    return open_work(recipe, folder / "out")


def lines(work: Work) -> list[dict[str, Any]]:
    return [json.loads(line) for line in work.journal_path.read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Answer every question but the fourth of each job, last first."""
    jobs: list[list[str]] = []

    def answers(settings: Teacher, questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
        assert settings.checkpoint is not None and Path(settings.checkpoint).is_absolute()
        jobs.append([one.row for one in questions])
        for i, one in reversed(list(enumerate(questions))):
            made = volume.request(volume._row(one))
            assert made["messages"][-1]["content"][-1]["text"] == one.words.text and made["key"] == one.key
            assert made["messages"][-1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
            failed = "the engine said no" if i == 3 else ""
            given = {"generated_text": "red", "num_input_tokens": 30, "num_generated_tokens": 2}
            yield volume.result({"key": one.key, "__inference_error__": failed} | given)

    monkeypatch.setattr(volume, "answers", answers)
    return jobs


def test_every_answer_is_kept_and_paid_once(tmp_path: Path, asked: list[list[str]]) -> None:
    work = volume_work(tmp_path)
    report = run_steps(work, ["collect"])["collect"]
    each = (30 * Decimal("1.00") + 2 * Decimal("10.00")) / 10**6
    assert Decimal(report["spent_usd"]) == 5 * each and report["answers"] == 5 and report["failed"] == 1
    assert {row.answers[0].answer for row in read_labels(work.labels_path) if row.answers} == {"red"}
    report = run_steps(work, ["collect"])["collect"]
    assert [len(job) for job in asked] == [6, 1] and report["answers"] == 6
    assert Decimal(report["spent_usd"]) == 6 * each


def test_the_dollars_end_it(tmp_path: Path, asked: list[list[str]]) -> None:
    work = volume_work(tmp_path, usd="0.0011")
    report = run_steps(work, ["collect"])["collect"]
    assert report["stopped"] == "budget" and 0 < len(asked[0]) < N
    assert Decimal(report["spent_usd"]) <= Decimal("0.0011")


def test_what_a_broken_job_answered_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(settings: Teacher, questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
        yield {"key": questions[0].key, "text": "red", "input_tokens": 30, "output_tokens": 2, "error": ""}
        raise CheckFailed("the batch inference failed: no room")

    monkeypatch.setattr(volume, "answers", answers)
    work = volume_work(tmp_path)
    with pytest.raises(CheckFailed, match="no room"):
        run_steps(work, ["collect"])
    kinds = [line["t"] for line in lines(work)]
    assert kinds.count("answer") == 1 and kinds.count("failed") == N - 1  # nothing stays reserved


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="volume runs a checkpoint at a temperature"):
        volume_work(tmp_path, temperature=None)
    with pytest.raises(UsageError, match=r"did you mean 'replicas'"):
        volume_work(tmp_path, volume={"replica": 2})


@pytest.mark.skipif("FOVEA_VOLUME" not in os.environ, reason="a minute for Ray Data and vLLM; FOVEA_VOLUME=1 runs it")
def test_the_job_itself(tmp_path: Path) -> None:
    work = volume_work(tmp_path)
    report = run_steps(work, ["collect"])["collect"]
    assert report["answers"] == N and report["failed"] == 0 and Decimal(report["spent_usd"]) > 0
    said = {row.id: row.answers[0].answer for row in read_labels(work.labels_path)}
    assert sum(said[f"r{i}"] == ("red", "green", "blue")[i % 3] for i in range(N)) >= N // 2
