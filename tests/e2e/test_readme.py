"""The README, followed as a new user would: every command in it is run, in order, on the stack that it starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.pictures import draw, encode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
BINARIES = Path(sys.executable).parent


def commands() -> list[str]:
    """Return the commands of the README's `sh` blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run one command as it stands in the README and return what it printed."""
    words = shlex.split(command.replace(".venv/bin/", f"{BINARIES}/"))
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def test_every_command_of_the_readme(tmp_path: Path) -> None:
    found = commands()
    assert found[:2] == ["make demo", "make test"], "they are run by test_demo and by whoever runs this"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is taken; the README's commands use it")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    (tmp_path / "picture.png").write_bytes(encode(draw("triangle", "blue")))
    (tmp_path / "stack.yaml").write_bytes((ROOT / "stack.yaml").read_bytes())
    server: subprocess.Popen[bytes] | None = None
    seen, pasted = [], ""
    log = tmp_path / "serve.out"
    try:
        for command in found[2:]:
            seen.append(command)
            if command.endswith("fovea serve"):
                words = shlex.split(command.replace(".venv/bin/", f"{BINARIES}/"))
                with log.open("wb") as out:
                    server = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True, stdout=out)
                wait_until_ready("http://127.0.0.1:8000/ready", server)
                pasted = paste(log)
                continue
            printed = run(command, tmp_path, environment)
            if " ask " in command:
                assert printed.strip() == "triangle"
            if " image-tokens " in command:
                assert "765" in printed
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            assert server.wait(90) == 0
    assert len(seen) >= 6 and server is not None
    assert json.loads(pasted)["choices"][0]["message"]["content"] == "red"
    report = json.loads((tmp_path / "runs/loadtest/report.json").read_text())
    assert report["errors"] == 0 and report["accuracy"]["value"] > 0.9
    assert len(report["baselines"]) >= 12
    assert (tmp_path / "runs/evaluation/report.html").exists()


def paste(log: Path) -> str:
    """Run the `curl` command that `fovea serve` prints when it is ready; return the answer."""
    for _ in range(300):
        line = next((line for line in log.read_text().splitlines() if line.startswith("curl ")), None)
        if line is not None:
            return subprocess.run(line, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout
        time.sleep(0.1)
    pytest.fail(f"no command to paste: {log.read_text()}")


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a stack answers."""
    for _ in range(3000):
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not there yet
        time.sleep(0.2)
    pytest.fail("the server did not become ready")


def test_demo(tmp_path: Path) -> None:
    """`make demo`, shortened: it ends with an answer, the accuracy, latencies, dollars and the report's path."""
    given = f"--out {tmp_path / 'demo'} --questions 40 --seconds 5 --rate 6"
    asked = ["make", "--no-print-directory", "-n", "demo", f"ARGS={given}"]
    recipe = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
    command = shlex.split(recipe.stdout.splitlines()[-1].replace(".venv/bin/", f"{BINARIES}/"))  # behind the set-up
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    for needed in ("truth:", "accuracy", "p95", "gpt-5", "report.html"):
        assert needed in done.stdout.lower() or needed in done.stdout, needed
    report = json.loads((tmp_path / "demo/loadtest/report.json").read_text())
    for key in (
        "requests",
        "errors",
        "latency_ms",
        "ttft_ms",
        "throughput_rps",
        "accuracy",
        "cost",
        "baselines",
        "versions",
        "seed",
        "hardware",
    ):
        assert key in report, key
    assert report["cost"]["usd_per_query"] and report["cost"]["usd_per_correct_answer"]
    assert {"value", "low", "high", "n"} <= set(report["latency_ms"]["p95"])


def test_ctrl_c_during_the_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/demo.py"), "--out", str(tmp_path / "demo")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "deploying" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    deadline = time.monotonic() + 60  # what was told to end may take a moment
    while left := belonging(process.pid, str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def belonging(session_of: int, mark: str) -> list[str]:
    """Return the command lines of the processes of a session, and of those that name `mark`."""
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                session = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3])
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, IndexError):
                continue  # it ended while we looked
            if session == session_of or mark in text:
                left.append(text)
    return left
