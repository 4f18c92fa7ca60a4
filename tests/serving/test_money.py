"""The money layer: what it counts, what it keeps from the client, and that it is not there unasked."""

from __future__ import annotations

import asyncio
import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest

from models.cost.journal import Reader
from models.cost.ledger import Tariff
from serving.errors import ApiError
from serving.exchange import KEY, Exchange, exchange_of
from serving.facts import FACTS
from serving.layers import LAYERS, build_layers, layers_of, start_layers, stop_layers
from serving.layers.identify import Identity
from serving.layers.money import Count
from serving.layers.recall import Recall
from serving.media import Picture
from serving.money import Money, usage_in
from serving.stack import parse_stack
from serving.tenants import Tenant
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

STACK: dict[str, Any] = {
    "models": [{"name": "m", "source": "embedded:qwen2_5_vl"}],
    "money": {"usd_per_hour": "0.36", "capacity_rps": 1, "against": ["gpt-4o"]},
}
EACH = Decimal("0.0001")
URL = "data:image/png;base64," + base64.b64encode(encode(scene((64, 64)))).decode()
USAGE = {"prompt_tokens": 400, "completion_tokens": 10, "total_tokens": 410}
ANSWER = {"choices": [{"message": {"content": 'say "usage"'}}], "usage": USAGE}


class Engine:
    """Answers with what it was given; keeps the body that it saw."""

    def __init__(self, *pieces: bytes, status: int = 200, kind: bytes = b"application/json"):
        self.pieces, self.status, self.kind = pieces, status, kind
        self.saw: dict[str, Any] = {}
        self.fails: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        self.saw = exchange.json() if exchange.body else {}
        if self.fails is not None:
            raise self.fails
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-type", self.kind)]})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def layer(engine: Engine, source: str = "embedded:qwen2_5_vl", media: object = "as it is", **money: object) -> Count:
    given = {"models": [{"name": "m", "source": source}], "money": {**STACK["money"], **money}}
    stack = parse_stack(given if media else {**given, "media": None})
    assert stack.money is not None
    count = Count(engine, stack, stack.models[0])
    count.book = Money(stack.money, "m", registry=None)
    return count


async def ask(count: Count, body: dict[str, Any], path: str = "/v1/chat/completions", canary: bool = False) -> Answer:
    made = scope_of("POST", path, JSON, **({"fovea.canary": True} if canary else {}))
    made[KEY] = Exchange("r", body=json.dumps(body).encode())
    return await call(count, made)


def events(*values: dict[str, Any] | str) -> list[bytes]:
    return [f"data: {v if isinstance(v, str) else json.dumps(v, separators=(',', ':'))}\n\n".encode() for v in values]


DELTA = {"choices": [{"delta": {"content": "yes"}}]}
LAST = {"choices": [], "usage": USAGE}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No series in the process's registry."""
    monkeypatch.setattr(Count, "money", {"m": None})


async def test_a_whole_answer_is_counted_and_passed_on_as_it_is() -> None:
    engine = Engine(json.dumps(ANSWER).encode())
    count = layer(engine)
    answer = await ask(count, {"model": "m"})
    assert json.loads(answer.body) == ANSWER and engine.saw == {"model": "m"}
    account = count.book.ledger.accounts["default", "m"]
    assert account.own_usd == EACH == count.book.usd and account.prompt_tokens == 400
    assert account.avoided_usd["gpt-4o"] == (400 * Decimal("2.50") + 10 * 10) / 10**6


async def test_a_stream_is_asked_for_its_usage_which_the_client_does_not_see() -> None:
    engine = Engine(*events(DELTA, LAST, "[DONE]"), kind=b"text/event-stream")
    count = layer(engine)
    options = {"other": 1, "continuous_usage_stats": True}
    answer = await ask(count, {"model": "m", "stream": True, "stream_options": options})
    assert engine.saw["stream_options"] == {"other": 1, "include_usage": True}
    assert answer.body == b"".join(events(DELTA, "[DONE]"))
    assert count.book.ledger.accounts["default", "m"].completion_tokens == 10


