"""Limits of tenants: the rules, that every store follows them, and that they hold over processes."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import StoreDown
from serving.quota import Ask, MemoryQuota, State, Verdict, decide, duration, give_back, month_of, open_quota
from serving.quota_valkey import ValkeyQuota
from serving.runtime import free_port

ROOT = Path(__file__).resolve().parents[2]


def ask(requests: int | None = None, tokens: int | None = None, cost: int = 10, **more: Any) -> Ask:
    rates = ((requests, 1), (tokens, cost), (None, 0))
    fields = {"concurrent": None, "budget": None, "lease": "a", "lease_s": 60.0, "month": "2026-11", **more}
    return Ask("acme", rates, **fields)


# the rules


def test_a_bucket_empties_and_fills() -> None:
    state = State()
    verdicts = [decide(state, ask(requests=2), 0.0) for _ in range(3)]
    assert [verdict.refused for verdict in verdicts] == [(), (), ("requests_per_minute",)]
    assert verdicts[1].left[0] == 0 and verdicts[2].wait == 30.0
    assert decide(state, ask(requests=2), 29.9).refused and not decide(state, ask(requests=2), 30.0).refused


def test_a_request_larger_than_the_limit_needs_a_full_bucket_and_leaves_a_debt() -> None:
    state = State()
    assert not decide(state, ask(tokens=100, cost=250), 0.0).refused
    assert decide(state, ask(tokens=100, cost=1), 89.0).refused
    assert not decide(state, ask(tokens=100, cost=1), 91.0).refused


def test_nothing_is_charged_when_one_limit_is_in_the_way() -> None:
    state = State()
    both = ask(requests=5, tokens=10, cost=10)
    assert not decide(state, both, 0.0).refused
    for _ in range(9):
        assert decide(state, both, 0.0).refused == ("tokens_per_minute",)
    assert state.buckets["requests"][0] == 4


def test_leases_end_with_the_request_or_with_their_time() -> None:
    state, one = State(), ask(concurrent=1)
    assert not decide(state, one, 0.0).refused
    other = replace(one, lease="b")
    assert decide(state, other, 1.0).refused == ("concurrent",)
    give_back(state, one, (0, 0, 0), 0)
    assert not decide(state, other, 2.0).refused
    assert decide(state, one, 61.0).refused and not decide(state, one, 62.0).refused  # its replica died


def test_a_clock_that_goes_back_locks_nobody_out() -> None:
    state, one = State(), ask(requests=1, concurrent=1)
    assert not decide(state, one, 1e9).refused
    assert decide(state, replace(one, lease="b"), 5.0).refused == ("requests_per_minute",)
    assert not decide(state, replace(one, lease="c"), 66.0).refused  # a minute later by the new time


def test_a_budget_is_exact_and_ends_with_the_month() -> None:
    state, one = State(), ask(budget=(10, 3))
    assert [bool(decide(state, one, 0.0).refused) for _ in range(4)] == [False, False, False, True]
    give_back(state, one, (0, 0, 0), 3)
    assert not decide(state, one, 0.0).refused
    assert not decide(state, replace(one, month="2026-12"), 0.0).refused and state.spent == {"2026-12": 3}


steps = st.lists(
    st.tuples(
        st.floats(0, 40),  # seconds since the one before
        st.integers(1, 150),  # tokens
        st.sampled_from(["keep", "end", "back"]),
    ),
    max_size=40,
)


@given(steps, st.integers(1, 100))
def test_no_more_passes_than_the_limit_allows(steps: list[tuple[float, int, str]], limit: int) -> None:
    """Up to any moment, what has passed is at most the limit, what time has brought, and one debt."""
    state, now, passed = State(), 0.0, 0
    for pause, cost, _ in steps:
        now += pause
        if not decide(state, ask(tokens=limit, cost=cost), now).refused:
            passed += cost
            assert passed <= limit + now * limit / 60 + max(0, cost - limit) + 1e-6


def run_step(one: Ask, kind: str) -> tuple[tuple[int, int, int], int] | None:
    """What the end of a request gives back in the tests below."""
    if kind == "keep":
        return None
    return ((0, one.rates[1][1] // 2, 0), one.budget[1] if one.budget else 0) if kind == "back" else ((0, 0, 0), 0)


@settings(max_examples=60, deadline=None)
@given(steps=steps, limit=st.integers(1, 100), jump=st.floats(-1000, 1000))
def test_the_script_decides_as_the_rules_do(
    valkey_server: Any, steps: list[tuple[float, int, str]], limit: int, jump: float
) -> None:
    async def compare() -> None:
        store = ValkeyQuota(f"valkey://127.0.0.1:{valkey_server.port}/0")
        await store.client.flushall()
        state, now = State(), 1.7e9
        for number, (pause, cost, kind) in enumerate(steps):
            now += pause + (jump if number == 20 else 0)
            one = ask(3 * limit, limit, cost, concurrent=3, budget=(2000, cost), lease=str(number))
            expected, found = decide(state, one, now), await store.take(one, now)
            assert found.refused == expected.refused
            for mine, theirs in zip((*expected.waits, *expected.left), (*found.waits, *found.left), strict=True):
                assert (mine is None) == (theirs is None) and abs((mine or 0) - (theirs or 0)) < 1e-3
            back = run_step(one, kind)
            if back and not expected.refused:
                give_back(state, one, *back)
                await store.settle(one, *back)
        await store.close()

    asyncio.run(compare())


@settings(max_examples=25, deadline=None)
@given(steps=steps, limit=st.integers(1, 100))
def test_the_file_decides_as_memory_does(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, int, str]], limit: int
) -> None:
    async def compare() -> None:
        file = open_quota(str(tmp_path_factory.mktemp("quota") / "q.db"))
        state, clock = State(), [0.0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: clock[0])
            for number, (pause, cost, kind) in enumerate(steps):
                clock[0] += pause
                one = ask(3 * limit, limit, cost, concurrent=3, budget=(2000, cost), lease=str(number))
                expected = decide(state, one, clock[0])
                assert await file.take(one) == expected
                back = run_step(one, kind)
                if back and not expected.refused:
                    give_back(state, one, *back)
                    await file.settle(one, *back)
            await file.close()

    asyncio.run(compare())


# every store


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`memory`, a file, a server."""
    if request.param == "memory":
        return "memory"
    return str(tmp_path / "q.db") if request.param == "sqlite" else str(request.getfixturevalue("valkey_url"))


