"""Chat completions of OpenAI, vLLM, and everything that speaks the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from loadtest.apis.base import Api, Message, Part, Reply, as_dict, count_of, first_of, load

USAGE_WITHIN = 3  # events from the end


class OpenAI(Api):
    """Chat completions."""

    name = "openai"
    key_env = "OPENAI_API_KEY"
    answer_key = "choices"

    def path(self, base: str, model: str, stream: bool) -> str:
        return base + "/chat/completions"

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def body(self, model: str, messages: Sequence[Message], options: dict[str, Any], stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": [self._message(m) for m in messages], **options}
        if stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return body

    def _message(self, message: Message) -> dict[str, Any]:
        if all(p.kind == "text" for p in message.parts):
            return {"role": message.role, "content": "".join(p.text for p in message.parts)}
        return {"role": message.role, "content": [self._part(p) for p in message.parts]}

    def _part(self, part: Part) -> dict[str, Any]:
        if part.kind == "text":
            return {"type": "text", "text": part.text}
        if part.kind == "audio" and part.media_type in ("audio/wav", "audio/mpeg"):
            name = "wav" if part.media_type == "audio/wav" else "mp3"
            return {"type": "input_audio", "input_audio": {"data": part.base64(), "format": name}}
        return {"type": f"{part.kind}_url", f"{part.kind}_url": {"url": part.uri()}}

    def has_content(self, event: bytes) -> bool:
        if b'"content":"' in event:
            if b'"content":""' not in event:
                return True
        elif event == b"[DONE]":
            return False
        delta = as_dict(first_of(as_dict(load(event)).get("choices")).get("delta"))
        return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal"))

    def finished(self, events: Sequence[bytes]) -> bool:
        return bool(events) and (events[-1] == b"[DONE]" or any(b'"finish_reason":"' in e for e in events[-3:]))

    def worth_reading(self, events: Sequence[bytes], text: bool) -> Iterable[bytes]:
        if text:
            return (e for e in events if e != b"[DONE]")
        return (e for e in events[-USAGE_WITHIN:] if e != b"[DONE]" and b'"usage"' in e)

    def read_usage(self, reply: Reply, value: dict[str, Any]) -> None:
        usage = value.get("usage")
        if isinstance(usage, dict):
            reply.prompt_tokens = count_of(usage.get("prompt_tokens"))
            reply.completion_tokens = count_of(usage.get("completion_tokens"))

    def piece(self, value: dict[str, Any]) -> str:
        return self._content(first_of(value.get("choices")).get("delta"))

    def answer(self, value: dict[str, Any]) -> str:
        return self._content(first_of(value.get("choices")).get("message"))

    def _content(self, holder: Any) -> str:
        content = as_dict(holder).get("content")
        return content if isinstance(content, str) else ""
