"""The accounts of drills and soaks; the drills themselves are `make drill` and `make soak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.support.errors import CheckFailed
from serving import bench_stack, drill, soak
from serving.bench_stack import Served
from serving.runtime import free_port
from serving.steady import Account, body_of, picture


def test_an_account_of_a_span() -> None:
    attempts = [(1.0, "ok"), (2.0, "ok"), (2.5, "500"), (3.0, "ClientError"), (3.5, "500"), (7.0, "ok"), (9.0, "ok")]
    assert Account(attempts).between(1.5, 8.0) == {
        "answers": 2, "failed": {"500": 2, "ClientError": 1}, "longest_without_an_answer_s": 5.0,
    }  # fmt: skip
    assert Account([]).between(0, 3)["longest_without_an_answer_s"] == 3


def test_the_same_seed_is_the_same_picture() -> None:
    assert picture("red", 1) == picture("red", 1) != picture("red", 2)
    assert body_of("red", 1)["messages"] != body_of("blue", 1)["messages"]


def test_what_is_flat() -> None:
    def sample(replica: float, engine: float) -> dict[str, float]:
        return {"replica": replica, "engine": engine}

    steady = [sample(500 + n % 3, 1000 - n % 2) for n in range(30)]
    assert all(row["flat"] for row in soak.growth(steady, 3).values())
    leaking = [sample(500 + 3 * n, 1000) for n in range(30)]
    rows = soak.growth(leaking, 3)
    assert not rows["replica"]["flat"] and rows["engine"]["flat"] and rows["replica"]["highest_mib"] == 587


def test_only_processes_of_the_stack_are_found(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()  # the mark'], stdin=0)"
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
    stranger = subprocess.Popen([sys.executable, "-c", "input()  # the mark"], stdin=subprocess.PIPE)
    try:
        stack = Served("", process, 0.0)
        while not (found := drill.processes(stack, "the mark")):
            assert process.poll() is None
        assert stranger.pid not in found and drill.kill(stack, "the mark") == found[0]
        assert process.wait(30) == 0 and stranger.poll() is None
    finally:
        for one in (process, stranger):
            one.kill()
            one.wait()
            assert one.stdin is not None
            one.stdin.close()


def account(**changed: Any) -> dict[str, Any]:
    batch = {"lost": 0, "twice": 0, "wrong": 0} | changed.pop("batch", {})
    return {"wrong": [], "given_up": [], "left": [], "engines": 2, "batch": batch} | changed


@pytest.mark.parametrize(
    ("changed", "bad"),
    [
        ({}, []),
        ({"wrong": ["red: 'blue'"]}, ["wrong"]),
        ({"given_up": ["red"]}, ["given_up"]),
        ({"left": ["VLLM::EngineCor"]}, ["left"]),
        ({"engines": 3}, ["engines"]),
        ({"engines": 1}, ["engines"]),
        ({"batch": {"lost": 1}}, ["batch.lost"]),
        ({"batch": {"twice": 2, "wrong": 1}}, ["batch.twice", "batch.wrong"]),
    ],
)
def test_what_a_drill_may_not_show(changed: dict[str, Any], bad: list[str]) -> None:
    assert drill.bad(account(**changed)) == bad


SERVER = """
import http.server, subprocess, sys, threading
sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True) if sys.argv[2] == "leaves" else None
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("leaves", [False, True])
def test_what_outlives_a_server_is_found(tmp_path: Path, leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(bench_stack, "LEFT_S", 0.2)
    command = [sys.executable, "-c", SERVER, str(port), "leaves" if leaves else "clean"]
    with bench_stack.running(command, port, "/ready", tmp_path / "log", {}) as server:
        family = bench_stack.family_of(server.process.pid)
        assert server.start_s > 0 and len(family) == leaves and server.left == []
    assert server.left == ["sleep"] * leaves
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_a_server_that_ends_at_once_is_named_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    with (
        pytest.raises(CheckFailed, match="did not start") as caught,
        bench_stack.running(command, free_port(), "/ready", tmp_path / "log", {}),
    ):
        pytest.fail("it runs")
    assert str(tmp_path / "log") in str(caught.value.fix) and "no room" in (tmp_path / "log").read_text()


def test_an_unknown_drill_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["drill", "earthquake"])
    with pytest.raises(SystemExit):
        drill.main()
    assert "earthquake" in capsys.readouterr().err


def test_a_disk_of_its_own(tmp_path: Path) -> None:
    with drill.small_disk(tmp_path / "disk", 1) as disk:
        if disk is None:
            pytest.skip("this user may not mount a file system")
        with pytest.raises(OSError):
            (disk / "x").write_bytes(b"x" * 2**21)
    assert not (tmp_path / "disk" / "x").exists()
