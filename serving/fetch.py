"""Fetch an image URL that the stack allows, without being led elsewhere.

Only listed hosts; the address is resolved once, checked, and connected to as checked (no second look-up that could
answer differently); no redirects; bounded time and bytes.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.stack import Media


async def fetch_image(url: str, limits: Media, param: str) -> bytes:
    """Return the bytes behind `url`.

    Raises:
        ApiError: 400, the host is not allowed, cannot be reached, or does not answer 200; 413, too many bytes.
    """
    try:
        parsed = URL(url)  # the parser of the library that will connect: no second opinion on what the host is
        host, port = (parsed.raw_host or "").casefold(), parsed.port or 80
    except ValueError as error:
        raise ApiError(
            400, f"The image URL is wrong: {str(error)[:120]}.", kind="bad_image_url", param=param
        ) from error
    if host not in limits.url_hosts:
        allowed = ", ".join(limits.url_hosts) or "none"
        text = f"Image URLs of host {host[:80]!r} are not allowed here (allowed: {allowed}). Send a data URI."
        raise ApiError(400, text, kind="host_not_allowed", param=param)
    try:
        async with asyncio.timeout(limits.url_timeout_s):
            address = await _resolve(host, port, limits.url_private, param)
            return await _get(parsed, address, limits, param)
    except TimeoutError as error:
        text = f"The image URL did not answer within {limits.url_timeout_s:g} s."
        raise ApiError(400, text, kind="image_url_failed", param=param) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        text = f"The image URL could not be fetched ({type(error).__name__})."
        raise ApiError(400, text, kind="image_url_failed", param=param) from error


async def _get(url: URL, address: str, limits: Media, param: str) -> bytes:
    connector = aiohttp.TCPConnector(resolver=_Pinned(address), use_dns_cache=False)
    headers = {"accept": "image/*", "accept-encoding": "identity"}
    async with (
        aiohttp.ClientSession(
            connector=connector, auto_decompress=False
        ) as session,  # no bomb in transport coding either
        session.get(url, allow_redirects=False, headers=headers) as answer,
    ):
        if answer.status != 200:
            raise ApiError(400, f"The image URL answered {answer.status}.", kind="image_url_failed", param=param)
        chunks, size = [], 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > limits.image_bytes:
                text = f"The image has more than {limits.image_bytes} bytes, the limit."
                raise ApiError(413, text, kind="image_too_large", param=param)
            chunks.append(chunk)
        return b"".join(chunks)


async def _resolve(host: str, port: int, private: bool, param: str) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ApiError(
            400, f"The image URL's host {host[:80]!r} was not found.", kind="image_url_failed", param=param
        ) from error
    address = str(found[0][4][0])
    if not private and not ip_address(address.split("%")[0]).is_global:
        raise ApiError(
            400,
            f"The image URL's host {host[:80]!r} is not on the public network.",
            kind="host_not_allowed",
            param=param,
        )
    return address


class _Pinned(AbstractResolver):
    """An aiohttp resolver that always answers the address that was checked."""

    def __init__(self, address: str):
        self.address = address

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        kind = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        return [
            {
                "hostname": host,
                "host": self.address,
                "port": port,
                "family": kind,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    async def close(self) -> None:
        """Nothing to release."""
