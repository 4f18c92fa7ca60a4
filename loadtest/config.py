"""What a load test is asked to do.  Everything that decides a run is here, and goes into its report."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.support.errors import UsageError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(_Strict):
    """What the server runs on, and what an hour of it costs (all of it: every GPU and the machine around it)."""

    usd_per_hour: Decimal = Field(gt=0, description="US dollars per hour for the hardware that served this load")
    utilization: Decimal = Field(
        default=Decimal(1), gt=0, le=1, description="share of the paid hours in which such load is really served"
    )
    name: str = Field(default="", description="what it is, as it should stand in the report: '1x L4', '8 vCPU'")
    source: str = Field(default="", description="where the price is from, and of which day")


class Slo(_Strict):
    """Limits that one request must meet together to count as good (goodput).  None: no limit."""

    ttft_ms: float | None = Field(default=None, gt=0, description="time to first token, from the intended send, in ms")
    tpot_ms: float | None = Field(default=None, gt=0, description="time per output token after the first, in ms")
    latency_ms: float | None = Field(default=None, gt=0, description="end to end, from the intended send, in ms")

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.ttft_ms, self.tpot_ms, self.latency_ms))


class TrafficClass(_Strict):
    """One kind of traffic in a mixed run, with its own workload, rate and SLO."""

    name: str = Field(min_length=1, description="shown in the report")
    workload: str = Field(description="a workload's name or file")
    workload_options: dict[str, Any] = Field(default_factory=dict)
    rate: float | None = Field(default=None, gt=0, description="open loop: mean requests per second")
    arrival: str = Field(default="poisson", description="open loop: the arrival process")
    arrival_options: dict[str, float] = Field(default_factory=dict)
    trace: str | None = Field(default=None, description="open loop: replay this file's arrival times")
    trace_scale: float = Field(default=1.0, gt=0, description="speed of the replay: 2 is twice as fast")
    begin_s: float = Field(default=0.0, ge=0, description="open loop: second of the run at which this traffic begins")
    end_s: float | None = Field(default=None, gt=0, description="open loop: second of the run at which it ends")
    concurrency: int | None = Field(default=None, ge=1, description="closed loop: number of users")
    think_s: float = Field(default=0.0, ge=0, description="closed loop: mean pause of a user (exponential), in seconds")
    max_tokens: int | None = Field(default=None, ge=1)
    extra: dict[str, Any] = Field(default_factory=dict, description="further fields of the request body")
    headers: dict[str, str] = Field(default_factory=dict, description="further HTTP headers")
    slo: Slo = Field(default_factory=Slo)

    @model_validator(mode="after")
    def _one_loop(self) -> TrafficClass:
        given = [n for n in ("rate", "concurrency", "trace") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of rate, concurrency and trace (got {', '.join(given) or 'none'})")
        if self.concurrency is not None and (self.begin_s or self.end_s is not None):
            raise ValueError("begin_s and end_s go with rate and trace")
        if self.end_s is not None and self.end_s <= self.begin_s:
            raise ValueError("end_s must be after begin_s")
        if self.think_s and self.concurrency is None:
            raise ValueError("think_s goes with concurrency")
        return self

    def options(self, temperature: float | None) -> dict[str, Any]:
        """Return the fields of a request's body that this class sets."""
        found = dict(self.extra)
        if temperature is not None:
            found.setdefault("temperature", temperature)
        if self.max_tokens is not None:
            found["max_tokens"] = self.max_tokens
        return found

    @property
    def open_loop(self) -> bool:
        """Are requests sent by the clock, whatever the server does?"""
        return self.concurrency is None


class RunConfig(_Strict):
    """One run."""

    url: str = Field(description="base URL, up to and including /v1")
    model: str = Field(description="model name sent with each request")
    classes: tuple[TrafficClass, ...] = Field(min_length=1, description="the traffic; usually one class")
    duration_s: float | None = Field(default=None, gt=0, description="measured part of the run, in seconds")
    requests: int | None = Field(default=None, ge=1, description="measured requests, instead of a duration")
    warmup_s: float = Field(default=0.0, ge=0, description="load before the measured part, left out of every figure")
    cooldown_s: float = Field(default=0.0, ge=0, description="load after it, left out too")
    seed: int = Field(default=0, ge=0)
    api: Literal["openai", "anthropic", "gemini"] = "openai"
    stream: bool = True
    processes: int = Field(default=1, ge=1, le=256)
    ray_address: str | None = Field(default=None, description="spread the processes over this Ray cluster")
    max_connections: int = Field(default=1024, ge=1, description="connections of the whole run")
    timeout_s: float = Field(default=120.0, gt=0, description="from a request's first byte to the last of its reply")
    retries: int = Field(default=0, ge=0, le=100, description="times that a failed request is sent again, and counted")
    temperature: float | None = 0.0
    api_key_env: str | None = Field(
        default=None, description="environment variable that holds the key; default: the usual one of the API"
    )
    verify_tls: bool = True
    cache_bust: bool = Field(default=True, description="make a prompt that is used again different")
    hardware: Hardware | None = None
    max_slip_ms: float | None = Field(
        default=None, gt=0, description="p99 bound on the generator's own lateness; default: 20 ms or 10 % of p50"
    )
    metrics_urls: tuple[str, ...] = Field(
        default=(), description="Prometheus endpoints of the server, scraped meanwhile"
    )
    check_model: bool = Field(default=True, description="ask the server for its models and send one request first")
    command: str = ""

    @model_validator(mode="after")
    def _one_end(self) -> RunConfig:
        if (self.duration_s is None) == (self.requests is None) and not all(c.trace for c in self.classes):
            raise ValueError("give exactly one of duration_s and requests")
        if self.requests is not None and len(self.classes) > 1:
            raise ValueError("a run with several classes ends by duration_s, not by requests")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("every class needs a name of its own")
        return self


def make_config(**values: Any) -> RunConfig:
    """Return a config, with pydantic's complaints turned into one line.

    Raises:
        UsageError: a field is wrong; it names the first one.
    """
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise usage_error(error) from error


def usage_error(error: ValidationError) -> UsageError:
    """Return pydantic's first complaint as an error that names field and value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "run"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    value = given if isinstance(given, str | int | float | bool) else None
    return UsageError(message, field=where, value=value, fix="see `fovea loadtest run --help`")
