"""Keys in Valkey or Redis, for any number of machines."""

from __future__ import annotations

from dataclasses import asdict

import orjson

from serving.errors import StoreDown
from serving.keys import Key
from serving.valkey import connect, guarded

HASH, VERSION = "fovea:keys", "fovea:keys:version"


class ValkeyKeys:
    """See `serving.keys.KeyStore`."""

    def __init__(self, url: str):
        self.url, self.client = url, connect(url)

    async def snapshot(self, known: int | None) -> tuple[int, dict[str, Key]] | None:
        """See `KeyStore`."""
        async with guarded(self.url):
            version = int(await self.client.get(VERSION) or 0)
            if version == known:
                return None
            rows = await self.client.hvals(HASH)
        try:
            keys = [Key(**orjson.loads(row)) for row in rows]
        except (TypeError, ValueError) as error:
            raise StoreDown(f"{HASH} holds something that is no key") from error
        return version, {key.id: key for key in keys}

    async def put(self, key: Key) -> None:
        """See `KeyStore`."""
        async with guarded(self.url), self.client.pipeline(transaction=True) as pipe:
            pipe.hset(HASH, key.id, orjson.dumps(asdict(key)))
            pipe.incr(VERSION)
            await pipe.execute()

    async def close(self) -> None:
        """See `KeyStore`."""
        await self.client.aclose()
