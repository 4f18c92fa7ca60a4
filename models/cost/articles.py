"""The three worked examples of the implementation playbook (part 4), and its other figures, from its own inputs.

Each line holds what the article prints and what its inputs make; where they differ, `Line.holds` is False and the
reason is given.  `docs/money.md` lists them; a test keeps that list complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from models.cost.roi import MONTHS, Roi, labour_saved
from models.prices import load_prices

D = Decimal


@dataclass(frozen=True)
class Line:
    """One printed figure.  `tolerance` is half of its last digit; `at_least` where the article says "or more"."""

    name: str
    printed: Decimal
    computed: Decimal
    tolerance: Decimal
    why: str = ""
    at_least: bool = False

    @property
    def holds(self) -> bool:
        if self.at_least:
            return self.computed >= self.printed - self.tolerance
        return abs(self.printed - self.computed) <= self.tolerance


@dataclass(frozen=True)
class Example:
    """One worked example: `corrected` is the return with every line computed from the inputs."""

    name: str
    lines: tuple[Line, ...]
    corrected: Roi

    @property
    def disagreements(self) -> list[Line]:
        return [line for line in self.lines if not line.holds]


def _returns(printed: Roi, corrected: Roi, *, first: str, months: str, later: str | None, why: str) -> list[Line]:
    """Lines for ROI and break-even: first from the article's own (printed) sums, then from the corrected ones."""
    found = []
    for roi, label, reason in ((printed, "from its own sums", "rounding"), (corrected, "from its inputs", why)):
        found.append(Line(f"ROI year 1, % ({label})", D(first), 100 * roi.first_year, D("0.5"), reason))
        if roi.break_even_months is not None:
            found.append(Line(f"break-even, months ({label})", D(months), roi.break_even_months, D("0.05"), reason))
        if later is not None and roi.later_years is not None:
            found.append(Line(f"ROI year 2+, % ({label})", D(later), 100 * roi.later_years, D("0.5"), reason))
    return found


def _late(corrected: Roi, first: str, development: int) -> Line:
    """Line for the first year when benefits begin only after the months of development that the article prints."""
    benefit = corrected.benefit * (MONTHS - development) / MONTHS
    return Line(
        f"ROI year 1, % (benefits begin after the {development} months of development)",
        D(first),
        100 * (benefit - corrected.first_year_cost) / corrected.first_year_cost,
        D("0.5"),
        f"printed: twelve months of benefits beside {development} months of building what makes them",
    )


def support() -> Example:
    """Customer support: 15,000 tickets a month, 5 minutes saved on each at $25 an hour, $0.08 a query."""
    saved, api = labour_saved(D(15_000), D(5), D(25)), D(15_000) * D("0.08") * MONTHS
    once, maintenance = {"development": D(120_000)}, D(40_000)
    corrected = Roi({"labour": saved}, once, {"API": api, "maintenance": maintenance})
    printed = Roi({"labour": D(312_500)}, once, {"API": D(14_400), "maintenance": maintenance})
    only_maintenance = 100 * (D(312_500) - maintenance) / maintenance
    lines = [
        Line(
            "labour savings a year, $", D(312_500), saved, D("0.5"), "15,000 x 5/60 h x $25 x 12; printed: ten months"
        ),
        Line("API fees a year, $", D(14_400), api, D("0.5")),
        Line("cost of year 1, $", D(174_400), corrected.first_year_cost, D("0.5")),
        Line("handling time saved, %", D(42), D(100) * 5 / 12, D("0.5")),
        *_returns(printed, corrected, first="79", months="6.7", later="475", why="with the corrected savings"),
        Line(
            "ROI year 2+ 'vs. maintenance costs only', %",
            D(475),
            only_maintenance,
            D("0.5"),
            "475 % (474.5) needs maintenance and API fees; maintenance alone makes 681 %",
        ),
        _late(corrected, "79", 6),
        Line("CSAT points, from 67 to 85", D(18), D(85) - 67, D("0.5")),
    ]
    return Example("support", tuple(lines), corrected)


def catalog() -> Example:
    """Product catalog: 2,000 products a month, 12 minutes saved on each at $20 an hour, $0.15 a product."""
    saved, lift = labour_saved(D(2_000), D(12), D(20)), D("0.005") * D(50_000_000)
    api = D(2_000) * 12 * D("0.15")
    once, maintenance = {"development": D(80_000)}, D(30_000)
    benefits = {"labour": saved, "revenue": lift}
    corrected = Roi(benefits, once, {"API": api, "maintenance": maintenance})
    printed = Roi(benefits, once, {"API": D(43_200), "maintenance": maintenance})
    lines = [
        Line("labour savings a year, $", D(96_000), saved, D("0.5")),
        Line("revenue lift a year, $", D(250_000), lift, D("0.5")),
        Line("benefits a year, $", D(346_000), corrected.benefit, D("0.5")),
        Line("cataloging time saved, %", D(80), D(100) * 12 / 15, D("0.5")),
        Line(
            "API fees a year, $", D(43_200), api, D("0.5"), "24,000 products x $0.15; printed: multiplied by 12 twice"
        ),
        Line("cost of year 1, $", D(153_200), corrected.first_year_cost, D("0.5"), "follows from the API fees"),
        *_returns(printed, corrected, first="126", months="5.3", later="373", why="with the corrected API fees"),
        _late(corrected, "126", 4),
    ]
    return Example("catalog", tuple(lines), corrected)


