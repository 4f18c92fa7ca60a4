"""Anthropic's Messages API through the `anthropic` SDK."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import anthropic

from models.prices import Usage
from models.providers.base import Ask, Parsed, Provider, ToolCall, count
from models.providers.errors import ProviderError, ProviderTimeout, ServerFault, from_status
from models.providers.wire import TRANSPORT_ERRORS, parse_arguments, retry_after, transport_error, unfinished

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "refused",
}
# In a stream, errors come as an event after status 200
EVENT_STATUS = {"overloaded_error": 529, "rate_limit_error": 429, "invalid_request_error": 400, "timeout_error": 504}


class AnthropicProvider(Provider):
    """Messages.  Retries are `Provider`'s, so that the SDK's own are off."""

    vendor = "anthropic"

    def __init__(
        self, model: str, *, api_key: str, base_url: str | None = None, timeout_s: float = 120.0, **shared: Any
    ):
        super().__init__(model, **shared)
        self._client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, timeout=timeout_s, max_retries=0)

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, ask: Ask) -> Parsed:
        try:
            reply = await self._client.messages.create(**self._request(ask))
            calls = [
                ToolCall(
                    block.id, block.name, dict(block.input) if isinstance(block.input, dict) else {"_raw": block.input}
                )
                for block in reply.content
                if block.type == "tool_use"
            ]
            return Parsed(
                text="".join(block.text for block in reply.content if block.type == "text"),
                usage=read_usage(reply.usage),
                finish_reason=FINISH.get(reply.stop_reason or "", reply.stop_reason or "unknown"),
                tool_calls=tuple(calls),
                model=reply.model,
            )
        except Exception as error:
            raise self._translate(error) from error

    async def _send_stream(self, ask: Ask) -> AsyncIterator[str | Parsed]:
        text, finish, model, ended = "", "unknown", None, False
        counts: dict[str, Any] = {}
        calls: dict[int, list[str]] = {}
        try:
            stream = await self._client.messages.create(**self._request(ask), stream=True)
            async for event in stream:
                if event.type == "message_start":
                    model = event.message.model
                    counts.update(event.message.usage.to_dict())
                elif event.type == "content_block_start" and event.content_block.type == "tool_use":
                    calls[event.index] = [event.content_block.id, event.content_block.name, ""]
                elif event.type == "content_block_delta":
                    if event.delta.type == "text_delta":
                        text += event.delta.text
                        yield event.delta.text
                    elif event.delta.type == "input_json_delta":
                        calls[event.index][2] += event.delta.partial_json
                elif event.type == "message_delta":
                    counts.update({k: v for k, v in event.usage.to_dict().items() if v is not None})
                    finish = event.delta.stop_reason or finish
                elif event.type == "message_stop":
                    ended = True
        except Exception as error:
            raise self._translate(error, text) from error
        if not ended:
            raise unfinished(self.vendor, text)
        found = tuple(ToolCall(id_, name, parse_arguments(raw)) for _, (id_, name, raw) in sorted(calls.items()))
        yield Parsed(text, _usage_of(counts), FINISH.get(finish, finish), found, model)

    def _request(self, ask: Ask) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {
                "type": "image",
                "source": {"type": "base64", "media_type": i.media_type, "data": base64.b64encode(i.data).decode()},
            }
            for i in ask.images
        ]
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ask.max_tokens,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": ask.text}]}],
        }
        if ask.system is not None:
            request["system"] = ask.system
        if ask.temperature is not None:
            # newer SDKs have no such parameter because newer models refuse it; the older models still take it
            request["extra_body"] = {"temperature": ask.temperature}
        if ask.tools:
            request["tools"] = [
                {"name": t.name, "description": t.description, "input_schema": dict(t.parameters)} for t in ask.tools
            ]
        return request

    def _translate(self, error: Exception, partial: str = "") -> ProviderError:
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, anthropic.APITimeoutError):
            if partial:
                return unfinished(self.vendor, partial)
            return ProviderTimeout("no answer in time", vendor=self.vendor)
        if isinstance(error, anthropic.APIStatusError):
            if partial:
                return unfinished(self.vendor, partial)
            body = error.body if isinstance(error.body, dict) else {}
            inner = body.get("error")
            inner = inner if isinstance(inner, dict) else {}
            status = error.status_code if error.status_code >= 400 else EVENT_STATUS.get(str(inner.get("type")), 500)
            message = str(inner.get("message") or error.message)
            return from_status(self.vendor, status, message, retry_after_s=retry_after(error.response.headers))
        if isinstance(error, (anthropic.APIConnectionError, *TRANSPORT_ERRORS)):
            return transport_error(self.vendor, error, partial)
        return ServerFault(f"not a message: {type(error).__name__}", vendor=self.vendor)


def read_usage(usage: Any) -> Usage | None:
    """Return the tokens of a message's `usage`; None without one."""
    return None if usage is None else _usage_of(usage.to_dict())


def _usage_of(counts: dict[str, Any]) -> Usage:
    """Anthropic counts cache reads and writes beside `input_tokens`; here they are part of the input."""
    read, written = count(counts.get("cache_read_input_tokens")), count(counts.get("cache_creation_input_tokens"))
    return Usage(count(counts.get("input_tokens")) + read + written, count(counts.get("output_tokens")), read)
