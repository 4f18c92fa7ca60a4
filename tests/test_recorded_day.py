"""One recorded day of requests: the load test's report, the server's metrics and the bill agree to the cent.

A part of the answers came from a cache: they cost nothing, and saved the price of one, in all three.

Each gets there its own way: the report from packed records and groups of like requests, the metrics request by request
through the server's book and Prometheus' text, the bill by `fovea bill` from the journal that the server wrote.
tests/e2e/test_money.py does the same with a load test of the real engine.
"""

from __future__ import annotations

import datetime as dt
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fovea import main
from loadtest.config import make_config
from loadtest.histogram import Histogram
from loadtest.recorder import RECORD
from loadtest.report import build_report
from loadtest.workloads.base import Item, ListWorkload, Shape
from models.cost.ledger import CENT, Tariff
from models.image_tokens import image_tokens
from serving.exchange import Exchange
from serving.layers.identify import Identity
from serving.media import Picture
from serving.money import Money
from serving.tenants import Tenant

MODEL, DAY, N = "qwen2.5-vl-7b", 86_400.0, 3_000
MIDNIGHT = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
AGAINST = ("gpt-4o", "gpt-4o-mini", "gemini-2.5-flash", "claude-sonnet-4-5")
SERVER: dict[str, Any] = {"rows": [], "problems": [], "urls": [], "gpus": []}  # no metrics were asked for
PIXEL = Image.new("RGB", (1, 1))  # only the size that was screened counts
SHAPES = (Shape(1024, 768, 1, 200), Shape(640, 480, 2, 80), Shape(0, 0, 0, 900), Shape(333, 1777, 1, 40))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The day's log, as a file would have it: one JSON object per request, some of them failed."""
    chance = random.Random(4)
    path: Path = tmp_path_factory.mktemp("day") / "day.jsonl"
    with path.open("w") as file:
        for number in range(N):
            which = chance.randrange(len(SHAPES))
            shape = SHAPES[which]
            images = [[shape.width, shape.height]] * shape.images
            inside = sum(image_tokens(MODEL, width, height).tokens for width, height in images)
            one = {
                "at": number * DAY / N,
                "tenant": chance.choice(["red", "blue"]),
                "ok": chance.random() > 0.02,
                "recalled": chance.random() < 0.3,
                "which": which,
                "images": images,
                "image_tokens": inside,
                "prompt_tokens": inside + chance.randrange(5, 800),
                "completion_tokens": chance.randrange(1, 300),
            }
            file.write(json.dumps(one) + "\n")
    return [json.loads(line) for line in path.read_text().splitlines()]


def report_of(recorded: list[dict[str, Any]], usd_per_hour: str) -> dict[str, Any]:
    items = [Item(f"i{i}", (), shape=shape) for i, shape in enumerate(SHAPES)]
    workload = ListWorkload("day", items, "sha256:0")
    records = np.zeros(len(recorded), dtype=RECORD)
    for row, one in zip(records, recorded, strict=True):
        for name in ("intended", "dispatched", "sent", "first", "last"):
            row[name] = one["at"]
        row["end"], row["kind"], row["status"] = one["at"] + 0.5, 0 if one["ok"] else 1, 200 if one["ok"] else 500
        row["item"], row["chunks"], row["correct"] = one["which"], 1, -1
        row["recalled"] = one["ok"] and one["recalled"]
        row["prompt_tokens"] = one["prompt_tokens"] if one["ok"] else -1
        row["completion_tokens"] = one["completion_tokens"] if one["ok"] else -1
    summary = {
        "gaps": [Histogram().to_dict()], "lag": Histogram().to_dict(), "cpu": 0.1, "elapsed": DAY, "interrupted": False,
        "failure": None, "examples": {}, "repeats": 0, "busted": 0, "wrong": [], "peak_connections": 1,
        "conversations": [{}], "retried": {},
    }  # fmt: skip
    config = make_config(
        url="http://127.0.0.1:1/v1",
        model=MODEL,
        classes=({"name": "main", "workload": "day", "rate": N / DAY},),
        duration_s=DAY,
        hardware={"usd_per_hour": usd_per_hour, "utilization": "0.7"},
    )
    return build_report(config, [workload], records, [summary], started=MIDNIGHT, about={}, server=SERVER).data


