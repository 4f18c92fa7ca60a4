"""The price book: the shipped rows, the rules that money must keep, and one clear error per mistake."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.baselines import NOTE, one_query, uncounted, vendor_baselines
from models.cost.usage import MeasuredUsage, vendor_usd, vendor_usd_of
from models.image_tokens import find_model, known_models
from models.machines import load_machines
from models.prices import PriceBook, PriceRow, Usage, load_prices, parse_money, stale_rows
from models.support.errors import UsageError

BOOK = load_prices()
ROW = {
    "vendor": "openai",
    "model": "gpt-4o",
    "input": "3",
    "cached": "1",
    "output": "9",
    "batch_factor": "0.5",
    "effective_from": dt.date(2026, 10, 1),
    "read": dt.date(2026, 11, 1),
    "source": "our contract",
}
TOKENS = st.integers(0, 2_000_000)


def write_book(folder: Path, *rows: Any) -> Path:
    path = folder / "prices.yaml"
    path.write_text(yaml.safe_dump({"rows": list(rows)}))
    return path


class TestShippedBook:
    def test_has_the_families(self) -> None:
        assert len(BOOK.models) >= 12
        families = [
            "gpt-4o",
            "gpt-4o-mini",
            "gpt-4.1",
            "gpt-5",
            "gpt-5.1",
            "gpt-5.2",
            "gpt-5.4",
            "gpt-5.5",
            "gpt-5.6-sol",
            "gpt-5-mini",
            "gpt-5-nano",
            "gpt-4.1-mini",
            "gpt-4.1-nano",
            "gemini-3-flash",
            "gemini-2.5-pro",
        ]
        families += ["gemini-2.5-flash", "gemini-3.1-pro", "claude-sonnet-4", "claude-opus-4", "claude-haiku-4-5"]
        families += ["claude-opus-5", "claude-sonnet-5", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"]
        assert set(families) <= set(BOOK.models)

    def test_every_row_has_a_source_a_date_and_an_image_rule(self) -> None:
        for row in BOOK.rows:
            assert row.source and row.read >= row.effective_from - dt.timedelta(days=366)
            if row.set == "list":
                assert find_model(row.model) in known_models()

    @pytest.mark.parametrize(
        ("model", "dollars"),
        [
            # one 1024x1024 image, no text: the comparison of docs/money.md
            ("gpt-4o", "0.0019125"),
            ("gpt-4o-mini", "0.00382515"),
            ("gpt-4.1", "0.00153"),
            ("gpt-5", "0.0007875"),
            ("gpt-5-mini", "0.00041475"),
            ("gemini-2.5-pro", "0.00129"),
            ("gemini-2.5-flash", "0.0003096"),
            ("claude-sonnet-4-5", "0.004107"),
            ("claude-haiku-4-5", "0.001369"),
            ("claude-opus-4-1", "0.020535"),
        ],
    )
    def test_price_of_one_image(self, model: str, dollars: str) -> None:
        row = BOOK.find(model, on=dt.date(2026, 11, 21))
        assert vendor_usd(row, ((1024, 1024),), 0, 0) == Decimal(dollars)

    def test_long_context_prices_the_whole_request(self) -> None:
        row = BOOK.find("gemini-2.5-pro", on=dt.date(2026, 11, 21))
        assert row.cost(Usage(200_000, 0)).total == Decimal("0.25")
        assert row.cost(Usage(200_001, 1000)).total == Decimal("200001") * Decimal("2.5") / 10**6 + Decimal("0.015")

    def test_dated(self) -> None:
        assert BOOK.find("gemini-3.8-flash", on=dt.date(2026, 12, 31)).input == Decimal("0.75")
        assert BOOK.find("gemini-3.8-flash", on=dt.date(2027, 1, 1)).input == Decimal("1.50")
        assert BOOK.find("claude-sonnet-5-5", on=dt.date(2026, 10, 6)).cached == Decimal("0.20")
        with pytest.raises(UsageError, match="no price of claude-opus-5-5 on that day"):
            BOOK.find("claude-opus-5-5", on=dt.date(2026, 9, 1))
        assert "claude-opus-5-5" not in [r.model for r in BOOK.current(on=dt.date(2026, 9, 1))]

    def test_article_rows_are_a_set_of_their_own(self) -> None:
        assert BOOK.find("gpt-4o", set="article-playbook").input == 5
        assert BOOK.find("gpt-4o").input == Decimal("2.50")
        assert {r.model for r in BOOK.current(set="article-playbook")} >= {"gpt-4-turbo", "claude-3-5-haiku"}

    def test_stale_after_90_days(self) -> None:
        row = BOOK.find("gpt-4o")
        assert not row.is_stale(row.read + dt.timedelta(days=90))
        assert row.is_stale(row.read + dt.timedelta(days=91))
        assert stale_rows([row], row.read + dt.timedelta(days=91)) == [row]

    def test_machines(self) -> None:
        book = load_machines()
        assert book.find("l4", kind="serverless_flex")[0].usd_per_hour == Decimal("0.68")
        assert {r.kind for r in book.rows} >= {"on_demand", "reserved", "spot", "serverless_flex", "serverless_active"}
        assert all(r.source and r.read for r in book.rows)
        assert {r.machine for r in book.rows} >= {"H100", "A100-80", "L40S", "L4", "c7i.large"}
        prices = [r.usd_per_hour for r in book.find("H100")]
        assert prices == sorted(prices) and len(prices) >= 4
        with pytest.raises(UsageError, match="no price for this machine"):
            book.find("B200")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usd_per_hour": "-1"}, "usd_per_hour: must not be negative"),
        ({"usd_per_hour": "40000"}, "is above $1,000 an hour"),
        ({"usd_per_hour": 4.2}, "quoted decimal text"),
        ({"currency": "EUR"}, "currency: input should be 'USD' (got 'EUR')"),
        ({"high": "1"}, "high is below usd_per_hour"),
        ({"kind": "loan"}, "kind"),
        ({"source": ""}, "source"),
        ({"read": "soon"}, "read"),
    ],
)
def test_a_wrong_machine_price(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"provider": "us", "machine": "L4", "kind": "spot", "usd_per_hour": "2", "source": "x", "read": "2026-11-01"}
    with pytest.raises(UsageError) as caught:
        load_machines(write_book(tmp_path, {**row, **change}))
    assert message in str(caught.value) and "rows[0] (L4)" in str(caught.value)


class TestMoney:
    @given(st.sampled_from(BOOK.rows), TOKENS, TOKENS, st.integers(0, 300_000))
    def test_more_tokens_never_cost_less(self, row: PriceRow, tokens: int, output: int, more: int) -> None:
        base = row.cost(Usage(tokens, output)).total
        assert row.cost(Usage(tokens + more, output)).total >= base
        assert row.cost(Usage(tokens, output + more)).total >= base

    @given(st.sampled_from(BOOK.rows), st.data())
    def test_batch_and_cache_never_cost_more(self, row: PriceRow, data: st.DataObject) -> None:
        tokens = data.draw(TOKENS)
        tier = row.long_context if row.long_context is not None and tokens > row.long_context.above else row
        cached = data.draw(st.integers(0, tokens)) if tier.cached is not None else 0
        usage = Usage(tokens, data.draw(TOKENS), cached)
        assert row.cost(usage).total <= row.cost(Usage(tokens, usage.output_tokens)).total
        if row.batch_factor is not None:
            assert row.cost(usage, batch=True).total <= row.cost(usage).total

    @given(st.sampled_from(BOOK.rows), TOKENS, TOKENS)
    def test_total_is_the_exact_sum_of_its_parts(self, row: PriceRow, tokens: int, output: int) -> None:
        cost = row.cost(Usage(tokens, output))
        assert cost.total == cost.input + cost.cached + cost.output
        tier = row.long_context if row.long_context is not None and tokens > row.long_context.above else row
        assert cost.total * 10**6 == tokens * tier.input + output * tier.output
        assert isinstance(cost.total, Decimal)

    @pytest.mark.parametrize("value", [1.5, True, "x", "-1", "NaN", "inf", None, [1]])
    def test_refused(self, value: object) -> None:
        with pytest.raises(ValueError, match=r".+"):
            parse_money(value)

    @given(st.decimals(0, 10_000, places=6))
    def test_text_is_kept_to_the_last_digit(self, amount: Decimal) -> None:
        assert parse_money(str(amount)) == amount

    @pytest.mark.parametrize("usage", [(-1, 0, 0), (0, -1, 0), (1, 0, 2), (1.0, 0, 0), (True, 0, 0)])
    def test_bad_usage(self, usage: Any) -> None:
        with pytest.raises(UsageError):
            Usage(*usage)


class TestOverride:
    def test_user_rows_replace_the_shipped_ones_of_that_model(self, tmp_path: Path) -> None:
        older = {**ROW, "effective_from": dt.date(2026, 9, 1), "input": "4"}
        book = load_prices(write_book(tmp_path, ROW, older, {**ROW, "model": "our-vlm", "vendor": "us"}))
        assert book.find("gpt-4o", on=dt.date(2026, 11, 1)).input == 3
        assert book.find("gpt-4o", on=dt.date(2026, 9, 2)).input == 4
        assert book.find("our-vlm").source == "our contract"
        assert book.find("gpt-4o-mini") == BOOK.find("gpt-4o-mini")

    def test_other_currency_needs_a_rate(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="give usd_per_unit"):
            load_prices(write_book(tmp_path, {**ROW, "currency": "EUR"}))
        book = load_prices(write_book(tmp_path, {**ROW, "currency": "EUR", "usd_per_unit": "1.25"}))
        assert book.find("gpt-4o").cost(Usage(1_000_000, 0)).total == Decimal("3.75")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"input": "-1"}, "rows[0] (gpt-4o): input: must not be negative (got '-1')"),
            ({"input": "25000"}, "which no vendor asks"),
            ({"input": 2.5}, "write it as quoted decimal text"),
            ({"input": "two"}, "is not a decimal number"),
            ({"cached": "4"}, "cached (4) is above input (3)"),
            ({"batch_factor": "1.5"}, "batch_factor"),
            ({"batch_factor": "0"}, "batch_factor"),
            ({"long_context": {"above": 1000, "input": "1", "output": "9"}}, "more tokens would cost less"),
            ({"long_context": {"above": 0, "input": "3", "output": "9"}}, "long_context.above"),
            ({"colour": "red"}, "colour"),
            ({"effective_from": "soon"}, "effective_from"),
            ({"source": ""}, "source"),
        ],
    )
    def test_one_clear_error(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            load_prices(write_book(tmp_path, {**ROW, **change}))
        assert message in str(caught.value)
        assert "prices.yaml: rows[0] (gpt-4o)" in str(caught.value)

    def test_broken_files(self, tmp_path: Path) -> None:
        for text in ("rows: [", "- 1", "rows: []", "rows: {}\nmore: 1", "rows: [7]", "\x00"):
            (tmp_path / "p.yaml").write_text(text)
            with pytest.raises(UsageError):
                load_prices(tmp_path / "p.yaml")
        with pytest.raises(UsageError, match="cannot read"):
            load_prices(tmp_path / "none.yaml")
        with pytest.raises(UsageError, match="two prices since the same day"):
            load_prices(write_book(tmp_path, ROW, ROW))

    def test_unknown_model_offers_the_closest(self) -> None:
        with pytest.raises(UsageError, match="did you mean gpt-4o-mini"):
            BOOK.find("gpt-4o-min")
        with pytest.raises(UsageError, match="sets: list, article-playbook"):
            BOOK.find("gpt-4o", set="articles")

    def test_missing_tier(self, tmp_path: Path) -> None:
        bare = {k: v for k, v in ROW.items() if k not in ("cached", "batch_factor")}
        row = load_prices(write_book(tmp_path, bare)).find("gpt-4o")
        with pytest.raises(UsageError, match="no price for cached tokens"):
            row.cost(Usage(10, 0, 5))
        with pytest.raises(UsageError, match="no batch price"):
            row.cost(Usage(10, 0), batch=True)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=6),
            lambda s: st.dictionaries(st.sampled_from(sorted(ROW)), s),
        )
    )
    def test_any_yaml_value_is_read_or_refused(self, row: Any) -> None:
        from models.prices import _parse_row

        try:
            _parse_row(row, PriceRow, "file: rows[0]")
        except UsageError as error:
            assert str(error).startswith("file: rows[0]")


class TestBaselines:
    def test_rows(self) -> None:
        rows = vendor_baselines(one_query(64, 64, 1, 20, 2), on=dt.date(2026, 11, 21))
        assert len(rows) >= 12
        assert {r["vendor"] for r in rows} == {"openai", "google", "anthropic"}
        assert all(r["source"] and r["read"] and r["image_rule"] and r["note"] == NOTE for r in rows)
        assert [r["usd_per_query"] for r in rows] == sorted(r["usd_per_query"] for r in rows)
        gpt = next(r for r in rows if r["model"] == "gpt-4o")
        assert (gpt["image_tokens"], gpt["image_rule"]) == ("255", "openai-tiles")
        assert gpt["usd_per_query"] == (275 * Decimal("2.50") + 2 * 10) / 10**6

    def test_mean_over_mixed_queries(self) -> None:
        book = PriceBook((BOOK.find("gpt-4o"),))
        queries = [one_query(512, 512, 1, 0, 0), one_query(1024, 1024, 2, 0, 0), one_query(0, 0, 0, 10, 1)]
        (row,) = vendor_baselines(MeasuredUsage(groups=tuple(q.groups[0] for q in queries)), book=book)
        assert row["usd_per_query"] == sum((vendor_usd_of(book.rows[0], q) for q in queries), Decimal(0)) / 3
        assert row["image_tokens"] == "595"  # (255 + 2 x 765) / 3

    def test_a_model_without_an_image_rule(self, tmp_path: Path) -> None:
        book = load_prices(write_book(tmp_path, {**ROW, "model": "our-vlm", "vendor": "us"}))
        picture, words = one_query(64, 64, 1, 20, 2), one_query(0, 0, 0, 20, 2)
        assert uncounted(picture, book) == ["our-vlm"] and uncounted(words, book) == []
        assert "our-vlm" not in [row["model"] for row in vendor_baselines(picture, book=book)]
        (row,) = [row for row in vendor_baselines(words, book=book) if row["model"] == "our-vlm"]
        assert row["image_rule"] is None and row["image_tokens"] == "0"

    @given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 5), st.integers(0, 5000), st.integers(0, 500))
    @settings(deadline=None)
    def test_more_images_or_tokens_never_cost_less(self, w: int, h: int, images: int, text: int, output: int) -> None:
        for row in BOOK.current():
            base = vendor_usd_of(row, one_query(w, h, images, text, output))
            assert vendor_usd_of(row, one_query(w, h, images + 1, text, output)) >= base
            assert vendor_usd_of(row, one_query(w, h, images, text + 7, output + 3)) >= base

    @pytest.mark.parametrize("shape", [(0, 5, 1, 0, 0), (5, 5, -1, 0, 0), (5, 5, 1, 0.5, 0), (5, 5, 1, 0, -2)])
    def test_bad_shape(self, shape: Any) -> None:
        with pytest.raises(UsageError):
            one_query(*shape)
