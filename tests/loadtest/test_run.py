"""Whole runs against a server with known behaviour: the figures are the truth, and what goes wrong is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fovea import main
from loadtest.run import run_load
from tests.loadtest.conftest import config_for
from tests.loadtest.server import Plan, Server

Serve = Callable[..., Server]
STALL, LENGTH, BASE = 0.8, 4.0, 0.005


def run_with_stall(server: Server, prompts: str, **load: Any) -> dict[str, Any]:
    """Run a load with a stall of 0.8 s planted at second 1.5."""
    config = config_for(server, prompts, check_model=False, stream=False, **load)
    return run_load(config, on_begin=lambda start: server.stall(start + 1.5, STALL)).data


def test_a_planted_stall_is_seen_in_full_only_from_the_intended_send(serve: Serve, prompts: str) -> None:
    """The defining property.  Truth: requests that arrive t seconds into the stall wait 0.8 - t seconds more.

    A fifth of Poisson arrivals falls into the stall, so the latency above which 1 % lie is 0.8 s minus 1 % of 4 s,
    plus the base: 0.765 s.  One user in a closed loop sends a single request into the stall.
    """
    truth_ms = 1e3 * (BASE + STALL - 0.01 * LENGTH)
    opened = run_with_stall(serve(Plan(first_s=BASE)), prompts, rate=200, duration_s=LENGTH)
    p99 = opened["latency_ms"]["p99"]
    assert p99["low"] <= truth_ms <= p99["high"]
    assert abs(p99["value"] / truth_ms - 1) < 0.15
    closed = run_with_stall(serve(Plan(first_s=BASE)), prompts, concurrency=1, requests=400)  # they take 2 s at least
    assert closed["requests"] == 400
    assert closed["latency_ms"]["p99"]["value"] < truth_ms / 10


def test_percentiles_of_known_latencies(serve: Serve, prompts: str) -> None:
    """Half of the requests take 20 ms, half 120 ms: p95 and p50 lie where they must (a busy machine adds some)."""
    turns = iter(range(10**6))
    server = serve(lambda request: Plan(first_s=0.02 if next(turns) % 2 else 0.12))
    data = run_load(config_for(server, prompts, rate=60, requests=300, warmup_s=0.3, stream=False)).data
    assert data["requests"] == 300 and data["errors"] == 0
    for name, low in (("p95", 120), ("p90", 120)):
        assert low <= data["latency_ms"][name]["value"] < 3 * low
    assert data["latency_ms"]["min"] >= 20
    assert data["accuracy"] == {**data["accuracy"], "value": 1.0, "n": 300}
    assert data["latency_ms"]["p99"]["note"] == "n too small"


def test_streaming_times(serve: Serve, prompts: str) -> None:
    server = serve(Plan(first_s=0.05, gap_s=0.02, pieces=("y", "e", "s")))
    data = run_load(config_for(server, prompts, concurrency=2, requests=20)).data
    assert 50 <= data["ttft_ms"]["p50"]["value"] < data["latency_ms"]["p50"]["value"]
    assert data["latency_ms"]["min"] >= 90
    assert data["tpot_ms"]["p50"]["value"] >= 18
    assert data["inter_token_ms"]["p50"]["n"] >= 20
    assert data["tokens"]["completion_per_request"]["value"] == 3


def test_the_same_seed_sends_the_same_at_the_same_times(serve: Serve, prompts: str) -> None:
    runs = []
    for _ in range(2):
        server = serve()
        report = run_load(config_for(server, prompts, rate=40, requests=30, seed=7, check_model=False))
        runs.append(
            (
                report.records["intended"].round(6).tolist(),
                [r["messages"] for _, r in sorted(server.requests, key=lambda x: x[0])],
            )
        )
    assert runs[0][0] == runs[1][0]
    assert sorted(map(str, runs[0][1])) == sorted(map(str, runs[1][1]))


def test_prompts_repeat_only_when_told_so(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"say {i}"}) for i in range(5)))

    def prompts_of(**values: Any) -> list[str]:
        server = serve()
        data = run_load(config_for(server, str(path), concurrency=2, requests=20, check_model=False, **values)).data
        return [str(data["workload"][0]["repeats"]), *(r["messages"][0]["content"] for _, r in server.requests)]

    repeats, *sent = prompts_of()
    assert repeats == "0" and len(sent) == len(set(sent)) == 20
    assert sum(text.startswith("say") for text in sent) == 5 and all("say" in text for text in sent)
    repeats, *sent = prompts_of(cache_bust=False)
    assert repeats == "15" and len(set(sent)) == 5


def test_warm_up_and_cool_down_are_left_out(serve: Serve, prompts: str) -> None:
    server = serve(Plan(first_s=0.001))
    report = run_load(
        config_for(server, prompts, rate=100, arrival="constant", duration_s=1, warmup_s=0.5, cooldown_s=0.5)
    )
    assert report.data["requests"] == 100
    assert len(report.records) == 200


def test_a_dead_server_in_the_middle_of_a_run(serve: Serve, prompts: str) -> None:
    """It dies of the 20th request.  At most four are under way at a time, so others have been answered by then, and
    what was to come afterwards, or waited for one of the four connections, is refused."""

    def decide(request: dict[str, Any]) -> Plan:
        if len(server.requests) >= 20:
            server.die()
        return Plan(first_s=0.005)

    server = serve(decide)
    config = config_for(server, prompts, rate=100, requests=60, max_connections=4, check_model=False)
    data = run_load(config).data
    found = {row["kind"]: row["count"] for row in data["errors_by_kind"]}
    assert set(found) <= {"connect", "reset", "cut"}
    assert found["connect"] >= 60 - len(server.requests) - 4
    assert 20 <= len(server.requests) < 24 and data["requests"] == 60
    assert 0 <= len(server.requests) - (60 - data["errors"]) <= 4


def test_a_late_generator_makes_the_run_invalid(serve: Serve, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    config = config_for(server, prompts, rate=100, duration_s=0.6, max_slip_ms=0.000001, check_model=False)
    report = run_load(config)
    assert not report.valid and "slip" in report.data["invalid_because"][0]
    words = ["--url", server.url, "--model", "m", "--workload", prompts, "--rate", "50", "--duration", "0.5"]
    code, text, error = fovea(capsys, *words, "--max-slip-ms", "0.000001")
    assert code == 1 and "Invalid run: the load generator could not keep its schedule" in text
    assert "invalid run: schedule slip p99" in error and "use more --processes" in error


def test_several_processes_give_one_report(serve: Serve, prompts: str, tmp_path: Path) -> None:
    server = serve(Plan(first_s=0.002, gap_s=0.005, pieces=("yes", "!")))
    report = run_load(config_for(server, prompts, rate=100, requests=150, processes=2))
    data = report.data
    assert (data["requests"], data["errors"]) == (150, 0)
    assert set(report.records["worker"]) == {0, 1}
    assert (np.diff(report.records["intended"]) >= 0).all()
    assert len(data["generator"]["cpu_cores"]) == 2
    assert data["inter_token_ms"]["p50"]["n"] > 100
    closed = run_load(config_for(server, prompts, concurrency=3, requests=31, processes=2)).data
    assert closed["requests"] == 31


def test_run_inside_a_running_loop(serve: Serve, prompts: str) -> None:
    import asyncio

    async def inside() -> int:
        return int(run_load(config_for(serve(), prompts, concurrency=1, requests=5)).data["requests"])

    assert asyncio.run(inside()) == 5


# -- the command


def fovea(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["loadtest", "run", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_writes_all_reports(
    serve: Serve, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(Plan(pieces=("yes",)))
    out = tmp_path / "out"
    words = ["--url", server.url, "--model", "m", "--workload", prompts, "--concurrency", "2", "--requests", "40"]
    words += ["--usd-per-hour", "0.80", "--utilization", "0.5", "--max-slip-ms", "5000", "--slo-latency-ms", "60000"]
    code, text, error = fovea(capsys, *words, "--out", str(out))
    assert code == 0, error
    assert "time to first token" in text and "per 1,000 queries" in text and "report.html" in text
    data = json.loads((out / "report.json").read_text())
    rps, query = data["throughput_rps"]["value"], data["cost"]["usd_per_query"]
    assert query["value"] == pytest.approx(0.8 / (3600 * rps * 0.5), rel=1e-4)
    assert query["low"] <= query["value"] <= query["high"] and query["n"] == 40
    assert data["cost"]["usd_per_correct_answer"]["value"] == pytest.approx(query["value"])
    assert data["goodput"]["share"]["value"] == 1.0
    for key in (
        "requests",
        "errors",
        "ttft_ms",
        "baselines",
        "versions",
        "seed",
        "hardware",
        "command",
        "schema_version",
    ):
        assert key in data
    assert {"vendor", "model", "usd_per_query", "effective_from", "source"} <= set(data["baselines"][0])
    lines = (out / "requests.csv").read_text().splitlines()
    assert len(lines) == 41 and lines[0].startswith("class,item,intended_s")
    assert (
        "http"
        not in (out / "report.html").read_text().replace(server.url, "").replace("http_", "").split("<details>")[0]
    )
    assert 'fovea_loadtest_requests{model="m"} 40' in (out / "report.prom").read_text()
    assert "| end to end |" in (out / "report.md").read_text()


def test_command_json(serve: Serve, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--url", serve().url, "--model", "m", "--workload", prompts, "--rate", "50", "--requests", "10", "--json"]
    code, text, _ = fovea(capsys, *words, "--max-slip-ms", "5000")
    assert code == 0 and json.loads(text)["requests"] == 10


GOOD = ("--url", "URL", "--model", "m", "--workload", "PROMPTS", "--concurrency", "1", "--requests", "2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--url": "http://127.0.0.1:9/v1"}, "--url: cannot connect"),
        ({"--url": "127.0.0.1"}, "--url: not an http(s) URL"),
        ({"--url": "http://no.such.host.invalid/v1"}, "--url: unknown host"),
        ({"--model": "other"}, "--model: the server does not have this model (got 'other'); it has m"),
        ({"--workload": "nothing.jsonl"}, "--workload: cannot read"),
        ({"--workload": "BROKEN"}, "line 2: not JSON"),
        ({"--workload": "unknown"}, "unknown workload"),
        ({"--concurrency": "0"}, "concurrency"),
        ({"--requests": "0"}, "requests"),
        ({"--out": "FILE/x"}, "--out: cannot write there"),
        ({"--usd-per-hour": "lots"}, "--usd-per-hour: must be a number"),
        ({"--utilization": "0.5"}, "--usd-per-hour: the hardware has no price"),
        ({"--usd-per-hour": "1", "--utilization": "1.5"}, "utilization"),
        ({"--workload-option": "limit"}, "KEY=VALUE"),
        ({"--rate": "5"}, "exactly one of rate, concurrency"),
        ({"--duration": "5"}, "exactly one of duration_s and requests"),
        ({"--concurrency": None, "--rate": "0"}, "--rate: must be above zero"),
        ({"--concurrency": None, "--rate": "5", "--arrival": "never"}, "unknown arrival process"),
        ({"--concurrency": None}, "--rate: no load given"),
        ({"--requests": None}, "--duration: no end given"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_bad_input_ends_with_one_clear_error(
    serve: Serve,
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    says: str,
) -> None:
    server = serve()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    names = {
        "URL": server.url,
        "PROMPTS": prompts,
        "BROKEN": str(tmp_path / "broken.jsonl"),
        "FILE/x": f"{tmp_path}/file/x",
    }
    options: dict[str, str | None] = {**dict(zip(GOOD[::2], GOOD[1::2], strict=True)), **change}
    words = [w for k, v in options.items() if v is not None for w in (k, names.get(v, v))]
    code, _, error = fovea(capsys, *words)
    assert code == 2
    assert says in error and error.count("\n") == 1


def test_a_refused_key_names_the_variable(
    serve: Serve, prompts: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(key="right")
    words = ["--url", server.url, "--model", "m", "--workload", prompts, "--concurrency", "1", "--requests", "3"]
    words += ["--api-key-env", "LOADTEST_KEY", "--max-slip-ms", "5000"]
    monkeypatch.setenv("LOADTEST_KEY", "wrong")
    code, _, error = fovea(capsys, *words)
    assert code == 2 and "LOADTEST_KEY" in error and "401" in error
    monkeypatch.setenv("LOADTEST_KEY", "right")
    assert fovea(capsys, *words)[0] == 0


def test_nothing_but_errors_fails_the_check(serve: Serve, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(Plan(status=503, body=b"busy"))
    words = ["--url", server.url, "--model", "m", "--workload", prompts, "--concurrency", "1", "--requests", "2"]
    code, text, error = fovea(capsys, *words)
    assert code == 1 and "not one request succeeded" in error and "http_503" in text
    code, text, error = fovea(capsys, *words, "--json")
    assert code == 1 and "not one request succeeded" in error
    assert json.loads(text)["errors"] == 2, "one document: the report, and not the error after it"


CLASSES = """
classes:
  - {name: interactive, workload: text, rate: 30, max_tokens: 5, slo: {latency_ms: 60000}}
  - {name: batch, workload: text, concurrency: 2, max_tokens: 99, slo: {latency_ms: 1}}
  - {name: nightly, workload: text, rate: 30, max_tokens: 7, begin_s: 0.5, end_s: 1}
