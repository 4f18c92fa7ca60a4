"""A receiver of OTLP over HTTP, for tests: it keeps the spans that it is sent."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """A collector for OTLP over HTTP that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                outer.take(self.path, self.rfile.read(int(self.headers["content-length"])), dict(self.headers.items()))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        assert path == "/v1/traces"
        self.headers.append({name.lower(): value for name, value in headers.items()})
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> Any:
        """The only span of a name."""
        (span,) = [one for one in self.spans if one.name == name]
        return span

    def path(self, name: str) -> list[str]:
        """Names from the trace's first span down to one."""
        by_id = {span.span_id: span for span in self.spans}
        found = [self.named(name)]
        while found[0].parent_span_id in by_id:
            found.insert(0, by_id[found[0].parent_span_id])
        return [span.name for span in found]


def attributes(span: Any) -> dict[str, Any]:
    """Return a span's attributes."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