async def test_completions_are_asked_in_the_body_itself() -> None:
    count = layer(Engine(*events(DELTA, LAST), kind=b"text/event-stream"))
    scope = scope_of("POST", "/v1/completions", JSON)
    exchange = scope[KEY] = Exchange("r", body=b'{"stream": true, "prompt": "x"}')
    await call(count, scope)
    assert json.loads(exchange.body or b"")["stream_options"] == {"include_usage": True}


async def test_a_client_that_asks_for_usage_gets_it() -> None:
    engine = Engine(b"".join(events(DELTA, LAST, "[DONE]")), kind=b"text/event-stream")
    count = layer(engine)
    answer = await ask(count, {"model": "m", "stream": True, "stream_options": {"include_usage": True}})
    assert answer.body == b"".join(events(DELTA, LAST, "[DONE]"))
    assert count.book.ledger.accounts["default", "m"].requests == 1


async def test_a_stream_of_messages_tells_input_and_output_apart() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 0}}}
    end = {"type": "message_delta", "usage": {"output_tokens": 7}}
    count = layer(Engine(*events(start, end), kind=b"text/event-stream"))
    await ask(count, {"model": "m", "stream": True}, "/v1/messages")
    account = count.book.ledger.accounts["default", "m"]
    assert (account.prompt_tokens, account.completion_tokens) == (30, 7)


