"""Alerts fire on what they are for and on nothing else (promtool); each has a runbook; dashboards' queries parse."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.chart_dashboards import dashboards, queries
from tests.helm.chart import EVERYTHING, ROOT, merged, one, render, tool

RUNBOOKS = ROOT / "docs" / "runbooks"
VALUES = merged(EVERYTHING, {"fullnameOverride": "s"})
REQUESTS = 'fovea_requests_total{stack="s",model="one",route="/v1/chat/completions",status="%s"}'
SECONDS = 'fovea_request_seconds_bucket{stack="s",model="one",route="/v1/chat/completions",le="%s"}'
ENGINE = 'vllm:%s{stack="s",model_name="one",replica="%s"}'
ERRORS = 'fovea_errors_total{stack="s",model="one",route="/v1/chat/completions",kind="%s"}'
LOST = 'fovea_journal_lost_total{stack="s",model="one"}'
KEYS = 'fovea_keys_end_seconds{stack="s",tenant="%s",replica="a"}'
CERTIFICATE = 'certmanager_certificate_expiration_timestamp_seconds{namespace="vision",name="%s"}'
BATCH = 'fovea_batch_oldest_seconds{stack="s",model="one",replica="a"}'
USD = 'fovea_usd_total{stack="s",model="one",tenant="shop"}'
GOLDEN = 'fovea_golden_%s{stack="s",model="one",golden="easy-vqa",pod="%s"}'
JOB = 'fovea_job_failed{stack="s",kind="quantize",name="%s"}'
STARTED = 'process_start_time_seconds{stack="s",replica="%s"}'
UP = {REQUESTS % "2xx": "0+60x{n}", **{ENGINE % ("num_requests_running", name): "0x{n}" for name in "a"}}


def latency(first: int, second: int) -> dict[str, str]:
    """Return a histogram in which all requests are at 0.5 s for `first` minutes, then at 20 s for `second`."""
    low = f"0+60x{first} {60 * first}+0x{second}"
    return {
        SECONDS % "1": low,
        SECONDS % "10": low,
        SECONDS % "30": f"0+60x{first + second}",
        SECONDS % "+Inf": f"0+60x{first + second}",
    }


def failing(good: str, bad: str) -> dict[str, str]:
    """Return requests a minute that are answered and that fail."""
    return {REQUESTS % "2xx": good, REQUESTS % "5xx": bad}


CASES: list[tuple[str, str, dict[str, str], str, int]] = [
    # alert, what happens, series at one sample a minute, when, alerts of that name that fire
    ("FoveaErrorBudgetFast", "a tenth fails", failing("0+54x90", "0+6x90"), "80m", 1),
    ("FoveaErrorBudgetFast", "one in a hundred fails", failing("0+99x90", "0+1x90"), "80m", 0),
    ("FoveaErrorBudgetFast", "over since 20 minutes", failing("0+60x90", "0+12x50 600+0x40"), "75m", 0),
    ("FoveaErrorBudgetFast", "refused requests are not failures", {REQUESTS % "4xx": "0+60x90"}, "80m", 0),
    ("FoveaErrorBudgetSlow", "one in twenty fails", failing("0+95x500", "0+5x500"), "480m", 1),
    ("FoveaErrorBudgetSlow", "one in a hundred fails", failing("0+99x500", "0+1x500"), "480m", 0),
    ("FoveaAvailabilityLow", "one in a hundred fails all day", failing("0+99x1500", "0+1x1500"), "1460m", 1),
    ("FoveaAvailabilityLow", "one in a thousand", failing("0+999x1500", "0+1x1500"), "1460m", 0),
    ("FoveaLatencyOverSlo", "20 s for 20 minutes", latency(10, 20), "29m", 1),
    ("FoveaLatencyOverSlo", "fast", latency(30, 0), "29m", 0),
    ("FoveaLatencyJump", "slow since an hour", latency(1500, 90), "1580m", 1),
    ("FoveaLatencyJump", "slow for minutes", latency(1500, 3), "1502m", 0),
    ("FoveaDown", "no series", {"up": "1x20"}, "15m", 1),
    ("FoveaDown", "a replica", UP, "15m", 0),
    ("FoveaModelDown", "only the first model's engine", UP, "15m", 1),
    ("FoveaModelDown", "both", {**UP, 'vllm:num_requests_running{stack="s",model_name="two"}': "0x{n}"}, "15m", 0),
    (
        "FoveaReplicaFlapping",
        "a new one every eight minutes",
        {STARTED % n: f"_x{8 * n} 1x8" for n in range(8)},
        "62m",
        1,
    ),
    ("FoveaReplicaFlapping", "one restart", {STARTED % 1: "1x30", STARTED % 2: "_x30 1x60"}, "62m", 0),
    (
        "FoveaRefusing",
        "one in ten",
        {
            REQUESTS % "2xx": "0+54x30",
            REQUESTS % "5xx": "0+6x30",
            'fovea_errors_total{stack="s",model="one",kind="overloaded"}': "0+6x30",
        },
        "25m",
        1,
    ),
    (
        "FoveaRefusing",
        "other errors",
        {REQUESTS % "2xx": "0+54x30", 'fovea_errors_total{stack="s",model="one",kind="bad_image"}': "0+6x30"},
        "25m",
        0,
    ),
    ("FoveaStoreGone", "the key store is gone", {ERRORS % "keys_unavailable": "0x5 0+10x20"}, "20m", 1),
    ("FoveaStoreGone", "other errors", {ERRORS % "bad_key": "0+10x30"}, "20m", 0),
    ("FoveaJournalLost", "a full disk", {LOST: "0x10 0+5x20"}, "20m", 1),
    ("FoveaJournalLost", "none", {LOST: "0x40"}, "20m", 0),
    ("FoveaQueuePressure", "20 wait", {ENGINE % ("num_requests_waiting", r): "20x40" for r in "ab"}, "30m", 1),
    (
        "FoveaQueuePressure",
        "one of two is busy",
        {ENGINE % ("num_requests_waiting", "a"): "10x40", ENGINE % ("num_requests_waiting", "b"): "0x40"},
        "30m",
        0,
    ),
    ("FoveaKvPressure", "full", {ENGINE % ("kv_cache_usage_perc", "a"): "0.97x40"}, "30m", 1),
    ("FoveaKvPressure", "a peak", {ENGINE % ("kv_cache_usage_perc", "a"): "0.3x20 0.99x2 0.3x18"}, "30m", 0),
    ("FoveaSpendJump", "three times a week ago", {USD: "0+1x10180 10180+3x200"}, "10320m", 1),
    ("FoveaSpendJump", "as a week ago", {USD: "0+1x10400"}, "10320m", 0),
    (
        "FoveaUnpriced",
        "half have none",
        {REQUESTS % "2xx": "0+60x200", 'fovea_unpriced_answers_total{stack="s",model="one"}': "0+30x200"},
        "190m",
        1,
    ),
    (
        "FoveaUnpriced",
        "one in a hundred",
        {REQUESTS % "2xx": "0+100x200", 'fovea_unpriced_answers_total{stack="s",model="one"}': "0+1x200"},
        "190m",
        0,
    ),
    (
        "FoveaAccuracyDrop",
        "from 0.95 to 0.85, the Pushgateway moved",
        {
            GOLDEN % ("accuracy", "p"): "0.95x10080",
            GOLDEN % ("accuracy", "q"): "_x10080 0.85x100",
            GOLDEN % ("accuracy_high", "q"): "_x10080 0.88x100",
        },
        "10150m",
        1,
    ),
    (
        "FoveaAccuracyDrop",
        "from 0.95 to 0.92",
        {GOLDEN % ("accuracy", "p"): "0.95x10080 0.92x100", GOLDEN % ("accuracy_high", "p"): "0.97x10080 0.94x100"},
        "10150m",
        0,
    ),
    (
        "FoveaAccuracyDrop",
        "few items: the interval reaches the old value",
        {GOLDEN % ("accuracy", "p"): "0.95x10080 0.85x100", GOLDEN % ("accuracy_high", "p"): "0.97x10080 0.96x100"},
        "10150m",
        0,
    ),
    ("FoveaKeysEnd", "in a week", {KEYS % "shop": "604800x120"}, "90m", 1),
    ("FoveaKeysEnd", "one of two tenants", {KEYS % "shop": "604800x120", KEYS % "far": "9e9x120"}, "90m", 1),
    ("FoveaKeysEnd", "in a year", {KEYS % "shop": "31536000x120"}, "90m", 0),
    ("FoveaKeysEnd", "never", UP, "90m", 0),
    ("FoveaCertificateEnds", "in a week", {CERTIFICATE % "vision": "604800x120"}, "90m", 1),
    ("FoveaCertificateEnds", "another one", {CERTIFICATE % "other": "604800x120"}, "90m", 0),
    ("FoveaCertificateEnds", "in a year", {CERTIFICATE % "vision": "31536000x120"}, "90m", 0),
    ("FoveaBatchBacklog", "since the morning", {BATCH: "60x900"}, "800m", 1),
    ("FoveaBatchBacklog", "done after an hour", {BATCH: "60x60 0x900"}, "800m", 0),
    ("FoveaBatchBacklog", "new ones again and again", {BATCH: "60+60x900"}, "800m", 0),
    ("FoveaJobFailed", "one of two", {JOB % "int4": "0x10 1x20", JOB % "int8": "0x30"}, "25m", 1),
    ("FoveaJobFailed", "the next run was well", {JOB % "int4": "1x10 0x20"}, "25m", 0),
    ("FoveaEvaluationStale", "three days ago", {GOLDEN % ("finished_seconds", "p"): "0x4400"}, "4320m", 1),
    ("FoveaEvaluationStale", "never", {"up": "1x100"}, "90m", 1),
    ("FoveaEvaluationStale", "every day", {GOLDEN % ("finished_seconds", "p"): "0x1440 86400x2000"}, "2900m", 0),
]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered rules, as Prometheus reads them."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(one(render(VALUES), "PrometheusRule")["spec"]))
    return path


def alerts(path: Path) -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    groups = yaml.safe_load(path.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def needs(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the recording rules that an alert reads, and the alert: a long test runs no others."""
    every = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    found = [rule for rule in every if rule.get("alert") == name]
    assert found
    text = " ".join(rule["expr"] for rule in found)
    return [rule for rule in every if "record" in rule and rule["record"] + "{" in text] + found


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False)


