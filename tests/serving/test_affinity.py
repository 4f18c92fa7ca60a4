"""Image affinity: what the proxy is told, what the front adds, and where HAProxy then sends requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from serving.affinity import BALANCE, environment, image_of
from serving.front import Forward
from serving.layers.admit import Admit
from serving.layers.record import Record
from serving.runtime import free_port, haproxy_binary
from serving.stack import Stack
from tests.serving.asgi import JSON, call, scope_of
from tests.serving.pairs import ask, part
from tests.serving.pictures import scene
from tests.serving.test_front import OWN, ROUTES, Upstream, upstream

__all__ = ["upstream"]


def stack(**more: Any) -> Stack:
    return Stack.model_validate({"models": [{"name": "a", "source": "x"}, {"name": "b", "source": "y"}], **more})


def test_the_mark_is_of_the_first_image() -> None:
    one, two = part(scene()), part(scene(size=(30, 30)))
    marks = [image_of(body) for body in (ask("a", one), ask("b", one, two), ask("a", two), ask("a", two, one))]
    assert marks[0] == marks[1] != marks[2] == marks[3] and image_of(ask("no image")) is None
    assert image_of({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "\ud800"}]}]})


@pytest.mark.parametrize(("section", "seen"), [({}, True), (None, False)])
async def test_the_front_adds_the_mark(section: Any, seen: bool, upstream: Upstream) -> None:
    forward = Forward(stack(affinity=section, listen={"port": upstream.port}), ROUTES)
    front = Record(Admit(forward, forward.stack, OWN), forward.stack, OWN)
    body = {**ask("?", part(scene())), "model": "a"}
    given = (b"x-fovea-image", b"of the client")
    for headers, expected in (((), image_of(body) if seen else None), ((given,), b"of the client")):
        await call(front, scope_of("POST", "/v1/chat/completions", JSON, *headers), body)
        assert upstream.requests[-1].headers.getall("x-fovea-image", []) == ([expected.decode()] if expected else [])
    assert forward.session is not None
    await forward.session.close()


class Replica:
    """Counts, and answers when it may."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.go = asyncio.Event()
        self.go.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.seen[request.headers.get("x-fovea-image", "")] += 1
        await self.go.wait()
        return web.Response(text="ok")


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[tuple[str, list[Replica]]]:
    """The real HAProxy in front of three servers, with the lines that Ray would write."""
    assert environment(stack()) == {}
    replicas, runners, servers = [Replica() for _ in range(3)], [], []
    for number, replica in enumerate(replicas):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", replica.answer)
        runners.append(web.AppRunner(app, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        servers.append(f"    server s{number} 127.0.0.1:{runners[-1].addresses[0][1]}")
    port, file = free_port(), tmp_path / "haproxy.cfg"
    lines = ["defaults", "    mode http", *(f"    timeout {what} 30s" for what in ("connect", "client", "server"))]
    lines += [f"    balance {environment(stack(affinity={'load': 1.5}))[BALANCE]}", "frontend f"]
    lines += [f"    bind 127.0.0.1:{port}", "    default_backend b", "backend b", *servers]
    file.write_text("\n".join(lines) + "\n")
    process = await asyncio.create_subprocess_exec(haproxy_binary(), "-db", "-f", str(file))
    yield f"http://127.0.0.1:{port}", replicas
    process.kill()
    await process.wait()
    for runner in runners:
        await runner.cleanup()


async def test_an_image_stays_with_its_replica_while_that_is_not_too_busy(proxy: tuple[str, list[Replica]]) -> None:
    url, replicas = proxy
    async with ClientSession() as session:

        async def send(image: str | None) -> None:
            headers = {"x-fovea-image": image} if image else {}
            for _ in range(100):
                try:
                    async with session.post(url, headers=headers, data=b"x") as answer:
                        assert answer.status == 200
                        return
                except OSError:  # it is still starting
                    await asyncio.sleep(0.05)
            raise AssertionError("no proxy")

        for number in range(90):
            await send(f"image-{number % 30}")
        homes = [sum(replica.seen[f"image-{number}"] > 0 for replica in replicas) for number in range(30)]
        assert set(homes) == {1} and all(replica.seen for replica in replicas)  # each has one home, all have some
        for replica in replicas:
            replica.seen.clear()
            replica.go.clear()
        waiting = [asyncio.create_task(send("hot")) for _ in range(30)]
        while sum(replica.seen.total() for replica in replicas) < 30:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert max(replica.seen["hot"] for replica in replicas) <= 16  # 1.5 times a third of 30, and one
        for replica in replicas:
            replica.go.set()
        await asyncio.gather(*waiting)
        for replica in replicas:
            replica.seen.clear()
        for _ in range(30):
            await send(None)
        assert min(replica.seen[""] for replica in replicas) >= 5  # they go round
