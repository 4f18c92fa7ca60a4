"""`stack.yaml`: what a stack serves and how, as one closed pydantic model.

A key that is not listed here is refused with its name.  `fovea serve --schema` prints the JSON Schema, and the Helm
chart's values embed the same structure.
"""

from __future__ import annotations

import difflib
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from models.cost.ledger import Tariff
from models.support.errors import UsageError
from serving.adapters import Adapter
from serving.affinity import Affinity
from serving.batches.section import Batches
from serving.lane import Lane
from serving.recall.section import Recall
from serving.section import Section
from serving.tenants import Admission, Identify
from serving.tracing import Traces

NO_MODEL = "-"
"""In a tenant's `models`: none of those that an application knows of.  No model can have that name."""
EMBEDDED = Path(__file__).resolve().parent.parent / "models" / "embedded"
EMBEDDED_NAMES = ("qwen2_5_vl", "paligemma")
RESERVED = ("v1", "health", "ready", "metrics")
"""First parts of paths that the front of a stack with several models answers itself."""


class Listen(Section):
    """Where the stack answers."""

    host: str = Field("127.0.0.1", description="Address to bind; other than loopback only with `identify` or `public`.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the public HTTP endpoint.")
    public: bool = Field(
        False, description="Be open to everybody who reaches an address other than loopback: no `identify` needed."
    )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Limits(Section):
    """What may enter (layer `admit`)."""

    body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body, bytes.")
    concurrent: int = Field(
        256, ge=1, description="Requests being answered by one replica; more get 503 and Retry-After."
    )
    choices: int = Field(8, ge=1, le=128, description="Largest `n` of one request.")
    prompts: int = Field(128, ge=1, description="Most prompts or conversations in one request.")
    retry_after_s: int = Field(1, ge=1, description="Retry-After of a 503, seconds.")
    body_timeout_s: float = Field(30.0, gt=0, description="Time a client has to send its body, seconds; then 408.")


class Media(Section):
    """What a request's images may be (layer `screen`)."""

    images: int = Field(8, ge=0, description="Most images in one request.")
    image_bytes: int = Field(20 * 2**20, ge=1, description="Largest encoded image, bytes.")
    image_pixels: int = Field(
        40_000_000, ge=1, le=178_956_970, description="Largest image, width x height, read from its header."
    )
    pixels_inside: int = Field(
        400_000_000,
        ge=1,
        description="Pixels of decoded images (3 bytes each) that all requests in a replica may hold; more get 503.",
    )
    aspect_ratio: float = Field(
        100.0, ge=1, description="Largest long side / short side; Qwen2.5-VL's resizing cannot handle more than 200."
    )
    url_hosts: list[str] = Field(
        default_factory=list,
        description="Hosts that http(s) image URLs may name. None by default. Redirects are not followed.",
    )
    url_private: bool = Field(False, description="Allow `url_hosts` that resolve to private or loopback addresses.")
    url_timeout_s: float = Field(5.0, gt=0, description="Time to fetch one image URL, seconds.")

    @field_validator("url_hosts")
    @classmethod
    def _bare_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host):
                raise ValueError(f"{host!r} is not a bare host name; write it without scheme, port, path or wildcard")
        return [host.casefold() for host in hosts]


class Ready(Section):
    """The readiness probe: a real one-token image answer through the whole path."""

    within_s: float = Field(
        30.0, gt=0, description="`/ready` is 200 when an image was answered this recently, seconds."
    )


REGISTRY = "registry:"


