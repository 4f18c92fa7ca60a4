"""OpenAI, and whatever speaks its chat API, through the `openai` SDK."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import openai

from models.prices import Usage
from models.providers.base import Ask, Parsed, Provider, ToolCall, count
from models.providers.errors import ProviderError, ProviderTimeout, ServerFault, from_status
from models.providers.wire import TRANSPORT_ERRORS, parse_arguments, retry_after, transport_error, unfinished

FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "refused"}


class OpenAIProvider(Provider):
    """Chat completions.  Retries are `Provider`'s, so that the SDK's own are off."""

    vendor = "openai"

    def __init__(
        self, model: str, *, api_key: str, base_url: str | None = None, timeout_s: float = 120.0, **shared: Any
    ):
        super().__init__(model, **shared)
        self._client = openai.AsyncOpenAI(api_key=api_key, base_url=base_url, timeout=timeout_s, max_retries=0)

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, ask: Ask) -> Parsed:
        try:
            reply = await self._client.chat.completions.create(**self._request(ask))
            choice = reply.choices[0]
            calls = choice.message.tool_calls or []
            return Parsed(
                text=choice.message.content or "",
                usage=read_usage(reply.usage),
                finish_reason=FINISH.get(choice.finish_reason, choice.finish_reason),
                tool_calls=tuple(
                    ToolCall(c.id, c.function.name, parse_arguments(c.function.arguments))
                    for c in calls
                    if c.type == "function"
                ),
                model=reply.model,
                image_tokens=_image_tokens(reply.usage),
            )
        except Exception as error:
            raise self._translate(error) from error

    async def _send_stream(self, ask: Ask) -> AsyncIterator[str | Parsed]:
        text, finish, usage, model, images = "", None, None, None, None
        calls: dict[int, dict[str, str]] = {}
        try:
            stream = await self._client.chat.completions.create(
                **self._request(ask), stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                model, usage = chunk.model or model, read_usage(chunk.usage) or usage
                images = _image_tokens(chunk.usage) or images
                for choice in chunk.choices:
                    finish = choice.finish_reason or finish
                    for part in choice.delta.tool_calls or []:
                        call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
                        call["id"] = part.id or call["id"]
                        if part.function is not None:
                            call["name"] += part.function.name or ""
                            call["arguments"] += part.function.arguments or ""
                    if choice.delta.content:
                        text += choice.delta.content
                        yield choice.delta.content
        except Exception as error:
            raise self._translate(error, text) from error
        if finish is None:
            raise unfinished(self.vendor, text)
        found = tuple(ToolCall(c["id"], c["name"], parse_arguments(c["arguments"])) for _, c in sorted(calls.items()))
        yield Parsed(text, usage, FINISH.get(finish, finish), found, model, images)

    def _request(self, ask: Ask) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {"url": f"data:{i.media_type};base64,{base64.b64encode(i.data).decode()}"},
            }
            for i in ask.images
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": ask.text}]}]
        if ask.system is not None:
            messages.insert(0, {"role": "system", "content": ask.system})
        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            # max_tokens is refused by the reasoning models; this name is taken by all
            "max_completion_tokens": ask.max_tokens,
        }
        if ask.temperature is not None:
            request["temperature"] = ask.temperature
        if ask.tools:
            request["tools"] = [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
                }
                for t in ask.tools
            ]
        return request

    def _translate(self, error: Exception, partial: str = "") -> ProviderError:
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, openai.APITimeoutError):
            if partial:
                return unfinished(self.vendor, partial)
            return ProviderTimeout("no answer in time", vendor=self.vendor)
        if isinstance(error, openai.APIStatusError):
            wait = retry_after(error.response.headers)
            message = error.body.get("message") if isinstance(error.body, dict) else None
            return from_status(self.vendor, error.status_code, str(message or error.message), retry_after_s=wait)
        if isinstance(error, (openai.APIConnectionError, *TRANSPORT_ERRORS)):
            return transport_error(self.vendor, error, partial)
        if isinstance(error, openai.APIError) and partial:
            return unfinished(self.vendor, partial)
        return ServerFault(f"not a chat completion: {type(error).__name__}", vendor=self.vendor)


def read_usage(usage: Any) -> Usage | None:
    """Return the tokens of a reply's `usage`; None without one."""
    if usage is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    prompt = count(usage.prompt_tokens)
    cached = count(getattr(details, "cached_tokens", None))
    return Usage(prompt, count(usage.completion_tokens), min(cached, prompt))


def _image_tokens(usage: Any) -> int | None:
    details = getattr(usage, "prompt_tokens_details", None)
    return getattr(details, "image_tokens", None)
