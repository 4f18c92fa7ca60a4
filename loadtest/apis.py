"""What differs between the APIs that can be loaded: path, headers, body, and where the answer is in the reply.

One class per API, registered by name.  `has_content` is called for every event of a stream and therefore looks at
bytes; everything else parses JSON.  Inside a JSON string a quote is always escaped, so a pattern such as
`"content":"` can only match a real key: scanning bytes is exact, not a guess.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from models.support.errors import UsageError


@dataclass(frozen=True)
class Part:
    """One piece of a message: text, or media with its bytes."""

    kind: str  # "text", "image", "audio", "video"
    text: str = ""
    data: bytes = b""
    media_type: str = ""

    def base64(self) -> str:
        """Return the media bytes in base64."""
        return base64.b64encode(self.data).decode("ascii")

    def uri(self) -> str:
        """Return the media as a data URI (or the URL it was given by, which is kept in `text`)."""
        return self.text or f"data:{self.media_type};base64,{self.base64()}"


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    parts: tuple[Part, ...]


@dataclass
class Reply:
    """What a finished reply said."""

    text: str = ""
    prompt_tokens: int = -1
    completion_tokens: int = -1
    error: str = ""


def _load(data: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(value: Any) -> dict[str, Any]:
    return _dict(value[0]) if isinstance(value, list) and value else {}


def error_text(value: Any) -> str:
    """Return the message of an error object as the three APIs write it, or an empty string."""
    error = _dict(value).get("error")
    if error is None and _dict(value).get("object") == "error":
        error = value
    if error is None:
        return ""
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or error)
    return str(error)


class OpenAI:
    """Chat completions of OpenAI, vLLM, and everything that speaks the same."""

    name = "openai"

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
        """Does this event carry generated text (or reasoning, or a tool call)?"""
        if b'"content":"' in event:
            if b'"content":""' not in event:
                return True
        elif event == b"[DONE]":
            return False
        delta = _dict(_first(_dict(_load(event)).get("choices")).get("delta"))
        return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal"))

    def finished(self, events: Sequence[bytes]) -> bool:
        """Did the stream end as it should?  (A stream cut off at a chunk's border is valid HTTP.)"""
        return bool(events) and (events[-1] == b"[DONE]" or any(b'"finish_reason":"' in e for e in events[-3:]))

    def stream_error(self, event: bytes) -> str:
        """Return the error that an event without content carries, or an empty string."""
        return error_text(_load(event)) if b'"error"' in event else ""

    def read_stream(self, events: Sequence[bytes], text: bool) -> Reply:
        """Put a reply together; without `text` only the usage is looked for (in the last events)."""
        reply = Reply()
        pieces = []
        for event in events if text else events[-3:]:
            if event == b"[DONE]" or (not text and b'"usage"' not in event):
                continue
            value = _dict(_load(event))
            if isinstance(value.get("usage"), dict):
                self._usage(reply, value["usage"])
            if text:
                piece = _dict(_first(value.get("choices")).get("delta")).get("content")
                if isinstance(piece, str):
                    pieces.append(piece)
        reply.text = "".join(pieces)
        return reply

    def read_body(self, body: bytes) -> Reply:
        """Read a reply that was not streamed.

        Raises:
            ValueError: it is not JSON, or has no choice.
        """
        value = _dict(_load(body))
        reply = Reply(error=error_text(value))
        self._usage(reply, _dict(value.get("usage")))
        choices = value.get("choices")
        if not isinstance(choices, list) or not choices:
            raise ValueError(reply.error or "the reply has no choices")
        content = _dict(_first(choices).get("message")).get("content")
        reply.text = content if isinstance(content, str) else ""
        return reply

    def _usage(self, reply: Reply, usage: dict[str, Any]) -> None:
        reply.prompt_tokens = _count(usage.get("prompt_tokens"))
        reply.completion_tokens = _count(usage.get("completion_tokens"))


def _count(value: Any) -> int:
    """Return a token count, or -1 for anything that is none (recorded as 32-bit)."""
    return value if type(value) is int and 0 <= value < 2**31 else -1


class Anthropic:
    """The Messages API of Anthropic (vLLM serves it too, under /v1/messages)."""

    name = "anthropic"

    def path(self, base: str, model: str, stream: bool) -> str:
        return base + "/messages"

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})

    def body(self, model: str, messages: Sequence[Message], options: dict[str, Any], stream: bool) -> dict[str, Any]:
        options = {"max_tokens": 256, **options}
        system = "\n".join(p.text for m in messages if m.role == "system" for p in m.parts)
        turns = [{"role": m.role, "content": [self._part(p) for p in m.parts]} for m in messages if m.role != "system"]
        body: dict[str, Any] = {"model": model, "messages": turns, **options}
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
        delta = _dict(_dict(_load(event)).get("delta"))
        return any(delta.get(key) for key in ("text", "thinking", "partial_json"))

    def finished(self, events: Sequence[bytes]) -> bool:
        return any(b'"message_stop"' in event for event in events[-2:])

    def stream_error(self, event: bytes) -> str:
        return error_text(_load(event)) if b'"error"' in event else ""

    def read_stream(self, events: Sequence[bytes], text: bool) -> Reply:
        reply = Reply()
        pieces = []
        for event in events:
            if b'"usage"' not in event and not (text and b'"content_block_delta"' in event):
                continue
            value = _dict(_load(event))
            for usage in (_dict(_dict(value.get("message")).get("usage")), _dict(value.get("usage"))):
                self._usage(reply, usage)
            piece = _dict(value.get("delta")).get("text")
            if text and isinstance(piece, str):
                pieces.append(piece)
        reply.text = "".join(pieces)
        return reply

    def read_body(self, body: bytes) -> Reply:
        value = _dict(_load(body))
        reply = Reply(error=error_text(value))
        content = value.get("content")
        if not isinstance(content, list):
            raise ValueError(reply.error or "the reply has no content")
        self._usage(reply, _dict(value.get("usage")))
        reply.text = "".join(str(_dict(block).get("text", "")) for block in content)
        return reply

    def _usage(self, reply: Reply, usage: dict[str, Any]) -> None:
        if "input_tokens" in usage:
            parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
            reply.prompt_tokens = sum(max(0, _count(usage.get(key))) for key in parts)
        if "output_tokens" in usage:
            reply.completion_tokens = _count(usage["output_tokens"])


