"""`fovea models` from the command line: output, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fovea


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = fovea.main(["models", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_image_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["image-tokens", "gpt-4o", "--width", "1024", "--height", "1024"]
    code, out, _ = run(capsys, *words, "--json")
    result = json.loads(out)
    assert code == 0 and result["tokens"] == 765 and result["rule"] == "openai-tiles" and result["source"]
    assert json.loads(run(capsys, *words, "--detail", "low", "--json")[1])["tokens"] == 85
    assert run(capsys, *words)[1].startswith("765 tokens")
    assert len(json.loads(run(capsys, "image-tokens", "--list", "--json")[1])["models"]) > 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image-tokens", "gpt-4oo", "--width", "1", "--height", "1"], "did you mean gpt-4o"),
        (["image-tokens", "gpt-4o", "--width", "-4", "--height", "1"], "width: must be a whole number of pixels"),
        (["image-tokens", "gpt-4o", "--width", "4"], "height: is required"),
        (["image-tokens", "gpt-4o", "--width", "4", "--height", "4", "--detail", "best"], "detail: unknown detail"),
        (["prices", "--model", "gpt-4oo"], "did you mean gpt-4o"),
        (["prices", "--set", "mine"], "unknown row set"),
        (["prices", "--prices", "nowhere.yaml"], "cannot read"),
        (["prices", "--machines", "nowhere.yaml"], "cannot read"),
        (["prices", "--model", "gpt-4o", "--on", "2020-01-01"], "no price of gpt-4o on that day"),
        (["golden", "easyvqa"], "did you mean easy-vqa"),
    ],
)
def test_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1
    code, out, _ = run(capsys, *words, "--json")
    assert code == 2 and message.split(": ")[-1][:20] in out and "fix" in json.loads(out)["error"]


def test_prices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "prices", "--on", "2026-11-21", "--json")
    rows = {row["model"]: row for row in json.loads(out)["rows"]}
    assert code == 0 and len(rows) >= 12
    # money is text: no digit is lost on the way
    assert rows["gpt-4o-mini"]["cached"] == "0.075" and rows["gemini-2.5-pro"]["long_context"]["input"] == "2.50"
    assert {"effective_from", "read", "source", "confidence", "stale"} <= rows["gpt-4o"].keys()
    own = tmp_path / "own.yaml"
    own.write_text(
        'rows: [{vendor: us, model: own-vlm, input: "0.01", output: "0.02", '
        "effective_from: 2026-01-01, read: 2026-01-01, source: us}]"
    )
    out = run(capsys, "prices", "--prices", str(own))[1]
    assert "own-vlm" in out and "gpt-4o-mini" in out
    assert "H100" in run(capsys, "prices", "--machines")[1]
    assert len(json.loads(run(capsys, "prices", "--machines", "--json")[1])["rows"]) >= 15
    assert "5" in run(capsys, "prices", "--set", "article-playbook", "--model", "gpt-4o")[1]


def test_golden(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "golden", "easy-vqa", "--json")
    assert code == 0 and json.loads(out)["items"] == 9673 and json.loads(out)["images"] == 1000
    assert "easy-vqa" in run(capsys, "golden", "easy-vqa")[1]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, fovea\ntry: fovea.main(['models', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'numpy', 'pydantic', 'aiohttp', 'torch', 'PIL', 'scipy'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
