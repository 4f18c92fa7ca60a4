"""Traces: one span per layer, to a real OTLP/HTTP receiver; nothing at all where they are off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from serving.exchange import exchange_of
from serving.front import Front
from serving.layers import LAYERS, build_layers, layers_of, stop_layers
from serving.middleware import Straight
from serving.parts import front_part
from serving.stack import Stack
from serving.tracing import PARENT, Span
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.collector import Receiver, attributes
from tests.serving.pictures import encode
from tests.serving.test_recall import about

CHAT = "/v1/chat/completions"
RED = encode(Image.new("RGB", (8, 8), "red"))
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


def parsed(traceparent: str) -> tuple[str, str, bool]:
    """Return trace, span, and the flag `sampled`."""
    _, trace, span, flags = traceparent.split("-")
    return trace, span, bool(int(flags, 16) & 1)


class House:
    """One replica behind every layer that needs no store, all of it traced."""

    def __init__(self, endpoint: str, share: float = 1.0, **sections: Any):
        data = {"models": [{"name": "m", "source": "x", "boxes": True}], "metrics": False, "lane": {}, "recall": {}}
        traces = {"endpoint": endpoint, "share": share} if endpoint else None
        self.stack = Stack.model_validate({**data, "traces": traces, **sections})
        self.app = build_layers(self.engine, self.stack, self.stack.models[0])
        self.scopes: list[Any] = []
        self.status = 200

    async def engine(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(dict(scope))
        await exchange_of(scope).decode()
        await receive()
        await send({"type": "http.response.start", "status": self.status, "headers": [JSON]})
        await send({"type": "http.response.body", "body": b'{"choices": ', "more_body": True})
        await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b"[]}"})

    async def ask(self, *headers: tuple[bytes, bytes], path: str = CHAT, **body: Any) -> Answer:
        return await call(self.app, scope_of("POST", path, JSON, *headers), {"messages": [], **body})

    def told(self) -> tuple[str, str, bool]:
        """What the engine was told last: trace, span, whether it is traced."""
        (value,) = [v for n, v in self.scopes[-1]["headers"] if n == b"traceparent"]
        return parsed(value.decode())

    async def close(self) -> None:
        await stop_layers(self.app)


async def test_every_layer_and_the_engine_have_a_span(receiver: Receiver) -> None:
    house = House(receiver.endpoint)
    answer = await house.ask((b"x-request-id", b"r-1"), messages=about(RED))
    assert answer.status == 200 and answer.body == b'{"choices":[]}'
    await house.close()
    entry = f"POST {CHAT}"
    enabled = [layer.__name__.lower() for on, layer in LAYERS if on(house.stack)][1:]
    assert {"admit", "look", "screen", "recall", "inlane", "boxes"} <= set(enabled)
    assert receiver.path("engine") == [entry, *enabled, "engine"], "each inside the one before"
    assert len(receiver.spans) == len(enabled) + 2 and receiver.services == {"m"}
    root = receiver.named(entry)
    assert attributes(root) == {
        "http.route": CHAT, "http.response.status_code": 200, "fovea.request_id": "r-1", "fovea.tenant": "default",
        "fovea.images": 1, "fovea.image_tokens": 0,
    }  # fmt: skip
    assert [event.name for event in root.events] == ["first byte"]
    for span in receiver.spans:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert house.told() == (root.trace_id.hex(), receiver.named("engine").span_id.hex(), True)


async def test_a_callers_trace_goes_on(receiver: Receiver) -> None:
    house = House(receiver.endpoint, share=0.0)
    await house.ask((b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode()), (b"tracestate", b"a=b"))
    await house.ask((b"traceparent", f"00-{TRACE}-b7ad6b7169203331-00".encode()))
    assert house.told()[2] is False, "the engine is told that this one is not traced"
    await house.close()
    root = receiver.named(f"POST {CHAT}")
    assert root.trace_id.hex() == TRACE and root.parent_span_id.hex() == "b7ad6b7169203331"
    assert (b"tracestate", b"a=b") in house.scopes[0]["headers"]


@pytest.mark.parametrize("given", [b"", b"nonsense", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"\xff" * 99])
async def test_what_is_no_traceparent_begins_a_trace_of_its_own(receiver: Receiver, given: bytes) -> None:
    house = House(receiver.endpoint)
    assert (await house.ask((b"traceparent", given))).status == 200
    await house.close()
    assert receiver.named(f"POST {CHAT}").parent_span_id == b""


async def test_what_is_not_sampled_leaves_nothing(receiver: Receiver) -> None:
    house = House(receiver.endpoint, share=0.0)
    answer = await house.ask()
    assert answer.status == 200 and house.told()[2] is False and PARENT not in house.scopes[0]
    await house.close()
    assert receiver.spans == []


async def test_refusals_and_failures_say_why(receiver: Receiver) -> None:
    house = House(receiver.endpoint, limits={"choices": 1})
    assert (await house.ask(n=5)).status == 400
    house.status = 503
    assert (await house.ask(path="/v1/completions")).status == 503
    await house.close()
    refused, failed = receiver.named(f"POST {CHAT}"), receiver.named("POST /v1/completions")
    assert attributes(refused)["error.type"] == "n_too_large" and refused.status.code == 0, "the caller's fault"
    assert failed.status.code == 2 and attributes(failed)["http.response.status_code"] == 503
    admits = [span for span in receiver.spans if span.name == "admit"]
    assert [span.status.code for span in admits] == [0, 0] and not any(span.events for span in admits)


async def test_probes_and_the_canary_are_not_traced(receiver: Receiver) -> None:
    house = House(receiver.endpoint)
    await call(house.app, scope_of("GET", "/metrics"))
    scope = {**scope_of("POST", CHAT, JSON), "fovea.canary": True}
    await call(house.app, scope, {"messages": []})
    await house.close()
    assert receiver.spans == [] and len(house.scopes) == 2


async def test_a_collector_that_is_gone_costs_nobody_an_answer() -> None:
    house = House("http://127.0.0.1:9/v1/traces")
    for _ in range(3):
        assert (await house.ask()).status == 200
    await house.close()


async def test_headers_for_the_collector_come_from_the_environment(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    house = House(receiver.endpoint)
    await house.ask()
    await house.close()
    assert receiver.headers[0]["authorization"] == "Bearer x"


def test_off_means_that_nothing_is_wrapped_and_nothing_imported() -> None:
    house = House("")
    assert not any(isinstance(layer, Span) for layer in layers_of(house.app))
    code = (
        "import sys; from serving.stack import Stack; from serving.layers import build_layers;"
        "s = Stack.model_validate({'models': [{'name': 'm', 'source': 'x'}]}); build_layers(None, s, s.models[0]);"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_the_front_passes_the_trace_on(receiver: Receiver) -> None:
    data = {"models": [{"name": "a", "source": "x"}, {"name": "b", "source": "y"}]}
    stack = Stack.model_validate({**data, "traces": {"endpoint": receiver.endpoint, "share": 1.0}})
    front = Front(front_part(stack).model_dump(mode="json"))
    front.reconfigure({"models": {"a": "/a"}})
    await front.__serve_build_asgi_app__()
    seen: list[Any] = []

    async def forward(method: str, paths: list[str], headers: Any, body: bytes | None, send: Any) -> None:
        seen.append(dict(headers))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    front.forward._forward = forward  # type: ignore[method-assign]
    assert Straight.target is not None
    answer = await call(Straight.target, scope_of("POST", CHAT, JSON), {"model": "a", "messages": []})
    assert answer.status == 200
    await front.stop()
    assert receiver.path("forward") == [f"POST {CHAT}", "forward"] and receiver.services == {"front"}
    span = receiver.named("forward")
    assert parsed(seen[0]["traceparent"]) == (span.trace_id.hex(), span.span_id.hex(), True)


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://c:4317/x", "http://c:4318", ""])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    from models.support.errors import UsageError
    from serving.stack import parse_stack

    with pytest.raises(UsageError, match=r"traces\.endpoint"):
        parse_stack({"models": [{"name": "m", "source": "x"}], "traces": {"endpoint": endpoint}})