MESSAGE = [
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":400,"output_tokens":0}}}\n\n',
    b'event: message_delta\ndata: {"usage":{"output_tokens":10}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
RESPONSE = [b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":400,"output_tokens":10}}}\n\n']


@pytest.mark.parametrize(
    ("path", "pieces"),
    [
        ("/v1/chat/completions", events(DELTA, LAST, "[DONE]")),
        ("/v1/chat/completions", [b"".join(events(DELTA, LAST, "[DONE]"))]),
        ("/v1/messages", MESSAGE),
        ("/v1/responses", RESPONSE),
    ],
)
async def test_a_client_that_hangs_up_on_the_last_event_has_its_answer(path: str, pieces: list[bytes]) -> None:
    async def until_hung_up(scope: Scope, receive: Receive, send: Send) -> None:
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for piece in pieces[: scope["pieces"]]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        raise asyncio.CancelledError

    for sent, counted in ((len(pieces), 1), (len(pieces) - 1, 0)):
        count = layer(Engine())
        count.app = until_hung_up
        made = scope_of("POST", path, JSON, pieces=sent)
        made[KEY] = Exchange("r", body=b'{"model": "m", "stream": true}')
        with pytest.raises(asyncio.CancelledError):
            await call(count, made)
        accounts = count.book.ledger.accounts
        assert [(a.requests, a.prompt_tokens, a.completion_tokens) for a in accounts.values()] == [
            (1, 400, 10)
        ] * counted


async def test_what_failed_or_asked_for_nothing_costs_nothing() -> None:
    for engine in (Engine(b"{}", status=500), Engine(json.dumps(ANSWER).encode())):
        count = layer(engine)
        if engine.status == 200:
            await ask(count, {}, "/tokenize")
            await ask(count, {}, canary=True)
        else:
            await ask(count, {})
        assert count.book.ledger.accounts == {} and count.book.unpriced == 0
    engine = Engine()
    engine.fails = ApiError(400, "no", kind="bad")
    count = layer(engine)
    with pytest.raises(ApiError):
        await ask(count, {})
    assert count.book.ledger.accounts == {}


async def test_an_answer_without_usage_is_said_to_have_no_price() -> None:
    for body in (b"{}", b"not json", b'{"usage": null}', b'{"usage": {"prompt_tokens": "9"}}', b"[]"):
        count = layer(Engine(body))
        assert (await ask(count, {})).body == body
        assert count.book.unpriced == 1 and count.book.ledger.accounts == {}


@pytest.mark.parametrize("options", ["x", 3, []])
async def test_what_validation_will_refuse_is_left_to_it(options: object) -> None:
    engine = Engine(b"{}")
    await ask(layer(engine), {"stream": True, "stream_options": options})
    assert engine.saw["stream_options"] == options


def test_usage_of_every_form() -> None:
    assert usage_in({"usage": USAGE}) == (400, 10)
    assert usage_in({"response": {"usage": {"input_tokens": 3, "output_tokens": 4}}}) == (3, 4)
    assert usage_in({"usage": {"prompt_tokens": 5}}) == (5, 0)
    assert usage_in("x") is None and usage_in({"usage": {}}) is None


def of_tenant(name: str, **notes: object) -> Exchange:
    tenant = Tenant.model_validate({"name": name})
    return Exchange("r", identity=Identity(tenant, "k", "client", "interactive"), notes=notes)


def test_series_and_tenants() -> None:
    tariff = parse_stack(STACK).money
    assert tariff is not None
    registry = CollectorRegistry()
    money = Money(tariff, "m", registry)
    money.finished(of_tenant("red"), (100, 1), 0)
    money.finished(of_tenant("red", recalled=True), (100, 1), 0)
    money.finished(Exchange("r"), None, 0)
    text = generate_latest(registry).decode()
    assert 'fovea_usd_total{model="m",tenant="red"} 0.0001' in text
    assert 'fovea_cache_saved_usd_total{model="m",tenant="red"} 0.0001' in text
    assert 'fovea_vendor_usd_avoided_total{model="m",tenant="red",vendor_model="gpt-4o"} 0.00052' in text
    assert 'fovea_unpriced_answers_total{model="m"} 1.0' in text
    assert 'fovea_priced_answers_total{model="m",tenant="red"} 2.0' in text
    assert 'fovea_journal_lost_total{model="m"} 0.0' in text


async def test_every_answer_stands_in_the_journal(tmp_path: Path) -> None:
    count = layer(Engine(json.dumps(ANSWER).encode()), journal=str(tmp_path / "journal"))
    await ask(count, {"model": "m"})
    await ask(count, {"model": "m"}, canary=True)
    count.app = Engine(b"{}")
    await ask(count, {"model": "m"})
    await count.stop()
    first, second = Reader([tmp_path / "journal"]).lines()
    assert (first.id, first.tenant, first.model, first.usd) == ("r", "default", "m", EACH)
    assert (first.prompt_tokens, first.completion_tokens) == (400, 10) and first.finished is not None
    assert second.prompt_tokens is None and second.finished is None


async def test_a_full_disk_fails_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = layer(Engine(json.dumps(ANSWER).encode()), journal=str(tmp_path / "journal"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.write", full)
        assert (await ask(count, {"model": "m"})).status == 200
    assert count.book.journal is not None and count.book.journal.lost == 1
    await ask(count, {"model": "m"})
    assert len(list(Reader([tmp_path / "journal"]).lines())) == 1
    assert count.book.ledger.accounts["default", "m"].requests == 2  # the metrics have both


IMAGE = [Picture(Image.new("RGB", (1, 1)), "", "PNG", 64, 64, 0)]


@pytest.mark.parametrize(
    ("source", "by_engine", "found"),
    [
        ("embedded:qwen2_5_vl", 0, 16),  # the rule of the checkpoint
        ("embedded:paligemma", 0, 64),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 0, 4),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 5, 5),  # the engine knows better
        ("somebody/something", 0, None),
    ],
)
async def test_image_tokens_where_the_chat_endpoint_did_not_count_them(
    source: str, by_engine: int, found: int | None
) -> None:
    count = layer(Engine(json.dumps(ANSWER).encode()), source=source)
    scope = scope_of("POST", "/v1/messages", JSON)
    scope[KEY] = Exchange("r", body=b"{}", pictures=list(IMAGE), image_tokens=by_engine)
    await call(count, scope)
    assert count._image_tokens(scope[KEY]) == found
    assert count.book.unpriced == (found is None)
    assert count.book.ledger.accounts["default", "m"].own_usd == EACH


@pytest.mark.parametrize(("content", "unpriced"), [("x", 0), ([{"type": "image_url", "image_url": {"url": "u"}}], 1)])
async def test_images_that_nobody_screened_have_no_vendors_price(content: object, unpriced: int) -> None:
    count = layer(Engine(json.dumps(ANSWER).encode()), media=None)
    await ask(count, {"messages": [{"role": "user", "content": content}]})
    assert count.book.unpriced == unpriced
    assert bool(count.book.ledger.accounts["default", "m"].avoided_usd) is not bool(unpriced)


def test_a_size_that_a_vendor_refuses_costs_us_all_the_same(tmp_path: Path) -> None:
    row = {"vendor": "us", "model": "qwen2.5-vl-72b", "input": "1", "output": "1", "effective_from": "2026-01-01"}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"rows": [{**row, "read": "2026-11-01", "source": "a quote"}]}))
    given = {**STACK["money"], "against": ["qwen2.5-vl-72b"], "prices": str(tmp_path / "p.yaml")}
    money = Money(Tariff.model_validate(given), "m", registry=None)
    thin = Picture(Image.new("RGB", (1, 1)), "", "PNG", 1, 300, 0)
    money.finished(Exchange("r", pictures=[thin]), (10, 1), 4)
    account = money.ledger.accounts["default", "m"]
    assert account.own_usd == EACH and account.avoided_usd == {} and money.unpriced == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [False, True])
