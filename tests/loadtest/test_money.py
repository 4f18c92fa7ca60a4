"""`fovea loadtest cost`: from reports and a forecast to the bill, and one clear error for each kind of bad input."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fovea import main
from loadtest.forecast_file import parse_months
from loadtest.html_report import render
from loadtest.money import cost_part
from loadtest.recorder import RECORD
from loadtest.run import run_load
from loadtest.usage import usage_of
from loadtest.workloads.base import Item, ListWorkload, Shape
from models.cost import path_cost
from models.cost.forecast import parse_forecast
from models.cost.ledger import usd
from models.support.errors import UsageError
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

FORECAST: dict[str, Any] = {
    "queries_per_month": 2_000_000,
    "query": {"width": 1024, "height": 768, "images": 1, "text_tokens": 120, "output_tokens": 60},
    "serving": {"usd_per_hour": "0.80", "capacity_rps": 4, "utilization": 0.4},
    "stages": [{"name": "OCR", "usd_per_query": "0.0001"}],
    "review": {"rate": 0.001, "minutes": 1, "usd_per_hour": "30"},
    "one_time_usd": {"development": "1000"},
}
FIGURE = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 200}
REPORT: dict[str, Any] = {
    "kind": "loadtest",
    "started": "2026-11-20T10:00:00+00:00",
    "seed": 0,
    "valid": True,
    "partial": False,
    "target": {"model": "m"},
    "load": {"duration_s": 20.0},
    "accuracy": FIGURE,
    "throughput_rps": {"value": 10.0, "low": 9.0, "high": 11.0, "n": 200},
    "made_rps": {"value": 10.0, "low": 9.0, "high": 11.0, "n": 200},
    "hardware": {"server": {"usd_per_hour": "0.80", "utilization": "0.5", "name": "box", "source": "list"}},
    "usage": {
        "requests": 200,
        "recalled": 0,
        "prompt_tokens": 20_000,
        "completion_tokens": 2000,
        "text_tokens_from": "the server's count",
        "sampled": False,
        "note": "",
        "groups": [{"images": [[64, 64]], "requests": 200, "text_tokens": 4000, "output_tokens": 2000}],
    },
}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[str]]:
    """Write a report, a forecast and price rows; return the arguments of the command."""

    def write(
        forecast: dict[str, Any] | str | None = None, report: dict[str, Any] | None = None, prices: Any = None
    ) -> list[str]:
        (tmp_path / "report.json").write_text(json.dumps(report or REPORT))
        args = ["loadtest", "cost", str(tmp_path / "report.json")]
        if forecast is not None:
            text = forecast if isinstance(forecast, str) else yaml.safe_dump(forecast)
            (tmp_path / "f.yaml").write_text(text)
            args += ["--forecast", str(tmp_path / "f.yaml")]
        if prices is not None:
            (tmp_path / "prices.yaml").write_text(yaml.safe_dump({"rows": [prices]}))
            args += ["--prices", str(tmp_path / "prices.yaml")]
        return args

    return write


def test_measured_keys_are_filled_in_and_every_source_is_named() -> None:
    part = cost_part(REPORT)
    where = {a["name"]: a for a in part["assumptions"]}
    assert where["capacity_rps"]["value"] == "10" and "measured, n = 200" in where["capacity_rps"]["source"]
    assert where["success_rate"]["value"] == "90.00%" and where["usd_per_hour"]["source"] == "box list"
    assert part["cost"]["queries_per_month"] == 10 * 0.5 * 730 * 3600
    # one machine, all of its month
    assert Decimal(part["cost"]["usd_per_month"]) == Decimal("0.80") * 730
    right = part["usd_per_right_answer"]
    assert Decimal(right["low"]) < Decimal(right["value"]) < Decimal(right["high"])
    assert Decimal(right["value"]) == Decimal("0.80") * 730 / (Decimal(13_140_000) * Decimal("0.9"))
    assert part["run"]["own_usd"] == f"{Decimal('0.80') * 20 / 3600 / Decimal('0.5'):.2f}"


def test_the_forecast_wins_over_what_was_measured() -> None:
    stated = {**FORECAST, "success_rate": 0.5}
    part = cost_part(REPORT, stated, where="f.yaml")
    complete = {**stated, "serving": {"kind": "self_hosted", **FORECAST["serving"]}}
    assert part["cost"] == path_cost(parse_forecast(complete)).as_dict()
    assert all(a["source"] == "f.yaml" for a in part["assumptions"])


def test_each_baseline_is_the_same_month_elsewhere() -> None:
    part = cost_part(REPORT, FORECAST)
    gpt = next(row for row in part["baselines"] if row["model"] == "gpt-4o")
    serving = {"kind": "vendor", "model": "gpt-4o"}
    there = path_cost(parse_forecast({**FORECAST, "success_rate": 1, "serving": serving}))
    assert Decimal(gpt["usd_per_month"]) == there.usd_per_month
    assert Decimal(gpt["saving_usd_per_month"]) == there.usd_per_month - Decimal(part["cost"]["usd_per_month"])
    assert gpt["label"] == "priced, not measured" and gpt["usd_per_right_answer"] is None
    assert f"{gpt['break_even_queries']:,} queries a month" in part["sentence"]
    curve = part["curve"]
    below = [v for v in curve["queries"] if v < gpt["break_even_queries"]]
    own, vendor = (list(map(Decimal, v)) for v in (curve["own_usd"], curve["vendors_usd"]["openai gpt-4o"]))
    at = len(below)
    assert 0 < at < len(own) and own[at - 1] > vendor[at - 1] and own[at] <= vendor[at]


def test_a_looked_up_machine_stands_among_the_assumptions(
    files: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"provider": "us", "machine": "box", "kind": "reserved", "usd_per_hour": "0.33", "source": "our contract"}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"rows": [{**row, "read": "2026-11-01"}]}))
    forecast = {**FORECAST, "serving": {"machine": {"name": "box"}, "capacity_rps": 4, "utilization": 0.4}}
    assert main([*files(forecast), "--machines", str(tmp_path / "m.yaml"), "--json"]) == 0
    found = {a["name"]: a for a in json.loads(capsys.readouterr().out)["assumptions"]}
    assert found["usd_per_hour"]["value"] == "0.33" and "our contract" in found["usd_per_hour"]["source"]
    assert main(files(forecast)) == 2
    assert "no price for this machine" in capsys.readouterr().err


def test_twelve_vendor_models_with_tokens_sources_and_dates(
    files: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(FORECAST)) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "priced, not measured  " in line]
    assert len(rows) == 12 and sum("openai " in r for r in rows) >= 3 and sum("anthropic " in r for r in rows) >= 3
    # each with its vendor's image tokens and rule, since when the price holds, when it was read, and a note
    assert all(re.search(r" \d+ \([a-z-]+\) .* \d{4}-\d\d-\d\d +\d{4}-\d\d-\d\d.*\[\d+\]$", r) for r in rows)
    notes = set(re.findall(r"\[(\d+)\]$", "\n".join(rows), re.MULTILINE))
    assert all(re.search(rf"^\[{n}\] \S+", out, re.MULTILINE) for n in notes) and "more models" in out


def test_the_articles_prices_price_a_month_too(
    files: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def months(*more: str) -> dict[str, Any]:
        assert main([*files(FORECAST), "--json", *more]) == 0
        return {row["model"]: row for row in json.loads(capsys.readouterr().out)["baselines"]}

    listed, printed = months(), months("--set", "article-playbook")
    assert len(printed) == 8 and "gpt-4-turbo" in printed
    # a 1024x768 picture and 120 tokens in, 60 out: $5/$15 against $2.50/$10
    assert Decimal(printed["gpt-4o"]["usd_per_query"]) == (885 * 5 + 60 * 15) / Decimal(10**6)
    assert Decimal(listed["gpt-4o"]["usd_per_query"]) == (885 * Decimal("2.50") + 60 * 10) / 10**6
    assert printed["gpt-4o"]["source"].startswith("article") and printed["gpt-4o"]["stale"]
    assert main([*files(FORECAST), "--set", "articles"]) == 2
    assert "unknown row set" in capsys.readouterr().err


def test_a_model_without_an_image_rule_is_left_out_and_named(
    files: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(FORECAST, prices={**ROW, "vendor": "us", "model": "our-vlm"})) == 0
    assert "no image-token rule is known for our-vlm: left out" in capsys.readouterr().out


@pytest.mark.parametrize("scored", [True, False])
def test_answers_that_were_not_scored_are_not_called_right(scored: bool) -> None:
    report = copy.deepcopy(REPORT)
    if not scored:
        report["accuracy"] = {"value": None, "low": None, "high": None, "n": 0}
    assert ("right answer" in cost_part(report)["sentence"]) is scored


def test_command_writes_json_and_page(
    files: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    months = {"2026-12": 1_000_000, "2027-02": 3_000_000, "2027-01": 2_000_000}
    forecast = {**{k: v for k, v in FORECAST.items() if k != "queries_per_month"}, "months": months, "currency": "USD"}
    assert main([*files(forecast), "--out", str(tmp_path / "out"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((tmp_path / "out" / "cost.json").read_text())
    assert data["cost"]["queries_per_month"] == 2_000_000
    assert [m["month"] for m in data["months"]] == ["2026-12", "2027-01", "2027-02"]
    assert data["months"][1]["usd"] == data["cost"]["usd_per_month"]
    page = (tmp_path / "out" / "cost.html").read_text()
    assert data["sentence"].replace("'", "&#x27;") in page and page.count("<svg") == 4
    assert not re.search(r"https?://(?!www\.w3\.org)", page.split("</style>")[1].split("<table")[0])
    assert main([*files(forecast)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"a query \$\S+   1,000 queries \$\S+   a right answer \$\S+   a month \$", text)
    assert text.count("priced, not measured") > 10 and "assumptions:" in text and "2027-01" in text


def test_measured_baselines(
    files: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {
        "kind": "evaluation",
        "model": "openai/gpt-4o",
        "accuracy": {**FIGURE, "value": 0.8},
        "cost": {"usd_per_query": "0.002", "usd_total": "0.4"},
    }
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    vendor = copy.deepcopy(REPORT)
    vendor["target"]["model"], vendor["hardware"]["server"] = "gpt-4.1", None
    (tmp_path / "vendor.json").write_text(json.dumps(vendor))
    args = files(FORECAST)
    args[3:3] = [str(tmp_path / "vendor.json"), str(tmp_path / "eval.json")]
    assert main([*args, "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["baselines"]}
    assert rows["gpt-4o"]["label"] == "measured" and rows["gpt-4o"]["success_rate"] == "0.8"
    assert Decimal(rows["gpt-4o"]["usd_per_query"]) == Decimal("0.002")
    assert Decimal(rows["gpt-4o"]["usd_per_right_answer"]) > Decimal(rows["gpt-4o"]["usd_per_query_whole_path"])
    # the vendor's own usage at its price: 20,000 in and 2,000 out for 200 requests at $2 and $8
    assert Decimal(rows["gpt-4.1"]["usd_per_query"]) == (20_000 * 2 + 2000 * 8) / Decimal(200 * 10**6)
    assert rows["gpt-4.1"]["label"] == "measured usage at the list price"


ROW = {"vendor": "openai", "model": "gpt-4o", "input": "2.50", "output": "10", "effective_from": "2026-01-01",
       "read": "2026-11-01", "source": "a quote"}  # fmt: skip


@pytest.mark.parametrize(
    ("forecast", "prices", "more", "message"),
    [
        ({**FORECAST, "escalation": {"rate": 0.1, "model": "gpt-4oo"}}, None, [], "did you mean gpt-4o"),
        (FORECAST, None, ["--against", "gpt4"], "no price for this model"),
        (
            {**FORECAST, "serving": {"kind": "vendor", "model": "gpt-4o", "batch_share": 0.5}},
            ROW,
            [],
            "openai/gpt-4o since 2026-01-01: the book has no batch price; add batch_factor",
        ),
        (FORECAST, {**ROW, "input": "-2.50"}, [], "must not be negative"),
        (FORECAST, {**ROW, "output": "10000000"}, [], "no vendor asks"),
        (FORECAST, {**ROW, "input": 2.5}, [], "quoted decimal text"),
        (FORECAST, {**ROW, "currency": "EUR"}, [], "usd_per_unit"),
        ({**FORECAST, "currency": "EUR"}, None, [], "currency: amounts are in US dollars (got 'EUR')"),
        ({**FORECAST, "stages": [{"name": "OCR", "usd_per_query": "-1"}]}, None, [], "must not be negative"),
        ({**FORECAST, "query": {"width": 5}}, None, [], "query.height"),
        ({**FORECAST, "colour": 1}, None, [], "colour"),
        ({**FORECAST, "months": {"2027-01": 5}}, None, [], "either months or queries_per_month"),
        ("months: {2027-01: 5, 2027-04: 5}\n", None, [], "the forecast has gaps (got '2027-02, 2027-03')"),
        ("months: {2027-13: 5}\n", None, [], "is not a month (got '2027-13')"),
        ("months: {2027-01: -5}\n", None, [], "must be a whole number above 0 (got -5)"),
        ("- a list\n", None, [], "must be a mapping"),
        ("a: [\n", None, [], "not YAML"),
        ("serving: 4\n", None, [], "serving: must be a mapping"),
        ("serving: {capacity_rps: 0}\n", None, [], "capacity_rps"),
        ("serving: {kind: vendor, model: gpt-4o}\n", None, [], "queries_per_month: is required"),
    ],
)
def test_bad_input_is_one_clear_error(
    files: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    forecast: Any,
    prices: Any,
    more: list[str],
    message: str,
) -> None:
    assert main([*files(forecast, prices=prices), *more, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hardware": {"server": None}}, "serving.usd_per_hour: is neither in the forecast nor in the report"),
        ({"kind": "capacity"}, "neither a load test's report nor an evaluation's"),
        ({"usage": {"requests": 0, "recalled": 0}}, "not one request succeeded"),
        ({"usage": {"requests": 9}}, "was written by an older version"),
        ({"accuracy": {"value": 0.0, "low": 0.0, "high": 0.1, "n": 9}}, "no answer was right"),
        (
            {"target": {"model": "gpt-4o"}, "hardware": {"server": None}},
            "no report is of own machines",
        ),
    ],
)
def test_a_report_that_cannot_be_priced(
    files: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    assert main(files(report={**REPORT, **change})) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "root", "text", "source"),
    [
        ("fovea-qwen", None, 84, "less image tokens by the rule of fovea-qwen"),
        ("vision", "Qwen/Qwen2.5-VL-7B-Instruct", 96, "less image tokens by the rule of Qwen/Qwen2.5-VL-7B-Instruct"),
        ("vision", "somebody/else", 5, "characters / 4"),
        ("vision", None, 5, "characters / 4"),
    ],
)
def test_image_tokens_by_the_name_or_the_checkpoint(name: str, root: str | None, text: int, source: str) -> None:
    workload = ListWorkload("pictures", [Item("i0", (), shape=Shape(64, 64, 1, 20))], "sha256:0")
    records = np.zeros(3, dtype=RECORD)
    records["prompt_tokens"], records["completion_tokens"] = 100, 7
    usage = usage_of([workload], records, name, root)
    assert source in usage["text_tokens_from"] and usage["groups"][0]["text_tokens"] == 3 * text


def test_every_run_has_its_cost_part(serve: Callable[..., Server], prompts: str) -> None:
    hardware = {"usd_per_hour": "1", "utilization": "0.5"}
    data = run_load(config_for(serve(Plan(first_s=0.01)), prompts, concurrency=2, requests=20, hardware=hardware)).data
    assert data["usage"]["requests"] == 20 and data["usage"]["groups"][0]["requests"] == 20
    part = data["money"]
    assert part["cost"]["success_rate"] == "1.0" and len(part["baselines"]) >= 12
    assert json.loads(json.dumps(data))["money"] == part
    page = render(data)
    assert part["sentence"].replace("'", "&#x27;") in page and "What moves dollars" in page
    bare = run_load(config_for(serve(Plan(first_s=0.01)), prompts, concurrency=2, requests=5)).data
    assert bare["money"] is None and bare["money_note"] == "no hardware section given" and render(bare)


@pytest.mark.parametrize("stream", [True, False])
def test_answers_from_a_cache_need_no_engine(serve: Callable[..., Server], prompts: str, stream: bool) -> None:
    states = iter(["miss", "Hit", "coalesced", "bypass"] * 5 + ["semantic"] * 5 + ["miss"] * 5)
    server = serve(lambda request: Plan(first_s=0.01, headers={"X-Fovea-Cache": next(states)}))
    hardware = {"usd_per_hour": "36", "utilization": "0.5"}
    values: dict[str, Any] = {"stream": stream, "hardware": hardware, "check_model": False}
    report = run_load(config_for(server, prompts, concurrency=1, requests=30, **values))
    data, part = report.data, report.data["money"]
    assert data["recalled"] == data["usage"]["recalled"] == int(report.records["recalled"].sum()) == 15
    assert (data["throughput_rps"]["n"], data["made_rps"]["n"]) == (30, 15)
    # 36 dollars an hour are a cent a second, two at half of the hours: the engine's 15 answers carry them all
    seconds = Decimal(repr(data["load"]["duration_s"]))
    assert abs(Decimal(part["run"]["usd_per_made_answer"]) * 15 - seconds / 50) < Decimal("1e-12")
    assert part["run"]["own_usd"] == part["run"]["cache_saved_usd"] == f"{seconds / 50:.2f}"
    assert data["cost"]["usd_per_query"]["value"] == pytest.approx(float(seconds) / 50 / 30, rel=1e-5)
    assert float(part["cost"]["usd_per_query"]) == pytest.approx(float(seconds) / 50 / 30, rel=1e-5)
    shown = {a["name"]: a["value"] for a in part["assumptions"]}
    assert shown["recalled_share"] == "50.00%" and "answers from a cache" in {s["factor"] for s in part["tornado"]}
    assert "15 answers (50 %) came from the server's cache" in render(data).replace("&#x27;", "'")


def test_a_run_of_cached_answers_alone_says_nothing_of_the_engine(serve: Callable[..., Server], prompts: str) -> None:
    server = serve(Plan(headers={"x-fovea-cache": "hit"}))
    hardware = {"usd_per_hour": "36", "utilization": "0.5"}
    data = run_load(config_for(server, prompts, concurrency=1, requests=5, hardware=hardware)).data
    assert data["money"] is None and "every answer came from a cache" in data["money_note"]


@given(st.dictionaries(st.integers(2020 * 12, 2020 * 12 + 40), st.integers(1, 10**9), min_size=1))
def test_months_have_gaps_or_come_back_in_order(months: dict[int, int]) -> None:
    given = {f"{m // 12:04d}-{m % 12 + 1:02d}": queries for m, queries in months.items()}
    if max(months) - min(months) + 1 > len(months):
        with pytest.raises(UsageError, match="gaps"):
            parse_months(given, "f")
    else:
        found = parse_months(given, "f")
        assert found == given and list(found) == sorted(found)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0"),
        ("0.0000012345", "$0.00000123"),
        ("9.999", "$10.00"),
        ("2.7", "$2.70"),
        ("0.27", "$0.27"),
        ("1234.5", "$1,234.50"),
    ],
)
def test_dollars_for_reading(amount: str, text: str) -> None:
    assert usd(amount) == text
