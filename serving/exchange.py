"""One request and its answer, shared by all layers through the ASGI scope.

The body is read once (by `admit`) and parsed once (by whoever asks first).  Later layers leave here what they found:
tenant and keys, cache key, route, confidence and cost have their place in `notes` until they get fields of their own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

    from serving.layers.identify import Identity
    from serving.layers.screen import Opened
    from serving.media import Picture

KEY = "fovea"
DEEPEST = 128
"""Deepest nesting of a body: far more than any request needs, and less than what recursive code behind us stands."""
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(slots=True)
class Exchange:
    """What the layers know about one request.

    Attributes:
        request_id: the client's `x-request-id`, or a new one.
        started: `time.perf_counter()` when the request entered.
        body: raw request body, set once it was read.
        found: images of the request whose header was accepted.
        pictures: screened images in the order of the request.
            Their pixels may still be missing: `decode` before going on to the engine.
        places: for each picture of a chat message, the index of the message and of the part in its content.
        image_tokens: prompt tokens that the pictures take, by the model's own rule.
        identity: who is asking, where the stack asks for keys.
        adapter: the LoRA module that the request is for; empty for the model itself.
        error_kind: why the request failed, a word of bounded cardinality (metrics label), or None.
        pending: decodes `pictures`, when that was put off.
        notes: what layers of other issues leave for one another.
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    body: bytes | None = None
    found: list[Opened] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    image_tokens: int = 0
    identity: Identity | None = None
    adapter: str = ""
    error_kind: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    pending: Callable[[], Awaitable[None]] | None = None
    _json: Any = None

    async def decode(self) -> None:
        """Decode the pictures that only their digest was needed of so far.

        Raises:
            ApiError: 400, 413 or 503, as the layer `screen` raises them.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            await pending()

    @property
    def tenant(self) -> str:
        """Name of the tenant; `default` where the stack asks for no keys."""
        return self.identity.tenant.name if self.identity else "default"

    def json(self) -> dict[str, Any]:
        """Return the parsed body, a mapping.

        Raises:
            ApiError: 400, the body is not a JSON object in UTF-8, or is nested too deeply.
        """
        if self._json is None:
            try:
                parsed = orjson.loads(self.body or b"")
            except orjson.JSONDecodeError as error:
                raise ApiError(400, f"The body is not valid JSON: {error}.", kind="bad_json") from error
            if not isinstance(parsed, dict):
                raise ApiError(400, "The body must be a JSON object.", kind="bad_json")
            opened = (self.body or b"").count(b"{") + (self.body or b"").count(b"[")  # no body is deeper than that
            if opened > DEEPEST and _deeper_than(parsed, DEEPEST):
                raise ApiError(400, f"The body is nested deeper than {DEEPEST} levels.", kind="bad_json")
            self._json = parsed
        return self._json

    def replace_body(self, value: dict[str, Any]) -> None:
        """Replace the body by `value`; what comes after sees the new one."""
        self.body = orjson.dumps(value)
        self._json = value

    def replay(self, receive: Receive) -> Receive:
        """Return a `receive` that first gives the body that was read, then what the client does (disconnect)."""
        given = False

        async def replayed() -> Any:
            nonlocal given
            if given or self.body is None:
                return await receive()
            given = True
            return {"type": "http.request", "body": self.body, "more_body": False}

        return replayed


def _deeper_than(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    return any(levels <= 1 or _deeper_than(item, levels - 1) for item in inner if isinstance(item, dict | list))


def api_path(scope: Scope) -> str:
    """Return the path below the route prefix, as starlette's routing sees it."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path


def content_type(scope: Scope) -> str:
    """Return the media type that the request declares, without parameters; empty if it declares none."""
    declared = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return str(declared.split(b";")[0].strip().lower().decode("latin-1"))


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that the outermost layer put into `scope`."""
    exchange: Exchange = scope[KEY]
    return exchange
