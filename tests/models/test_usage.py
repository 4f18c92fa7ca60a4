"""Measured usage in groups, and the ledger: exact sums, whatever the order and the grouping."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cost.forecast import parse_forecast
from models.cost.ledger import Account, Finished, Ledger, Tariff, cents, total, usd_per_request
from models.cost.path import path_cost, vendor_usd_per_query
from models.cost.usage import MeasuredUsage, UsageGroup, group_usage, vendor_usd, vendor_usd_of
from models.prices import load_prices
from models.support.errors import UsageError

BOOK = load_prices()
MODELS = ("gpt-4o", "gpt-4o-mini", "gemini-2.5-pro", "claude-sonnet-4-5", "gpt-5-nano")
SIZES = st.sampled_from([(64, 64), (1024, 768), (800, 1200)])
# text lengths on both sides of every long-context tier
REQUEST = st.tuples(
    st.lists(SIZES, max_size=3).map(tuple),
    st.one_of(st.integers(0, 3000), st.integers(90_000, 400_000)),
    st.integers(0, 2000),
)


@given(st.lists(REQUEST, min_size=1, max_size=12), st.sampled_from(MODELS))
@settings(max_examples=80, deadline=None)
def test_groups_cost_exactly_what_their_requests_cost(requests: list[tuple], model: str) -> None:
    row = BOOK.find(model)
    one_by_one = sum((vendor_usd(row, *request) for request in requests), Decimal(0))
    usage = group_usage(requests)
    assert vendor_usd_of(row, usage) == one_by_one
    assert usage.requests == len(requests)
    assert usage.text_tokens == sum(r[1] for r in requests) and usage.output_tokens == sum(r[2] for r in requests)
    assert MeasuredUsage.model_validate(usage.model_dump(mode="json")) == usage


@given(REQUEST, st.integers(0, 5000), st.sampled_from(MODELS))
@settings(max_examples=60, deadline=None)
def test_more_never_costs_less_and_batch_never_more(request_: tuple, more: int, model: str) -> None:
    row, (images, text, output) = BOOK.find(model), request_
    price = vendor_usd(row, images, text, output)
    assert vendor_usd(row, images, text + more, output) >= price
    assert vendor_usd(row, images, text, output + more) >= price
    assert vendor_usd(row, (*images, (64, 64)), text, output) >= price
    assert vendor_usd(row, images, text, output, batch=Decimal(1)) <= price


def test_a_forecast_with_measured_usage_prices_that() -> None:
    group = UsageGroup(images=((1024, 1024),), requests=4, text_tokens=400, output_tokens=200)
    base = {
        "queries_per_month": 1000,
        "query": {"width": 8, "height": 8, "images": 0, "text_tokens": 1, "output_tokens": 1},
        "success_rate": 1,
        "serving": {"kind": "vendor", "model": "gpt-4o"},
    }
    forecast = parse_forecast({**base, "measured": {"groups": [group.model_dump()]}})
    each = (865 * Decimal("2.50") + 50 * 10) / 10**6  # 765 image tokens and 100 of text
    assert vendor_usd_per_query("gpt-4o", forecast, BOOK) == each
    assert path_cost(forecast, BOOK).usd_per_month == 1000 * each


TARIFF = Tariff(usd_per_hour="0.80", capacity_rps=4, utilization=0.5, against=("gpt-4o",))


DAY = dt.date(2026, 11, 20)


def test_ledger_by_hand() -> None:
    each = TARIFF.usd_per_request
    assert each == Decimal("0.000111111111111") == usd_per_request(Decimal("0.80"), Decimal(4), Decimal("0.5"))
    ledger = Ledger(TARIFF.against, BOOK)
    one = Finished("a", "m", prompt_tokens=440, completion_tokens=50, image_tokens=340, images=((1024, 1024),))
    ledger.add(one, each, DAY)
    account = ledger.accounts["a", "m"]
    assert account.own_usd == each and account.cache_saved_usd == 0
    assert account.avoided_usd == {"gpt-4o": (865 * Decimal("2.50") + 500) / 10**6}  # 100 of text, 765 of the image
    ledger.add(Finished("a", "m", 440, 50, 340, ((1024, 1024),), recalled=True), each, DAY)
    assert account.own_usd == each and account.cache_saved_usd == each and account.requests == 2
    ledger.add(Finished("a", "m", 440, 50, None, ((1024, 1024),)), each, DAY)  # nobody knows what its image took
    assert account.avoided_usd["gpt-4o"] == 2 * (865 * Decimal("2.50") + 500) / 10**6


ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 500), st.integers(0, 99)), max_size=30)


@given(ROWS, st.decimals("0.01", "1000", places=2), st.integers(1, 997), st.randoms())
@settings(max_examples=60, deadline=None)
def test_totals_are_the_exact_sum_of_the_parts_in_any_order(
    rows: list[tuple[str, int, int]], usd: Decimal, rps: int, random: Any
) -> None:
    each = usd_per_request(usd, Decimal(rps) / 7, Decimal("0.7"))
    requests = [Finished(tenant, "m", prompt, output) for tenant, prompt, output in rows]

    def added() -> Ledger:
        ledger = Ledger(TARIFF.against, BOOK)
        for one in requests:
            ledger.add(one, each, DAY)
        return ledger

    first = added()
    random.shuffle(requests)
    assert added().accounts == first.accounts
    whole: Account = total(first.accounts)
    assert whole.own_usd == sum((a.own_usd for a in first.accounts.values()), Decimal(0)) == each * len(rows)
    assert whole.as_dict()["own_usd"] == cents(whole.own_usd) and Decimal(whole.as_dict()["exact"]["own_usd"]) == (
        whole.own_usd
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"against": ("gpt-4oo",)}, "did you mean gpt-4o"),
        ({"against": ("gpt-4o", "gpt-4o")}, "twice"),
        ({"usd_per_hour": "-1"}, "must not be negative"),
        ({"usd_per_hour": 0.8}, "quoted decimal text"),
        ({"usd_per_hour": "80000"}, "above \\$1,000 an hour"),
        ({"capacity_rps": 0}, "greater than 0"),
        ({"prices": "/nowhere.yaml"}, "cannot read"),
    ],
)
def test_a_wrong_tariff(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tariff.model_validate({"usd_per_hour": "1", "capacity_rps": 1, **change})


def test_an_old_price_is_taken_for_an_old_day() -> None:
    ledger = Ledger(TARIFF.against, BOOK)
    with pytest.raises(UsageError, match="no price of gpt-4o on that day"):
        ledger.add(Finished("a", "m", 1, 1), Decimal(1), dt.date(2001, 1, 1))
    assert ledger.accounts == {}  # nothing was half added
    changed = Ledger(("claude-sonnet-5-5",), BOOK)
    changed.add(Finished("a", "m", 10**6, 0), Decimal(1), dt.date(2026, 10, 6))
    assert changed.accounts["a", "m"].avoided_usd["claude-sonnet-5-5"] == 2


def test_files_of_a_tariff_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tariff = Tariff(usd_per_hour="1", capacity_rps=1, journal="journal")
    monkeypatch.chdir("/")
    assert Tariff.model_validate(tariff.model_dump()).journal == str(tmp_path / "journal")
