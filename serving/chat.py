"""`POST /v1/chat/completions`, straight to vLLM's own chat handler.

The handler, its request and response models and its error mapping are vLLM's.  What is left out is the way there: the
body was parsed once (orjson), the images are decoded already and are handed over as pictures with their digest as id,
and FastAPI's routing, dependency and middleware machinery is not entered.  docs/benchmarks.md has what that saves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import orjson

from serving.errors import ApiError
from serving.exchange import Exchange, content_type, exchange_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger("fovea.serving")
_JSON = (b"content-type", b"application/json")
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class ChatEndpoint:
    """An ASGI app for one route.

    Args:
        state: vLLM's app state (`openai_serving_chat` and friends).
        image_tokens: prompt tokens of an image of (width, height) pixels.
    """

    def __init__(self, state: Any, image_tokens: Callable[[int, int], int]):
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        self.state, self.image_tokens = state, image_tokens
        self.request_type, self.error_type = ChatCompletionRequest, ErrorResponse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        exchange = exchange_of(scope)
        if (
            content_type(scope) != "application/json"
        ):  # a web page of anybody may send the other types to a loopback address
            raise ApiError(400, "Send the body with `content-type: application/json`.", kind="bad_content_type")
        await receive()  # the body, which the exchange has
        request = self._validate(exchange)
        raw = Request(scope)
        raw.state.fovea = True  # starlette creates `scope["state"]` on first use; vLLM writes to it
        work = asyncio.create_task(self._answer(request, raw, exchange, send))
        leave = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((work, leave), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                exchange.error_kind = "client_left"
        finally:
            leave.cancel()
            if not work.done():
                work.cancel()  # vLLM's generator aborts the request in the engine
                await asyncio.gather(work, return_exceptions=True)

    def _validate(self, exchange: Exchange) -> Any:
        """Return vLLM's request object with the screened pictures in it.

        Raises:
            ApiError: 400, a field that vLLM's model refuses.
        """
        from pydantic import ValidationError

        body = exchange.json()
        _replace_urls(body, exchange)
        try:
            request = self.request_type.model_validate(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
            raise ApiError(
                400, f"{where}: {first['msg']}" if where else first["msg"], kind="bad_field", param=where or None
            ) from error
        except (
            Exception
        ) as error:  # vLLM's validators raise errors of their own, and whatever odd input makes them trip
            text, param = str(error)[:300] or type(error).__name__, getattr(error, "parameter", None)
            raise ApiError(400, f"The request is not valid: {text}.", kind="bad_field", param=param) from error
        _place_pictures(request.messages, exchange)
        exchange.image_tokens = sum(self.image_tokens(p.width, p.height) for p in exchange.pictures)
        return request

    async def _answer(self, request: Any, raw: Any, exchange: Exchange, send: Send) -> None:
        from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

        try:
            result = await self.state.openai_serving_chat.create_chat_completion(request, raw)
        except ApiError:
            raise
        except (RecursionError, KeyError, AttributeError, AssertionError, IndexError) as error:
            # a shape that validation let through and vLLM's rendering did not expect; the engine has errors of its own
            logger.warning("request %s refused: %s", exchange.request_id, type(error).__name__, exc_info=True)
            text = f"{type(error).__name__}: {str(error)[:200]}"
            raise ApiError(400, f"The request is not valid: {text}.", kind="bad_field") from error
        except Exception as error:
            result = create_error_response(error)
            if result.error.code >= 500:
                logger.exception("engine failed on request %s", exchange.request_id)
        if isinstance(result, self.error_type):
            exchange.error_kind = f"engine_{result.error.code}"
            await _whole(send, result.error.code, orjson.dumps(result.model_dump()))
        elif isinstance(result, AsyncGenerator):
            await _stream(send, result)
        else:
            await _whole(send, 200, result.model_dump_json().encode())


async def _whole(send: Send, status: int, body: bytes) -> None:
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send, chunks: AsyncGenerator[str, None]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _SSE})
    try:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await chunks.aclose()


async def _left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


_STAND_IN = "data:,"


def _replace_urls(body: dict[str, Any], exchange: Exchange) -> None:
    """Put a short stand-in for every screened image, so that validation does not walk megabytes of base64."""
    for message, part in exchange.places:
        body["messages"][message]["content"][part] = {"type": "image_url", "image_url": {"url": _STAND_IN}}


def _place_pictures(messages: list[Any], exchange: Exchange) -> None:
    """Replace the stand-ins by vLLM's own picture parts; the pixel digest serves as the picture's id.

    Raises:
        ApiError: 400, validation did not take the message's content as a list of parts.
    """
    for (message, part), picture in zip(exchange.places, exchange.pictures, strict=True):
        content = messages[message]["content"]
        if not isinstance(content, list) or content[part]["image_url"]["url"] != _STAND_IN:
            where = f"messages[{message}].content"
            raise ApiError(400, f"{where} is not a list of text and image parts.", kind="bad_field", param=where)
        content[part] = {"type": "image_pil", "image_pil": picture.image, "uuid": picture.digest}