def test_promtool_accepts_the_rules(rules: Path) -> None:
    done = promtool("check", "rules", str(rules))
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "what", "series", "when", "count"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_alert(
    rules: Path, tmp_path: Path, name: str, what: str, series: dict[str, str], when: str, count: int
) -> None:
    """promtool compares whole alerts, so the number that fires is read from its answer to an empty expectation."""
    minutes = int(when[:-1])
    every = "10m" if minutes > 2000 else "1m"
    inputs = [{"series": key, "values": value.replace("{n}", str(minutes + 5))} for key, value in series.items()]
    wanted = {"eval_time": when, "alertname": name, "exp_alerts": []}
    case = {"interval": "1m", "input_series": inputs, "alert_rule_test": [wanted]}
    needed = tmp_path / "rules.yaml"
    needed.write_text(yaml.safe_dump({"groups": [{"name": "needed", "rules": [*needs(rules, name)]}]}))
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(needed)], "evaluation_interval": every, "tests": [case]}))
    done = promtool("test", "rules", str(path))
    text = done.stdout + done.stderr
    assert (done.returncode != 0) is (count > 0), f"{what}: {text[-2000:]}"
    if count:
        found = text.partition("got:[")[2]
        assert len(re.findall(rf'alertname="{name}"', found)) == count, text[-2000:]
        assert 'stack="s"' in found