"""


def test_classes_file(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "classes.yaml", tmp_path / "out"
    path.write_text(CLASSES)
    words = ["--url", serve(Plan(first_s=0.005)).url, "--model", "m", "--duration", "1.5", "--max-slip-ms", "5000"]
    code, text, _ = fovea(capsys, *words, "--classes", str(path), "--out", str(out))
    assert code == 0
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("interactive ", "batch "))}
    assert " 100 % (" in rows["interactive"] and " 0 % (" in rows["batch"]
    data = json.loads((out / "report.json").read_text())
    nightly = [r for r in (out / "requests.csv").read_text().splitlines() if r.startswith("nightly,")]
    assert len(nightly) == data["classes"]["nightly"]["requests"] > 5
    assert all(0.5 <= float(row.split(",")[2]) < 1 for row in nightly)
    assert "within its SLO" in (out / "report.md").read_text() and "Classes" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("classes: 5", "--classes: must be a list of traffic classes"),
        ("[", "--classes: not YAML"),
        ("- {name: a, workload: text}", "give exactly one of rate, concurrency and trace"),
        ("- {name: a, workload: text, rate: 1, speed: 2}", "speed"),
        ("- {name: a, workload: text, concurrency: 1, begin_s: 2}", "begin_s and end_s go with rate and trace"),
        ("- {name: a, workload: text, rate: 1, begin_s: 2, end_s: 1}", "end_s must be after begin_s"),
        ("[{name: a, workload: text, rate: 1}, {name: a, workload: text, rate: 1}]", "a name of its own"),
        (None, "--classes: cannot read"),
    ],
)
def test_broken_classes_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    path = tmp_path / "classes.yaml"
    if content is not None:
        path.write_text(content)
    words = ["--url", "http://127.0.0.1:9/v1", "--model", "m", "--duration", "1", "--classes", str(path)]
    code, _, error = fovea(capsys, *words)
    assert code == 2 and says in error and error.count("\n") == 1


def test_replay_of_a_trace(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mooncake's columns: times in milliseconds, and lengths that the prompts and answers follow."""
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 100 * i, "input_length": 130, "output_length": 5, "hash_ids": []} for i in range(5)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    server = serve()
    words = ["--url", server.url, "--model", "m", "--max-slip-ms", "5000", "--no-check", "--out", str(tmp_path / "out")]
    words += ["--workload", "trace", "--workload-option", f"path={path}", "--trace-scale", "2"]
    code, text, _ = fovea(capsys, *words, "--trace", str(path))
    assert code == 0 and "5 requests, 0 errors" in text and "at 2x" in text
    assert {r["max_tokens"] for _, r in server.requests} == {5}
    lines = (tmp_path / "out" / "requests.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[2]) for line in lines] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    # What this tool has recorded is a trace too.
    code, text, _ = fovea(capsys, *words[:-6], "--workload", "text", "--trace", str(tmp_path / "out" / "requests.csv"))
    assert code == 0 and "5 requests, 0 errors" in text
