"""Who is asking: an API key becomes a tenant, a role and a lane; nothing else behind this layer sees the key.

    Authorization: Bearer KEY     OpenAI's clients (taken first when several are sent)
    x-api-key: KEY                Anthropic's
    api-key: KEY                  Azure's

Refuses with 401 (no key, unknown, expired, revoked), 403 (tenant or model not allowed, role), 503 (key store gone).
`/health` and `/ready` need no key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.support.errors import UsageError
from serving.errors import ApiError, StoreDown
from serving.exchange import api_path, exchange_of
from serving.keys import NOBODY, ROLES, Key, KeyStore, Permission, last_ends, open_keys, split_key
from serving.metrics import METRICS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from serving.stack import Model, Stack
    from serving.tenants import Identify as Section
    from serving.tenants import Tenant

logger = logging.getLogger("fovea.serving")
OPEN = ("/health", "/ready", "/ping")
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
ASK = ((b"www-authenticate", b"Bearer"),)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request.

    Attributes:
        tenant: the stack's entry of the tenant.
        key_id: public part of the key; safe in logs.
    """

    tenant: Tenant
    key_id: str
    role: str
    lane: str

    def may(self, permission: Permission) -> bool:
        """Whether the role allows something."""
        return permission in ROLES[self.role]


class Identify:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.identify is not None
        self.app, self.names = app, model.names
        self.open_metrics = stack.identify.open_metrics
        self.ring = Ring(stack.identify)

    async def start(self) -> None:
        """Read the keys.

        Raises:
            UsageError: the store cannot be read: the replica must not start.
        """
        try:
            await self.ring.refresh()
        except StoreDown as error:
            raise UsageError(
                f"cannot read the keys: {error}",
                field="identify.keys",
                fix="make a key with `fovea keys create`, or start the server that holds them",
            ) from error

    async def stop(self) -> None:
        """Close the store."""
        await self.ring.store.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Only HTTP is served here."})
            return
        if scope["type"] != "http" or "fovea.canary" in scope:
            await self.app(scope, receive, send)
            return
        path = api_path(scope)
        if path in OPEN or (self.open_metrics and path.rstrip("/") == "/metrics"):
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in KEY_HEADERS]
            await self.app(scope, receive, send)
            return
        text, scope["headers"] = take_key(scope["headers"])
        identity = await self.ring.identity(text)
        permission = permission_for(path)
        if not identity.may(permission):
            raise ApiError(403, f"A key of role {identity.role!r} may not {permission} here.", kind="role_not_allowed")
        allowed = identity.tenant.models
        # which adapter a request is for stands in its body: the layer `adapters` decides among them
        if permission == "call" and allowed is not None and not set(self.names) & set(allowed):
            raise ApiError(
                403, f"Tenant {identity.tenant.name!r} may not use model {self.names[0]!r}.", kind="model_not_allowed"
            )
        exchange = exchange_of(scope)
        exchange.identity = identity
        exchange.notes["tenant"] = identity.tenant.name
        await self.app(scope, receive, send)


def permission_for(path: str) -> Permission:
    """Return what a request for a path needs."""
    if path.rstrip("/") in ("/metrics", "/load"):
        return "observe"
    return "operate" if path.startswith("/fovea/") else "call"


def take_key(headers: list[tuple[bytes, bytes]]) -> tuple[str, list[tuple[bytes, bytes]]]:
    """Return the key that a request carries (empty if none), and its headers without any key."""
    found = {name: value for name, value in reversed(headers) if name in KEY_HEADERS}
    if not found:
        return "", headers
    value = next(found[name] for name in KEY_HEADERS if name in found)
    if value[:7].lower() == b"bearer ":
        value = value[7:]
    return value.strip().decode("latin-1"), [pair for pair in headers if pair[0] not in KEY_HEADERS]


class Ring:
    """A snapshot of the keys, at most `refresh_s` old while the store can be reached."""

    def __init__(self, section: Section, store: KeyStore | None = None):
        self.section = section
        self.store = store or open_keys(section.keys)
        self.tenants = {tenant.name: tenant for tenant in section.tenants}
        self.keys: dict[str, Key] = {}
        self.version: int | None = None
        self.asked = self.good = float("-inf")
        self.failing = False
        self._again: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the keys again if they have changed.

        Raises:
            StoreDown: the store cannot be read.
        """
        self.asked = time.monotonic()
        found = await self.store.snapshot(self.version)
        self.good = time.monotonic()
        if found is not None:
            self.version, self.keys = found
            METRICS.keys_end.clear()
            for tenant, end in last_ends(self.keys.values(), time.time()).items():
                METRICS.keys_end.labels(tenant).set(end)

    async def identity(self, text: str) -> Identity:
        """Return who a key belongs to.

        Raises:
            ApiError: 401, 403 or 503.
        """
        parts = split_key(text)
        if parts is None:
            what = "is not one of this stack's" if text else "is missing: send `Authorization: Bearer KEY`"
            raise ApiError(401, f"The API key {what}.", kind="bad_key" if text else "no_key", headers=ASK)
        await self._fresh()
        key = self.keys.get(parts[0])
        if self.failing and (key is None or time.monotonic() - self.good > self.section.stale_s):
            raise ApiError(503, "The keys cannot be checked at the moment.", kind="keys_unavailable", retry_after=5)
        if key is None and time.monotonic() - self.asked > min(1.0, self.section.refresh_s):
            await self._fresh(force=True)  # made a moment ago, perhaps
            key = self.keys.get(parts[0])
        if not (key or NOBODY).matches(parts[1]) or key is None:
            raise ApiError(401, "The API key is not one of this stack's.", kind="bad_key", headers=ASK)
        state = key.state(time.time())
        if state != "active":
            raise ApiError(401, f"The API key {key.id} is {state}.", kind=f"key_{state}", headers=ASK)
        tenant = self.tenants.get(key.tenant)
        if tenant is None or key.role not in ROLES:
            raise ApiError(
                403, f"The API key {key.id} is of a tenant that this stack does not know.", kind="unknown_tenant"
            )
        return Identity(tenant, key.id, key.role, key.lane)

    async def _fresh(self, force: bool = False) -> None:
        """Look for changes when it is time; nobody waits for a store that is known to be gone."""
        now = time.monotonic()
        if not force and now - self.asked < self.section.refresh_s:
            return
        if self.failing and now - self.good <= self.section.stale_s:
            if self._again is None or self._again.done():
                self._again = asyncio.create_task(self._try())
            return
        if self._one.locked() and not force and now - self.good < 2 * self.section.refresh_s:
            return  # somebody is looking, and what is known is not old
        async with self._one:
            if force or time.monotonic() - self.asked >= self.section.refresh_s:
                await self._try()

    async def _try(self) -> None:
        try:
            await self.refresh()
            self.failing = False
        except StoreDown as error:
            self.failing = True
            logger.warning("the key store does not answer: %s", error)