def test_report_metrics_and_bill_agree_to_the_cent(
    recorded: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = [one for one in recorded if one["ok"]]
    report = report_of(recorded, "3.20")
    run = report["money"]["run"]
    assert report["usage"]["text_tokens_from"].endswith(MODEL) and not report["usage"]["sampled"]
    assert run["answered"] == len(answered) < N

    # what an operator would write into the stack's `money` section from that report
    rate = f"{Decimal(report['made_rps']['n']) / Decimal(repr(report['load']['duration_s']))}"
    given = {"usd_per_hour": "3.20", "capacity_rps": rate, "utilization": "0.7", "against": AGAINST}
    tariff = Tariff.model_validate({**given, "journal": str(tmp_path / "journal")})

    # the server: its layer's book with the clock of that day, the text that Prometheus scrapes, and the journal
    registry, now = CollectorRegistry(), [MIDNIGHT]
    money = Money(tariff, MODEL, registry, clock=lambda: now[0])
    for one in answered:
        now[0] = MIDNIGHT + dt.timedelta(seconds=one["at"])
        exchange = Exchange("r", identity=Identity(Tenant(name=one["tenant"]), "k", "client", "interactive"))
        if one["recalled"]:
            exchange.notes["recalled"] = True
        exchange.pictures = [Picture(PIXEL, "", "PNG", width, height, 0) for width, height in one["images"]]
        money.finished(exchange, (one["prompt_tokens"], one["completion_tokens"]), one["image_tokens"])
    assert money.journal is not None and money.journal.lost == 0
    shown: dict[str, Decimal] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = sample.labels.get("vendor_model", sample.name)
            shown[key] = shown.get(key, Decimal(0)) + Decimal(repr(sample.value))

    # the bill: the command, on the journal's files
    words = ["bill", str(tmp_path / "journal"), *(word for model in AGAINST for word in ("--against", model)), "--json"]
    assert main(words) == 0
    made = json.loads(capsys.readouterr().out)
    total = made["total"]
    assert made["first"] == made["last"] == "2026-11-20" and made["unpriced"] == made["images_unknown"] == 0
    assert {line["tenant"] for line in made["lines"]} == {"red", "blue"} and total["requests"] == len(answered)

    assert run["own_usd"] == total["own_usd"] == f"{shown['fovea_usd_total'].quantize(CENT)}"
    assert Decimal(total["own_usd"]) == (Decimal("3.20") * 24 / Decimal("0.7")).quantize(CENT)
    recalled = sum(one["recalled"] for one in answered)
    assert run["recalled"] == recalled > 800 and len(answered) - recalled == report["made_rps"]["n"]
    saved = f"{shown['fovea_cache_saved_usd_total'].quantize(CENT)}"
    assert run["cache_saved_usd"] == total["cache_saved_usd"] == saved and Decimal(saved) > 30
    # a month of such days, by the load test's own arithmetic: the machine, and nothing for what the cache answers
    each = Decimal(report["money"]["cost"]["usd_per_query"])
    assert (each * len(answered)).quantize(CENT) == Decimal(total["own_usd"])
    for model in AGAINST:
        assert run["vendor_usd"][model] == total["avoided_usd"][model] == f"{shown[model].quantize(CENT)}"
        assert Decimal(total["avoided_usd"][model]) > 0
    assert shown["fovea_unpriced_answers_total"] == 0


def test_the_report_names_the_bill_of_every_model_of_the_book(recorded: list[dict[str, Any]]) -> None:
    money = report_of(recorded, "3.20")["money"]
    assert len(money["baselines"]) >= 12
    assert all(row["label"] == "priced, not measured" and row["source"] for row in money["baselines"])
    months = [Decimal(row["usd_per_month"]) for row in money["baselines"]]
    assert months == sorted(months) and "right answer" not in money["sentence"]
    parts = sum((Decimal(part["usd_per_month"]) for part in money["cost"]["parts"]), Decimal(0))
    assert parts == Decimal(money["cost"]["usd_per_month"])
