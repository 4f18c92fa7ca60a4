"""What every API has in common: messages as they come from a workload, replies as they go into the records.

`has_content` is called for every event of a stream and therefore looks at bytes; everything else parses JSON.  Inside a
JSON string a quote is always escaped, so a pattern such as `"content":"` can only match a real key: scanning bytes is
exact, not a guess.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


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


def load(data: bytes) -> Any:
    """Return the JSON value.  Raises ValueError: it is none."""
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


def as_dict(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def first_of(value: Any) -> dict[str, Any]:
    """Return the first object of a list, an empty one otherwise."""
    return as_dict(value[0]) if isinstance(value, list) and value else {}


def count_of(value: Any) -> int:
    """Return a token count, or -1 for anything that is none (recorded as 32-bit)."""
    return value if type(value) is int and 0 <= value < 2**31 else -1


def error_text(value: Any) -> str:
    """Return the message of an error object as the three APIs write it, or an empty string."""
    error = as_dict(value).get("error")
    if error is None and as_dict(value).get("object") == "error":
        error = value
    if error is None:
        return ""
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or error)
    return str(error)


def text_of(messages: Iterable[Message], role: str) -> str:
    """Return what all messages of one role say, a line each."""
    return "\n".join(p.text for m in messages if m.role == role for p in m.parts)


class Api(ABC):
    """One API.

    Attributes:
        name: as `--api` takes it.
        key_env: the environment variable that usually holds its key.
        answer_key: the list that a whole reply must have; `may_be_empty` when a reply may say nothing.
    """

    name: ClassVar[str]
    key_env: ClassVar[str]
    answer_key: ClassVar[str]
    may_be_empty: ClassVar[bool] = False

    @abstractmethod
    def path(self, base: str, model: str, stream: bool) -> str:
        """Return the path of the request."""

    @abstractmethod
    def headers(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key (none for an empty one)."""

    @abstractmethod
    def body(self, model: str, messages: Sequence[Message], options: dict[str, Any], stream: bool) -> dict[str, Any]:
        """Return the body; `options` are named as OpenAI names them.

        Raises:
            UsageError: the API does not take this kind of message.
        """

    @abstractmethod
    def has_content(self, event: bytes) -> bool:
        """Does this event carry generated text (or reasoning, or a tool call)?"""

    @abstractmethod
    def finished(self, events: Sequence[bytes]) -> bool:
        """Did the stream end as it should?  (A stream cut off at a chunk's border is valid HTTP.)"""

    @abstractmethod
    def read_usage(self, reply: Reply, value: dict[str, Any]) -> None:
        """Put the token counts of an event or a whole reply into `reply`, where it has some."""

    @abstractmethod
    def piece(self, value: dict[str, Any]) -> str:
        """Return the text of one event of a stream."""

    @abstractmethod
    def answer(self, value: dict[str, Any]) -> str:
        """Return the text of a whole reply."""

    def worth_reading(self, events: Sequence[bytes], text: bool) -> Iterable[bytes]:
        """Return the events that have text (when it is wanted) or usage; reading fewer is faster."""
        return events

    def stream_error(self, event: bytes) -> str:
        """Return the error that an event without content carries, or an empty string."""
        return error_text(load(event)) if b'"error"' in event else ""

    def read_stream(self, events: Sequence[bytes], text: bool) -> Reply:
        """Put a reply together; without `text` only the usage is looked for.

        Raises:
            ValueError: an event is not JSON.
        """
        reply = Reply()
        pieces = []
        for event in self.worth_reading(events, text):
            value = as_dict(load(event))
            self.read_usage(reply, value)
            if text:
                pieces.append(self.piece(value))
        reply.text = "".join(pieces)
        return reply

    def read_body(self, body: bytes) -> Reply:
        """Read a reply that was not streamed.

        Raises:
            ValueError: it is not JSON, or has no answer.
        """
        value = as_dict(load(body))
        reply = Reply(error=error_text(value))
        found = value.get(self.answer_key)
        if not isinstance(found, list) or not (found or self.may_be_empty):
            raise ValueError(reply.error or f"the reply has no {self.answer_key}")
        self.read_usage(reply, value)
        reply.text = self.answer(value)
        return reply
