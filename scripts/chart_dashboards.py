"""The Grafana dashboards: panels as data, written to helm/fovea/files/dashboards by `python -m scripts.chart`.

Only series that the stack has: `fovea_*` (serving/metrics.py, serving/money.py), `vllm:*` (the engine), the processes'
own, `fovea_golden_*` (helm/fovea/files/push.py) and `fovea_job_*` (job.py beside it).  The head pod's `/metrics` speaks
for all replicas, so no query has to leave duplicates out.  The readiness probe's own questions are among the requests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STACK = 'stack=~"$stack"'
WHO = f'{STACK},model=~"$model"'
API = f'{WHO},route=~"/v1/.*"'
ENGINE = f'{STACK},model_name=~"$model"'
PROCESS = f'{STACK},replica!=""'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        queries: (legend, PromQL) pairs.
        unit: Grafana's unit id.
        kind: Grafana's panel type.
        width: of 24 columns.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    text: str = ""


def rate(series: str, by: str = "") -> str:
    """Return the summed rate of a counter."""
    return f"sum{f' by ({by})' if by else ''} (rate({series}{RATE}))"


def quantiles(series: str, matcher: str, shares: Sequence[float] = (0.5, 0.95, 0.99)) -> list[tuple[str, str]]:
    """Return queries of a histogram's quantiles."""
    bucket = f"sum by (le) (rate({series}_bucket{{{matcher}}}{RATE}))"
    return [(f"P{share * 100:g}", f"histogram_quantile({share}, {bucket})") for share in shares]


def share(part: str, whole: str) -> str:
    """Return part / whole, without a value where there is nothing."""
    return f"({part}) / (({whole}) > 0)"


def mean(series: str, matcher: str) -> str:
    """Return the mean of a histogram's observations."""
    return share(rate(f"{series}_sum{{{matcher}}}"), rate(f"{series}_count{{{matcher}}}"))


FAILED = f'({rate(f"""fovea_requests_total{{{API},status="5xx"}}""")} or vector(0))'
ALL = rate(f"fovea_requests_total{{{API}}}")
USD = rate(f"fovea_usd_total{{{WHO}}}")
ANSWERED = rate(f"fovea_priced_answers_total{{{WHO}}}")
ACCURACY = f"avg(fovea_golden_accuracy{{{WHO}}})"

