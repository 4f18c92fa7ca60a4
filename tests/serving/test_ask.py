"""`fovea ask`: one question, one answer, and one clear line for everything that can go wrong."""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from models.support.errors import CheckFailed, UsageError
from serving import ask
from tests.serving.pictures import encode, scene

CHOICE = {"message": {"content": "red"}, "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}}
ANSWER = {"model": "first", "choices": [CHOICE], "usage": {"prompt_tokens": 20}}


class Api(ThreadingHTTPServer):
    """An HTTP server that answers what the test says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.said: dict[str, tuple[int, Any]] = {
            "/v1/models": (200, {"data": [{"id": "first"}, {"id": "second"}]}),
            "/v1/chat/completions": (200, ANSWER),
        }
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("authorization"))
        status, value = self.server.said[self.path]
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(scene()))
    return path


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    ask.add_arguments(parser)
    args = parser.parse_args(arguments)
    return int(args.run(args))


def test_the_answer_is_printed(api: Api, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(image), "what color?", "--url", f"{api.url}/") == 0
    assert capsys.readouterr().out == "red\n"
    body = api.bodies[0]
    assert body["model"] == "first" and body["max_tokens"] == 64
    part, text = body["messages"][0]["content"]
    assert part["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    assert text == {"type": "text", "text": "what color?"}


def test_json(api: Api, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(image), "?", "--url", api.url, "--json", "--model", "second", "--max-tokens", "3") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["answer"], result["logprob"], result["usage"]) == ("red", -0.75, {"prompt_tokens": 20})
    assert result["latency_s"] >= 0 and api.bodies[0]["model"] == "second" and api.bodies[0]["max_tokens"] == 3


def test_an_image_on_standard_input_or_at_a_url(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"bytes")))
    assert ask.image_url("-") == "data:application/octet-stream;base64," + base64.b64encode(b"bytes").decode()
    for url in ("https://x.org/a.png", "http://x.org/a.png", "data:image/png;base64,AA"):
        assert ask.image_url(url) == url


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(UsageError) as caught:
            run(str(path), "?")
        assert caught.value.field == "IMAGE" and str(path) in str(caught.value)


def test_what_the_server_refuses_is_bad_input(api: Api, image: Path) -> None:
    error = {"error": {"message": "The image is truncated.", "type": "x", "param": "y", "code": "z"}}
    api.said["/v1/chat/completions"] = (400, error)
    with pytest.raises(UsageError, match=r"answered 400: The image is truncated\."):
        run(str(image), "?", "--url", api.url)
    api.said["/v1/chat/completions"] = (503, b"<html>\n busy</html>")
    with pytest.raises(CheckFailed, match="answered 503: <html> busy</html>"):
        run(str(image), "?", "--url", api.url)


@pytest.mark.parametrize("value", [b"hello", b"", {}, {"data": []}, {"data": [{}]}, [], {"data": 5}])
def test_something_else_answers(api: Api, image: Path, value: Any) -> None:
    api.said["/v1/models"] = (200, value)
    with pytest.raises(CheckFailed) as caught:
        run(str(image), "?", "--url", api.url)
    assert caught.value.field == "--url" and "/v1" in (caught.value.fix or "")


@pytest.mark.parametrize("value", [{}, {"choices": []}, {"choices": [{"message": None}]}])
def test_an_answer_without_choices(api: Api, image: Path, value: Any) -> None:
    api.said["/v1/chat/completions"] = (200, value)
    with pytest.raises(CheckFailed, match=r"no choices\.0\.message\.content"):
        run(str(image), "?", "--url", api.url)


def test_an_empty_answer(api: Api, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.said["/v1/chat/completions"] = (200, {"model": "m", "choices": [{"message": {"content": None}}]})
    assert run(str(image), "?", "--url", api.url) == 0 and capsys.readouterr().out == "\n"
    assert run(str(image), "?", "--url", api.url, "--json") == 0
    assert json.loads(capsys.readouterr().out)["logprob"] is None


def test_nothing_answers(image: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(CheckFailed) as caught:
            run(str(image), "?", "--url", f"http://127.0.0.1:{probe.getsockname()[1]}/v1")
    assert "fovea serve" in (caught.value.fix or "")


def test_something_that_does_not_speak_http(image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CheckFailed):
            run(str(image), "?", "--url", f"http://127.0.0.1:{server.getsockname()[1]}/v1")
        thread.join()


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "", "file:///etc/passwd", "http://[", "http://a b/", "http://:x/", "ftp://x/"]
)
def test_addresses_that_are_none(image: Path, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(str(image), "?", "--url", url)
    assert caught.value.field == "--url"


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    api: Api, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert run(str(image), "?", "--url", api.url) == 0
    assert capsys.readouterr().out == "red\n"


def test_a_key_comes_from_the_environment(api: Api, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEA_API_KEY", raising=False)
    assert run(str(image), "?", "--url", api.url) == 0 and api.keys == [None, None]
    monkeypatch.setenv("FOVEA_API_KEY", "fovea_x")
    assert run(str(image), "?", "--url", api.url) == 0 and api.keys[2:] == ["Bearer fovea_x"] * 2