async def test_a_stores_whole_surface(anywhere: str) -> None:
    store = open_quota(anywhere)
    one = ask(requests=100, tokens=100, concurrent=1, budget=(100, 60))
    verdict = await store.take(one)
    assert not verdict.refused and verdict.left[0] == 99 and verdict.left[2] is None
    await store.renew([one])
    again = replace(one, lease="b")
    assert set((await store.take(again)).refused) == {"concurrent", "usd_per_month"}
    await store.settle(one, (0, 10, 0), 60)
    verdict = await store.take(again)
    assert not verdict.refused and verdict.left[1] and 89.9 < verdict.left[1] < 91
    assert not (await store.take(replace(again, tenant="other"))).refused
    await store.close()


async def test_a_renewed_lease_outlives_its_time(anywhere: str) -> None:
    store = open_quota(anywhere)
    short, long = ask(concurrent=1, lease_s=2.0), ask(concurrent=1, lease_s=3600.0)
    other = replace(long, lease="b")
    assert not (await store.take(short)).refused
    await store.renew([long])
    await asyncio.sleep(2.1)
    assert (await store.take(other)).refused == ("concurrent",)
    await store.renew([replace(short, lease_s=0.1)])
    await asyncio.sleep(0.2)
    assert not (await store.take(other)).refused
    await store.close()


WORKER = """
    import asyncio, sys
    from serving.quota import Ask, open_quota
    async def main(location, name):
        store, passed = open_quota(location), 0
        for number in range(150):
            one = Ask("acme", ((100, 1), (None, 0), (None, 0)), None, (10**12, 7), f"{name}-{number}", 60.0, "2026-11")
            passed += not (await store.take(one)).refused
        print(passed)
        await store.close()
    asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_limit_holds_exactly_over_processes(location: str) -> None:
    """Three processes at once ask 450 times under a limit of 100 a minute."""
    began = time.monotonic()
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(WORKER), location, str(n), cwd=ROOT, stdout=subprocess.PIPE
        )
        for n in range(3)
    ]
    passed = sum([int((await worker.communicate())[0]) for worker in workers])
    refilled = (time.monotonic() - began) * 100 / 60
    assert 100 <= passed <= 100 + refilled + 1
    store = open_quota(location)
    probe = Ask("acme", ((None, 0),) * 3, None, (passed * 7 + 6, 7), "x", 60.0, "2026-11")
    assert (await store.take(probe)).refused == ("usd_per_month",)  # the sum is exact: not one charge was lost
    assert not (await store.take(replace(probe, budget=(passed * 7 + 7, 7)))).refused
    await store.close()


async def test_stores_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("not a database, and long enough to look like something " * 50)
    places = [f"valkey://u:hunter2@127.0.0.1:{free_port()}/0", str(tmp_path / "folder"), str(tmp_path / "text.db")]
    for location in places:
        store = open_quota(location)
        with pytest.raises(StoreDown) as caught:
            await store.take(ask(requests=1))
        assert "hunter2" not in str(caught.value)
        await store.close()


# what is told


def test_months() -> None:
    assert month_of(dt.datetime(2026, 12, 31, 23, 59, 30, tzinfo=dt.UTC)) == ("2026-12", 30.0)
    assert month_of(dt.datetime(2027, 1, 31, tzinfo=dt.UTC)) == ("2027-01", 86_400.0)
    assert month_of(dt.datetime(2028, 2, 1, tzinfo=dt.UTC))[1] == 29 * 86_400


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.25, "250ms"), (1, "1s"), (59.4, "59s"), (360, "6m0s"), (61, "1m1s")]
)
def test_durations_are_written_as_vendors_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_wait_is_the_longest_of_what_is_known() -> None:
    assert Verdict(("a", "b", "c"), (1.0, None, 3.0), ()).wait == 3.0 and Verdict(("a",), (None,), ()).wait is None


def test_memory_is_for_one_replica() -> None:
    assert isinstance(open_quota("memory"), MemoryQuota)
