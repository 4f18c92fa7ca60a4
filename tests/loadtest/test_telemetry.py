"""The server's own metrics: read, summed over replicas, turned into rates, and never in the way of the run."""

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.html_report import render
from loadtest.run import run_load
from loadtest.telemetry import Telemetry, parse_metrics
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

PAGE = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0 1700000000
vllm:kv_cache_usage_perc 0.25
vllm:prompt_tokens_total{engine="0"} %d
vllm:request_queue_time_seconds_sum %d
vllm:request_queue_time_seconds_count %d
broken line
other NaN
"""


def test_samples_are_summed_over_labels() -> None:
    found = parse_metrics(PAGE % (5, 1, 2))
    assert found["vllm:num_requests_running"] == 4
    assert found["vllm:kv_cache_usage_perc"] == 0.25
    assert "other" not in found


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    assert all(isinstance(v, float) for v in parse_metrics(text).values())


@contextmanager
def metrics_server() -> Iterator[str]:
    asked = [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[0] += 1
            body = (PAGE % (asked[0] * 100, asked[0] * 3, asked[0] * 2)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()


def test_metrics_stand_in_the_report(serve: Callable[..., Server], prompts: str) -> None:
    with metrics_server() as url:
        config = config_for(
            serve(Plan(first_s=0.01)),
            prompts,
            rate=20,
            duration_s=1.5,
            metrics_urls=(url, "http://127.0.0.1:9/metrics"),
        )
        data = run_load(config).data
    rows = {row["name"]: row for row in data["server"]["rows"]}
    assert rows["running requests (batch size)"]["mean"] == 4
    assert rows["KV cache in use"]["max"] == 0.25
    # 100 more per scrape, about one scrape a second and one at the end
    assert rows["prompt tokens"]["mean"] > 50
    assert rows["time in the queue"]["mean"] == pytest.approx(1.5)
    assert any("127.0.0.1:9" in text for text in data["server"]["problems"])
    assert "KV cache in use" in render(data)


def test_a_missing_gpu_tool_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.telemetry.NVIDIA_SMI", ("no-such-tool",))
    with Telemetry((), gpu=True) as telemetry:
        telemetry._stop.wait(0.1)
    assert "nvidia-smi" in telemetry.result()["problems"][0]


def test_gpu_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.telemetry.NVIDIA_SMI", ("echo", "0, 87, 40321, 310.5\n1, 12, 100, [N/A]"))
    with Telemetry((), gpu=True) as telemetry:
        telemetry._stop.wait(0.2)
    rows = {row["name"]: row["max"] for row in telemetry.result()["rows"]}
    assert rows["GPU 0 use"] == 87 and rows["GPU 0 power"] == 310.5 and rows["GPU 1 memory"] == 100
    assert "GPU 1 power" not in rows
