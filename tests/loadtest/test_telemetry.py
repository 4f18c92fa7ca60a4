"""The server's own metrics: read, summed over replicas, turned into rates, and never in the way of the run."""

import http.server
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.gpus import Gpus, NoGpu, binding
from loadtest.html_report import render
from loadtest.run import run_load
from loadtest.telemetry import parse_metrics
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

PAGE = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0 1700000000
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.125
vllm:prompt_tokens_total{engine="0"} %d
vllm:request_queue_time_seconds_sum %d
vllm:request_queue_time_seconds_count %d
broken line
other NaN
"""


def test_every_label_set_is_a_value() -> None:
    found = parse_metrics(PAGE % (5, 1, 2))
    assert found["vllm:num_requests_running"] == [3, 1]
    assert found["vllm:kv_cache_usage_perc"] == [0.25, 0.125]
    assert "other" not in found


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    assert all(isinstance(v, float) for values in parse_metrics(text).values() for v in values)


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
    assert rows["KV cache in use"]["max"] == 0.25  # of the fullest replica, not of all together
    # 100 more per scrape, about one scrape a second and one at the end
    assert rows["prompt tokens"]["mean"] > 50
    assert rows["time in the queue"]["mean"] == pytest.approx(1.5)
    assert any("127.0.0.1:9" in text for text in data["server"]["problems"])
    assert "KV cache in use" in render(data)


class Nvml:
    """A simulator of NVML: two GPUs, the second of which reports neither power nor energy.

    Only the functions that are used are there, with the units of NVIDIA's reference (bytes, milliwatts, millijoules).
    """

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, count: int = 2, init: str = "", access: str = ""):
        self.count, self.init, self.access = count, init, access
        self.millijoules = 5_000_000
        self.open = 0

    def nvmlInit(self) -> None:
        if self.init:
            raise self.NVMLError(self.init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        if self.access:
            raise self.NVMLError(self.access)
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Simulated GPU"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=87 - 75 * handle, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(used=40321 * 2**20, total=81559 * 2**20)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle:
            raise self.NVMLError("Not Supported")
        return 310_500

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if handle:
            raise self.NVMLError("Not Supported")
        self.millijoules += 250_000
        return self.millijoules


def test_gpu_figures(serve: Callable[..., Server], prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setattr("loadtest.gpus.binding", lambda: nvml)
    data = run_load(config_for(serve(Plan(first_s=0.01)), prompts, rate=20, duration_s=1.3)).data
    gpus = data["gpus"]
    rows = {row["name"]: row for row in gpus["rows"]}
    assert rows["GPU 0 use"]["mean"] == 87 and rows["GPU 1 use"]["max"] == 12
    assert (rows["GPU 0 memory"]["last"], rows["GPU 0 memory"]["unit"]) == (40321, "MiB")
    assert rows["GPU 0 power"]["max"] == 310.5 and rows["GPU 0 temperature"]["max"] == 61
    assert rows["GPU 0 use"]["n"] >= 2
    assert "GPU 1 power" not in rows and gpus["problems"] == {"GPU 1 power": "Not Supported"}
    # 250 J more at each reading of the first GPU's counter; the second has none
    assert gpus["energy_j"] > 0 and gpus["energy_j"] % 250 == 0
    assert gpus["names"] == ["Simulated GPU"] * 2 and gpus["note"] == ""
    assert nvml.open == 0
    assert "GPU 0 power" in render(data)


@pytest.mark.parametrize(
    ("nvml", "says"),
    [
        (
            Nvml(init="NVML Shared Library Not Found"),
            "no NVIDIA driver in this machine (NVML Shared Library Not Found)",
        ),
        (Nvml(access="Insufficient Permissions"), "gives no access to its GPUs (Insufficient Permissions)"),
        (Nvml(count=0), "knows no GPU"),
    ],
)
def test_without_a_gpu_the_report_says_why(
    serve: Callable[..., Server], prompts: str, monkeypatch: pytest.MonkeyPatch, nvml: Nvml, says: str
) -> None:
    monkeypatch.setattr("loadtest.gpus.binding", lambda: nvml)
    data = run_load(config_for(serve(), prompts, concurrency=1, requests=2)).data
    assert says in data["gpus"]["note"] and data["gpus"]["rows"] == [] and data["gpus"]["energy_j"] is None
    assert data["server"] == {} and nvml.open == 0
    assert says.split(" (")[0] in render(data)


def test_nvidias_own_binding_is_there() -> None:
    """The real one, on whatever this machine has: figures of real GPUs, or a reason why there are none."""
    assert callable(binding().nvmlDeviceGetUtilizationRates)
    try:
        gpus = Gpus()
    except NoGpu as error:
        assert "NVIDIA driver" in str(error)
        return
    assert any(name == "GPU 0 memory" and value > 0 for name, _, value in gpus.sample())
    gpus.close()


def test_without_vllm_there_is_no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoGpu, match="not installed"):
        binding.__wrapped__()
