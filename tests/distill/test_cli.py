"""The commands: exit codes, one line for an error, JSON, and what a user sees."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fovea import main
from tests.distill.simulator import TeacherSimulator, colour_of, reply, write_data, write_recipe, write_rows

ROOT = Path(__file__).resolve().parents[2]


def fovea(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "fovea.py"), "distill", *words],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


async def fovea_async(*words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(fovea, *words)


def honest(question: str, image: bytes | None, number: int) -> str:
    return reply(colour_of(image))


async def test_plan_run_and_run_again(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    async with TeacherSimulator(honest) as sim:
        recipe, out = str(write_recipe(tmp_path, sim.base_url)), str(tmp_path / "out")
        plan = json.loads((await fovea_async("plan", recipe, "--out", out, "--json")).stdout)
        assert plan["answers_wanted"] == 6 and plan["within_limit"] and not sim.asked
        assert float(plan["at_most_usd"]) > float(sim.one * 6)
        ran = await fovea_async("run", recipe, "--out", out)
        assert ran.returncode == 0 and ran.stderr == ""
        assert "6 of 6 rows labelled; 6 answers bought" in ran.stdout and "6 of 6 rows kept" in ran.stdout
        again = json.loads((await fovea_async("run", recipe, "--out", out, "--json")).stdout)
        assert again["collect"]["answers_bought"] == 0 and again["filter"]["cached"] and sum(sim.asked.values()) == 6
        assert "0 answers to buy, at most $0" in (await fovea_async("plan", recipe, "--out", out)).stdout
    card = (tmp_path / "out/filter/card.html").read_text()
    assert "Data card: colours" in card and "data:image/jpeg;base64," in card
    assert "http" not in card and "<script" not in card


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command in this process, which is started once: `main` is all that the program does."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["distill", *words])
        return code, *capsys.readouterr()

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def test_schema(here: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = here("schema")
    assert code == 0 and json.loads(out)["properties"]["budget"]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"budgett": {}}, "recipe.yaml: budgett: unknown field; did you mean 'budget'?"),
        ({"budget": {"max_usd": "0"}}, "budget.max_usd: must be above 0"),
        ({"budget": {"max_usd": "1", "prices": "none.yaml"}}, "none.yaml: cannot read"),
        ({"data": {"rows": "none.jsonl"}}, "none.jsonl: cannot read: No such file or directory; correct the path"),
        ({"prompts": {"user": "none.jinja"}}, "prompts.user: cannot read"),
        ({"teachers": [{"name": "a", "model": "nobody/x"}]}, "model: unknown vendor"),
        ({"teachers": [{"name": "a", "model": "gpt-4o-mni"}]}, "did you mean gpt-4o-mini"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, here: Callable[..., tuple[int, str, str]], sections: dict[str, Any], says: str
) -> None:
    write_data(tmp_path, 2)
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9", **sections)
    code, out, err = here("collect", str(recipe), "--out", str(tmp_path / "out"))
    assert code == 2 and says in err and err.count("\n") == 1 and out == ""
    code, out, err = here("collect", str(recipe), "--out", str(tmp_path / "out"), "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "UsageError" and says in err
    labels = tmp_path / "out/collect/labels.jsonl"
    assert not labels.exists()


async def test_all_rows_filtered_is_exit_code_1_and_what_was_paid_for_is_kept(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 4)
    write_rows(tmp_path / "rows.jsonl", rows)
    async with TeacherSimulator(honest) as sim:
        recipe = str(write_recipe(tmp_path, sim.base_url, filters={"min_confidence": 0.99}))
        ran = await fovea_async("run", recipe, "--out", str(tmp_path / "out"))
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1
        assert "filters: 0 training rows are left of 4" in ran.stderr and "card.html" in ran.stderr
        write_recipe(tmp_path, sim.base_url, filters={"min_confidence": 0.5})
        ran = await fovea_async("run", recipe, "--out", str(tmp_path / "out"))
        assert ran.returncode == 0 and sum(sim.asked.values()) == 4


def test_bad_input_to_the_program_itself(tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9", budgett={})
    ran = fovea("collect", str(recipe), "--out", str(tmp_path / "out"))
    assert ran.returncode == 2 and "budgett: unknown field" in ran.stderr and ran.stderr.count("\n") == 1


def test_nobody_there(tmp_path: Path) -> None:
    write_data(tmp_path, 3)
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9/v1", teacher={"attempts": 1},
                          budget={"max_usd": "1", "give_up_after": 2})  # fmt: skip
    ran = fovea("collect", str(recipe), "--out", str(tmp_path / "out"))
    assert ran.returncode == 1 and "teacher sim: 2 answers in a row are unusable; the last: failed" in ran.stderr
    assert "check its address" in ran.stderr and "Traceback" not in ran.stderr