class Model(Section):
    """One model: a Ray Serve application on its own route prefix."""

    name: str = Field(description="Name that clients put into `model`.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    source: str = Field(
        min_length=1,
        description="`embedded:qwen2_5_vl`, `embedded:paligemma`, `registry:NAME@live` (or `@canary`, `@NUMBER`), a "
        "folder, or a Hugging Face hub id.",
    )
    revision: str | None = Field(None, description="Hub revision (commit) to load.")
    route_prefix: str | None = Field(None, description="HTTP prefix of this model's own API; `/NAME` if not set.")
    replicas: int = Field(1, ge=1, le=256, description="Number of replicas, each with an engine of its own.")
    max_model_len: int | None = Field(None, ge=16, description="Context length in tokens; the model's own if not set.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Weight and activation type.")
    quantization: str | None = Field(
        None,
        description="What the checkpoint is: a scheme of `fovea quantize` (w8a8, w4a16, nf4, bnb-int8) or vLLM's own "
        "name of a method (awq, gptq, fp8, bitsandbytes, ...).  Left out, the checkpoint says it.",
    )
    images_per_prompt: int = Field(4, ge=0, description="Most images in one prompt (vLLM's limit_mm_per_prompt).")
    gpus: float = Field(0, ge=0, description="GPUs per replica; 0 serves on CPU.")
    cpu_kv_cache_gib: int = Field(1, ge=1, description="KV cache of one replica on CPU, GiB.")
    adapters: list[Adapter] = Field(
        default_factory=list,
        description="LoRA modules that the same engine serves beside the model; a request names one as its `model`.",
    )
    boxes: bool = Field(False, description="Add `boxes` to chat answers with `<loc>` tokens (PaliGemma).")
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="More vLLM engine arguments, by their field name."
    )

    @field_validator("route_prefix")
    @classmethod
    def _prefix(cls, prefix: str | None) -> str | None:
        if prefix is not None and not re.fullmatch(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+", prefix):
            raise ValueError(
                f"{prefix!r} must be a path like `/name`: letters, digits, `.`, `_` and `-`, no `/` at its end"
            )
        return prefix

    @property
    def names(self) -> list[str]:
        """What clients may put into `model`: the base, then its adapters."""
        return [self.name, *(adapter.name for adapter in self.adapters)]

    @property
    def prefix(self) -> str:
        """The route prefix of the model's own API."""
        return self.route_prefix or f"/{self.name}"

    @property
    def path(self) -> str:
        """What vLLM loads: a folder or a hub id.

        Raises:
            UsageError: the embedded name or the registry's version is unknown, or the folder is not there.
            CheckFailed: a file of the registry's version is damaged.
        """
        if self.source.startswith(REGISTRY):
            from models.registry import open_registry

            return str(open_registry().resolve(self.source.removeprefix(REGISTRY)).folder)
        if self.source.startswith("embedded:"):
            name = self.source.removeprefix("embedded:")
            folder = EMBEDDED / name
            if name not in EMBEDDED_NAMES or not (folder / "config.json").exists():
                raise UsageError(
                    "no such embedded model",
                    field="models.source",
                    value=self.source,
                    fix=f"use one of {EMBEDDED_NAMES}",
                )
            return str(folder)
        if self.source.startswith(("/", "./", "../", "~")):
            folder = Path(self.source).expanduser().resolve()
            if not (folder / "config.json").exists():
                raise UsageError(
                    "no checkpoint (config.json) in that folder",
                    field="models.source",
                    value=self.source,
                    fix="name a checkpoint folder",
                )
            return str(folder)
        return self.source


class Stack(Section):
    """A whole stack."""

    listen: Listen = Field(default_factory=Listen, description="Address and port of the public endpoint.")
    models: list[Model] = Field(min_length=1, description="What it serves.")
    front: Literal["auto", "always"] = Field(
        "auto",
        description="`/v1` of several models is answered by a front that forwards by `model`. `always`: also where "
        "there is one model, so that others can be added while it serves.",
    )
    limits: Limits | None = Field(
        default_factory=Limits, description="Size and concurrency limits; null switches them off."
    )
    media: Media | None = Field(default_factory=Media, description="Image screening; null passes media on unchecked.")
    identify: Identify | None = Field(None, description="API keys and tenants; required when not on loopback.")
    admit: Admission | None = Field(None, description="Limits of each tenant: rates, concurrency, budget.")
    recall: Recall | None = Field(None, description="Answers that were given before: exact cache, coalescing.")
    lane: Lane | None = Field(None, description="A lane for batch requests, grouped and behind interactive ones.")
    batches: Batches | None = Field(None, description="Files of requests: `/v1/files` and `/v1/batches`.")
    affinity: Affinity | None = Field(None, description="Requests that share an image prefer the same replica.")
    metrics: bool = Field(True, description="Count and time requests, and serve `/metrics`.")
    money: Tariff | None = Field(None, description="Dollars per tenant and model, and what a vendor would charge.")
    traces: Traces | None = Field(None, description="OpenTelemetry traces, a span for every layer.")
    ready: Ready = Field(default_factory=Ready, description="Readiness probe.")
    drain_s: float = Field(60.0, gt=0, description="On SIGTERM, how long running requests may take to finish, seconds.")

    @property
    def single(self) -> bool:
        """Whether the only model answers at `/` itself, without the front."""
        return len(self.models) == 1 and self.front == "auto"

    @property
    def names(self) -> list[str]:
        """What clients may put into `model`."""
        return [name for model in self.models for name in model.names]

    @model_validator(mode="after")
    def _open_only_if_asked(self) -> Self:
        if not (self.listen.local or self.listen.public or self.identify):
            raise ValueError(
                f"listen.host {self.listen.host!r} is not loopback and nobody would need a key: add the section "
                "`identify`, or set `public: true` if it shall be open to everybody"
            )
        return self

    @model_validator(mode="after")
    def _tenants_fit(self) -> Self:
        names = self.names
        tenants = self.identify.tenants if self.identify else []
        for tenant in tenants:
            unknown = sorted(set(tenant.models or ()) - {*names, NO_MODEL})
            if unknown:
                raise ValueError(
                    f"identify.tenants: {tenant.name!r} may use {unknown[0]!r}, which this stack does not serve; "
                    f"it serves {', '.join(names)}"
                )
            if tenant.limits and not self.admit:
                raise ValueError(f"identify.tenants: {tenant.name!r} has limits; add the section `admit`, be it empty")
        if self.recall and not self.media:
            raise ValueError("recall needs the section `media`: answers are kept by the pixels of their images")
        if self.admit:
            quotas = [self.admit.default, *(tenant.limits for tenant in tenants if tenant.limits)]
            if any(quota.usd_per_month for quota in quotas) and not self.money:
                raise ValueError("admit: usd_per_month needs the section `money`, which says what a request costs")
            if any(quota.image_tokens_per_minute for quota in quotas) and not self.media:
                raise ValueError("admit: image_tokens_per_minute needs the section `media`, which reads images' sizes")
            replicas = sum(model.replicas for model in self.models)
            if self.admit.store == "memory" and replicas > 1:
                raise ValueError(
                    f"admit.store: memory counts in one replica, and this stack has {replicas}; name a file "
                    "(one machine) or valkey://HOST:PORT/DB"
                )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, values in (
            ("name", self.names),
            ("route_prefix", [m.prefix for m in self.models]),
        ):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"models: {what} {twice[0]!r} is used twice; give each model its own")
        if not self.single:
            prefixes = [model.prefix for model in self.models]
            for model in self.models:
                first = model.prefix.split("/")[1]
                if first in RESERVED or model.name == "front":
                    raise ValueError(f"models: {model.name!r} ({model.prefix}) is taken by the stack itself; rename it")
                inside = [other for other in prefixes if model.prefix.startswith(f"{other}/")]
                if inside:
                    raise ValueError(
                        f"models: route_prefix {model.prefix!r} lies inside {inside[0]!r}; give each its own"
                    )
        return self


