"""OpenTelemetry traces: a span for every layer that a request goes through, and vLLM's own for the engine's stages.

    POST /v1/chat/completions         the request: id, tenant, status, images, kind of error
      identify                        each layer's span begins when the request enters it and ends when its answer has
        admit                         left; what a layer takes itself is its span less the one inside
          screen
            engine                    vLLM's chat handler, or its app
              llm_request             vLLM's: time in queue, prefill, decode

Off without the section `traces`: nothing of this is imported, and no layer is wrapped.  A request that is not sampled
costs one decision and a header.  A caller's `traceparent` decides for its requests (W3C Trace Context); an Ingress that
serves strangers should remove it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving.section import Section

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE_S = 2.0
"""A collector that has not taken a batch after so long does not get it; a replica that stops waits no longer either."""
PARENT = "fovea.trace"
"""Key in the ASGI scope: OpenTelemetry's context of the span that the request is in; missing when it is not traced."""


class Traces(Section):
    """Where traces go."""

    endpoint: str = Field(
        pattern=r"^https?://[^/\s]+/.+$",
        description="OTLP over HTTP: http://HOST:4318/v1/traces. Headers come from OTEL_EXPORTER_OTLP_HEADERS.",
    )
    share: float = Field(
        0.1, ge=0, le=1, description="Share of the requests that is traced, where the caller is silent."
    )
    engine: bool = Field(True, description="vLLM's own span too: time in queue, prefill and decode.")


def engine_environment(section: Traces, name: str) -> dict[str, str]:
    """Return what vLLM's exporter goes by; it traces what our spans say is traced, and nothing of its own accord."""
    return {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": name,
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    }


class Tracing:
    """A process's tracer and its way to the collector.

    Args:
        section: the stack's section.
        name: the service's name: the model, or `front`.
        exporter: instead of OTLP over HTTP.
    """

    def __init__(self, section: Traces, name: str, exporter: Any = None):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.provider = TracerProvider(
            resource=Resource.create({"service.name": name}), sampler=ParentBased(TraceIdRatioBased(section.share))
        )
        self.provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=section.endpoint, timeout=PATIENCE_S))
        )
        self.tracer = self.provider.get_tracer("fovea")
        self.propagator = TraceContextTextMapPropagator()

    def layer(self, app: ASGIApp, name: str) -> ASGIApp:
        """Return a layer in a span of its own."""
        return Span(app, self, name)

    def entry(self, app: ASGIApp) -> ASGIApp:
        """Return the outermost app in the request's span."""
        return Entry(app, self)


class Span:
    """One layer's span; nothing for a request that is not traced."""

    def __init__(self, app: ASGIApp, tracing: Tracing, name: str):
        self.app, self.tracing, self.name = app, tracing, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outer = scope.get(PARENT)
        if outer is None:
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import set_span_in_context

        with self.tracing.tracer.start_as_current_span(
            self.name, outer, record_exception=False, set_status_on_exception=False
        ) as span:
            scope[PARENT] = set_span_in_context(span, outer)
            if self.name in ("engine", "forward"):
                _tell(scope, self.tracing)
            try:
                await self.app(scope, receive, send)
            finally:
                scope[PARENT] = outer


class Entry:
    """The request's span, and the decision whether there is one.  Probes and the canary have none."""

    def __init__(self, app: ASGIApp, tracing: Tracing):
        self.app, self.tracing = app, tracing

    async def stop(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self.tracing.provider.shutdown)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from serving.exchange import KEY
        from serving.layers.admit import PROBES
        from serving.metrics import route_label

        if scope["type"] != "http" or "fovea.canary" in scope or scope["path"].endswith(PROBES):
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        route = route_label(scope["path"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        caller = self.tracing.propagator.extract(headers)
        answer, begun = 0, False

        async def watched(message: Message) -> None:
            nonlocal answer, begun
            if message["type"] == "http.response.start":
                answer = message["status"]
            elif not begun and message.get("body"):
                begun = True
                span.add_event("first byte")
            await send(message)

        name, kind = f"{scope['method']} {route}", SpanKind.SERVER
        with self.tracing.tracer.start_as_current_span(name, caller, kind=kind, record_exception=False) as span:
            scope[PARENT] = set_span_in_context(span, caller)
            if not span.is_recording():
                _tell(scope, self.tracing)
                del scope[PARENT]
                await self.app(scope, receive, send)
                return
            try:
                await self.app(scope, receive, watched)
            finally:
                exchange = scope.get(KEY)
                found: dict[str, Any] = {"http.route": route, "http.response.status_code": answer}
                if exchange is not None:
                    found |= {
                        "fovea.request_id": exchange.request_id,
                        "fovea.tenant": exchange.tenant,
                        "fovea.images": len(exchange.pictures),
                        "fovea.image_tokens": exchange.image_tokens,
                    }
                    if exchange.error_kind:
                        found["error.type"] = exchange.error_kind
                span.set_attributes(found)
                if answer >= 500:
                    span.set_status(Status(StatusCode.ERROR))


def _tell(scope: Scope, tracing: Tracing) -> None:
    """Put `traceparent` (and `tracestate`) of the span that the request is in into its headers, for whoever is next."""
    carrier: dict[str, str] = {}
    tracing.propagator.inject(carrier, scope[PARENT])
    kept = [pair for pair in scope["headers"] if pair[0] not in (b"traceparent", b"tracestate")]
    scope["headers"] = [*kept, *((name.encode(), value.encode()) for name, value in carrier.items())]