async def test_an_answer_from_the_cache_saves_what_it_would_have_cost(
    stream: bool, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count around the real cache: the kept stream has the usage, and only a client that asked for it sees it."""
    monkeypatch.setattr(FACTS, "temperature", 1.0)
    whole = [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]
    last = {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}
    kind = b"text/event-stream" if stream else b"application/json"
    pieces = events(last, LAST, "[DONE]") if stream else [json.dumps({"choices": whole, "usage": USAGE}).encode()]
    engine = Engine(*pieces, kind=kind)
    config = {
        "models": [{"name": "m", "source": "embedded:qwen2_5_vl"}],
        "money": {**STACK["money"], "journal": str(tmp_path / "journal")},
        "recall": {},
        "metrics": False,
    }
    stack = parse_stack(config)
    assert stack.money is not None
    monkeypatch.setattr(Count, "money", {"m": Money(stack.money, "m", registry=None)})
    app = build_layers(engine, stack, stack.models[0])
    await start_layers(app)
    image = {"type": "image_url", "image_url": {"url": URL}}
    content = [image, {"type": "text", "text": "shape?"}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "temperature": 0, "stream": stream}
    if asked:
        body["stream_options"] = {"include_usage": True}
    answers = [await call(app, scope_of("POST", "/v1/chat/completions", JSON), json.dumps(body).encode())]
    recall = next(layer for layer in layers_of(app) if isinstance(layer, Recall))
    await asyncio.gather(*recall.writes)
    answers.append(await call(app, scope_of("POST", "/v1/chat/completions", JSON), json.dumps(body).encode()))
    await stop_layers(app)
    assert [a.header(b"x-fovea-cache") for a in answers] == [b"miss", b"hit"]
    assert answers[0].body == answers[1].body and (b"prompt_tokens" in answers[0].body) is (asked or not stream)
    account = Count.money["m"].ledger.accounts["default", "m"]
    assert account.own_usd == account.cache_saved_usd == EACH and account.requests == 2
    first, second = Reader([tmp_path / "journal"]).lines()
    assert (first.recalled, second.recalled) == (False, True)
    assert first.images == second.images == ((64, 64),) and first.image_tokens == second.image_tokens == 16
    assert account.avoided_usd["gpt-4o"] == 2 * ((384 + 255) * Decimal("2.50") + 10 * 10) / 10**6


def test_without_the_section_the_layer_is_not_there() -> None:
    enabled = next(enabled for enabled, made in LAYERS if made is Count)
    assert enabled(parse_stack(STACK)) and not enabled(parse_stack({"models": STACK["models"]}))
