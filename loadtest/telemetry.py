"""What the server says of itself while the load runs (Prometheus endpoints), and what this machine's GPUs do."""

from __future__ import annotations

import math
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from loadtest.gpus import SCOPE, Gpus, NoGpu

PERIOD_S = 1.0

# Metric name -> (what it is called in the report, unit, kind).  A counter is shown as its rate; a histogram as mean of
# its values; each summed over all label sets, that is, over the replicas.  A share is that of the fullest replica.
# Names are vLLM's; others are ignored.
WATCHED = {
    "vllm:num_requests_running": ("running requests (batch size)", "", "gauge"),
    "vllm:num_requests_waiting": ("waiting requests (queue)", "", "gauge"),
    "vllm:kv_cache_usage_perc": ("KV cache in use", "share", "share"),
    "vllm:gpu_cache_usage_perc": ("KV cache in use", "share", "share"),
    "vllm:prefix_cache_hits": ("prefix cache hits", "tokens/s", "counter"),
    "vllm:prefix_cache_queries": ("prefix cache queries", "tokens/s", "counter"),
    "vllm:mm_cache_hits": ("image cache hits", "1/s", "counter"),
    "vllm:mm_cache_queries": ("image cache queries", "1/s", "counter"),
    "vllm:num_preemptions": ("preemptions", "1/s", "counter"),
    "vllm:prompt_tokens": ("prompt tokens", "1/s", "counter"),
    "vllm:generation_tokens": ("generated tokens", "1/s", "counter"),
    "vllm:request_queue_time_seconds": ("time in the queue", "s", "histogram"),
    "vllm:time_to_first_token_seconds": ("time to first token, server's view", "s", "histogram"),
    "vllm:e2e_request_latency_seconds": ("end to end, server's view", "s", "histogram"),
    "vllm:request_prefill_time_seconds": ("prefill", "s", "histogram"),
    "vllm:request_decode_time_seconds": ("decode", "s", "histogram"),
}


def parse_metrics(text: str) -> dict[str, list[float]]:
    """Return each metric's values, one for each label set, from Prometheus text; lines that are none are skipped."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        if "{" in line:
            name, _, rest = line.partition("{")
            value = rest.rpartition("}")[2].split()
        else:
            name, _, rest = line.partition(" ")
            value = rest.split()
        try:
            number = float(value[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(number):
            found.setdefault(name.strip(), []).append(number)
    return found


@dataclass
class _Track:
    """Values of one metric over the run."""

    unit: str
    values: list[float] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """Return the track as a row of the report."""
        seen = self.values
        return {
            "name": name,
            "unit": self.unit,
            "mean": sum(seen) / len(seen),
            "max": max(seen),
            "last": seen[-1],
            "n": len(seen),
        }


class Telemetry:
    """Scrapes once a second in a thread of its own, as a context manager; `result()` afterwards.

    Args:
        nvml: the NVML binding; by default NVIDIA's own.
    """

    def __init__(self, urls: tuple[str, ...], nvml: Any = None):
        self.urls = urls
        self.gpus: Gpus | None = None
        self.no_gpu = ""
        try:
            self.gpus = Gpus(nvml)
        except NoGpu as error:
            self.no_gpu = str(error)
        self.tracks: dict[str, _Track] = {}
        self.gpu_tracks: dict[str, _Track] = {}
        self._energy: tuple[list[float | None], list[float | None]] = ([], [])
        self.problems: list[str] = []
        self._first: dict[str, dict[str, float]] = {}
        self._last: dict[str, dict[str, float]] = {}
        self._at: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)

    def __enter__(self) -> Telemetry:
        if self.urls or self.gpus is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
        if self.gpus is not None:
            self.gpus.close()

    def _loop(self) -> None:
        began = self.gpus.energy_j() if self.gpus is not None else []
        while True:
            for url in self.urls:
                self._scrape(url)
            if self.gpus is not None:
                for name, unit, value in self.gpus.sample():
                    self.gpu_tracks.setdefault(name, _Track(unit)).values.append(value)
                self._energy = (began, self.gpus.energy_j())
            if self._stop.wait(PERIOD_S):
                break
        for url in self.urls:
            self._scrape(url)  # once more, so that counters cover the whole run

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def _scrape(self, url: str) -> None:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                found = parse_metrics(reply.read(8 << 20).decode("utf-8", "replace"))
        except (OSError, ValueError) as error:  # unreachable, not HTTP, not a URL
            self._problem(f"{url}: {error}")
            return
        now = {name: sum(values) for name, values in found.items()}
        before, at = self._last.get(url), time.monotonic()
        passed = at - self._at.get(url, at - PERIOD_S)
        self._at[url] = at
        self._first.setdefault(url, now)
        self._last[url] = now
        for metric, (name, unit, kind) in WATCHED.items():
            if kind in ("gauge", "share") and metric in now:
                self._add(name, unit, now[metric] if kind == "gauge" else max(found[metric]))
            elif kind == "counter" and before is not None:
                total = metric if metric in now else metric + "_total"
                if total in now and total in before:
                    self._add(name, unit, max(0.0, now[total] - before[total]) / max(passed, 1e-3))

    def _add(self, name: str, unit: str, value: float) -> None:
        self.tracks.setdefault(name, _Track(unit)).values.append(value)

    def result(self) -> dict[str, Any]:
        """Return the server's rows (name, unit, mean, max, last, n), what could not be read, and the GPUs."""
        rows = [track.row(name) for name, track in self.tracks.items()]
        for url in self.urls:
            first, last = self._first.get(url, {}), self._last.get(url, {})
            for metric, (name, unit, kind) in WATCHED.items():
                count = last.get(metric + "_count", 0) - first.get(metric + "_count", 0)
                if kind == "histogram" and count > 0:
                    mean = (last[metric + "_sum"] - first[metric + "_sum"]) / count
                    rows.append({"name": name, "unit": unit, "mean": mean, "max": None, "last": None, "n": int(count)})
        return {"rows": rows, "problems": self.problems, "urls": list(self.urls), "gpus": self._gpu_result()}

    def _gpu_result(self) -> dict[str, Any]:
        known = [(a, b) for a, b in zip(*self._energy, strict=False) if a is not None and b is not None]
        return {
            "scope": SCOPE,
            "names": self.gpus.names if self.gpus is not None else [],
            "rows": [track.row(name) for name, track in self.gpu_tracks.items()],
            "energy_j": round(sum(b - a for a, b in known), 1) if known else None,
            "problems": self.gpus.problems if self.gpus is not None else {},
            "note": self.no_gpu,
        }
