"""When two requests are the same, and which answers may be kept.

The key is a BLAKE2b over everything that can change an answer: tenant, model and its version, endpoint, and the whole
parsed body with each image replaced by the digest of its pixels.  The body counts whole, less a few fields that no
engine reads: a field that nobody here has heard of makes another key, never a wrong hit.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from serving.exchange import Exchange

if TYPE_CHECKING:
    from starlette.types import Scope

CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS = (
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/embeddings",
)  # fmt: skip
KEPT = (CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS)
"""Endpoints whose answers may be kept.  `/v1/responses` keeps state of its own."""
WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "service_tier", "priority", "request_id")
FORM = b"1"
"""Changes when the meaning of a key or an entry does."""
TAG = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MOST_TAGS = 16


def key_of(exchange: Exchange, path: str, model: str, version: str) -> bytes:
    """Return the 32-byte key of a request; its images must have been found and their digests be known.

    The body is left with a short stand-in for each image; whoever goes on takes the pictures from the exchange.
    """
    body = exchange.json()
    for opened, picture in zip(exchange.found, exchange.pictures, strict=True):
        opened.item.put(f"data:fovea;{picture.digest}")
    kept = {name: value for name, value in body.items() if name not in WITHOUT_EFFECT}
    where = orjson.dumps([exchange.tenant, model, version, path])
    digest = hashlib.blake2b(FORM, digest_size=32)
    digest.update(len(where).to_bytes(8, "big") + where)
    digest.update(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS))
    return digest.digest()


def retry_key(exchange: Exchange, path: str, model: str, name: bytes) -> bytes:
    """Return the 32-byte key of what a client calls by this `Idempotency-Key`."""
    where = orjson.dumps(["retry", exchange.tenant, model, path, name.decode("latin-1")])
    return hashlib.blake2b(FORM + where, digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class Control:
    """What a client said: `Cache-Control`, `x-fovea-cache: sampled, exact`, tags, `Idempotency-Key`."""

    no_store: bool = False
    no_cache: bool = False
    only_cached: bool = False
    max_age: float | None = None
    sampled: bool = False
    tags: tuple[str, ...] = ()
    retry: bytes = b""
    exact: bool = False


def control_of(scope: Scope) -> Control:
    """Read the headers of a request; a directive that is not understood is ignored, as HTTP wants it."""
    no_store = no_cache = only = sampled = exact = False
    age: float | None = None
    tags: list[str] = []
    retry = b""
    for name, value in scope["headers"]:
        if name == b"cache-control":
            for part in value.decode("latin-1").lower().split(","):
                word, _, number = part.strip().partition("=")
                no_store |= word == "no-store"
                no_cache |= word == "no-cache"
                only |= word == "only-if-cached"
                if word == "max-age" and number.strip('"').isdigit():
                    age = min(float(number.strip('"')[:12]), age if age is not None else float("inf"))
        elif name == b"idempotency-key" and 0 < len(value) <= 255:
            retry = value
        elif name == b"x-fovea-cache":
            words = [word.strip() for word in value.lower().split(b",")]
            sampled, exact = sampled or b"sampled" in words, exact or b"exact" in words
        elif name == b"x-fovea-cache-tags":
            tags += [tag.strip() for tag in value.decode("latin-1").split(",") if TAG.fullmatch(tag.strip())]
    return Control(no_store, no_cache, only, age, sampled, tuple(dict.fromkeys(tags[:MOST_TAGS])), retry, exact)


def may_be_kept(body: dict[str, Any], path: str, sampled: bool, default_temperature: float) -> bool:
    """Whether a request's answer may be given again: always the same one, unless `sampled` ones are asked for."""
    if not isinstance(body.get("stream", False), bool | None):
        return False  # validation decides what that means
    if path == EMBEDDINGS or sampled:
        return True
    temperature = body.get("temperature")
    if temperature is None:
        temperature = default_temperature
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0


def is_whole(path: str, content_type: bytes, body: bytes) -> bool:
    """Whether an answer is one to keep: ended by itself, neither truncated, refused, calling tools, nor an error."""
    try:
        return _is_whole(path, content_type, body)
    except (AttributeError, KeyError, TypeError):
        return False  # of a shape that nobody here has heard of


def _is_whole(path: str, content_type: bytes, body: bytes) -> bool:
    if content_type.startswith(b"text/event-stream"):
        events = [part.partition(b"data:")[2].strip() for part in body.split(b"\n\n") if b"data:" in part]
        return _stream_is_whole(path, events)
    if not content_type.startswith(b"application/json"):
        return False
    answer = _parsed(body)
    if not isinstance(answer, dict) or "error" in answer:
        return False
    if path == EMBEDDINGS:
        return bool(answer.get("data"))
    if path == MESSAGES:
        return _message_ended(answer.get("stop_reason")) and _only_text(answer.get("content"))
    choices = answer.get("choices")
    return isinstance(choices, list) and bool(choices) and all(map(_choice_is_whole, choices))


def _stream_is_whole(path: str, events: list[bytes]) -> bool:
    if path == MESSAGES:
        parsed = [_parsed(event) for event in events if event != b"[DONE]"]
        if not parsed or any(not isinstance(event, dict) or event.get("type") == "error" for event in parsed):
            return False
        ends = [(event.get("delta") or {}).get("stop_reason") for event in parsed if event["type"] == "message_delta"]
        blocks = [event.get("content_block") for event in parsed if event["type"] == "content_block_start"]
        return parsed[-1]["type"] == "message_stop" and any(map(_message_ended, ends)) and _only_text(blocks)
    if not events or events[-1] != b"[DONE]":
        return False
    reasons: dict[int, object] = {}
    for event in map(_parsed, events[:-1]):
        if not isinstance(event, dict) or "error" in event:
            return False
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("tool_calls") or delta.get("function_call") or delta.get("refusal"):
                return False
            reasons[choice.get("index", 0)] = choice.get("finish_reason") or reasons.get(choice.get("index", 0))
    return bool(reasons) and all(reason == "stop" for reason in reasons.values())


def _choice_is_whole(choice: Any) -> bool:
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or message.get("function_call") or message.get("refusal")
    return choice.get("finish_reason") == "stop" and not calls


def _message_ended(reason: object) -> bool:
    return reason in ("end_turn", "stop_sequence")


def _only_text(blocks: Any) -> bool:
    return isinstance(blocks, list) and all(isinstance(b, dict) and b.get("type") == "text" for b in blocks)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