def test_every_alert_fires_in_a_test_and_stays_silent_in_another(rules: Path) -> None:
    for name in alerts(rules):
        assert {bool(count) for alert, _, _, _, count in CASES if alert == name} == {True, False}, name


def test_every_alert_has_a_runbook_with_the_four_parts(rules: Path) -> None:
    found = alerts(rules)
    assert len(found) > 12
    for name, rule in found.items():
        path = RUNBOOKS / rule["annotations"]["runbook_url"].rpartition("/")[2]
        assert path.exists(), f"{name}: {path.name}"
        text = path.read_text()
        assert name in text, f"{path.name} does not name {name}"
        for part in ("## What it means", "## Look here", "## Do this", "## How to tell that it worked"):
            assert part in text, f"{path.name}: {part}"


def test_rules_are_for_what_the_stack_has() -> None:
    """No money section and no evaluation: no alerts about them."""
    nothing = {"money": None, "batches": None, "identify": None, "recall": None, "listen": {"public": True}}
    rules = {"rules": {"certificate": ""}}
    jobs = {"loadTestGate": {"enabled": False}, "jobs": {"quantize": [], "distill": []}}
    values = merged(VALUES, {"stack": nothing, "evaluation": {"enabled": False}, "observability": rules, **jobs})
    text = yaml.safe_dump(one(render(values), "PrometheusRule"))
    assert "fovea_requests_total" in text
    for word in ("fovea_usd", "golden", "journal", "batch", "keys_end", "certificate", "store_down", "fovea_job"):
        assert word not in text, word


def test_every_dashboard_query_parses(tmp_path: Path) -> None:
    found = [query for board in dashboards().values() for _, query in queries(board, "1m")]
    assert len(found) >= 50
    rules = [{"record": f"q{n}", "expr": query} for n, query in enumerate(found)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(
        yaml.safe_dump({"groups": [{"name": "queries", "rules": [{"record": "q", "expr": "sum(rate(x))"}]}]})
    )
    assert promtool("check", "rules", str(path)).returncode != 0, "a broken query must not pass"


def test_dashboards_are_whole() -> None:
    for name, board in dashboards().items():
        assert board["uid"] == f"fovea-{name}"
        for panel in board["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24 and panel["targets"] and panel["title"]
