"""What every answer cost: reads the usage in it on the way back, and counts it (`serving.money`).

A chat or completions stream ends with its usage only when the client asked for it; this layer asks in the client's
place, and keeps that last event to itself.  Streams are passed on event by event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from models.image_tokens import find_model, image_tokens
from models.support.errors import UsageError
from serving.errors import ApiError
from serving.exchange import FORMS, Exchange, api_path, content_type, exchange_of
from serving.found import find_images
from serving.layers.screen import CHAT
from serving.money import Money, usage_in

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.stack import Model, Stack

# Every route that makes the engine work; what is asked about tokens or stored answers costs nothing
ANSWERS = frozenset(
    {
        CHAT, "/v1/chat/completions/batch", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
        "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank", "/v2/embed", "/pooling", "/classify",
        "/v1/audio/transcriptions", "/v1/audio/translations",
    }
)  # fmt: skip
ASKABLE = (CHAT, "/v1/completions")


class Count:
    """See the module's docstring."""

    money: ClassVar[dict[str, Money]] = {}
    """By model: a process registers its series once."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.money is not None
        self.app = app
        if model.name not in self.money:
            self.money[model.name] = Money(stack.money, model.name)
        self.book = self.money[model.name]
        self.screened = stack.media is not None
        self.rule = rule_of(model.source)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _counts(scope):
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        watch = Watch(send, hide=ask_for_usage(exchange, scope))
        try:
            await self.app(scope, receive, watch.send)
        except Exception:
            watch.failed = True
            raise
        finally:  # a client may hang up on the last event, which cancels this call: it has its answer all the same
            if watch.status == 200 and watch.ended and not watch.failed and not exchange.error_kind:
                self.book.finished(exchange, watch.usage, self._image_tokens(exchange))

    async def stop(self) -> None:
        """Close the journal."""
        if self.book.journal is not None:
            self.book.journal.close()

    def _image_tokens(self, exchange: Exchange) -> int | None:
        """Return the images' prompt tokens: by the engine's processor, else by the checkpoint's rule, else None."""
        if not self.screened:  # nobody looked for images: their sizes are not known
            return 0 if not exchange.body or not has_images(exchange) else None
        if exchange.image_tokens or not exchange.pictures:
            return exchange.image_tokens
        if self.rule is None:
            return None
        try:
            return sum(image_tokens(self.rule, p.width, p.height).tokens for p in exchange.pictures)
        except UsageError:  # the rule refuses the size, and the engine took it
            return None


def rule_of(source: str) -> str | None:
    """Return the name of the image-token rule of a checkpoint (`models.image_tokens`), None when it has none."""
    try:
        return find_model(EMBEDDED_RULES.get(source, source))
    except UsageError:
        return None


EMBEDDED_RULES = {"embedded:qwen2_5_vl": "fovea-qwen", "embedded:paligemma": "fovea-paligemma"}


def has_images(exchange: Exchange) -> bool:
    """Whether a request carries images, where no screening says so."""
    try:
        return bool(find_images(exchange.json()))
    except ApiError:  # a form, or not JSON: an upload of audio
        return False


def _counts(scope: Scope) -> bool:
    """Whether the request is one that is paid for; the readiness probe's is not."""
    http = scope["type"] == "http" and scope["method"] == "POST" and api_path(scope) in ANSWERS
    return http and "fovea.canary" not in scope


def ask_for_usage(exchange: Exchange, scope: Scope) -> bool:
    """Ask for usage at the end of a stream; return whether the client did not."""
    if api_path(scope) not in ASKABLE or not exchange.body or content_type(scope) in FORMS:
        return False
    body = exchange.json()
    options = body.get("stream_options")
    if body.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return False  # not a stream, or something that validation will refuse
    if options and options.get("include_usage"):
        return False
    # nor does it see usage piece by piece, which is only there together with the one at the end
    kept = {k: v for k, v in (options or {}).items() if k != "continuous_usage_stats"}
    body["stream_options"] = {**kept, "include_usage": True}
    if api_path(scope) != CHAT:  # chat is answered from the parsed body: no need to write its images again
        exchange.replace_body(body)
    return True


class Watch:
    """Passes an answer on and reads its usage."""

    def __init__(self, send: Send, *, hide: bool):
        self.out, self.hide = send, hide
        self.status, self.stream, self.ended, self.failed = 0, False, False, False
        self.usage: tuple[int, int] | None = None
        self._pieces: list[bytes] = []

    async def send(self, message: Message) -> None:
        """Take one ASGI message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kind = next((v for k, v in message.get("headers", ()) if k.lower() == b"content-type"), b"")
            self.stream = kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self.ended |= not message.get("more_body", False) or (self.stream and _last(body))
            if self.status == 200 and self.stream and b'"usage"' in body:
                message = {**message, "body": self._event(body)}
            elif self.status == 200 and not self.stream:
                self._pieces.append(body)
                if self.ended:
                    self.usage = usage_in(_parsed(b"".join(self._pieces)))
        await self.out(message)

    def _event(self, body: bytes) -> bytes:
        """Return the events of a piece of a stream without the one that only we asked for."""
        kept = []
        for event in body.split(b"\n\n"):
            data = _parsed(event.partition(b"data:")[2])
            found = usage_in(data)
            if found is not None:  # a stream of messages tells the input at its start and the output at its end
                before = self.usage or (0, 0)
                self.usage = (max(found[0], before[0]), max(found[1], before[1]))
                if self.hide and data.get("choices") == []:
                    continue
            kept.append(event)
        return b"\n\n".join(kept)


LAST = (b"data: [DONE]\n", b"event: message_stop\n", b"event: response.completed\n")


def _last(body: bytes) -> bool:
    """Whether a piece of a stream has its last event (newlines in an answer's text are escaped, these are not)."""
    return any(mark in body for mark in LAST)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
