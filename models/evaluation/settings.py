"""What an evaluation is asked to do, checked before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from models.providers.registry import VENDORS
from models.support.errors import UsageError


@dataclass(frozen=True)
class EvaluationSettings:
    """One evaluation.

    Attributes:
        url: base of an OpenAI-compatible API (`/v1` is added when there is no path), or a vendor's model as
            `openai/gpt-4o-mini`: then it is asked through its own SDK and the answers are priced.
        model: the model's name there; ignored for a vendor.
        golden: name or path of a golden set.
        out: folder for `answers.jsonl`, `run.json`, `report.json` and `report.html`.
        limit, seed: ask that many items, drawn by the seed; None asks all.
        concurrency: requests in flight.
        max_tokens: longest answer.
        timeout_s: for one answer, connect included.
        api_key: bearer token, never written anywhere.
        fresh: forget the answers that `out` already holds.
        max_usd: spend limit for a vendor; required there.
        prices: file with price rows of one's own.
        vendor_url: another address of a vendor's API.
        usd_per_hour: price of the machine that serves, to make dollars of a run's time; not for a vendor.
        temperature, sampling_seed: of the answers; 0 is greedy.  Not for a vendor.
        prompt: the question as it is sent; `{question}` stands for the item's own.

    Raises:
        UsageError: a value is out of range.
    """

    url: str
    model: str
    golden: str
    out: Path
    limit: int | None = None
    seed: int = 0
    concurrency: int = 32
    max_tokens: int = 16
    timeout_s: float = 120.0
    api_key: str | None = None
    fresh: bool = False
    max_usd: Decimal | None = None
    prices: Path | None = None
    vendor_url: str | None = None
    usd_per_hour: Decimal | None = None
    temperature: float = 0.0
    sampling_seed: int | None = None
    prompt: str = "{question}"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if self.is_vendor:
            if self.max_usd is None:
                raise UsageError(
                    "a vendor's model costs money", field="max-usd", fix="say how much it may cost: --max-usd 1"
                )
        elif parts.scheme not in ("http", "https") or not parts.netloc:
            fix = f"write http://127.0.0.1:8000/v1, or a vendor's model: {', '.join(f'{v}/MODEL' for v in VENDORS)}"
            raise UsageError("is not an http(s) address", field="url", value=self.url, fix=fix)
        for name, lowest, highest in (("concurrency", 1, 4096), ("max_tokens", 1, 65536), ("limit", 1, None)):
            value = getattr(self, name)
            if value is not None and (value < lowest or (highest is not None and value > highest)):
                upto = "" if highest is None else f" and at most {highest}"
                raise UsageError(f"must be at least {lowest}{upto}", field=name, value=value)
        if not math.isfinite(self.timeout_s) or self.timeout_s <= 0:
            raise UsageError("must be a positive number of seconds", field="timeout", value=self.timeout_s)
        if self.usd_per_hour is not None and (self.is_vendor or not 0 < self.usd_per_hour < 1_000_000):
            fix = "a vendor's answers have a price of their own" if self.is_vendor else "dollars, above 0"
            raise UsageError("is the price of a machine", field="usd-per-hour", value=str(self.usd_per_hour), fix=fix)
        if not 0 <= self.temperature <= 2:
            raise UsageError("must lie between 0 and 2", field="temperature", value=self.temperature)
        if self.is_vendor and self.temperature:
            fix = "leave it out: vendors differ in what they allow"
            raise UsageError("is for served models", field="temperature", value=self.temperature, fix=fix)
        if "{question}" not in self.prompt:
            raise UsageError("does not hold {question}", field="variant", value=self.prompt)
        if not self.is_vendor and not self.model.strip():
            raise UsageError("must not be empty", field="model", value=self.model, fix="give --model")

    @property
    def is_vendor(self) -> bool:
        """Whether `url` names a vendor's model."""
        return self.url.partition("/")[0] in VENDORS

    def question(self, text: str) -> str:
        """Return an item's question as it is sent."""
        return self.prompt.replace("{question}", text)

    @property
    def target(self) -> str:
        """The model's name in reports."""
        return self.url if self.is_vendor else self.model

    @property
    def base_url(self) -> str:
        """The address up to and including `/v1`, without a slash at the end; for a vendor, its model."""
        if self.is_vendor:
            return self.url
        base = self.url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
        return base if urlsplit(base).path.strip("/") else f"{base}/v1"
