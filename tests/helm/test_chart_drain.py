"""drain.py, the preStop hook: whom it tells of the pod's end, how long it waits, that nothing makes it hang or fail.

What Ray does with it is seen with real Ray in several network namespaces: tests/e2e/drain_pod.py (docs/helm.md).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.helm.chart import EVERYTHING, pods, render
from tests.helm.programs import run, server

ELSEWHERE = {"node_id": "bb", "node_ip": "10.0.0.9"}


def status(here: int, proxy: bool) -> bytes:
    """Return what Ray Serve's API says when `here` replicas, and perhaps a proxy, are at this address."""
    mine = {"node_id": "aa", "node_ip": "127.0.0.1"}
    replicas = [{"replica_id": str(n), **mine} for n in range(here)] + [{"replica_id": "x", **ELSEWHERE}]
    proxies = {"bb": ELSEWHERE, **({"aa": mine} if proxy else {})}
    return json.dumps(
        {"applications": {"m": {"deployments": {"m": {"replicas": replicas}}}}, "proxies": proxies}
    ).encode()


@contextmanager
def head(*states: tuple[int, bool]) -> Iterator[dict[str, str]]:
    """Serve these states one after another, the last one for ever; yields the environment of a worker's container."""
    left = list(states)

    def answer(*_: Any) -> tuple[int, bytes]:
        return 200, status(*(left.pop(0) if len(left) > 1 else left[0]))

    with socket.create_server(("127.0.0.1", 0)) as gcs, server(answer) as url:
        yield {
            "FQ_RAY_IP": "127.0.0.1",
            "RAY_PORT": str(gcs.getsockname()[1]),
            "DASHBOARD_PORT": str(urlsplit(url).port),
        }


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A command `ray` that notes how it is called; yields its notes and the environment in which it is found."""
    (tmp_path / "bin").mkdir()
    notes, command = tmp_path / "notes", tmp_path / "bin" / "ray"
    notes.touch()
    refused = f"if [ -e {tmp_path}/refuse ]; then rm {tmp_path}/refuse; echo no >&2; exit 1; fi"
    command.write_text(f'#!/bin/sh\necho "$*" >> {notes}\n{refused}\n')
    command.chmod(0o755)
    yield notes, {"PATH": f"{command.parent}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}


def drain(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    done = run("drain.py", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done


def test_it_tells_ray_once_and_waits_until_the_pod_is_empty(ray: tuple[Path, dict[str, str]]) -> None:
    notes, environment = ray
    with head((2, True), (2, True), (1, True), (0, True), (0, False)) as where:
        done = drain("30", "60", **environment, **where)
    lines = done.stdout.splitlines()
    assert lines[:-1] == ["drain: 2 replicas, a proxy", "drain: 1 replicas, a proxy", "drain: 0 replicas, a proxy"]
    assert lines[-1].startswith("drain: empty after ")
    assert Path(environment["LOG"]).read_text() == done.stdout, "a hook's own output is nowhere to be seen"
    (call,) = notes.read_text().splitlines()
    assert call.startswith(f"drain-node --address=127.0.0.1:{where['RAY_PORT']} --node-id=aa ")
    assert int(call.rpartition("--deadline-remaining-seconds=")[2]) in range(60, 91), "WAIT_S + DRAIN_S from the start"


def test_it_ends_when_the_time_is_up(ray: tuple[Path, dict[str, str]]) -> None:
    with head((1, True)) as where:
        assert drain("0.3", "0.3", **ray[1], **where).stdout.endswith("drain: ending with 1 replicas, a proxy\n")


def test_a_ray_that_does_not_take_note_is_told_again(ray: tuple[Path, dict[str, str]]) -> None:
    notes, environment = ray
    (notes.parent / "refuse").touch()
    with head((1, True), (1, True), (0, False)) as where:
        assert "drain: node aa: no\n" in drain("30", "60", **environment, **where).stdout
    assert len(notes.read_text().splitlines()) == 2


def test_a_pod_without_replicas_and_proxy_ends_at_once(ray: tuple[Path, dict[str, str]]) -> None:
    with head((0, False)) as where:
        assert drain("3600", "60", **ray[1], **where).stdout.startswith("drain: empty after ")
    assert ray[0].read_text() == ""


def test_without_a_head_it_ends_when_the_wait_is_over(ray: tuple[Path, dict[str, str]]) -> None:
    where = {"FQ_RAY_IP": "127.0.0.1", "RAY_PORT": "9", "DASHBOARD_PORT": "9"}
    done = drain("0.3", "3600", **ray[1], **where)
    assert "127.0.0.1 does not answer: " in done.stdout and done.stdout.endswith("; ending without it\n")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"applications": {}}', b'{"applications": {"m": {}}, "proxies": null}']
)
def test_an_answer_of_another_kind_does_not_stop_it(body: bytes, ray: tuple[Path, dict[str, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gcs, server(lambda *_: (200, body)) as url:
        where = {"FQ_RAY_IP": "127.0.0.1", "RAY_PORT": str(gcs.getsockname()[1])}
        drain("0.2", "0.2", **ray[1], **where, DASHBOARD_PORT=str(urlsplit(url).port))
    assert ray[0].read_text() == ""


def test_every_worker_has_it_and_the_time_that_it_takes() -> None:
    values = {**EVERYTHING, "preStopSeconds": 40, "stack": {**EVERYTHING["stack"], "drain_s": 50}}
    workers = {
        name: pod["spec"]
        for name, pod in pods(render(values)).items()
        if name.startswith("RayService/") and not name.endswith("/head")
    }
    assert len(workers) == 2
    for spec in workers.values():
        (container,) = spec["containers"]
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["/opt/fovea/.venv/bin/python", "/chart/drain.py", "40", "50"]
        assert spec["terminationGracePeriodSeconds"] > 40 + 50, "and then Ray ends"
        assert {"name": "chart", "mountPath": "/chart", "readOnly": True} in container["volumeMounts"]
        files = {"name": "x-fovea-files", "items": [{"key": "drain.py", "path": "drain.py"}]}
        assert {"name": "chart", "configMap": files} in spec["volumes"]
