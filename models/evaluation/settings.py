"""What an evaluation is asked to do, checked before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from models.support.errors import UsageError


@dataclass(frozen=True)
class EvaluationSettings:
    """One evaluation.

    Attributes:
        url: base of an OpenAI-compatible API; `/v1` is added when there is no path.
        model: the model's name there.
        golden: name or path of a golden set.
        out: folder for `answers.jsonl`, `run.json`, `report.json` and `report.html`.
        limit, seed: ask that many items, drawn by the seed; None asks all.
        concurrency: requests in flight.
        max_tokens: longest answer.
        timeout_s: for one answer, connect included.
        api_key: bearer token, never written anywhere.
        fresh: forget the answers that `out` already holds.

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

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            fix = "write it like http://127.0.0.1:8000/v1"
            raise UsageError("is not an http(s) address", field="url", value=self.url, fix=fix)
        for name, lowest, highest in (("concurrency", 1, 4096), ("max_tokens", 1, 65536), ("limit", 1, None)):
            value = getattr(self, name)
            if value is not None and (value < lowest or (highest is not None and value > highest)):
                upto = "" if highest is None else f" and at most {highest}"
                raise UsageError(f"must be at least {lowest}{upto}", field=name, value=value)
        if not math.isfinite(self.timeout_s) or self.timeout_s <= 0:
            raise UsageError("must be a positive number of seconds", field="timeout", value=self.timeout_s)
        if not self.model.strip():
            raise UsageError("must not be empty", field="model", value=self.model)

    @property
    def base_url(self) -> str:
        """The address up to and including `/v1`, without a slash at the end."""
        base = self.url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
        return base if urlsplit(base).path.strip("/") else f"{base}/v1"
