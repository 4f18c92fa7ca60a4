"""`fovea loadtest roi`: the articles' examples come out of it, measured figures carry their source, slips are named."""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea import main
from loadtest.roi import compute, parse_roi
from loadtest.roi_data import from_metrics
from models.cost.articles import worked_examples
from models.cost.ledger import Tariff
from models.support.errors import UsageError

MONTH_S = 730 * 3600
METRICS = """# TYPE process_start_time_seconds gauge
process_start_time_seconds{replica="a"} 1000
process_start_time_seconds{replica="b"} 2000
# TYPE fovea_requests_total counter
fovea_requests_total{route="/v1/chat/completions",status="2xx",replica="a"} 900
fovea_requests_total{route="/v1/chat/completions",status="2xx",replica="b"} 90
fovea_requests_total{route="/v1/chat/completions",status="5xx",replica="b"} 10
fovea_requests_total{route="/v1/chat/completions",status="4xx",replica="b"} 77
fovea_requests_total{route="/health",status="2xx",replica="b"} 5000
# TYPE fovea_request_seconds histogram
fovea_request_seconds_bucket{route="/v1/chat/completions",le="1.0"} 900
fovea_request_seconds_bucket{route="/v1/chat/completions",le="2.0"} 1000
fovea_request_seconds_bucket{route="/v1/chat/completions",le="+Inf"} 1000
# TYPE fovea_usd_total counter
fovea_usd_total{model="m",tenant="a"} 0.5
fovea_usd_total{model="m",tenant="b"} 0.49
# TYPE fovea_priced_answers_total counter
fovea_priced_answers_total{model="m",tenant="a"} 500
fovea_priced_answers_total{model="m",tenant="b"} 480
# TYPE fovea_vendor_usd_avoided_total counter
fovea_vendor_usd_avoided_total{model="m",tenant="a",vendor_model="gpt-4o"} 3.25
"""
SUPPORT: dict[str, Any] = {
    "volume": {"per_month": 15000, "source": "the article"},
    "benefits": [
        {"name": "labour", "kind": "time_saved", "minutes_each": 5, "usd_per_hour": "25", "source": "the article"}
    ],
    "costs": [
        {"name": "API", "kind": "per_item", "usd_each": "0.08", "source": "the article"},
        {"name": "development", "kind": "once", "usd": "120000", "source": "the article"},
        {"name": "maintenance", "kind": "yearly", "usd_per_year": "40000", "source": "the article"},
    ],
}
CATALOG: dict[str, Any] = {
    "volume": {"per_month": 2000, "source": "a"},
    "benefits": [
        {"name": "labour", "kind": "time_saved", "minutes_each": 12, "usd_per_hour": "20", "source": "a"},
        {"name": "lift", "kind": "revenue", "usd_per_year": "50000000", "lift": 0.005, "source": "a"},
    ],
    "costs": [
        {"name": "API", "kind": "per_item", "usd_each": "0.15", "source": "a"},
        {"name": "development", "kind": "once", "usd": "80000", "source": "a"},
        {"name": "maintenance", "kind": "yearly", "usd_per_year": "30000", "source": "a"},
    ],
}
RESEARCH: dict[str, Any] = {
    "volume": {"per_month": 200, "source": "a"},
    "benefits": [{"name": "labour", "kind": "time_saved", "minutes_each": 720, "usd_per_hour": "85", "source": "a"}],
    "costs": [
        {"name": "infrastructure", "kind": "once", "usd": "400000", "source": "a"},
        {"name": "development", "kind": "once", "usd": "350000", "source": "a"},
        {"name": "data", "kind": "once", "usd": "100000", "source": "a"},
        {"name": "maintenance", "kind": "yearly", "usd_per_year": "120000", "source": "a"},
    ],
}


@pytest.mark.parametrize(("number", "config"), [(0, SUPPORT), (1, CATALOG), (2, RESEARCH)])
def test_the_articles_examples(number: int, config: dict[str, Any]) -> None:
    right, found = worked_examples()[number].corrected, compute(parse_roi(config, "roi.yaml"), "roi.yaml")
    assert Decimal(found["benefit_usd_per_year"]) == right.benefit
    assert Decimal(found["first_year_cost_usd"]) == right.first_year_cost
    assert Decimal(found["roi_first_year"]) == right.first_year
    assert right.later_years is not None and Decimal(found["roi_later_years"]) == right.later_years
    assert right.break_even_months is not None and Decimal(found["break_even_months"]) == right.break_even_months
    assert all(row["source"] for row in found["benefits"] + found["costs"])


def test_a_servers_metrics_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(METRICS)
    os.utime(path, (1000 + MONTH_S / 2, 1000 + MONTH_S / 2))  # half a month after the first replica started
    data = from_metrics(str(path))
    assert data["metrics.availability"].value == Decimal("0.99")
    assert data["metrics.error_rate"].value == Decimal("0.01")
    # 990 were answered, ten of them the probe's
    assert data["metrics.queries_per_month"].value == 2 * 980
    assert data["metrics.usd_per_query"].value == Decimal("0.99") / 980
    assert data["metrics.usd_per_month"].value == Decimal("1.98")
    assert data["metrics.avoided_usd_per_month.gpt-4o"].value == Decimal("6.5")
    assert data["metrics.p95_s"].value == Decimal("1.5")  # halfway between the edges 1 and 2
    assert "365 h, n = 1,000" in data["metrics.p95_s"].source