class _NoTwins(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; refuse twins."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_stack(path: Path | str) -> Stack:
    """Read a stack file.

    Raises:
        UsageError: the file cannot be read, is not YAML, or has a field that is wrong; the field is named.
    """
    try:
        data = yaml.load(Path(path).read_text("utf-8"), _NoTwins)
    except OSError as error:
        raise UsageError(
            f"cannot read the stack file: {error.strerror}", field=str(path), fix="name an existing file"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"not YAML: {' '.join(str(error).split())}", field=str(path), fix="mend the file there"
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            "must be a mapping with the key `models`",
            field=str(path),
            value=type(data).__name__,
            fix="begin the file with `models:`",
        )
    return parse_stack(data, str(path))


def parse_stack(data: dict[str, Any], where: str = "stack") -> Stack:
    """Validate a stack given as plain data.

    Raises:
        UsageError: names the first wrong field, its value, and the closest known key for a typo.
    """
    try:
        return Stack.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        fix = None
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(), n=1)
            fix = f"did you mean {close[0]!r}?" if close else "remove it; `fovea serve --schema` lists the keys"
        message = first["msg"].removeprefix("Value error, ")
        more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        value = first["input"] if isinstance(first["input"], str | int | float | bool) else None
        raise UsageError(message + more, field=f"{where}: {field}" if field else where, value=value, fix=fix) from error


def _known_keys() -> list[str]:
    schema = Stack.model_json_schema()
    return sorted({name for section in (schema, *schema["$defs"].values()) for name in section["properties"]})
