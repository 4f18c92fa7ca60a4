"""The forecast: what is expected of a month, read from YAML and checked; every amount of money is `Decimal`."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from models.cost.usage import MeasuredUsage, UsageGroup
from models.machines import Kind, MachineBook, Rate, load_machines
from models.prices import Money, parse_money, reason
from models.support.errors import UsageError

HOURS_PER_MONTH = Decimal(730)  # 8,760 hours a year / 12
SECONDS_PER_HOUR = Decimal(3600)


def _parse_share(value: object) -> Decimal:
    # a share is not money: a bare 0.25 in YAML is taken as it is written
    amount = parse_money(repr(value) if isinstance(value, float) else value)
    if amount > 1:
        raise ValueError("must lie between 0 and 1")
    return amount


def _parse_amount(value: object) -> Decimal:
    return parse_money(repr(value) if isinstance(value, float) else value)


Share = Annotated[Decimal, BeforeValidator(_parse_share)]
Amount = Annotated[Decimal, BeforeValidator(_parse_amount)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachinePrice(_Strict):
    """A row of `models/machines.yaml`: the cheapest that fits."""

    name: str
    provider: str | None = None
    purchase: Kind | None = None


class SelfHosted(_Strict):
    """Machines by the hour: as many as the mean load needs at `utilization`, and never fewer than `min_machines`."""

    kind: Literal["self_hosted"]
    usd_per_hour: Rate = Field(description="of one machine; looked up when `machine` is given instead")
    machine: MachinePrice | None = Field(default=None, description="machine of the machine book, with its price")
    price_source: str = Field(default="", description="who says so; filled in when the price was looked up")
    capacity_rps: Annotated[Amount, Field(gt=0)] = Field(
        description="requests/s that one machine's engine makes at the SLO"
    )
    utilization: Annotated[Share, Field(gt=0)] = Field(description="share of the capacity that the mean load may use")
    recalled_share: Annotated[Share, Field(lt=1)] = Field(
        default=Decimal(0), description="share of the queries that a cache answers, for which no engine works"
    )
    min_machines: int = Field(default=1, ge=1)
    overhead: Amount = Field(default=Decimal(0), description="network, disks, support... as a share of the machines")

    @model_validator(mode="before")
    @classmethod
    def _look_up(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, Mapping) or data.get("machine") is None or "usd_per_hour" in data:
            return data
        wanted = MachinePrice.model_validate(data["machine"])
        book = (info.context or {}).get("machines") or load_machines()
        try:
            row = book.find(wanted.name, provider=wanted.provider, kind=wanted.purchase)[0]
        except UsageError as error:
            raise ValueError(str(error)) from error
        old = ", read over 90 days ago" if row.is_stale() else f", read {row.read}"
        source = f"{row.provider} {row.machine} {row.kind}: {row.source}{old}"
        return {**data, "usd_per_hour": row.usd_per_hour, "price_source": source}


class VendorServing(_Strict):
    """A vendor's API by the price book."""

    kind: Literal["vendor"]
    model: str
    cached_share: Share = Decimal(0)
    batch_share: Share = Decimal(0)


class FlatServing(_Strict):
    """A known price per query."""

    kind: Literal["flat"]
    usd_per_query: Money


class Stage(_Strict):
    """A step beside the model (preprocessing, OCR, redaction, storage, egress) that a `share` of the queries takes.

    Its price is per query, or per unit (page, minute of audio, GB) and the units that a query takes.
    """

    name: str = Field(min_length=1)
    usd_per_query: Money | None = None
    usd_per_unit: Money | None = None
    units_per_query: Amount | None = None
    unit: str = "unit"
    share: Share = Decimal(1)

    @model_validator(mode="after")
    def _one_price(self) -> Stage:
        per_unit = (self.usd_per_unit is not None, self.units_per_query is not None)
        if any(per_unit) != all(per_unit) or (self.usd_per_query is not None) == all(per_unit):
            raise ValueError("needs either usd_per_query, or usd_per_unit with units_per_query")
        return self

    @property
    def usd_each(self) -> Decimal:
        """Dollars for one query that takes the step."""
        if self.usd_per_query is not None:
            return self.usd_per_query
        assert self.usd_per_unit is not None and self.units_per_query is not None, "checked above"
        return self.usd_per_unit * self.units_per_query

    @property
    def how(self) -> str:
        """The price in words."""
        if self.usd_per_query is not None:
            return f"${self.usd_per_query:f}"
        return f"{self.units_per_query:f} {self.unit} x ${self.usd_per_unit:f}"


class Escalation(_Strict):
    """Queries that are asked again at a vendor (a model of the price book) or at a flat price."""

    rate: Share
    model: str | None = None
    usd_per_query: Money | None = None


class Review(_Strict):
    """Queries that a person looks at."""

    rate: Share
    minutes: Amount
    usd_per_hour: Money


class Failure(_Strict):
    """Queries that end wrong unseen, and what one of them costs the business."""

    rate: Share
    usd_each: Money


class Shape(_Strict):
    """A typical query; every image of it has the same size."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    images: int = Field(ge=0)
    text_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)


class Forecast(_Strict):
    """What is expected of a month."""

    queries_per_month: int = Field(gt=0)
    query: Shape
    measured: MeasuredUsage | None = Field(default=None, description="what queries really used; wins over `query`")
    success_rate: Annotated[Share, Field(gt=0)] = Field(description="share of queries that end in an accepted answer")
    serving: SelfHosted | VendorServing | FlatServing = Field(discriminator="kind")
    retry_rate: Amount = Field(default=Decimal(0), description="extra attempts per query")
    stages: tuple[Stage, ...] = ()
    escalation: Escalation | None = None
    review: Review | None = None
    failure: Failure | None = None
    monthly_usd: dict[str, Money] = Field(default_factory=dict, description="maintenance, licences... by name")
    one_time_usd: dict[str, Money] = Field(default_factory=dict, description="development, labelling... by name")

    @property
    def usage(self) -> MeasuredUsage:
        """What queries use: the measured, or else the one typical query."""
        if self.measured is not None:
            return self.measured
        q = self.query
        images = ((q.width, q.height),) * q.images
        group = UsageGroup(images=images, requests=1, text_tokens=q.text_tokens, output_tokens=q.output_tokens)
        return MeasuredUsage(groups=(group,))


def load_forecast(path: Path | str, machines: MachineBook | None = None) -> Forecast:
    """Read a forecast from a YAML file; `machines` holds the prices of `serving.machine` (the shipped book when None).

    Raises:
        UsageError: it cannot be read, or a key is missing, unknown or out of range; the error names the key.
    """
    try:
        data: object = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=str(path), fix="name an existing file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise UsageError(f"not YAML: {reason}", field=str(path)) from error
    return parse_forecast(data if isinstance(data, Mapping) else {}, str(path), machines)


def parse_forecast(data: Mapping[str, Any], where: str = "forecast", machines: MachineBook | None = None) -> Forecast:
    """Return the forecast in `data`.  Raises UsageError naming the first key that is wrong."""
    try:
        return Forecast.model_validate(data, context={"machines": machines})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        value = None if isinstance(first["input"], Mapping) else str(first["input"])
        raise UsageError(
            reason(first["msg"]), field=f"{where}: {key or 'the file'}", value=value, fix="correct the forecast"
        ) from error
