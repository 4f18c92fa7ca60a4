"""Kept answers in Valkey or Redis.  Its `maxmemory` with `allkeys-lru` bounds the bytes."""

from __future__ import annotations

from serving.valkey import connect, guarded

PREFIX, GENERATIONS = b"fovea:recall:", "fovea:recall-generations"


class ValkeyShelf:
    """See `serving.recall.store.Shelf`."""

    def __init__(self, url: str):
        self.url, self.client = url, connect(url)

    async def get(self, key: bytes) -> bytes | None:
        """See `Shelf`."""
        async with guarded(self.url):
            found: bytes | None = await self.client.get(PREFIX + key)
            return found

    async def put(self, key: bytes, blob: bytes, ttl_s: float) -> None:
        """See `Shelf`."""
        async with guarded(self.url):
            await self.client.set(PREFIX + key, blob, px=max(1, int(ttl_s * 1000)))

    async def generations(self) -> dict[str, int]:
        """See `Shelf`."""
        async with guarded(self.url):
            found = await self.client.hgetall(GENERATIONS)
        return {scope.decode(): int(number) for scope, number in found.items()}

    async def purge(self, scope: str) -> None:
        """See `Shelf`."""
        async with guarded(self.url):
            await self.client.hincrby(GENERATIONS, scope, 1)

    async def count(self) -> tuple[int, int]:
        """See `Shelf`."""
        entries = size = 0
        async with guarded(self.url):
            async for key in self.client.scan_iter(match=PREFIX + b"*", count=1000):
                entries, size = entries + 1, size + int(await self.client.strlen(key))
        return entries, size

    async def close(self) -> None:
        """See `Shelf`."""
        await self.client.aclose()
