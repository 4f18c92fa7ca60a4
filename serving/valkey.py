"""The connection to a Valkey or Redis server that all stores of a process share."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from serving.errors import StoreDown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TIMEOUT_S = 2.0
"""For one command and for connecting: a store that is slower than this is as good as gone."""


def connect(url: str) -> Any:
    """Return an asyncio client for a URL; nothing is sent yet."""
    from valkey.asyncio import Valkey
    from valkey.asyncio.retry import Retry
    from valkey.backoff import NoBackoff

    return Valkey.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),  # once: a connection that the server closed is opened again
        max_connections=64,
    )


@asynccontextmanager
async def guarded(url: str) -> AsyncIterator[None]:
    """Turn what the client raises into `StoreDown`; the message has neither user nor password."""
    from valkey.exceptions import ValkeyError

    try:
        yield
    except (ValkeyError, OSError, TimeoutError) as error:
        where = re.sub(r"//[^@/]*@", "//", url)
        raise StoreDown(f"{where}: {type(error).__name__}") from error
