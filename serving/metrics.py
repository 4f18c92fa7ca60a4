"""Prometheus metrics of the layers, beside vLLM's own.

Labels are from fixed sets: the stack's model names, known routes, status classes and error kinds.  What a client sends
never becomes a label.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from serving.exchange import Exchange

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/models",
    "/tokenize", "/detokenize", "/health", "/ready", "/metrics",
)  # fmt: skip


@lru_cache(maxsize=256)
def route_label(path: str) -> str:
    """Return the known route that `path` ends with, or `other`."""
    return next((route for route in ROUTES if path.endswith(route)), "other")


class ModelMetrics:
    """The series of one model, with the label lookups done once."""

    def __init__(self, parent: Metrics, model: str):
        self.model, self.parent = model, parent
        self._requests: dict[tuple[str, str], Counter] = {}
        self.images = parent.images.labels(model)
        self.image_tokens = parent.image_tokens.labels(model)
        self.seconds = {route: parent.seconds.labels(model, route) for route in (*ROUTES, "other")}
        self.first = {route: parent.first.labels(model, route) for route in (*ROUTES, "other")}

    def observe(self, exchange: Exchange, route: str, status: int, first: float) -> None:
        """Record one finished request; `status` 0 means that the client left before an answer began."""
        group = f"{status // 100}xx" if status else "left"
        key = (route, group)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self.parent.requests.labels(self.model, route, group)
        counter.inc()
        self.seconds[route].observe(time.perf_counter() - exchange.started)
        if first:
            self.first[route].observe(first - exchange.started)
        if exchange.pictures:
            self.images.inc(len(exchange.pictures))
            self.image_tokens.inc(exchange.image_tokens)
        if status >= 400 or exchange.error_kind:
            self.parent.errors.labels(self.model, route, exchange.error_kind or f"engine_{status}").inc()


class Metrics:
    """All series; one instance per process, because prometheus_client's registry is per process."""

    def __init__(self) -> None:
        self.requests = Counter(
            "fovea_requests_total", "Requests by model, route and status class.", ["model", "route", "status"]
        )
        self.errors = Counter("fovea_errors_total", "Failed requests by kind.", ["model", "route", "kind"])
        self.seconds = Histogram(
            "fovea_request_seconds", "From entry to the end of the answer.", ["model", "route"], buckets=SECONDS
        )
        self.first = Histogram(
            "fovea_first_byte_seconds",
            "From entry to the first byte of the answer (TTFT of a stream).",
            ["model", "route"],
            buckets=SECONDS,
        )
        self.images = Counter("fovea_images_total", "Images that passed screening.", ["model"])
        self.image_tokens = Counter("fovea_image_tokens_total", "Prompt tokens that those images took.", ["model"])
        self.limited = Counter(
            "fovea_limited_total", "Requests refused because a tenant was at a limit.", ["model", "tenant", "limit"]
        )
        self.recalled = Counter(
            "fovea_recall_total",
            "Requests by what the cache did: hit, semantic, coalesced, miss, bypass.",
            ["model", "result"],
        )
        self.keys_end = Gauge(
            "fovea_keys_end_seconds",
            "When the last key of a tenant ends, seconds since 1970; nothing for a tenant with one that does not end.",
            ["tenant"],
        )
        self.oldest_batch = Gauge(
            "fovea_batch_oldest_seconds",
            "When the oldest batch that has not ended was made, seconds since 1970; 0: there is none.",
            ["model"],
        )
        self._models: dict[str, ModelMetrics] = {}

    def for_model(self, model: str) -> ModelMetrics:
        """Return the series of one model of the stack."""
        if model not in self._models:
            self._models[model] = ModelMetrics(self, model)
        return self._models[model]


METRICS = Metrics()
