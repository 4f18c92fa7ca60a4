"""One contract for all vendors, each against its simulator: images, streams, tools, usage, errors, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from models.prices import Usage, load_prices
from models.providers import (
    VENDORS,
    Ask,
    BadRequest,
    ConnectionLost,
    CutStream,
    ImagePart,
    KeyRefused,
    Overloaded,
    Provider,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    Reply,
    ServerFault,
    SpendLimit,
    SpendLimitReached,
    Tool,
    UnknownModel,
    open_provider,
    vendor_of,
)
from models.support.errors import UsageError
from tests.models.vendor_simulator import KEY, MODELS, Script, VendorSimulator

BOOK = load_prices()
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
ASK = Ask("What is it?", images=(ImagePart(PNG, "image/png", 512, 512),), max_tokens=50)
TOOL = Tool("report", "Report what is seen.", {"type": "object", "properties": {"shape": {"type": "string"}}})

pytestmark = pytest.mark.parametrize("vendor", list(VENDORS))


@asynccontextmanager
async def opened(
    vendor: str, script: Script, *, api_key: str = KEY, model: str | None = None, **arguments: Any
) -> AsyncIterator[tuple[Provider, list[float]]]:
    """A provider on a simulator; the waits between attempts are recorded, not waited."""
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    async with VendorSimulator(vendor, script) as sim:
        name = model or f"{vendor}/{MODELS[vendor]}"
        provider = open_provider(
            name, api_key=api_key, base_url=sim.base_url, book=BOOK, pause=pause, **({"timeout_s": 5.0} | arguments)
        )
        try:
            yield provider, waits
        finally:
            await provider.close()


async def collect(provider: Provider, ask: Ask) -> tuple[list[str], Reply]:
    pieces, reply = [], None
    async for delta in provider.stream(ask):
        pieces.append(delta.text)
        reply = delta.reply or reply
    assert reply is not None
    return pieces[:-1], reply


async def test_image_usage_and_cost(vendor: str) -> None:
    script = Script(input_tokens=1000, cached_tokens=400, output_tokens=7)
    async with opened(vendor, script) as (provider, _):
        reply = await provider.ask(ASK)
    assert (reply.vendor, reply.text, reply.finish_reason) == (vendor, "a red circle", "stop")
    assert script.images == [PNG]
    assert reply.usage == Usage(1000, 7, 400)
    price = BOOK.find(MODELS[vendor])
    assert price.cached is not None and reply.cost is not None
    assert reply.cost.total == (600 * price.input + 400 * price.cached + 7 * price.output) / 10**6
    assert reply.model.startswith(MODELS[vendor]) and reply.latency_ms > 0 and reply.attempts == 1
    assert reply.image_tokens_by_rule == {"openai": 8500, "anthropic": 361, "google": 1032}[vendor]
    assert reply.image_tokens is None
    assert reply.image_tokens_difference == (1000 - 8500 if vendor == "openai" else -32 if vendor == "google" else None)


async def test_reported_image_tokens_win_over_the_rule(vendor: str) -> None:
    if vendor == "anthropic":
        return  # its usage has no such figure
    async with opened(vendor, Script(input_tokens=9000, image_tokens=700)) as (provider, _):
        for reply in (await provider.ask(ASK), (await collect(provider, ASK))[1]):
            assert reply.image_tokens == 700 and reply.image_tokens_by_rule is not None
            assert reply.image_tokens_difference == 700 - reply.image_tokens_by_rule


async def test_what_is_sent(vendor: str) -> None:
    script = Script()
    ask = Ask("why?", images=ASK.images * 2, system="Be brief.", temperature=0.5, max_tokens=9)
    async with opened(vendor, script) as (provider, _):
        await provider.ask(ask)
        await provider.ask(Ask("plain"))
    assert script.images == [PNG, PNG]
    first, second = (str(body) for body in script.seen)
    assert "Be brief." in first and "0.5" in first and "9" in first and "why?" in first
    # a temperature that nobody asked for is not sent: the newest models refuse any
    assert "temperature" not in second and "Be brief" not in second


async def test_stream(vendor: str) -> None:
    script = Script(text="it is a big red circle", input_tokens=50, output_tokens=9)
    async with opened(vendor, script) as (provider, _):
        pieces, reply = await collect(provider, ASK)
    assert len(pieces) >= 3 and "".join(pieces) == reply.text == script.text
    assert reply.usage == Usage(50, 9) and reply.cost is not None and reply.finish_reason == "stop"
    assert reply.ttft_ms is not None and 0 < reply.ttft_ms <= reply.latency_ms
    assert script.images == [PNG]


async def test_tool_call_plain_and_streamed(vendor: str) -> None:
    script = Script(tool=("report", {"shape": "circle", "n": 1}))
    ask = Ask("look", tools=(TOOL,))
    async with opened(vendor, script) as (provider, _):
        plain, (_, streamed) = await provider.ask(ask), await collect(provider, ask)
    for reply in (plain, streamed):
        (call,) = reply.tool_calls
        assert (call.name, dict(call.arguments)) == ("report", {"shape": "circle", "n": 1}) and call.id
        assert reply.finish_reason == "tool_calls" and reply.text == ""


@pytest.mark.parametrize("finish", ["length", "refused"])
async def test_finish_reason(vendor: str, finish: str) -> None:
    async with opened(vendor, Script(finish=finish)) as (provider, _):
        assert (await provider.ask(ASK)).finish_reason == finish
        assert (await collect(provider, ASK))[1].finish_reason == finish


@pytest.mark.parametrize(
    ("status", "kind", "requests"),
    [
        (400, BadRequest, 1),
        (401, KeyRefused, 1),
        (404, UnknownModel, 1),
        (429, RateLimited, 3),
        (500, ServerFault, 3),
        (529, Overloaded, 3),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_status(vendor: str, status: int, kind: type[ProviderError], requests: int, streamed: bool) -> None:
    script = Script(fault=lambda n: status)
    async with opened(vendor, script, attempts=3) as (provider, waits):
        with pytest.raises(kind) as caught:
            await (collect(provider, ASK) if streamed else provider.ask(ASK))
    assert type(caught.value) is kind and caught.value.status == status
    assert "simulated" in str(caught.value) and KEY not in str(caught.value)
    # what cannot pass is not repeated; the rest is, with growing pauses
    assert len(script.seen) == requests and len(waits) == requests - 1
    assert waits == sorted(waits)


async def test_wrong_key_and_model(vendor: str) -> None:
    async with opened(vendor, Script(), api_key="wrong") as (provider, _):
        with pytest.raises(KeyRefused) as caught:
            await provider.ask(ASK)
    assert caught.value.exit_code == 2
    async with opened(vendor, Script(), model=f"{vendor}/no-such-model") as (provider, _):
        with pytest.raises(UnknownModel, match="no-such-model"):
            await provider.ask(ASK)


@pytest.mark.parametrize("fault", [429, 500, 529, "drop", "garbage"])
async def test_passing_trouble(vendor: str, fault: int | str) -> None:
    async with opened(vendor, Script(fault=lambda n: fault if n < 2 else None)) as (provider, waits):
        reply = await provider.ask(ASK)
    assert reply.text == "a red circle" and reply.attempts == 3 and len(waits) == 2


async def test_retry_after_is_kept_by_all_requests(vendor: str) -> None:
    script = Script(fault=lambda n: 429 if n == 0 else None, retry_after="7")
    async with opened(vendor, script) as (provider, waits):
        await provider.ask(ASK)
        assert waits[0] == 7.0
        await provider.ask(ASK)
    # pauses are only recorded here, so the second question still finds the vendor's seven seconds ahead of it
    assert waits[-1] == pytest.approx(7.0, abs=1.0) and len(waits) >= 2


async def test_timeout(vendor: str) -> None:
    script = Script(fault=lambda n: "hang")
    async with opened(vendor, script, timeout_s=0.3, attempts=2) as (provider, _):
        with pytest.raises(ProviderTimeout):
            await provider.ask(ASK)
    assert len(script.seen) == 2


async def test_nobody_there(vendor: str) -> None:
    provider = open_provider(MODELS[vendor], api_key=KEY, base_url="http://127.0.0.1:9", book=BOOK, attempts=1)
    with pytest.raises(ConnectionLost):
        await provider.ask(ASK)
    await provider.close()


async def test_a_stream_that_does_not_begin_in_time(vendor: str) -> None:
    script = Script(fault=lambda n: "hang" if n < 1 else None)
    async with opened(vendor, script, timeout_s=0.3, attempts=2) as (provider, _):
        assert (await collect(provider, ASK))[1].attempts == 2
    script = Script(fault=lambda n: "hang")
    async with opened(vendor, script, timeout_s=0.3, attempts=2) as (provider, _):
        with pytest.raises(ProviderTimeout):
            await collect(provider, ASK)
    assert len(script.seen) == 2


async def test_a_stream_that_stalls_keeps_what_came_and_is_not_repeated(vendor: str) -> None:
    script, pieces = Script(text="one two three", fault=lambda n: "stall"), []
    spend = SpendLimit(Decimal(1))
    async with opened(vendor, script, timeout_s=0.5, spend=spend) as (provider, _):
        with pytest.raises(CutStream) as caught:
            async for delta in provider.stream(ASK):
                pieces.append(delta.text)
        assert spend.spent == provider.estimate(ASK) and spend.reserved == 0
    assert caught.value.partial == "".join(pieces) == "one two three" and len(script.seen) == 1


@pytest.mark.parametrize("fault", ["cut", "end", "error_event"])
async def test_cut_stream_keeps_what_came_and_is_not_repeated(vendor: str, fault: str) -> None:
    if fault == "error_event" and vendor == "google":
        fault = "end"  # Gemini has no error event
    script = Script(text="one two three", fault=lambda n: fault)
    pieces = []
    async with opened(vendor, script) as (provider, _):
        with pytest.raises(CutStream) as caught:
            async for delta in provider.stream(ASK):
                pieces.append(delta.text)
    assert caught.value.partial == "".join(pieces) == "one two three"
    assert len(script.seen) == 1


async def test_stream_that_never_begins_is_repeated(vendor: str) -> None:
    script = Script(fault=lambda n: "drop" if n == 0 else 529 if n == 1 else None)
    async with opened(vendor, script) as (provider, _):
        assert (await collect(provider, ASK))[1].attempts == 3


class TestSpend:
    async def test_stops_mid_run_and_keeps_results(self, vendor: str) -> None:
        script = Script(input_tokens=500, output_tokens=10)
        price = BOOK.find(MODELS[vendor])
        one = price.cost(Usage(500, 10)).total
        async with opened(vendor, script) as (probe, _):
            at_most = probe.estimate(ASK)
        assert at_most >= one
        spend = SpendLimit(5 * one + at_most)
        replies = []
        async with opened(vendor, script, spend=spend) as (provider, _):
            sent_before = len(script.seen)
            with pytest.raises(SpendLimitReached):
                for _ in range(50):
                    replies.append(await provider.ask(ASK))
        assert len(replies) == len(script.seen) - sent_before == 6
        assert spend.spent == 6 * one <= spend.limit_usd and spend.reserved == 0

    async def test_stops_streams_mid_run_and_keeps_what_came(self, vendor: str) -> None:
        script = Script(input_tokens=500, output_tokens=10)
        async with opened(vendor, script) as (probe, _):
            at_most = probe.estimate(ASK)
        one = BOOK.find(MODELS[vendor]).cost(Usage(500, 10)).total
        spend, texts = SpendLimit(2 * one + at_most), []
        async with opened(vendor, script, spend=spend) as (provider, _):
            with pytest.raises(SpendLimitReached, match="what was answered is kept"):
                for _ in range(50):
                    texts.append((await collect(provider, ASK))[1].text)
        assert texts == [script.text] * 3 and len(script.seen) == 3
        assert spend.spent == 3 * one and spend.reserved == 0

    async def test_holds_with_many_in_flight(self, vendor: str) -> None:
        script = Script(input_tokens=500, output_tokens=10)
        async with opened(vendor, script) as (probe, _):
            at_most = probe.estimate(ASK)
        spend = SpendLimit(3 * at_most)
        async with opened(vendor, script, spend=spend) as (provider, _):
            results = await asyncio.gather(*(provider.ask(ASK) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(r, Reply) for r in results) == 3
        assert sum(isinstance(r, SpendLimitReached) for r in results) == 7
        assert spend.spent <= spend.limit_usd and spend.reserved == 0

    async def test_failed_requests(self, vendor: str) -> None:
        """An error that is not billed gives its reservation back; one that may be billed counts in full."""
        script = Script(fault=lambda n: (500, "hang", None)[min(n, 2)])
        spend = SpendLimit(Decimal(1))
        async with opened(vendor, script, spend=spend, timeout_s=0.3) as (provider, _):
            reply = await provider.ask(ASK)
            assert reply.cost is not None
            assert spend.spent == provider.estimate(ASK) + reply.cost.total and spend.reserved == 0
        script = Script(fault=lambda n: 400)
        async with opened(vendor, script, spend=(free := SpendLimit(Decimal(1)))) as (provider, _):
            with pytest.raises(BadRequest):
                await provider.ask(ASK)
        assert free.spent == free.reserved == 0

    async def test_cut_and_abandoned_streams_count_in_full(self, vendor: str) -> None:
        spend = SpendLimit(Decimal(1))
        async with opened(vendor, Script(fault=lambda n: "end" if n == 0 else None), spend=spend) as (provider, _):
            with pytest.raises(CutStream):
                await collect(provider, ASK)
            assert spend.spent == provider.estimate(ASK)
            stream = provider.stream(ASK)
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            assert spend.spent == 2 * provider.estimate(ASK) and spend.reserved == 0

    async def test_needs_a_price_and_a_positive_limit(self, vendor: str) -> None:
        with pytest.raises(UsageError, match="a spend limit needs a price"):
            open_provider(f"{vendor}/no-such-model", api_key=KEY, book=BOOK, spend=SpendLimit(Decimal(1)))
        for amount in ("0", "-1", "NaN"):
            with pytest.raises(UsageError, match="positive amount"):
                SpendLimit(Decimal(amount))


def test_keys_and_names(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VENDORS[vendor].key_variables:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UsageError, match=f"no key for {vendor}; set|api-key: no key for {vendor}"):
        open_provider(MODELS[vendor], book=BOOK)
    monkeypatch.setenv(VENDORS[vendor].key_variables[0], KEY)
    provider = open_provider(MODELS[vendor], book=BOOK)
    assert provider.vendor == vendor and provider.price == BOOK.find(MODELS[vendor])
    assert vendor_of(f"{vendor}/x", BOOK) == (vendor, "x")
    with pytest.raises(UsageError, match="unknown vendor"):
        vendor_of("nobody/x", BOOK)
    with pytest.raises(UsageError, match="did you mean"):
        vendor_of(MODELS[vendor][:-1], BOOK)


def test_estimate_is_above_any_text(vendor: str) -> None:
    provider = open_provider(MODELS[vendor], api_key=KEY, book=BOOK)
    costs: Callable[[int], Decimal] = lambda n: provider.estimate(Ask("word " * n, max_tokens=10))  # noqa: E731
    assert costs(0) < costs(100) < costs(1000)
    # five characters a word; every tokenizer makes about one token of it
    assert provider.price is not None and costs(1000) > provider.price.cost(Usage(1000, 10)).total
