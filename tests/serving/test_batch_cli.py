"""`fovea batch` against the layer, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import fovea
from serving.layers import start_layers, stop_layers
from serving.runtime import free_port
from tests.serving.test_batches import House, line


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A replica behind uvicorn."""
    house = House(tmp_path / "b")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await house.app(scope, receive, send)
            return
        for work in (start_layers, stop_layers):
            message = await receive()
            await work(house.app)
            await send({"type": f"{message['type']}.complete"})

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(30)


def test_from_file_to_results(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join([*(json.dumps(line(n, f"q{n}")) for n in range(30)), "broken"]))
    assert fovea.main(["batch", "submit", str(file), "--url", url]) == 0
    batch = capsys.readouterr().out.strip()
    assert fovea.main(["batch", "watch", batch, "--url", url, "--every", "0.05"]) == 1  # a line has failed
    assert "completed: 31/31 lines, 1 failed" in capsys.readouterr().err
    assert fovea.main(["batch", "watch", batch, "--url", url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "completed"
    assert fovea.main(["batch", "results", batch, "--url", url]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 30
    assert fovea.main(["batch", "results", batch, "--errors", "--url", url]) == 0
    assert "Line 31" in capsys.readouterr().out
    assert fovea.main(["batch", "cancel", batch, "--url", url]) == 2
    assert "409" in capsys.readouterr().err


def test_what_goes_wrong_is_one_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, code, says in (
        (["submit", str(tmp_path / "absent"), "--url", url], 2, "no such file"),
        (["watch", "batch_x", "--url", url], 2, "404"),
        (["watch", "batch_x", "--url", f"http://127.0.0.1:{free_port()}/v1"], 1, "nothing answers"),
        (["watch", "batch_x", "--url", "nonsense"], 1, "nothing answers"),
    ):
        assert fovea.main(["batch", *args]) == code
        assert says in (said := capsys.readouterr().err) and said.count("\n") == 1