SERVICE = (
    Panel("Requests by status", [("{{status}}", rate(f"fovea_requests_total{{{API}}}", "status"))], "reqps"),
    Panel("Errors by kind", [("{{kind}}", rate(f"fovea_errors_total{{{WHO}}}", "kind"))], "reqps"),
    Panel("Availability", [("not 5xx", f"1 - {share(FAILED, ALL)}")], "percentunit"),
    Panel("Latency, whole answer", quantiles("fovea_request_seconds", API), "s"),
    Panel("Latency, first byte", quantiles("fovea_first_byte_seconds", API), "s"),
    Panel(
        "Requests by model",
        [("{{model}}", rate(f"fovea_requests_total{{{API}}}", "model"))],
        "reqps",
    ),
    Panel("Engine: TTFT", quantiles("vllm:time_to_first_token_seconds", ENGINE), "s"),
    Panel("Engine: between tokens", quantiles("vllm:inter_token_latency_seconds", ENGINE), "s"),
    Panel("Engine: time in the queue", quantiles("vllm:request_queue_time_seconds", ENGINE), "s"),
    Panel(
        "Queue and batch",
        [
            ("waiting", f"sum(vllm:num_requests_waiting{{{ENGINE}}})"),
            ("running", f"sum(vllm:num_requests_running{{{ENGINE}}})"),
        ],
    ),
    Panel("Tokens per engine step (batch)", [("mean", mean("vllm:iteration_tokens_total", ENGINE))]),
    Panel(
        "KV cache in use",
        [("{{replica}}", f"max by (replica) (vllm:kv_cache_usage_perc{{{ENGINE}}})")],
        "percentunit",
    ),
    Panel(
        "Tokens",
        [
            ("prompt", rate(f"vllm:prompt_tokens_total{{{ENGINE}}}")),
            ("generated", rate(f"vllm:generation_tokens_total{{{ENGINE}}}")),
        ],
    ),
    Panel(
        "Engine caches, share of hits",
        [
            (
                "prefix",
                share(
                    rate(f"vllm:prefix_cache_hits_total{{{ENGINE}}}"),
                    rate(f"vllm:prefix_cache_queries_total{{{ENGINE}}}"),
                ),
            ),
            (
                "images",
                share(rate(f"vllm:mm_cache_hits_total{{{ENGINE}}}"), rate(f"vllm:mm_cache_queries_total{{{ENGINE}}}")),
            ),
        ],
        "percentunit",
    ),
    Panel("Answers kept: hits, misses", [("{{result}}", rate(f"fovea_recall_total{{{WHO}}}", "result"))], "reqps"),
    Panel(
        "Refused by tenants' limits",
        [("{{tenant}}: {{limit}}", rate(f"fovea_limited_total{{{WHO}}}", "tenant, limit"))],
        "reqps",
    ),
    Panel("Preemptions", [("per second", rate(f"vllm:num_preemptions_total{{{ENGINE}}}"))]),
    Panel("Images", [("per second", rate(f"fovea_images_total{{{WHO}}}"))]),
    Panel(
        "Tokens per image",
        [("mean", share(rate(f"fovea_image_tokens_total{{{WHO}}}"), rate(f"fovea_images_total{{{WHO}}}")))],
    ),
    Panel(
        "Last key of a tenant ends in",
        [("{{tenant}}", f"min by (tenant) (fovea_keys_end_seconds{{{STACK}}}) - time()")],
        "s",
        text="Tenants with a key that does not end are not here.",
    ),
    Panel("Replicas", [("serving", f"count(process_start_time_seconds{{{PROCESS}}})")]),
    Panel("Replica memory", [("{{replica}}", f"process_resident_memory_bytes{{{PROCESS}}}")], "bytes"),
    Panel("Replica CPU", [("{{replica}}", f"rate(process_cpu_seconds_total{{{PROCESS}}}{RATE})")]),
)

MONEY = (
    Panel("Dollars per hour", [("{{model}}", f"3600 * {rate(f'fovea_usd_total{{{WHO}}}', 'model')}")], "currencyUSD"),
    Panel(
        "Dollars per hour by tenant",
        [("{{tenant}}", f"3600 * {rate(f'fovea_usd_total{{{WHO}}}', 'tenant')}")],
        "currencyUSD",
    ),
    Panel(
        "$/query",
        [("mean", share(USD, ANSWERED))],
        "currencyUSD",
        text="The readiness probe's answers count as queries.",
    ),
    Panel(
        "$/right answer",
        [("mean", f"({share(USD, ANSWERED)}) / {ACCURACY}")],
        "currencyUSD",
        text="By the accuracy of the newest golden-set evaluation.",
    ),
    Panel(
        "Vendor's bill avoided, per hour",
        [("{{vendor_model}}", f"3600 * {rate(f'fovea_vendor_usd_avoided_total{{{WHO}}}', 'vendor_model')}")],
        "currencyUSD",
        text="Priced by the vendors' price lists, not measured.",
    ),
    Panel(
        "Vendor's bill / own cost",
        [
            (
                "{{vendor_model}}",
                f"{rate(f'fovea_vendor_usd_avoided_total{{{WHO}}}', 'vendor_model')} / on() group_left() {USD}",
            )
        ],
    ),
    Panel(
        "Saved by caches, per hour",
        [("saved", f"3600 * {rate(f'fovea_cache_saved_usd_total{{{WHO}}}')}")],
        "currencyUSD",
    ),
    Panel("Priced tokens", [("{{kind}}", rate(f"fovea_money_tokens_total{{{WHO}}}", "kind"))]),
    Panel("Answers missing in the journal", [("{{model}}", rate(f"fovea_journal_lost_total{{{WHO}}}", "model"))]),
    Panel("Answers without a price", [("{{model}}", rate(f"fovea_unpriced_answers_total{{{WHO}}}", "model"))]),
)

