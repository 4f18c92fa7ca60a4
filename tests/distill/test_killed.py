"""A real process is killed in the middle of buying: nothing that was answered is lost or bought again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from distill.labels import read_labels
from tests.distill.simulator import KEY, KEY_VARIABLE, TeacherSimulator, colour_of, reply, write_data, write_recipe

ROOT = Path(__file__).resolve().parents[2]
IN_FLIGHT = 4


async def start(folder: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "fovea.py"), "distill",
        "collect", str(folder / "recipe.yaml"), "--out", str(folder / "out"), *words,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | {KEY_VARIABLE: KEY, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def until_answered(sim: TeacherSimulator, n: int, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + 120
    while sim.sent < n and process.returncode is None and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert sim.sent >= n and process.returncode is None


def journal(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "out/collect/journal.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def answered(lines: list[dict[str, Any]]) -> set[str]:
    return {line["row"] for line in lines if line["t"] == "answer"}


def honest(question: str, image: bytes | None, number: int) -> str:
    return reply(colour_of(image))


async def test_kill_minus_nine_twice(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 40)
    async with TeacherSimulator(honest, delay_s=0.05) as sim:
        write_recipe(tmp_path, sim.base_url, teacher={"concurrency": IN_FLIGHT})
        safe: set[str] = set()
        times: dict[str, int] = {}
        for kills, stop_at in ((1, 10), (2, 24)):
            process = await start(tmp_path)
            await until_answered(sim, stop_at, process)
            process.kill()
            await process.communicate()
            assert process.returncode == -signal.SIGKILL
            now = answered(journal(tmp_path))
            assert safe < now and len(now) >= stop_at - kills * IN_FLIGHT
            safe = now
            times = {f"Colour of square {row[1:]}?": sim.asked[f"Colour of square {row[1:]}?"] for row in safe} | times
        process = await start(tmp_path, "--json")
        out, err = await process.communicate()
        assert process.returncode == 0, err
        first = json.loads(out)
        process = await start(tmp_path, "--json")
        again = json.loads((await process.communicate())[0])
    # what was on disk at a kill was asked for once; only what was in flight was asked for again
    assert len(times) == len(safe) >= 16 and {q: sim.asked[q] for q in times} == times
    assert sum(sim.asked.values()) <= len(rows) + 2 * IN_FLIGHT and set(sim.asked) == {r["question"] for r in rows}
    assert again["answers_bought"] == 0 and again["answers_before"] == first["answers"] == len(rows)
    # dollars: every answer at its price to the last digit, and what was in flight at the most it can have cost
    lost = sum((Decimal(x["usd"]) for x in journal(tmp_path) if x["t"] == "lost"), Decimal(0))
    assert Decimal(first["spent_usd"]) == len(rows) * sim.one + lost == Decimal(again["spent_usd"])
    assert Decimal(first["lost_usd"]) == lost and sim.bill <= Decimal(first["spent_usd"]) <= Decimal(1)
    labels = read_labels(tmp_path / "out/collect/labels.jsonl")
    assert len(labels) == len(rows) and all(r.answers[0].answer == r.category for r in labels)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_polite_stop_keeps_what_is_in_flight(tmp_path: Path, number: int) -> None:
    write_data(tmp_path, 40)
    async with TeacherSimulator(honest, delay_s=0.05) as sim:
        write_recipe(tmp_path, sim.base_url, teacher={"concurrency": IN_FLIGHT})
        process = await start(tmp_path)
        await until_answered(sim, 6, process)
        process.send_signal(number)
        _, err = await process.communicate()
        assert process.returncode == 130 and b"Traceback" not in err and b"is kept" in err
        lines = journal(tmp_path)
        # nothing was lost: every request that left has its answer on disk, and the bill agrees to the last digit
        assert len(answered(lines)) == sum(sim.asked.values()) == sim.sent < 40
        report = json.loads((tmp_path / "out/collect/report.json").read_text())
        assert Decimal(report["spent_usd"]) == sim.bill and report["stopped"] == "interrupted"
        assert len(read_labels(tmp_path / "out/collect/labels.jsonl")) == sim.sent
