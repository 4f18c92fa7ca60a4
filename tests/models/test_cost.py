"""The whole-path cost model, break-even, tornado, ROI and the articles' worked examples."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fovea
from models.cost import break_even, load_forecast, path_cost, payback_months, tornado
from models.cost.articles import other_figures, worked_examples
from models.cost.forecast import Forecast, SelfHosted, parse_forecast
from models.cost.path import PathCost, machines_needed
from models.cost.roi import Roi, labour_saved
from models.machines import load_machines
from models.prices import load_prices
from models.support.errors import UsageError

BOOK = load_prices()
DOCS = Path(__file__).parents[2] / "docs" / "money.md"
BASE: dict[str, Any] = {
    "queries_per_month": 1_000_000,
    "query": {"width": 1024, "height": 1024, "images": 1, "text_tokens": 100, "output_tokens": 50},
    "success_rate": 0.95,
    "serving": {"kind": "self_hosted", "usd_per_hour": "0.80", "capacity_rps": 4, "utilization": 0.4, "overhead": 0.3},
    "retry_rate": 0.02,
    "stages": [
        {"name": "OCR", "usd_per_query": "0.0001", "share": 0.5},
        {"name": "logging", "usd_per_query": "0.00001"},
    ],
    "escalation": {"rate": 0.05, "model": "gpt-4o"},
    "review": {"rate": 0.01, "minutes": 1.5, "usd_per_hour": "25"},
    "failure": {"rate": 0.002, "usd_each": "0.50"},
    "monthly_usd": {"maintenance": "500"},
    "one_time_usd": {"development": "20000"},
}


def forecast(**changes: Any) -> Forecast:
    return parse_forecast(copy.deepcopy(BASE) | changes)


class TestPath:
    def test_by_hand(self) -> None:
        cost = path_cost(forecast(), BOOK)
        parts = {p.name: p.usd_per_month for p in cost.parts}
        # 1.02 M attempts a month are 0.388/s; 4/s at 40 % need one machine: $584 a month
        machines = Decimal("0.80") * 730
        assert parts["machines, busy"] + parts["retries"] + parts["machines, idle"] == pytest.approx(machines)
        assert parts["machines, busy"] == pytest.approx(Decimal(1_000_000) / (4 * 3600) * Decimal("0.80"))
        assert parts["machine overhead"] == machines * Decimal("0.3")
        assert parts["OCR"] == 50 and parts["logging"] == 10 and parts["maintenance"] == 500
        assert parts["escalation to gpt-4o"] == 50_000 * (865 * Decimal("2.50") + 50 * 10) / 10**6
        assert parts["review by people"] == 10_000 * Decimal("1.5") / 60 * 25
        assert parts["failures"] == 2_000 * Decimal("0.50")
        assert cost.usd_per_query == cost.usd_per_month / 1_000_000
        assert cost.usd_per_success == cost.usd_per_month / 950_000
        assert cost.usd_per_1k == 1000 * cost.usd_per_query

    def test_vendor_and_flat(self) -> None:
        bare = {k: BASE[k] for k in ("queries_per_month", "query", "success_rate")}
        vendor = path_cost(parse_forecast({**bare, "serving": {"kind": "vendor", "model": "gpt-4o"}}), BOOK)
        assert vendor.usd_per_query == (865 * Decimal("2.50") + 500) / 10**6
        batch = {**bare, "serving": {"kind": "vendor", "model": "gpt-4o", "batch_share": 1}}
        assert path_cost(parse_forecast(batch), BOOK).usd_per_query == vendor.usd_per_query / 2
        cached = {**bare, "serving": {"kind": "vendor", "model": "gpt-4o", "cached_share": 1.0}}
        assert path_cost(parse_forecast(cached), BOOK).usd_per_query == (865 * Decimal("1.25") + 500) / 10**6
        flat = {**bare, "serving": {"kind": "flat", "usd_per_query": "0.08"}, "retry_rate": 0.5}
        assert path_cost(parse_forecast(flat), BOOK).usd_per_query == Decimal("0.12")

    @given(
        st.integers(1, 10**8),
        st.floats(0.01, 1).map(lambda v: round(v, 4)),
        st.floats(0, 0.5).map(lambda v: round(v, 4)),
        st.floats(0.01, 1).map(lambda v: round(v, 4)),
    )
    def test_total_is_the_sum_and_nothing_is_negative(
        self, queries: int, success: float, retry: float, use: float
    ) -> None:
        f = forecast(
            queries_per_month=queries,
            success_rate=success,
            retry_rate=retry,
            serving=BASE["serving"] | {"utilization": use},
        )
        cost = path_cost(f, BOOK)
        assert cost.usd_per_month == sum((p.usd_per_month for p in cost.parts), Decimal(0))
        assert all(p.usd_per_month >= 0 for p in cost.parts)
        assert cost.usd_per_success >= cost.usd_per_query > 0
        assert json.loads(json.dumps(cost.as_dict()))["queries_per_month"] == queries

    def test_a_machine_is_looked_up_with_its_source(self, tmp_path: Path) -> None:
        bare = {k: v for k, v in BASE["serving"].items() if k != "usd_per_hour"}
        wanted = {**bare, "machine": {"name": "L40S", "purchase": "spot"}}
        serving = forecast(serving=wanted).serving
        assert isinstance(serving, SelfHosted) and serving.usd_per_hour == Decimal("0.9315")
        assert "verda L40S spot" in serving.price_source and "read 2026-10-29" in serving.price_source
        stated = forecast(serving={**wanted, "usd_per_hour": "7"}).serving
        assert isinstance(stated, SelfHosted) and stated.usd_per_hour == 7 and stated.price_source == ""
        row = {"provider": "verda", "machine": "L40S", "kind": "spot", "usd_per_hour": "0.5", "source": "a quote"}
        (tmp_path / "m.yaml").write_text(yaml.safe_dump({"rows": [{**row, "read": "2026-11-01"}]}))
        own = parse_forecast(BASE | {"serving": wanted}, machines=load_machines(tmp_path / "m.yaml")).serving
        assert isinstance(own, SelfHosted) and own.usd_per_hour == Decimal("0.5")

    def test_a_stage_by_unit(self) -> None:
        stage = {"name": "speech", "usd_per_unit": "0.006", "units_per_query": 0.4, "unit": "minute", "share": 0.1}
        part = next(p for p in path_cost(forecast(stages=[stage]), BOOK).parts if p.name == "speech")
        assert part.usd_per_month == 240 and part.how.endswith("0.4 minute x $0.006")

    @given(st.integers(1, 10**8), st.floats(0, 0.999).map(lambda v: round(v, 4)))
    def test_what_a_cache_answers_needs_no_machine(self, queries: int, share: float) -> None:
        def cost(recalled: float) -> PathCost:
            serving = BASE["serving"] | {"recalled_share": recalled}
            return path_cost(forecast(queries_per_month=queries, serving=serving), BOOK)

        def busy(recalled: float) -> Decimal:
            return cost(recalled).parts[0].usd_per_month

        assert abs(busy(share) / (busy(0) * (1 - Decimal(repr(share)))) - 1) < Decimal("1e-20")
        assert cost(share).usd_per_month <= cost(0).usd_per_month
        with pytest.raises(UsageError, match="recalled_share"):
            cost(1.0)

    @given(st.integers(1, 10**8), st.integers(1, 10**7))
    def test_more_traffic_never_costs_less(self, queries: int, more: int) -> None:
        less, greater = forecast(queries_per_month=queries), forecast(queries_per_month=queries + more)
        assert path_cost(greater, BOOK).usd_per_month >= path_cost(less, BOOK).usd_per_month

    @given(st.integers(1, 10**9))
    def test_machines_hold_the_load(self, queries: int) -> None:
        serving = forecast().serving
        assert isinstance(serving, SelfHosted)
        n = machines_needed(serving, Decimal(queries))
        load = Decimal(queries) / (730 * 3600) / (serving.capacity_rps * serving.utilization)
        assert n >= load and (n == serving.min_machines or n - 1 < load)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"queries_per_month": None}, "queries_per_month"),
            ({"queries_per_month": 0}, "queries_per_month"),
            ({"success_rate": 0}, "success_rate"),
            ({"success_rate": 1.2}, "success_rate: must lie between 0 and 1"),
            ({"query": {"width": 1}}, "query.height"),
            ({"serving": {"kind": "magic"}}, "serving"),
            (
                {"serving": {**BASE["serving"], "usd_per_hour": 0.8}},
                "serving.self_hosted.usd_per_hour: write it as quoted",
            ),
            ({"serving": {**BASE["serving"], "usd_per_hour": "80000"}}, "is above $1,000 an hour for one machine"),
            ({"serving": {**BASE["serving"], "capacity_rps": 0}}, "capacity_rps"),
            ({"review": {"rate": 0.1, "minutes": -1, "usd_per_hour": "20"}}, "review.minutes: must not be negative"),
            ({"colour": 1}, "colour"),
            (
                {"serving": {"kind": "self_hosted", "machine": {"name": "B900"}}},
                "no price for this machine (got 'B900'",
            ),
            ({"serving": {"kind": "self_hosted", "machine": {"name": "H100", "purchase": "loan"}}}, "purchase"),
            ({"stages": [{"name": "x"}]}, "needs either usd_per_query, or usd_per_unit with units_per_query"),
            ({"stages": [{"name": "x", "usd_per_unit": "1"}]}, "needs either usd_per_query"),
            (
                {"stages": [{"name": "x", "usd_per_query": "1", "usd_per_unit": "1", "units_per_query": 1}]},
                "needs either",
            ),
        ],
    )
    def test_gaps_and_slips(self, change: dict[str, Any], message: str) -> None:
        data = {k: v for k, v in (copy.deepcopy(BASE) | change).items() if v is not None}
        with pytest.raises(UsageError) as caught:
            parse_forecast(data)
        assert message in str(caught.value) and "correct the forecast" in str(caught.value)

    def test_escalation_needs_one_price(self) -> None:
        for escalation in ({"rate": 0.1}, {"rate": 0.1, "model": "gpt-4o", "usd_per_query": "1"}):
            with pytest.raises(UsageError, match="either model or usd_per_query"):
                path_cost(forecast(escalation=escalation), BOOK)
        with pytest.raises(UsageError, match="did you mean"):
            path_cost(forecast(escalation={"rate": 0.1, "model": "gpt-4oo"}), BOOK)


class TestCompare:
    @pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gemini-2.5-pro", "claude-opus-5", "gpt-5-mini"])
    def test_break_even_is_where_the_bills_meet(self, model: str) -> None:
        own = forecast(stages=[], escalation=None, review=None, failure=None)
        even = break_even(own, model, BOOK)
        assert even.queries_per_month is not None and even.machines is not None

        def bill(serving: Any, queries: int, monthly: Any) -> Decimal:
            f = own.model_copy(update={"queries_per_month": queries, "serving": serving, "monthly_usd": monthly})
            return path_cost(f, BOOK).usd_per_month

        vendor = parse_forecast(BASE | {"serving": {"kind": "vendor", "model": model}}).serving
        at = even.queries_per_month
        assert bill(own.serving, at, own.monthly_usd) <= bill(vendor, at, {}) + Decimal("1e-9")
        assert bill(own.serving, at - 1, own.monthly_usd) > bill(vendor, at - 1, {}) - Decimal("1e-9")

    def test_never(self) -> None:
        dear = BASE["serving"] | {"usd_per_hour": "90", "capacity_rps": 0.1}
        even = break_even(forecast(serving=dear), "gpt-4o-mini", BOOK)
        assert even.queries_per_month is None and "a full machine costs" in even.why

    def test_a_high_fixed_cost_needs_more_machines(self) -> None:
        # one full machine saves about $1,300 a month against GPT-5 mini, so that $10,000 take several
        even = break_even(forecast(monthly_usd={"team": "10000"}), "gpt-5-mini", BOOK)
        assert even.machines is not None and even.machines > 1 and even.queries_per_month is not None
        f = forecast(monthly_usd={"team": "10000"}, queries_per_month=even.queries_per_month)
        assert isinstance(f.serving, SelfHosted)
        assert machines_needed(f.serving, f.queries_per_month * (1 + f.retry_rate)) <= even.machines

    def test_needs_own_machines(self) -> None:
        with pytest.raises(UsageError, match="break-even needs own machines"):
            break_even(forecast(serving={"kind": "flat", "usd_per_query": "1"}), "gpt-4o", BOOK)

    def test_payback(self) -> None:
        assert payback_months(Decimal(1200), Decimal(100)) == 12
        assert payback_months(Decimal(1200), Decimal(0)) is None
        assert payback_months(Decimal(1200), Decimal(-5)) is None

    def test_tornado(self) -> None:
        swings = tornado(forecast(), BOOK)
        assert {s.factor for s in swings} == {
            "traffic",
            "output length",
            "escalation rate",
            "utilization",
            "review rate",
            "wrong answers",
        }
        assert [s.span for s in swings] == sorted((s.span for s in swings), reverse=True)
        by_name = {s.factor: s for s in swings}
        # more volume shares the machines; more review costs more; output matters only where a vendor is asked
        assert by_name["traffic"].usd_at_high < by_name["traffic"].usd_at_low
        assert by_name["review rate"].usd_at_high > by_name["review rate"].usd_at_low
        assert by_name["output length"].span > 0
        assert tornado(forecast(escalation=None, review=None), BOOK)[-1].span == 0
        with pytest.raises(UsageError, match="swing"):
            tornado(forecast(), BOOK, swing=Decimal(1))


class TestRoi:
    def test_formula(self) -> None:
        roi = Roi({"a": Decimal(300)}, {"b": Decimal(100)}, {"c": Decimal(50)})
        assert roi.first_year == 1 and roi.later_years == 5 and roi.break_even_months == 6
        assert labour_saved(Decimal(60), Decimal(1), Decimal(10)) == 120
        assert Roi({}, {"b": Decimal(1)}, {}).break_even_months is None
        with pytest.raises(UsageError, match="needs some cost"):
            Roi({"a": Decimal(1)}, {}, {})

    @given(st.integers(0, 10**9), st.integers(1, 10**9), st.integers(0, 10**9))
    def test_more_benefit_never_returns_less(self, benefit: int, once: int, yearly: int) -> None:
        def roi(amount: int) -> Roi:
            return Roi({"a": Decimal(amount)}, {"b": Decimal(once)}, {"c": Decimal(yearly)})

        assert roi(benefit + 1).first_year > roi(benefit).first_year >= -1


class TestArticles:
    def test_the_two_known_slips_are_found(self) -> None:
        wrong = {(e.name, line.name): line for e in worked_examples() for line in e.disagreements}
        labour = wrong["support", "labour savings a year, $"]
        assert (labour.printed, labour.computed) == (312_500, 375_000)
        fees = wrong["catalog", "API fees a year, $"]
        assert (fees.printed, fees.computed) == (43_200, 3_600)

    def test_their_own_sums_reproduce_what_they_print(self) -> None:
        for example in worked_examples():
            for line in example.lines:
                if "year 1, % (from its own sums)" in line.name or "months (from its own sums)" in line.name:
                    assert line.holds, line

    def test_what_follows_is_not_called_wrong(self) -> None:
        held = [line for line in other_figures() if line.holds]
        assert len(held) >= 6 and not any(line.why for line in held)

    def test_benefits_that_begin_after_development(self) -> None:
        late = {e.name: line.computed for e in worked_examples() for line in e.lines if "benefits begin" in line.name}
        # half of 375,000 against 174,400; 8/12 of 346,000 against 113,600; a quarter of 2,448,000 against 970,000
        assert {name: round(share) for name, share in late.items()} == {"support": 8, "catalog": 103, "research": -37}

    def test_corrected_returns(self) -> None:
        support, catalog, research = (e.corrected for e in worked_examples())
        assert round(100 * support.first_year) == 115 and round(100 * catalog.first_year) == 205
        assert round(100 * research.first_year) == 152
        assert catalog.first_year_cost == 113_600

    def test_every_disagreement_has_a_reason_and_stands_in_the_docs(self) -> None:
        text = DOCS.read_text(encoding="utf-8")
        lines = [line for e in worked_examples() for line in e.disagreements]
        lines += [line for line in other_figures() if not line.holds]
        assert len(lines) >= 24
        for line in lines:
            assert line.why, line.name
            assert line.name.replace("'", "") in text.replace("'", ""), line.name


class TestCli:
    def write(self, folder: Path, **changes: Any) -> str:
        path = folder / "f.yaml"
        path.write_text(yaml.safe_dump(copy.deepcopy(BASE) | changes))
        return str(path)

    def test_forecast(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ["models", "cost", "--forecast", self.write(tmp_path), "--against", "gpt-4o", "--against", "gpt-5-mini"]
        assert fovea.main([*words, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["cost"]["usd_per_month"] == f"{path_cost(forecast(), BOOK).usd_per_month:f}"
        assert [a["model"] for a in result["against"]] == ["gpt-4o", "gpt-5-mini"]
        assert result["against"][0]["break_even"] > 0 and len(result["tornado"]) == 6
        assert fovea.main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith("An accepted answer costs $") and "machines, idle" in out and "escalation rate" in out

    def test_articles(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fovea.main(["models", "cost", "--articles"]) == 0
        assert "375000" in capsys.readouterr().out
        assert fovea.main(["models", "cost", "--articles", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["figures"]) > 25

    def test_errors(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert fovea.main(["models", "cost"]) == 2
        assert "forecast: is required" in capsys.readouterr().err
        assert fovea.main(["models", "cost", "--forecast", self.write(tmp_path, success_rate=7)]) == 2
        assert "f.yaml: success_rate: must lie between 0 and 1" in capsys.readouterr().err
        assert fovea.main(["models", "cost", "--forecast", self.write(tmp_path), "--against", "gpt-9"]) == 2
        assert "no price for this model" in capsys.readouterr().err
        with pytest.raises(UsageError, match="cannot read"):
            load_forecast(tmp_path / "none.yaml")
        (tmp_path / "bad.yaml").write_text("a: [")
        with pytest.raises(UsageError, match="not YAML"):
            load_forecast(tmp_path / "bad.yaml")
        (tmp_path / "list.yaml").write_text("- 1")
        with pytest.raises(UsageError, match="queries_per_month"):
            load_forecast(tmp_path / "list.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda s: st.dictionaries(st.sampled_from(sorted(BASE)), s),
    )
)
@settings(max_examples=60)
def test_any_yaml_is_a_forecast_or_a_clear_error(value: Any) -> None:
    try:
        parse_forecast(BASE | value if isinstance(value, dict) else {})
    except UsageError as error:
        assert str(error).startswith("forecast: ")
