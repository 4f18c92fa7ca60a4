"""Gemini through the `google-genai` SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google import genai
from google.genai import errors, types

from models.prices import Usage
from models.providers.base import Ask, Parsed, Provider, ToolCall, count
from models.providers.errors import ProviderError, ServerFault, from_status
from models.providers.wire import TRANSPORT_ERRORS, retry_after, transport_error, unfinished

FINISH = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "refused",
    "PROHIBITED_CONTENT": "refused",
    "BLOCKLIST": "refused",
}


class GoogleProvider(Provider):
    """generateContent.  Retries are `Provider`'s, so that the SDK's own are off."""

    vendor = "google"

    def __init__(
        self, model: str, *, api_key: str, base_url: str | None = None, timeout_s: float = 120.0, **shared: Any
    ):
        super().__init__(model, **shared)
        options = types.HttpOptions(
            base_url=base_url, timeout=round(timeout_s * 1000), retry_options=types.HttpRetryOptions(attempts=1)
        )
        self._client = genai.Client(api_key=api_key, vertexai=False, http_options=options)

    async def close(self) -> None:
        await self._client.aio.aclose()

    async def _send(self, ask: Ask) -> Parsed:
        try:
            reply = await self._client.aio.models.generate_content(
                model=self.model, contents=contents_of(ask), config=config_of(ask)
            )
            text, calls, finish = read_reply(reply)
            if finish is None:
                finish = "refused" if reply.prompt_feedback is not None else None
            if finish is None:
                raise ServerFault("the reply has no candidate", vendor=self.vendor)
            usage = reply.usage_metadata
            return Parsed(
                text, read_usage(usage), _told(finish, calls), calls, reply.model_version, _image_tokens(usage)
            )
        except Exception as error:
            raise self._translate(error) from error

    async def _send_stream(self, ask: Ask) -> AsyncIterator[str | Parsed]:
        text, finish, usage, model, images = "", None, None, None, None
        calls: tuple[ToolCall, ...] = ()
        try:
            stream = await self._client.aio.models.generate_content_stream(
                model=self.model, contents=contents_of(ask), config=config_of(ask)
            )
            async for chunk in stream:
                piece, more, end = read_reply(chunk)
                blocked = "refused" if chunk.prompt_feedback is not None and not chunk.candidates else None
                calls, finish = calls + more, end or finish or blocked
                usage, model = read_usage(chunk.usage_metadata) or usage, chunk.model_version or model
                images = _image_tokens(chunk.usage_metadata) or images
                if piece:
                    text += piece
                    yield piece
        except Exception as error:
            raise self._translate(error, text) from error
        if finish is None:
            raise unfinished(self.vendor, text)
        yield Parsed(text, usage, _told(finish, calls), calls, model, images)

    def _translate(self, error: Exception, partial: str = "") -> ProviderError:
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, errors.APIError):
            if partial:
                return unfinished(self.vendor, partial)
            headers = getattr(error.response, "headers", None)
            message = error.message or str(error)
            # Google answers a wrong key with 400, not 401
            status = 401 if error.code == 400 and "api key not valid" in message.lower() else error.code
            return from_status(self.vendor, status, message, retry_after_s=retry_after(headers))
        if isinstance(error, TRANSPORT_ERRORS):
            return transport_error(self.vendor, error, partial)
        # the SDK parses a cut stream as JSON and lets that error through
        if partial:
            return unfinished(self.vendor, partial)
        return ServerFault(f"not a generateContent reply: {type(error).__name__}", vendor=self.vendor)


def contents_of(ask: Ask) -> types.Content:
    """Return a question with its pictures as the SDK takes them."""
    images = [types.Part.from_bytes(data=i.data, mime_type=i.media_type) for i in ask.images]
    return types.Content(role="user", parts=[*images, types.Part.from_text(text=ask.text)])


def config_of(ask: Ask) -> types.GenerateContentConfig:
    """Return everything about a question that is not its contents."""
    declarations = [
        types.FunctionDeclaration(name=t.name, description=t.description, parameters_json_schema=dict(t.parameters))
        for t in ask.tools
    ]
    return types.GenerateContentConfig(
        max_output_tokens=ask.max_tokens,
        temperature=ask.temperature,
        system_instruction=ask.system,
        tools=[types.Tool(function_declarations=declarations)] if declarations else None,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )


def read_reply(reply: types.GenerateContentResponse) -> tuple[str, tuple[ToolCall, ...], str | None]:
    """Return (text without thoughts, tool calls, finish reason) of the first candidate."""
    if not reply.candidates:
        return "", (), None
    candidate = reply.candidates[0]
    parts = (candidate.content.parts or []) if candidate.content is not None else []
    text = "".join(p.text for p in parts if p.text and not p.thought)
    calls = tuple(
        ToolCall(p.function_call.id or "", p.function_call.name or "", dict(p.function_call.args or {}))
        for p in parts
        if p.function_call is not None
    )
    finish = None
    if candidate.finish_reason is not None:
        finish = FINISH.get(candidate.finish_reason.value, candidate.finish_reason.value.lower())
    return text, calls, finish


def _told(finish: str, calls: tuple[ToolCall, ...]) -> str:
    """Gemini says STOP after a tool call too; the others have a word for it."""
    return "tool_calls" if calls and finish == "stop" else finish


def read_usage(usage: types.GenerateContentResponseUsageMetadata | None) -> Usage | None:
    """Thinking is billed as output."""
    if usage is None:
        return None
    prompt = count(usage.prompt_token_count) + count(usage.tool_use_prompt_token_count)
    output = count(usage.candidates_token_count) + count(usage.thoughts_token_count)
    return Usage(prompt, output, min(count(usage.cached_content_token_count), prompt))


def _image_tokens(usage: types.GenerateContentResponseUsageMetadata | None) -> int | None:
    details = (usage.prompt_tokens_details or []) if usage is not None else []
    found = [count(d.token_count) for d in details if d.modality == types.MediaModality.IMAGE]
    return sum(found) if found else None
