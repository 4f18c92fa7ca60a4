"""A client of the OpenAI chat API that spends as little CPU as it can: it often shares the machine with the server.

Each image is base64-encoded once and each request body is joined from bytes that were encoded before.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from models.evaluation.answers import Answer
from models.evaluation.settings import EvaluationSettings
from models.golden import GoldenItem, ImageRef
from models.support.errors import CheckFailed, UsageError

ATTEMPTS = 4
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 20.0
RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# As many items in a row without any answer from the server: it is gone, and asking on would only record errors.
GONE_AFTER = 8


@dataclass
class _Encoded:
    """Request bodies are `head + image + middle + question + tail`, all but the question encoded beforehand."""

    head: bytes
    tail: bytes
    images: dict[int, bytes]
    wording: Callable[[str], str]

    def body(self, item: GoldenItem) -> bytes:
        key = id(item.image)
        image = self.images.get(key)
        if image is None:
            image = self.images[key] = data_uri(item.image)
        question = orjson.dumps({"type": "text", "text": self.wording(item.question)})
        return b"".join((self.head, b'{"type":"image_url","image_url":{"url":"', image, b'"}},', question, self.tail))


def data_uri(image: ImageRef) -> bytes:
    """Return `data:image/png;base64,...` as ASCII bytes (nothing in it needs escaping in JSON)."""
    return b"data:" + image.media_type.encode() + b";base64," + base64.b64encode(image.read())


class EvaluationClient:
    """Asks one endpoint; used as an async context manager."""

    def __init__(self, settings: EvaluationSettings):
        self.settings = settings
        parameters = request_parameters(settings)
        head = orjson.dumps(parameters)[:-1] + b',"messages":[{"role":"user","content":['
        self._encoded = _Encoded(head, b"]}]}", {}, settings.question)
        self._failures_in_a_row = 0

    async def __aenter__(self) -> EvaluationClient:
        headers = {"Content-Type": "application/json"}
        if self.settings.api_key:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.settings.timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def check(self) -> dict[str, Any]:
        """Ask for the list of models; return the entry of ours (empty when the endpoint keeps no list).

        Raises:
            UsageError: no server there, the key is refused, or the model is not in the list.
        """
        url = f"{self.settings.base_url}/models"
        try:
            async with self._session.get(
                url, timeout=aiohttp.ClientTimeout(total=min(15.0, self.settings.timeout_s))
            ) as reply:
                status, body = reply.status, await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._dead(error) from error
        if status in (401, 403):
            raise self._refused(status, body)
        try:
            listed = orjson.loads(body)["data"] if status == 200 else []
            entries = {entry["id"]: entry for entry in listed}
        except (ValueError, KeyError, TypeError):
            entries = {}
        if entries and self.settings.model not in entries:
            raise self._unknown_model(list(entries))
        return dict(entries.get(self.settings.model, {}))

    async def ask(self, item: GoldenItem) -> Answer:
        """Return the answer to one item, after retries; an error of this item alone is recorded in it.

        Raises:
            UsageError: the key is refused or the model is unknown: no item can be answered.
            CheckFailed: the server is gone.
        """
        body = self._encoded.body(item)
        url = f"{self.settings.base_url}/chat/completions"
        error = "connection"
        for attempt in range(1, ATTEMPTS + 1):
            wait: float | None = None
            started = time.perf_counter()
            try:
                async with self._session.post(url, data=body) as reply:
                    content = await reply.read()
                    elapsed_ms = (time.perf_counter() - started) * 1e3
                    if reply.status == 200:
                        self._failures_in_a_row = 0
                        return parse_answer(item.id, content, elapsed_ms, attempt)
                    error, wait = f"http_{reply.status}", _retry_after(reply.headers)
                    if reply.status in (401, 403):
                        raise self._refused(reply.status, content)
                    if reply.status == 404:
                        raise self._unknown_model([])
                    self._failures_in_a_row = 0
                    if reply.status not in RETRY_STATUS:
                        return Answer(item.id, None, None, error=error, attempts=attempt, at=time.time())
            except TimeoutError:
                error = "timeout"
            except (aiohttp.ClientError, OSError):
                error = "connection"
            if attempt < ATTEMPTS:
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1) if wait is None else wait
                await asyncio.sleep(min(pause, LONGEST_PAUSE_S))
        if error in ("connection", "timeout"):
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= GONE_AFTER:
                fix = "start it and run the same command again: it continues"
                raise CheckFailed("the server stopped answering", field="url", value=self.settings.url, fix=fix)
        return Answer(item.id, None, None, error=error, attempts=ATTEMPTS, at=time.time())

    def _dead(self, error: BaseException) -> UsageError:
        reason = "timed out" if isinstance(error, TimeoutError) else (str(error) or type(error).__name__).split("\n")[0]
        return UsageError(
            f"nothing answers there: {reason}",
            field="url",
            value=self.settings.url,
            fix="start the server, or correct it",
        )

    def _refused(self, status: int, body: bytes) -> UsageError:
        return UsageError(
            f"the server refused the key ({status})", field="api-key", fix="give --api-key or OPENAI_API_KEY"
        )

    def _unknown_model(self, known: list[str]) -> UsageError:
        close = difflib.get_close_matches(self.settings.model, known, n=3, cutoff=0.4) or known[:5]
        fix = f"the server has {', '.join(close)}" if close else "check the name and the URL"
        return UsageError("the server does not have this model", field="model", value=self.settings.model, fix=fix)


def request_parameters(settings: EvaluationSettings) -> dict[str, Any]:
    """Return the parameters of every request, without the messages."""
    asked: dict[str, Any] = {
        "model": settings.model,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "logprobs": True,
        "stream": False,
    }
    return asked if settings.sampling_seed is None else asked | {"seed": settings.sampling_seed}


def parse_answer(item_id: str, content: bytes, latency_ms: float, attempts: int = 1) -> Answer:
    """Return the answer in a chat completion; anything else becomes the error `bad_response`."""
    try:
        reply = orjson.loads(content)
        choice = reply["choices"][0]
        text = choice["message"].get("content")
        if text is not None and not isinstance(text, str):
            raise TypeError("content is not text")
        usage = reply.get("usage") or {}
        return Answer(
            item_id,
            text or "",
            latency_ms,
            confidence=_confidence(choice.get("logprobs")),
            finish_reason=_text(choice.get("finish_reason")),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            attempts=attempts,
            at=time.time(),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Answer(item_id, None, None, error="bad_response", attempts=attempts, at=time.time())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _confidence(logprobs: Any) -> float | None:
    """Product of the token probabilities of the answer, in [0, 1]; None without (finite) logprobs."""
    tokens = (logprobs or {}).get("content") if isinstance(logprobs, dict | None) else None
    if not tokens:
        return None
    total = sum(float(token["logprob"]) for token in tokens)
    return min(1.0, math.exp(total)) if math.isfinite(total) and total < 1e-3 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, when it says so as a number."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
