"""Last in this folder: what is killed one after the other, and what of the stack goes on.  `make drill` does more."""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from serving.steady import Load, under
from tests.e2e.conftest import HTTP, Running
from tests.e2e.house.conftest import House, engines, title, until
from tests.e2e.house.test_recall import COLOR, post, said
from tests.e2e.pictures import ask, draw, encode

pytestmark = pytest.mark.e2e


def test_two_stacks_on_a_machine_share_no_port(qwen: Running, house: House) -> None:
    """Ray's listeners allow sharing, and a request then goes to either stack, past the other's keys."""

    def ports_of(stack: Running) -> set[int]:
        found: set[int] = set()
        for process in psutil.Process(stack.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended while we looked
                found |= {c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
        return found

    def listens(stack: Running) -> bool:
        return int(stack.base.rpartition(":")[2]) in ports_of(stack)

    for stack in (qwen, house.running):  # HAProxy is another process each time that its servers change
        until(partial(listens, stack))
    ports = [ports_of(stack) for stack in (qwen, house.running)]
    assert all(len(found) > 5 for found in ports) and not ports[0] & ports[1]


def test_the_store_dies_and_nothing_else(house: House) -> None:
    running = house.qwen
    picture = encode(draw("rectangle", "black"))
    assert said(post(running, ask(COLOR, picture))) == "black"
    house.valkey._process.kill()
    house.valkey._process.wait()
    answers = [post(running, ask(COLOR, encode(draw("rectangle", color)))) for color in ("red", "black", "green") * 3]
    assert [said(answer) for answer in answers] == ["red", "black", "green"] * 3
    degraded = [HTTP.get(f"{running.base}/health").json().get("degraded", {}) for _ in range(10)]
    assert any("memory only" in one.get("recall", "") for one in degraded)


def test_an_engine_dies_and_only_what_was_in_it_fails(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 of one of two engines under a steady load; `make drill` does the rest."""
    engine, replica = engines(house)[0]
    headers = {"authorization": f"Bearer {house.keys['acme']}", "cache-control": "no-store"}
    with under(Load(house.qwen.base, 3, headers=headers, pictures=4)) as load:
        seen = load.account
        until(lambda: seen.answers > 20)
        engine.kill()
        killed = time.monotonic()
        until(lambda: not replica.is_running() or replica.status() == psutil.STATUS_ZOMBIE)  # it ends with its engine
        enough = seen.answers + 50
        until(lambda: seen.answers > enough)
    after = seen.between(killed, time.monotonic())
    with capsys.disabled():
        print(f"\nengine killed: {after}")
    assert (seen.wrong, seen.given_up) == ([], []) and seen.failed < 20, (seen.wrong, seen.examples)


def test_a_killed_stack_leaves_no_process_and_no_port_behind(house: House) -> None:
    """kill -9 of `fovea serve` itself, and then nothing of the stack is left: no engine, no HAProxy, none of Ray's."""
    guardian = psutil.Process(house.running.process.pid)
    family = guardian.children(recursive=True)
    titles = " ".join(map(title, family))
    assert "VLLM::EngineCore" in titles and "haproxy" in titles and "raylet" in titles
    (server,) = guardian.children()
    server.kill()
    assert house.running.process.wait(60) == 128 + signal.SIGKILL
    _, left = psutil.wait_procs(family, timeout=30)
    assert [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{house.running.base}/health", timeout=5)
    folder = re.search(r"-f (\S+)/haproxy.cfg", titles)
    assert folder and not Path(folder[1]).exists()
