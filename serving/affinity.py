"""Requests that share an image prefer one replica: the one that has it in its encoder and prefix caches.

The proxy never looks into a body.  It goes by the header `x-fovea-image`, which a client sends (any short text that is
the same for the same image, such as the start of the file's SHA-256) or, in a stack with a front, the front adds.
HAProxy hashes it consistently, with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016): a replica that would have
more than `load` times its share of the running requests passes the rest on to the next.  Without the header requests go
round.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving.errors import ApiError
from serving.section import Section

if TYPE_CHECKING:
    from serving.stack import Stack

HEADER = b"x-fovea-image"
BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
"""Environment variable of Ray Serve: what it writes behind `balance` in the proxy's configuration."""
SIDE = 2048


class Affinity(Section):
    """Requests that share an image go to the same replica, while it is not busier than the others."""

    load: float = Field(
        1.5, ge=1.05, le=100, description="Most requests of a replica, as a multiple of the mean over all replicas."
    )


def environment(stack: Stack) -> dict[str, str]:
    """Return what Ray's processes have to know of it; nothing when the section is absent."""
    if stack.affinity is None:
        return {}
    factor = round(100 * stack.affinity.load)
    lines = ("hdr(x-fovea-image)", "hash-type consistent sdbm avalanche", f"hash-balance-factor {factor}")
    return {BALANCE: "\n    ".join(lines)}


def image_of(body: dict[str, Any]) -> bytes | None:
    """Return a cheap mark of a request's first image, None when it has none.

    It is made from the image as it is written in the body (length, start and end): the same picture in another file has
    another mark, which costs no more than a cache miss.
    """
    from serving.found import find_images

    try:
        found = find_images(body)
    except ApiError:  # the model's own application says what is wrong with it
        return None
    if not found:
        return None
    url = found[0].url
    text = f"{len(url)}:{url[:SIDE]}:{url[-SIDE:]}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()
