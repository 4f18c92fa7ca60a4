"""Runs batches: line by line through the replica's own layers, as requests of the batch lane.

One replica at a time has a batch (a lease that it renews); when it dies, another takes over and asks only the lines
that have no result yet.  What is over a limit of the tenant waits and tries again; what fails otherwise is a line of
the error file.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from serving.batches.store import Batch, Store, new_id
from serving.errors import ApiError
from serving.exchange import KEY, Exchange
from serving.metrics import METRICS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from serving.batches.section import Batches
    from serving.layers.identify import Identity

logger = logging.getLogger("fovea.serving")
T = TypeVar("T")
POLL_S = 0.5
FLUSH = 64
SWEEP_S = 600.0
"""So often expired files are looked for."""
AGAIN = (429, 503)


class Runner:
    """See the module's docstring.

    Args:
        app: the layers behind `identify`.
        identities: batch -> who it is of, None where the stack asks for no keys.

    Raises:
        LookupError: (`identities`) the tenant is gone.
    """

    def __init__(self, app: ASGIApp, section: Batches, model: str, identities: Callable[[Batch], Identity | None]):
        self.app, self.section, self.model, self.identities = app, section, model, identities
        self.thread = ThreadPoolExecutor(1, "batches")
        self.store: Store | None = None
        self.holder = uuid.uuid4().hex
        self.task: asyncio.Task[None] | None = None
        self.again_s = 1.0

    async def start(self) -> None:
        """Open the folder and look for batches from now on."""
        self.store = await self.call(lambda: Store(self.section.folder))
        self.task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Give the batch back; what was answered is kept."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        if self.store is not None:
            await self.call(self.store.close)
        self.thread.shutdown()

    async def call(self, work: Callable[[], T]) -> T:
        """Do something with the store, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def _watch(self) -> None:
        assert self.store is not None
        claim, sweep, next_sweep = self.store.claim, self.store.sweep, 0.0
        while True:
            try:
                if time.monotonic() >= next_sweep:
                    await self.call(sweep)
                    next_sweep = time.monotonic() + SWEEP_S
                await self._report()
                batch = await self.call(lambda: claim(self.model, self.holder, self.section.lease_s))
                if batch is None:
                    await asyncio.sleep(POLL_S)
                else:
                    await self._hold(batch)
            except (sqlite3.Error, OSError):  # a full disk, for example: what is not written is asked again
                logger.exception("the batches cannot go on")
                await asyncio.sleep(max(POLL_S, self.section.lease_s / 3))

    async def _report(self) -> None:
        """Say in the metrics since when the oldest batch waits."""
        assert self.store is not None
        oldest = self.store.oldest
        METRICS.oldest_batch.labels(self.model).set(await self.call(lambda: oldest(self.model)))

    async def _hold(self, batch: Batch) -> None:
        """Run a batch as long as it is ours."""
        assert self.store is not None
        store = self.store
        work = asyncio.create_task(self._run(batch))
        try:
            while not work.done():
                await asyncio.wait((work,), timeout=self.section.lease_s / 3)
                await self._report()
                mine = await self.call(lambda: store.renew(batch.id, self.holder, self.section.lease_s))
                if not mine and not work.done():
                    logger.warning("batch %s is somebody else's by now", batch.id)
                    break
            if work.done():
                work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self.call(lambda: store.release(batch.id, self.holder))

    async def _run(self, batch: Batch) -> None:
        assert self.store is not None
        store = self.store
        if batch.status == "in_progress":
            try:
                await self._ask_all(batch)
            except LookupError as error:
                problem = str(error)
                await self.call(lambda: store.become(batch.id, "failed", problem=problem))
                return
        batch = await self.call(lambda: store.batch(batch.id) or batch)
        cancelled, expired = batch.status == "cancelling", time.time() >= batch.expires
        if batch.status == "in_progress":
            await self.call(lambda: store.become(batch.id, "finalizing"))
        output = batch.output or await self.call(lambda: store.write_results(batch, failed=False))
        await self.call(lambda: store.change(batch.id, output=output))  # not written again, should this process die
        errors = batch.errors or await self.call(lambda: store.write_results(batch, failed=True))
        last = "cancelled" if cancelled else "expired" if expired else "completed"
        await self.call(lambda: store.become(batch.id, last, output=output, errors=errors))

    async def _ask_all(self, batch: Batch) -> None:
        """Ask every line that has no result; return early when the batch is cancelled or out of time.

        Raises:
            LookupError: the batch's file or tenant is gone.
        """
        assert self.store is not None
        store, identity = self.store, self.identities(batch)
        done = await self.call(lambda: store.done(batch.id))
        results: list[tuple[int, bool, bytes]] = []
        seen: set[str] = set()
        running: set[asyncio.Task[None]] = set()
        stopped = False

        async def one(number: int, line: bytes) -> None:
            results.append(await self._line(batch, identity, number, line, seen))

        async def flush() -> None:
            nonlocal stopped
            rows, results[:] = list(results), []
            if rows:
                await self.call(lambda: store.add_results(batch.id, rows))
            now = await self.call(lambda: store.batch(batch.id))
            stopped = now is None or now.status != "in_progress" or time.time() >= batch.expires

        last, number = time.monotonic(), 0
        try:
            async for line in self._lines(batch):
                number += 1
                if number in done:
                    seen.add(_custom_id(line) or "")
                    continue
                while len(running) >= self.section.inside and not stopped:
                    await asyncio.wait(running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                    if time.monotonic() - last > POLL_S:
                        await flush()
                        last = time.monotonic()
                if stopped or time.time() >= batch.expires:
                    break
                running.add(task := asyncio.create_task(one(number, line)))
                task.add_done_callback(running.discard)
                if len(results) >= FLUSH:
                    await flush()
            while running and not stopped:
                await asyncio.wait(running, timeout=POLL_S, return_when=asyncio.ALL_COMPLETED)
                await flush()
        finally:
            for task in list(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            rows = list(results)
            await self.call(lambda: store.add_results(batch.id, rows))
        if time.time() >= batch.expires:
            await self._expire(batch, number)

    async def _expire(self, batch: Batch, upto: int) -> None:
        """Write an error for every line that was not asked in time."""
        assert self.store is not None
        store = self.store
        done = await self.call(lambda: store.done(batch.id))
        rows: list[tuple[int, bool, bytes]] = []
        number = 0
        async for line in self._lines(batch):
            number += 1
            if number not in done:
                text = "This request could not be answered before the completion window ended."
                rows.append((number, True, _failure(_custom_id(line), "batch_expired", text)))
            if len(rows) >= FLUSH:
                part, rows = rows, []
                await self.call(lambda part=part: store.add_results(batch.id, part))  # type: ignore[misc]
        await self.call(lambda: store.add_results(batch.id, rows))

    async def _lines(self, batch: Batch) -> AsyncIterator[bytes]:
        """Yield the file's lines, empty ones left out, one at a time; a longer one than allowed is cut.

        Raises:
            LookupError: the file is gone.
        """
        assert self.store is not None
        try:
            file = await self.call(self.store.path(batch.input).open("rb").__enter__)
        except OSError as error:
            raise LookupError(f"the input file {batch.input} is gone") from error
        most = self.section.line_bytes + 1

        def some() -> list[bytes]:
            found: list[bytes] = []
            size = 0
            while size < 2**20 and (line := file.readline(most)):
                rest = line
                while not rest.endswith(b"\n") and len(rest) == most and (rest := file.readline(most)):
                    pass  # the rest of a line that is too long
                size += len(line)
                if line.strip():
                    found.append(line)
            return found

        try:
            while lines := await self.call(some):
                for line in lines:
                    yield line
        finally:
            file.close()

    async def _line(
        self, batch: Batch, identity: Identity | None, number: int, line: bytes, seen: set[str]
    ) -> tuple[int, bool, bytes]:
        """Ask one line; return its result as `Store.add_results` takes it."""
        try:
            custom, body = read_line(line, batch.endpoint, self.section.line_bytes)
        except ValueError as error:
            return number, True, _failure(_custom_id(line), "invalid_line", f"Line {number}: {error}.")
        if custom in seen:
            return number, True, _failure(custom, "duplicate_custom_id", f"Line {number}: {custom!r} was there before.")
        seen.add(custom)
        while True:
            status, answer, wait = await self._ask(batch, identity, body)
            if status not in AGAIN or time.time() + wait > batch.expires:
                break
            await asyncio.sleep(wait)
        request_id = uuid.uuid4().hex
        response = {"status_code": status, "request_id": request_id, "body": answer}
        result = {"id": new_id("batch_req_"), "custom_id": custom, "response": response, "error": None}
        return number, status != 200, orjson.dumps(result)

    async def _ask(self, batch: Batch, identity: Identity | None, body: bytes) -> tuple[int, Any, float]:
        """Send one request through the layers; return status, parsed answer and seconds to wait before another try."""
        status, pieces, wait, given = 0, [], self.again_s, False

        async def receive() -> Any:
            nonlocal given
            if given:
                await asyncio.Event().wait()  # this client never leaves
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, wait
            if message["type"] == "http.response.start":
                status = message["status"]
                after = dict(message["headers"]).get(b"retry-after", b"")
                wait = float(after) if after.isdigit() else wait
            else:
                pieces.append(message.get("body", b""))

        exchange = Exchange(uuid.uuid4().hex, identity=identity)
        exchange.notes["tenant"] = exchange.tenant
        headers = [(b"content-type", b"application/json"), (b"x-fovea-lane", b"batch")]
        scope = {
            "type": "http", "method": "POST", "path": batch.endpoint, "raw_path": batch.endpoint.encode(),
            "root_path": "", "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http",
            "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), KEY: exchange,
        }  # fmt: skip
        try:
            await self.app(scope, receive, send)
        except ApiError as error:
            return error.status, orjson.loads(error.body()), float(error.retry_after or self.again_s)
        except Exception:
            logger.exception("a line of batch %s failed", batch.id)
            return 500, {"error": {"message": "Internal error.", "type": "server_error", "code": "internal"}}, wait
        try:
            return status, orjson.loads(b"".join(pieces)), wait
        except orjson.JSONDecodeError:
            return 500, {"error": {"message": "The answer is not JSON.", "type": "server_error", "code": "internal"}}, 1


def read_line(line: bytes, endpoint: str, most: int) -> tuple[str, bytes]:
    """Return (custom id, body) of a line of a batch file.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(line) > most:
        raise ValueError(f"it has more than {most} bytes")
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("body"), dict):
        raise ValueError("it needs an object `body`")
    custom = parsed.get("custom_id")
    if not isinstance(custom, str) or not custom or len(custom) > 512:
        raise ValueError("it needs a text `custom_id`")
    if parsed.get("url") != endpoint:
        raise ValueError(f"its `url` is not the batch's endpoint {endpoint}")
    if parsed.get("method", "POST") != "POST":
        raise ValueError("its `method` is not POST")
    if parsed["body"].get("stream"):
        raise ValueError("a line cannot be streamed")
    return custom, orjson.dumps(parsed["body"])


def _custom_id(line: bytes) -> str | None:
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    found = parsed.get("custom_id") if isinstance(parsed, dict) else None
    return found if isinstance(found, str) else None


def _failure(custom: str | None, code: str, message: str) -> bytes:
    error = {"code": code, "message": message}
    return orjson.dumps({"id": new_id("batch_req_"), "custom_id": custom, "response": None, "error": error})
