"""Sections `identify` and `admit` of the stack file: who may call, and how much."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from models.prices import Money
from serving.section import Location, LocationOrMemory, Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
LIMITS = ("requests_per_minute", "tokens_per_minute", "image_tokens_per_minute", "concurrent", "usd_per_month")
Lane = Literal["interactive", "batch"]


class Quota(Section):
    """Limits of one tenant, over all replicas and models of the stack; one that is not set does not bind."""

    requests_per_minute: int | None = Field(None, ge=1, description="Requests per minute.")
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="Prompt and completion tokens per minute; reserved by an estimate, then settled.",
    )
    image_tokens_per_minute: int | None = Field(
        None, ge=1, description="Prompt tokens of images per minute, by the model's own rule from the pixel size."
    )
    concurrent: int | None = Field(None, ge=1, description="Requests being answered at once.")
    usd_per_month: Money | None = Field(
        None, gt=0, description="Dollars per calendar month (UTC), at the price of the section `money`."
    )

    @property
    def binds(self) -> bool:
        """Whether any limit is set."""
        return any(getattr(self, name) is not None for name in LIMITS)


class Tenant(Section):
    """One customer or team."""

    name: str = Field(pattern=NAME, description="Name; keys are made for it, metrics and bills carry it.")
    models: list[str] | None = Field(None, min_length=1, description="Models it may use; all when not set.")
    limits: Quota | None = Field(None, description="Its limits; those of `admit.default` when not set.")


class Identify(Section):
    """Who is asking (layer `identify`): API keys, tenants, roles."""

    keys: Location = Field(
        "keys.db", description="Where the hashed keys are: a file, or valkey://HOST:PORT/DB. See `fovea keys`."
    )
    tenants: list[Tenant] = Field(min_length=1, description="The tenants; a key of any other is refused.")
    refresh_s: float = Field(5.0, gt=0, description="A change of the keys is known after at most so long, seconds.")
    stale_s: float = Field(
        3600.0, ge=0, description="How long known keys go on working while the key store cannot be reached, seconds."
    )
    open_metrics: bool = Field(False, description="Answer `/metrics` without a key; else a role that may observe.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tenant {twice[0]!r} is listed twice; give each a name of its own")
        return self


class Admission(Section):
    """How much each tenant may ask (layer `quota`)."""

    store: LocationOrMemory = Field(
        "memory",
        description="Where the counters are: `memory` (one replica only), a file (replicas on one machine), or "
        "valkey://HOST:PORT/DB (any number of machines).",
    )
    default: Quota = Field(default_factory=Quota, description="Limits of a tenant that has none of its own.")
    queue: int = Field(16, ge=0, description="Requests of a tenant that may wait in one replica; more get 429 at once.")
    queue_s: float = Field(
        1.0, ge=0, description="Longest wait, seconds; `x-fovea-deadline-ms` of a request may shorten it."
    )
    reserve_tokens: int = Field(
        256, ge=1, description="Completion tokens reserved for a request that does not say `max_tokens`."
    )
    lease_s: float = Field(
        60.0, ge=1, description="A dead replica's requests stop counting as running after so long, seconds."
    )
    on_failure: Literal["refuse", "open"] = Field(
        "refuse",
        description="When the store cannot be reached: `refuse` (no start; later 503), or `open`: let requests in "
        "uncounted and say so in /health.",
    )
