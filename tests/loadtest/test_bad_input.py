"""Every command, every kind of bad input: exit code 2, one line that names field, value and fix, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fovea import main
from tests.loadtest.server import Server

Serve = Callable[..., Server]

# What each command needs; URL and the like are filled in.  The second server of a comparison is as good as the first.
COMMANDS = {
    "run": {"--url": "URL", "--rate": "5", "--duration": "1"},
    "capacity": {"--url": "URL", "--slo": "p95<1s", "--start-rate": "5", "--step": "1", "--confirm": "1"},
    "compare": {"--before": "GOOD", "--after": "URL", "--rate": "5", "--duration": "1", "--rounds": "1"},
    "rehearse": {"--url": "URL", "--rate": "5", "--part": "1", "--drill": "contradiction"},
}
RATE = {"run": "--rate", "capacity": "--start-rate", "compare": "--rate", "rehearse": "--rate"}

# name -> (options that differ, what the error says)
BAD = {
    "dead URL": ({"URL": "http://127.0.0.1:9/v1"}, "--url: cannot connect: Connection refused"),
    "unknown host": ({"URL": "http://no.such.host.invalid/v1"}, "--url: unknown host"),
    "no URL": ({"URL": "nonsense"}, "--url: not an http(s) URL (got 'nonsense'); give http://HOST:PORT/v1"),
    "wrong model": ({"--model": "other"}, "--model: the server does not have this model (got 'other'); it has m"),
    "wrong key": ({"URL": "LOCKED"}, "--api-key-env: the server refuses the key (401: bad key) (got 'OPENAI_API_KEY')"),
    "malformed trace": ({"--workload": "trace", "--workload-option": "path=TRACE"}, "trace.jsonl, line 2: not JSON"),
    "malformed prompts": ({"--workload": "PROMPTS"}, "bad.jsonl, line 1: unknown key 'promt'"),
    "unwritable folder": ({"--out": "FILE/out"}, "--out: cannot write there: Not a directory"),
    "read-only folder": ({"--out": "/proc/out"}, "--out: cannot write there"),
    "zero rate": ({"RATE": "0"}, ": must be above zero (got 0.0)"),
    "negative rate": ({"RATE": "-3"}, ": must be above zero (got -3.0)"),
    "broken arrival": ({"--arrival": "sometimes"}, "--arrival: unknown arrival process (got 'sometimes')"),
    "zero processes": ({"--processes": "0"}, "processes"),
    "no such hardware": ({"--hardware": "/no/file.yaml"}, "--hardware: cannot read"),
}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("bad", list(BAD))
def test_one_clear_error(
    serve: Serve,
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    bad: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "file").write_text("")
    (tmp_path / "trace.jsonl").write_text('{"timestamp": 1}\n{"timestamp": \n')
    (tmp_path / "bad.jsonl").write_text('{"promt": "a"}\n')
    change, says = BAD[bad]
    base = {"--model": "m", "--workload": prompts, "--out": str(tmp_path / "out"), "--max-slip-ms": "5000"}
    options = {**base, **COMMANDS[command]}
    for key, value in change.items():
        if key == "URL":
            options = {k: value if v == "URL" else v for k, v in options.items()}
        else:
            options[RATE[command] if key == "RATE" else key] = value
    places = {
        "URL": lambda: serve().url,
        "GOOD": lambda: serve().url,
        "LOCKED": lambda: serve(key="right").url,
        "path=TRACE": lambda: f"path={tmp_path}/trace.jsonl",
        "PROMPTS": lambda: str(tmp_path / "bad.jsonl"),
        "FILE/out": lambda: str(tmp_path / "file" / "out"),
    }
    words = [word for k, v in options.items() for word in (k, places[v]() if v in places else v)]
    assert main(["loadtest", command, *words]) == 2
    error = capsys.readouterr().err.splitlines()
    says = says.replace("--url", "--after") if command == "compare" else says
    assert error[-1].startswith("fovea loadtest: ") and says in error[-1]
    assert len(error) == 1 or (command == "compare" and error[0].startswith("stopped after 0 of 1 rounds"))
    written = [p.name for p in (tmp_path / "out").rglob("*.json")]
    assert written in ([], ["report.json"] if command == "compare" else [])  # of the server that was good


@pytest.mark.parametrize("command", list(COMMANDS))
def test_in_json_too(capsys: pytest.CaptureFixture[str], command: str) -> None:
    options = {"--model": "m", **COMMANDS[command], "--json": ""}
    words = [w for k, v in options.items() for w in (k, v.replace("URL", "http://127.0.0.1:9/v1")) if w]
    words = [w.replace("GOOD", "http://127.0.0.1:9/v1") for w in words]
    assert main(["loadtest", command, *words]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["field"] == ("--before" if command == "compare" else "--url")
    assert error["value"] == "http://127.0.0.1:9/v1" and error["fix"]
