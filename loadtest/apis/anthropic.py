"""The Messages API of Anthropic (vLLM serves it too, under /v1/messages)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from loadtest.apis.base import Api, Message, Part, Reply, as_dict, count_of, load, text_of
from models.support.errors import UsageError

MAX_TOKENS = 256  # the API asks for a limit with every request
RENAMED = {"stop": "stop_sequences"}
UNKNOWN = ("ignore_eos",)  # of vLLM; the API refuses fields that it does not know


class Anthropic(Api):
    """The Messages API."""

    name = "anthropic"
    key_env = "ANTHROPIC_API_KEY"
    answer_key = "content"
    may_be_empty = True

    def path(self, base: str, model: str, stream: bool) -> str:
        return base + "/messages"

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})

    def body(self, model: str, messages: Sequence[Message], options: dict[str, Any], stream: bool) -> dict[str, Any]:
        turns = [{"role": m.role, "content": [self._part(p) for p in m.parts]} for m in messages if m.role != "system"]
        body: dict[str, Any] = {"model": model, "messages": turns, "max_tokens": MAX_TOKENS}
        body |= {RENAMED.get(key, key): value for key, value in options.items() if key not in UNKNOWN}
        if isinstance(body.get("stop_sequences"), str):
            body["stop_sequences"] = [body["stop_sequences"]]
        system = text_of(messages, "system")
        if system:
            body["system"] = system
        if stream:
            body["stream"] = True
        return body

    def _part(self, part: Part) -> dict[str, Any]:
        if part.kind == "text":
            return {"type": "text", "text": part.text}
        if part.kind == "image":
            source = {"type": "base64", "media_type": part.media_type, "data": part.base64()}
            return {"type": "image", "source": {"type": "url", "url": part.text} if part.text else source}
        raise UsageError(f"the Anthropic API takes no {part.kind}", field="--api", fix="use an image or text workload")

    def has_content(self, event: bytes) -> bool:
        if b'"content_block_delta"' not in event:
            return False
        delta = as_dict(as_dict(load(event)).get("delta"))
        return any(delta.get(key) for key in ("text", "thinking", "partial_json"))

    def finished(self, events: Sequence[bytes]) -> bool:
        return any(b'"message_stop"' in event for event in events[-2:])

    def worth_reading(self, events: Sequence[bytes], text: bool) -> Iterable[bytes]:
        return (e for e in events if b'"usage"' in e or (text and b'"content_block_delta"' in e))

    def read_usage(self, reply: Reply, value: dict[str, Any]) -> None:
        for usage in (as_dict(as_dict(value.get("message")).get("usage")), as_dict(value.get("usage"))):
            if "input_tokens" in usage:
                parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
                reply.prompt_tokens = sum(max(0, count_of(usage.get(key))) for key in parts)
            if "output_tokens" in usage:
                reply.completion_tokens = count_of(usage["output_tokens"])

    def piece(self, value: dict[str, Any]) -> str:
        text = as_dict(value.get("delta")).get("text")
        return text if isinstance(text, str) else ""

    def answer(self, value: dict[str, Any]) -> str:
        return "".join(str(as_dict(block).get("text", "")) for block in value["content"])