GOLDEN = WHO
QUALITY = (
    Panel(
        "Golden accuracy",
        [
            ("{{golden}}", f"fovea_golden_accuracy{{{GOLDEN}}}"),
            ("{{golden}}, low", f"fovea_golden_accuracy_low{{{GOLDEN}}}"),
            ("{{golden}}, high", f"fovea_golden_accuracy_high{{{GOLDEN}}}"),
        ],
        "percentunit",
        width=12,
        text="With its 95% interval.",
    ),
    Panel(
        "Confidence and accuracy",
        [
            ("mean confidence", f"fovea_golden_confidence{{{GOLDEN}}}"),
            ("accuracy", f"fovea_golden_accuracy{{{GOLDEN}}}"),
        ],
        "percentunit",
        width=12,
        text="Apart: the model is surer, or less sure, than it is right.",
    ),
    Panel("Calibration error", [("{{golden}}", f"fovea_golden_calibration_error{{{GOLDEN}}}")], "percentunit"),
    Panel(
        "Items",
        [
            ("{{golden}}, asked", f"fovea_golden_items{{{GOLDEN}}}"),
            ("{{golden}}, without an answer", f"fovea_golden_unanswered{{{GOLDEN}}}"),
        ],
    ),
    Panel("Age of the newest evaluation", [("{{golden}}", f"time() - fovea_golden_finished_seconds{{{GOLDEN}}}")], "s"),
)

EACH = "max by (kind, name)"
BEGAN, ENDED = (f"fovea_job_{when}_seconds{{{STACK}}}" for when in ("started", "finished"))
JOBS = (
    Panel(
        "Failed, last run",
        [("{{kind}} {{name}}", f"{EACH} (fovea_job_failed{{{STACK}}})")],
        text="1: it failed. The evaluation, the load-test gate, quantization and distillation.",
    ),
    Panel("Length of the last run", [("{{kind}} {{name}}", f"{EACH} (fovea_job_seconds{{{STACK}}})")], "s"),
    Panel("Since the last end", [("{{kind}} {{name}}", f"time() - {EACH} ({ENDED})")], "s"),
    Panel(
        "Running",
        [("jobs", f"count(({BEGAN} unless {ENDED}) or ({BEGAN} > {ENDED})) or vector(0)")],
        text="Begun and not ended: a job whose pod was killed at once stays here until its next run.",
    ),
    Panel(
        "Oldest batch that is not done",
        [
            (
                "{{model}}",
                f"(time() - max by (model) (fovea_batch_oldest_seconds{{{WHO}}}))"
                f" * (max by (model) (fovea_batch_oldest_seconds{{{WHO}}}) > bool 0)",
            )
        ],
        "s",
        text="Of the batch API.",
    ),
)


def board(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """Return one dashboard as Grafana's JSON model."""
    source = {"type": "prometheus", "uid": "${source}"}
    x = y = 0
    found = []
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > 24:
            x, y = 0, y + 8
        found.append(
            {
                "id": number,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.text,
                "datasource": source,
                "gridPos": {"x": x, "y": y, "w": panel.width, "h": 8},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + i), "datasource": source, "expr": expr, "legendFormat": legend}
                    for i, (legend, expr) in enumerate(panel.queries)
                ],
            }
        )
        x += panel.width
    variables: list[dict[str, Any]] = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    ]
    for label in ("stack", "model"):
        variables.append(
            {
                "name": label,
                "type": "query",
                "datasource": source,
                "query": {"query": f"label_values(fovea_requests_total, {label})", "refId": label},
                "refresh": 2,
                "includeAll": True,
                "allValue": ".+",
                "multi": True,
                "current": {"text": "All", "value": "$__all"},
            }
        )
    return {
        "uid": uid,
        "title": title,
        "tags": ["fovea"],
        "schemaVersion": 39,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": found,
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the dashboards by file name."""
    return {
        "service": board("fovea-service", "Fovea: service", SERVICE),
        "money": board("fovea-money", "Fovea: money", MONEY),
        "quality": board("fovea-quality", "Fovea: quality", QUALITY),
        "jobs": board("fovea-jobs", "Fovea: jobs", JOBS),
    }


def queries(data: dict[str, Any], interval: str) -> list[tuple[str, str]]:
    """Return (panel, PromQL) of a dashboard with Grafana's variables filled in."""
    return [
        (panel["title"], re.sub(r"\$(stack|model)\b", ".+", target["expr"].replace("$__rate_interval", interval)))
        for panel in data["panels"]
        for target in panel["targets"]
    ]
