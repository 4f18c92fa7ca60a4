"""Image URLs: only listed hosts, only checked addresses, no redirects, bounded time and bytes."""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from serving.errors import ApiError
from serving.fetch import fetch_image
from serving.stack import Media

WHERE = "messages[0].content[0].image_url.url"


class Site:
    """A small web server on loopback, and what was asked of it."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers = dict(request.headers)
        if request.path == "/picture":
            return web.Response(body=b"picture")
        if request.path == "/moved":
            return web.Response(status=302, headers={"location": "/picture"})
        if request.path == "/gone":
            return web.Response(status=404)
        if request.path == "/cut":
            response = web.StreamResponse(headers={"content-length": "1000"})
            await response.prepare(request)
            await response.write(b"x" * 10)
            assert request.transport is not None
            request.transport.abort()
            return response
        if request.path == "/gzip":
            bomb = zlib.compressobj(wbits=31)
            body = bomb.compress(bytes(5_000_000)) + bomb.flush()
            return web.Response(body=body, headers={"content-encoding": "gzip"})
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * (10_000 if request.path == "/endless" else 1))
            await asyncio.sleep(0 if request.path == "/endless" else 0.02)
        return response


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


def limits(*hosts: str, **more: Any) -> Media:
    return Media(url_hosts=list(hosts or ("127.0.0.1", "localhost")), **{"url_private": True, **more})


async def refused(url: str, media: Media) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await fetch_image(url, media, WHERE)
    assert caught.value.status in (400, 413) and caught.value.param == WHERE
    return caught.value


async def test_a_listed_host(site: Site) -> None:
    assert await fetch_image(site.url("/picture"), limits(), WHERE) == b"picture"
    assert await fetch_image(site.url("/picture", "LOCALHOST"), limits(), WHERE) == b"picture"
    assert site.headers["Accept-Encoding"] == "identity" and "Authorization" not in site.headers


async def test_no_host_is_listed_by_default(site: Site) -> None:
    error = await refused(site.url("/picture"), Media())
    assert error.kind == "host_not_allowed" and "allowed: none" in error.message and not site.asked


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.org/localhost",
        "http://localhost.evil.org/",
        "http://evil.org#localhost",
        "http://evil.org?localhost",
        "http://localhost@evil.org/",
        "http://localhost:80@evil.org/",
        "http://evil.org\\@localhost.evil.org/",
        "http://localhost./",
        "http://[::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http:///picture",
        "http://",
        "http://%6cocalhost.evil.org/",
        "https://",
    ],
)
async def test_hosts_that_only_look_listed(url: str) -> None:
    assert (await refused(url, limits("localhost"))).kind in ("host_not_allowed", "bad_image_url")


@pytest.mark.parametrize(
    "url",
    ["http://[", "http://localhost:99999/", "http://localhost:port/", "http://[::1", "http://a b/", "http://\ud800/"],
)
async def test_urls_that_are_none(url: str) -> None:
    assert (await refused(url, limits("localhost"))).status == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_listed_host_at_a_private_address(site: Site, host: str) -> None:
    error = await refused(site.url("/picture", host), limits(url_private=False))
    assert error.kind == "host_not_allowed" and "public network" in error.message and not site.asked


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
    ],
)
async def test_private_addresses_of_every_kind(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    async def getaddrinfo(*args: Any, **options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    error = await refused("http://images.example.org/x", limits("images.example.org", url_private=False))
    assert error.kind == "host_not_allowed" and "public network" in error.message


async def test_the_address_that_was_checked_is_the_one_that_is_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers differently the second time (DNS rebinding) is not asked a second time."""
    looked_up: list[str] = []
    real = asyncio.get_running_loop().getaddrinfo

    async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        if host != "images.example.org":
            return await real(host, port, **options)
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "192.0.2.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    url = site.url("/picture", "images.example.org")
    assert await fetch_image(url, limits("images.example.org"), WHERE) == b"picture"
    assert looked_up == ["images.example.org"]
    assert site.headers["Host"] == f"images.example.org:{site.port}"


async def test_redirects_are_not_followed(site: Site) -> None:
    error = await refused(site.url("/moved"), limits())
    assert "302" in error.message and site.asked == ["/moved"]


async def test_an_answer_that_is_not_200(site: Site) -> None:
    assert "404" in (await refused(site.url("/gone"), limits())).message


async def test_too_many_bytes(site: Site) -> None:
    error = await refused(site.url("/endless"), limits(image_bytes=50_000))
    assert error.status == 413 and error.kind == "image_too_large"


async def test_transport_compression_is_not_undone(site: Site) -> None:
    data = await fetch_image(site.url("/gzip"), limits(image_bytes=100_000), WHERE)
    assert data[:2] == b"\x1f\x8b"  # no image: the decoder refuses it


async def test_a_server_that_trickles(site: Site) -> None:
    error = await refused(site.url("/trickle"), limits(url_timeout_s=0.2))
    assert error.kind == "image_url_failed" and "0.2 s" in error.message


async def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert "0.1 s" in (await refused("http://localhost/", limits(url_timeout_s=0.1))).message


async def test_nobody_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert (await refused(f"http://127.0.0.1:{probe.getsockname()[1]}/", limits())).kind == "image_url_failed"
    assert (await refused(site.url("/cut"), limits())).kind == "image_url_failed"
    assert (await refused(site.url("/picture").replace("http:", "https:"), limits())).kind == "image_url_failed"

    async def getaddrinfo(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert "was not found" in (await refused("http://localhost/", limits())).message