def research() -> Example:
    """Research documents: 200 researchers, 12 of 40 hours a month saved at $85 an hour."""
    saved = D(200) * 12 * 85 * MONTHS
    once = {"infrastructure": D(400_000), "development": D(350_000), "data processing": D(100_000)}
    corrected = Roi({"labour": saved}, once, {"maintenance": D(120_000)})
    with_pipeline = Roi({"labour": saved, "pipeline": D(8_000_000)}, once, {"maintenance": D(120_000)})
    lines = [
        Line("labour savings a year, $", D(2_448_000), saved, D("0.5")),
        Line("cost of year 1, $", D(970_000), corrected.first_year_cost, D("0.5")),
        *_returns(corrected, corrected, first="152", months="4.8", later=None, why="")[:2],
        Line("ROI with pipeline value, %", D(800), 100 * with_pipeline.first_year, D("0.5"), at_least=True),
        Line("'35 % faster', from 40 to 28 hours", D(35), D(100) * 12 / 40, D("0.5"), "12 of 40 hours are 30 %"),
        _late(corrected, "152", 9),
    ]
    return Example("research", tuple(lines), corrected)


def worked_examples() -> list[Example]:
    """Return the three examples, in the article's order."""
    return [support(), catalog(), research()]


def other_figures() -> list[Line]:
    """Return the playbook's other figures that can be worked out from what it says beside them, or elsewhere."""
    return [*_pilots(), *_models(), *_operations()]


def _pilots() -> list[Line]:
    """Parts 1 and 2: cases and the way from a POC to production."""
    return [
        Line(
            "content creation, minutes saved (from 2 to 3 hours down to 45 minutes)",
            D(45),
            D(120) - 45,
            D("0.5"),
            "the least is 75 minutes, the most 135; 45 minutes is what remains, not what is saved",
        ),
        Line(
            "POC, $ a query ($400 for 200 examples, 2 models, 10 rounds of prompts: all at their most)",
            D("0.08"),
            D(400) / (200 * 2 * 10),
            D("0.005"),
            "the worked example of the same case counts $0.08, the POC paid $0.10 or more",
        ),
        Line(
            "catalog pilot, $ of API fees per SKU ($12 a day, 10 working days, 240 SKUs)",
            D("0.15"),
            D(12) * 10 / 240,
            D("0.005"),
            "the worked example counts $0.15 per product, the pilot paid $0.50",
        ),
        Line(
            "catalog pilot, minutes saved per SKU (3.2 hours a day, 24 SKUs a day)",
            D(12),
            D("3.2") * 60 / 24,
            D("0.5"),
            "the worked example counts 12 minutes per product, the pilot saved 8",
        ),
        Line("catalog pilot, % corrected by people at 92 % accuracy", D(8), D(100) - 92, D("0.5")),
        Line(
            "document case, documents in the first 5 % of 50,000",
            D(1_000),
            D(50_000) * 5 / 100,
            D("0.5"),
            "1,000 are 2 %",
        ),
        Line(
            "document case, $ saved a year (part 2, '$300K+'; from the inputs of part 4)",
            D(300_000),
            labour_saved(D(200), D(12) * 60, D(85)),
            D("0.5"),
            "the same corpus saves eight times as much in the worked example",
        ),
        Line(
            "production deployment, weeks at the most (phases of 2-4, 6-12 and 12-24 weeks)",
            D(26),
            D(4) + 12 + 24,
            D("0.5"),
            "the conclusion says 'consistently within 6 months'; its own phases take 20 to 40 weeks",
        ),
        Line("playbook of part 6, weeks (2+2+2+4+4+12)", D(26), D(2) + 2 + 2 + 4 + 4 + 12, D("0.5")),
    ]


def _models() -> list[Line]:
    """Parts 3 and 5: what compression, batching and hosting save."""
    return [
        Line("distilled model, times faster (5 s to 500 ms)", D(10), D(5) / D("0.5"), D("0.05")),
        Line("distilled model, points of accuracy lost (94 to 91 %)", D(3), D(94) - 91, D("0.05")),
        Line("parallel stages, % faster (8 s to 5 s)", D(37), D(100) * 3 / 8, D("0.5")),
        Line(
            "batches, % saved per page 'through volume discounts' (the largest discount of the price book)",
            D(60),
            100 * (1 - min(row.batch_factor for row in load_prices().rows if row.batch_factor is not None)),
            D("0.5"),
            "no vendor's batch price is below half",
        ),
        Line(
            "self-hosted Qwen2.5-VL, $ per query (at most 0.003) at 1M queries and $5,000 a month",
            D("0.003"),
            D(5_000) / D(1_000_000),
            D("0.0005"),
            "0.003 needs 1.7M queries a month at $5,000 and 5M at $15,000; the break-even rule starts at 1M",
        ),
    ]


def _operations() -> list[Line]:
    """Parts 4 and 6: KPIs and advice."""
    return [
        Line("availability of 99.5 %, hours of downtime in 30 days", D("3.6"), D(30) * 24 * D("0.005"), D("0.05")),
        Line(
            "two vendors of 99.5 %, % available together (independent failures)",
            D("99.9"),
            100 * (1 - D("0.005") ** 2),
            D("0.05"),
            at_least=True,
        ),
        Line(
            "'3.2 hours saved per day, $12K/month' at the article's highest wage ($85) and 22 days a month, $",
            D(12_000),
            D("3.2") * 22 * 85,
            D("0.5"),
            "it would take $170 an hour; at the $20 of the catalog case it is $1,408",
        ),
    ]
