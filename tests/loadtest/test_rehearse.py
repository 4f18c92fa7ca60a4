"""Drills pass on a server that behaves, and fail on one that does not; the proxy does what it is told."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from fovea import main
from loadtest.faultproxy import Fault, FaultProxy
from models.support.errors import UsageError
from tests.loadtest.server import Plan, Server

Serve = Callable[..., Server]


def careful(request: dict[str, Any]) -> Plan:
    """Refuse what is broken, as a good server does."""
    for message in request["messages"]:
        content = message["content"]
        if isinstance(content, str):
            if len(content) > 100_000:
                return Plan(status=400, body=b'{"error":{"message":"too long"}}')
            continue
        for part in content:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].split(",")[1])
                try:
                    with Image.open(io.BytesIO(data)) as picture:
                        picture.load()
                except Exception:
                    return Plan(status=400, body=b'{"error":{"message":"bad image"}}')
    return Plan(first_s=0.002)


def rehearse(server: Server, prompts: str, tmp_path: Path, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    options = ["--url", server.url, "--model", "m", "--workload", prompts, "--rate", "40", "--part", "0.5"]
    options += [
        "--bad-rate",
        "30",
        "--max-slip-ms",
        "5000",
        "--timeout",
        "5",
        "--tolerate",
        "0.05",
        "--slower",
        "1000",
        "--out",
        str(tmp_path),
    ]
    code = main(["loadtest", "rehearse", *options, *words])
    data = json.loads((tmp_path / "rehearse.json").read_text())
    return code, {d["name"]: d for d in data["drills"]}


@pytest.mark.parametrize(
    "drill", ["corrupted-image", "truncated-image", "not-an-image", "oversized-prompt", "contradiction"]
)
def test_bad_input_on_a_good_server(serve: Serve, prompts: str, tmp_path: Path, drill: str) -> None:
    code, found = rehearse(serve(careful), prompts, tmp_path, "--drill", drill)
    assert code == 0 and found[drill]["verdict"] == "passed", found
    assert found[drill]["numbers"]["broken"]["requests"] >= 10


def test_bad_input_on_a_server_that_crashes(serve: Serve, prompts: str, tmp_path: Path) -> None:
    def careless(request: dict[str, Any]) -> Plan:
        return Plan(status=500, body=b"{}") if careful(request).status == 400 else Plan()

    code, found = rehearse(serve(careless), prompts, tmp_path, "--drill", "corrupted-image")
    assert code == 1 and found["corrupted-image"]["verdict"] == "failed"
    assert any(text.startswith("NOT:") and "5xx" in text for text in found["corrupted-image"]["evidence"])


@pytest.mark.parametrize("drill", ["upstream-slow", "upstream-429", "upstream-500", "upstream-cut"])
def test_faults_in_front_of_the_server(serve: Serve, prompts: str, tmp_path: Path, drill: str) -> None:
    server = serve(Plan(first_s=0.002, pieces=("a", "b", "c")))
    code, found = rehearse(server, prompts, tmp_path, "--drill", drill, "--part", "1")
    assert code == 0 and found[drill]["verdict"] == "passed", found


def test_a_stack_that_does_not_hide_its_upstream_fails(serve: Serve, prompts: str, tmp_path: Path) -> None:
    """The "stack" here is the proxy itself, so its clients see every fault."""
    server = serve()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--upstream", server.url, "--proxy-port", str(port), "--drill", "upstream-500"]
    options = ["--url", f"http://127.0.0.1:{port}/v1", "--model", "m", "--workload", prompts, "--rate", "40"]
    options += ["--part", "0.5", "--max-slip-ms", "5000", "--out", str(tmp_path)]
    assert main(["loadtest", "rehearse", *options, *words]) == 1
    drill = json.loads((tmp_path / "rehearse.json").read_text())["drills"][0]
    assert any(text.startswith("NOT: during") for text in drill["evidence"])


def test_commands(serve: Serve, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag = tmp_path / "stopped"
    words = ["--drill", "cache-gone", "--cache-stop-command", f"touch {flag}", "--cache-start-command", f"rm {flag}"]
    code, found = rehearse(serve(), prompts, tmp_path, *words)
    assert code == 0 and found["cache-gone"]["verdict"] == "passed" and not flag.exists()
    assert rehearse(serve(), prompts, tmp_path, "--drill", "cache-gone", "--cache-stop-command", "exit 3")[0] == 2
    assert "the command failed" in capsys.readouterr().err
    code, found = rehearse(serve(), prompts, tmp_path, "--drill", "replica-killed")
    assert code == 1 and found["replica-killed"]["verdict"] == "skipped"
    assert "--kill-command" in capsys.readouterr().out


def test_a_killed_server_fails_the_drill(serve: Serve, prompts: str, tmp_path: Path) -> None:
    server = Server(Plan(first_s=0.002)).__enter__()
    killer = tmp_path / "kill.sh"
    marker = tmp_path / "killed"
    killer.write_text(f"touch {marker}\nwhile [ -e {marker} ]; do sleep 0.02; done\n")  # it ends when it is done

    def watch() -> None:
        while not marker.exists():
            time.sleep(0.02)
        server.__exit__()
        marker.unlink()

    thread = threading.Thread(target=watch)
    thread.start()
    code, found = rehearse(server, prompts, tmp_path, "--drill", "replica-killed", "--kill-command", f"sh {killer}")
    thread.join()
    assert code == 1 and found["replica-killed"]["verdict"] == "failed"


def test_wrong_drills(prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["loadtest", "rehearse", "--url", "http://127.0.0.1:9/v1", "--model", "m"]
    assert main([*words, "--drill", "fire"]) == 2
    assert "unknown drill" in capsys.readouterr().err
    assert main([*words, "--part", "0"]) == 2
    assert main([*words, "--upstream", "http://127.0.0.1:9"]) == 2
    with pytest.raises(UsageError, match="unknown fault"):
        Fault("flood")


def test_the_help_names_every_drill() -> None:
    from loadtest.commands.rehearse import NAMES
    from loadtest.drills import DRILLS

    assert NAMES.split(", ") == list(DRILLS)


def test_proxy_passes_everything_through(serve: Serve) -> None:
    server = serve(Plan(pieces=("hello",)))
    with FaultProxy(server.url) as proxy, httpx.Client(base_url=proxy.url) as client:
        assert client.get("/models").json()["data"][0]["id"] == "m"
        body = {"messages": [{"role": "user", "content": "x" * 300_000}]}
        for _ in range(3):
            reply = client.post("/chat/completions", json=body)
            assert reply.json()["choices"][0]["message"]["content"] == "hello"
        proxy.fault = Fault("status", status=429, retry_after_s=7)
        refused = client.post("/chat/completions", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
        proxy.fault = Fault("refuse")
        with pytest.raises(httpx.HTTPError):
            client.post("/chat/completions", json=body)
        proxy.fault = Fault("cut", after=30)
        with pytest.raises(httpx.HTTPError):
            client.post("/chat/completions", json=body)
        proxy.fault = None
        assert client.post("/chat/completions", json=body).status_code == 200


def test_proxy_port_in_use(serve: Serve) -> None:
    server = serve()
    with pytest.raises(UsageError, match="cannot listen"), FaultProxy(server.url, server.port):
        raise AssertionError("the port is taken")