def test_measured_figures_fill_lines_and_kpis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.txt").write_text(METRICS)
    config = {
        **copy.deepcopy(SUPPORT),
        "data": {"metrics": str(tmp_path / "metrics.txt")},
        "kpis": {"csat": {"value": 3.8, "source": "survey"}, "adoption": {"value": 0.9, "source": "x", "target": 0.95}},
    }
    config["volume"] = {"from": "metrics.queries_per_month"}
    config["costs"][0] = {"name": "serving", "kind": "per_item", "from": "metrics.usd_per_query"}
    config["benefits"].append({"name": "vendor", "kind": "amount", "from": "metrics.avoided_usd_per_month.gpt-4o"})
    (tmp_path / "roi.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    assert main(["loadtest", "roi", "--config", str(tmp_path / "roi.yaml"), "--out", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((out / "roi.json").read_text())
    kpis = {kpi["name"]: kpi for kpi in data["kpis"]}
    assert kpis["latency_p95"]["kept"] is True and kpis["error_rate"]["kept"] is False  # 1 % is not below 1 %
    assert kpis["availability"]["kept"] is False and "server metrics" in kpis["availability"]["source"]
    assert kpis["csat"]["kept"] is False and kpis["csat"]["source"] == "survey"
    assert kpis["adoption"]["kept"] is False and kpis["adoption"]["target"] == "0.95"
    assert kpis["nps"] == {**kpis["nps"], "value": None, "kept": None, "source": "not measured"}
    volume = Decimal(data["volume"]["per_month"])
    assert Decimal(data["costs"][0]["usd"]) == volume * (Decimal("0.99") / 980) * 12
    page = (out / "roi.html").read_text()
    assert "survey" in page and page.count("<svg") == 3 and "http" not in page.split("</style>")[1].split("<pre>")[0]
    assert main(["loadtest", "roi", "--config", str(tmp_path / "roi.yaml")]) == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("volume",), {"per_month": 5}, "volume.source: has no source"),
        (("volume",), {"source": "a"}, "volume: needs either per_month or from"),
        (("volume",), {"from": "report.items"}, "no such figure in the data (got 'report.items')"),
        (("benefits", 0, "minutes_each"), None, "benefits[0] (labour).minutes_each: is required for kind time_saved"),
        (("benefits", 0, "source"), "", "benefits[0] (labour).source: has no source"),
        (("benefits", 0, "usd_per_hour"), 25.5, "quoted decimal text"),
        (("benefits", 0, "usd_per_hour"), "-25", "must not be negative"),
        (("benefits", 0, "kind"), "magic", "benefits.0.kind"),
        (("costs", 0, "name"), "development", "two lines have the same name"),
        (("costs", 0), {"name": "x", "kind": "once", "from": "cost.usd_per_month"}, "does not fit kind once"),
        (("costs",), [], "costs"),
        (("currency",), "EUR", "amounts are in US dollars (got 'EUR')"),
        (("kpis",), {"speed": {"value": 1, "source": "a"}}, "'speed' is none of accuracy"),
        (("data",), {"report": "/nowhere"}, "cannot read"),
        (("data",), {"cost": "/nowhere"}, "data.cost"),
        (("data",), {"metrics": "/nowhere"}, "data.metrics: cannot read"),
        (("data",), {"metrics": "http://127.0.0.1:1/metrics"}, "data.metrics: cannot read"),
    ],
)
def test_bad_input_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: tuple[Any, ...], value: Any, message: str
) -> None:
    config: Any = copy.deepcopy(SUPPORT)
    place = config
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (tmp_path / "roi.yaml").write_text(yaml.safe_dump(config))
    assert main(["loadtest", "roi", "--config", str(tmp_path / "roi.yaml"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_running_servers_metrics() -> None:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        data = from_metrics(url, now=lambda: 1000 + MONTH_S)
        server.shutdown()
    assert data["metrics.queries_per_month"].value == 980 and url in data["metrics.queries_per_month"].source


@given(
    st.one_of(
        st.text(max_size=200),
        st.tuples(st.sampled_from(METRICS.splitlines()), st.text(max_size=20)).map(lambda t: METRICS + t[0] + t[1]),
        st.sampled_from(["nan", "-1", "+Inf", "1e999"]).map(lambda v: METRICS.replace(" 0.49", f" {v}")),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_metrics_text_gives_figures_or_one_error(text: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        try:
            data = from_metrics(file.name)
        except UsageError as error:
            assert error.field == "data.metrics"
        else:
            assert all(datum.value >= 0 and datum.source for datum in data.values())


@pytest.mark.parametrize("text", ["", "nonsense {", "# TYPE fovea_requests_total counter\n"])
def test_metrics_without_requests(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text)
    with pytest.raises(UsageError, match="metrics"):
        from_metrics(str(tmp_path / "m"))


def test_the_documents_examples_are_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "money.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    roi = next(block for block in blocks if "benefits" in block)
    assert len(parse_roi(roi, "docs").benefits) == 4
    money = next(block["money"] for block in blocks if "money" in block)
    assert Tariff.model_validate({**money, "prices": None}).against