class Gemini:
    """generateContent of the Gemini API."""

    name = "gemini"

    def path(self, base: str, model: str, stream: bool) -> str:
        return f"{base}/models/{model}:" + ("streamGenerateContent?alt=sse" if stream else "generateContent")

    def headers(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key} if key else {}

    def body(self, model: str, messages: Sequence[Message], options: dict[str, Any], stream: bool) -> dict[str, Any]:
        names = {"max_tokens": "maxOutputTokens", "temperature": "temperature", "seed": "seed"}
        config = {names[key]: value for key, value in options.items() if key in names}
        system = [p.text for m in messages if m.role == "system" for p in m.parts]
        contents = [
            {"role": "model" if m.role == "assistant" else "user", "parts": [self._part(p) for p in m.parts]}
            for m in messages
            if m.role != "system"
        ]
        body: dict[str, Any] = {"contents": contents}
        if system:
            body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
        if config:
            body["generationConfig"] = config
        return body

    def _part(self, part: Part) -> dict[str, Any]:
        if part.kind == "text":
            return {"text": part.text}
        if part.text:
            return {"fileData": {"fileUri": part.text}}
        return {"inlineData": {"mimeType": part.media_type, "data": part.base64()}}

    def has_content(self, event: bytes) -> bool:
        return b'"text"' in event and bool(self._text(_dict(_load(event))))

    def finished(self, events: Sequence[bytes]) -> bool:
        return any(b'"finishReason"' in event for event in events[-2:])

    def stream_error(self, event: bytes) -> str:
        return error_text(_load(event)) if b'"error"' in event else ""

    def read_stream(self, events: Sequence[bytes], text: bool) -> Reply:
        reply = Reply()
        pieces = []
        for event in events:
            value = _dict(_load(event))
            self._usage(reply, _dict(value.get("usageMetadata")))
            pieces.append(self._text(value))
        reply.text = "".join(pieces)
        return reply

    def read_body(self, body: bytes) -> Reply:
        value = _dict(_load(body))
        reply = Reply(error=error_text(value))
        if not value.get("candidates"):
            raise ValueError(reply.error or "the reply has no candidates")
        self._usage(reply, _dict(value.get("usageMetadata")))
        reply.text = self._text(value)
        return reply

    def _text(self, value: dict[str, Any]) -> str:
        parts = _dict(_first(value.get("candidates")).get("content")).get("parts")
        return "".join(str(_dict(p).get("text", "")) for p in parts) if isinstance(parts, list) else ""

    def _usage(self, reply: Reply, usage: dict[str, Any]) -> None:
        if "promptTokenCount" in usage:
            reply.prompt_tokens = _count(usage["promptTokenCount"])
        if "candidatesTokenCount" in usage:
            reply.completion_tokens = _count(usage["candidatesTokenCount"])


Api = OpenAI | Anthropic | Gemini
APIS: dict[str, Callable[[], Api]] = {"openai": OpenAI, "anthropic": Anthropic, "gemini": Gemini}


def make_api(name: str) -> Api:
    """Return the API of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in APIS:
        raise UsageError("unknown API", field="--api", value=name, fix=f"use one of {', '.join(APIS)}")
    return APIS[name]()
