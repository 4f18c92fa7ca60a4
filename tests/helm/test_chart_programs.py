"""The chart's little programs, run as its pods run them: ask.py, job.py, push.py, wait.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helm.programs import FILES, run, server


def test_ask_sends_a_real_picture_with_the_key() -> None:
    import base64
    import io

    from PIL import Image

    seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    def answer(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append((path, json.loads(body), headers))
        return 200, json.dumps({"choices": [{"message": {"content": "red"}}]}).encode()

    with server(answer) as url:
        done = run("ask.py", url, "m", OPENAI_API_KEY="fovea_key")
    assert done.returncode == 0 and done.stdout == "m answers: 'red'\n"
    ((path, body, headers),) = seen
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer fovea_key"
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    assert (
        image.size == (64, 64) and image.getpixel((32, 32)) == (255, 0, 0) and image.getpixel((1, 1)) == (255, 255, 255)
    )


@pytest.mark.parametrize(("status", "content"), [(401, "red"), (400, "red"), (200, ""), (200, "  ")])
def test_ask_fails_when_it_gets_no_answer(status: int, content: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    with server(lambda *_: (status, body)) as url:
        done = run("ask.py", url, "m")
    assert done.returncode == 1 and ("refused" in done.stdout) is (status >= 400)


def test_ask_waits_for_a_stack_that_is_not_ready_yet() -> None:
    left = [503, 500]

    def answer(*_: Any) -> tuple[int, bytes]:
        return (
            (left.pop(), b"no") if left else (200, json.dumps({"choices": [{"message": {"content": "red"}}]}).encode())
        )

    with server(answer) as url:
        assert run("ask.py", url, "m").returncode == 0
    assert left == []


REPORT = {
    "accuracy": {"value": 0.98, "low": 0.97, "high": 0.99, "n": 500},
    "calibration": {"ece": {"value": 0.01}, "mean_confidence": 0.97},
    "errors": {"http_500": 2, "timeout": 1},
}


@pytest.mark.parametrize("report", [REPORT, {**REPORT, "calibration": None}])
def test_push_replaces_the_series_of_one_golden_set(report: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[str, str, str]] = []

    def answer(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append((method, path, body.decode()))
        return 200, b""

    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    with server(answer) as url:
        done = run("push.py", str(path), url + "/", "s", "m", "a b/c")
    assert done.returncode == 0, done.stderr
    ((method, where, text),) = seen
    assert (method, where) == ("PUT", "/metrics/job/fovea-evaluation/stack/s/model/m/golden/a%20b%2Fc")
    values = dict(line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    assert values["fovea_golden_accuracy"] == "0.98" and values["fovea_golden_items"] == "500"
    assert values["fovea_golden_unanswered"] == "3"
    assert ("fovea_golden_calibration_error" in values) is (report["calibration"] is not None)


def test_push_says_when_the_gateway_is_gone(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    done = run("push.py", str(tmp_path / "report.json"), "http://127.0.0.1:9", "s", "m", "g")
    assert done.returncode != 0 and "refused" in done.stderr


@contextmanager
def gateway() -> Iterator[tuple[str, dict[str, float]]]:
    """Keep what is pushed as a Pushgateway does with POST: by name, the rest stays.  Yields address and series."""
    series: dict[str, float] = {}

    def answer(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        assert (method, path) == ("POST", "/metrics/job/fovea-job/stack/s/kind/quantize/name/a%20b")
        lines = [line.split(" ") for line in body.decode().splitlines() if not line.startswith("#")]
        series.update({name: float(value) for name, value in lines})
        return 202, b""

    with server(answer) as url:
        yield url, series


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_a_job_tells_how_it_ended_and_ends_so_itself(script: str, code: int) -> None:
    with gateway() as (url, series):
        done = run("job.py", url, "s", "quantize", "a b", "sh", "-c", f"echo said; {script}")
    assert (done.returncode, done.stdout) == (code, "said\n"), done.stderr
    assert series["fovea_job_failed"] == float(code != 0)
    assert series["fovea_job_finished_seconds"] >= series["fovea_job_started_seconds"] > 1e9
    length = series["fovea_job_finished_seconds"] - series["fovea_job_started_seconds"]
    assert series["fovea_job_seconds"] == pytest.approx(length, abs=1e-6)


def test_a_job_that_is_told_to_stop_hands_it_on() -> None:
    script = "trap 'echo stopped; exit 3' TERM; echo begun; while :; do sleep 0.05; done"
    with gateway() as (url, series):
        command = [sys.executable, "-I", str(FILES / "job.py"), url, "s", "quantize", "a b", "sh", "-c", script]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert set(series) == {"fovea_job_started_seconds"}, "it is seen while it runs"
        process.terminate()
        assert process.communicate(timeout=60)[0] == "stopped\n" and process.returncode == 3
    assert series["fovea_job_failed"] == 1


def test_a_gateway_that_is_gone_does_not_fail_a_job() -> None:
    done = run("job.py", "http://127.0.0.1:9", "s", "quantize", "a b", "true")
    assert done.returncode == 0 and done.stderr.count("does not take the job's figures") == 4
    with gateway() as (url, series):
        assert run("job.py", url, "s", "quantize", "a b", "/no/such/program").returncode == 127
    assert series["fovea_job_failed"] == 1


def service(seen: int = 2, upgrading: str = "False", ready: str = "True", status: str = "RUNNING") -> dict[str, Any]:
    """Return a RayService as KubeRay reports it."""
    conditions = [{"type": "Ready", "status": ready, "reason": "x"}, {"type": "UpgradeInProgress", "status": upgrading}]
    applications = {"m": {"status": status}}
    return {
        "metadata": {"generation": 2},
        "status": {
            "observedGeneration": seen,
            "conditions": conditions,
            "activeServiceStatus": {"applicationStatuses": applications},
        },
    }


NOT_YET = {
    "generation 2 is not seen yet": service(seen=1),
    "the upgrade is in progress": service(upgrading="True"),
    "not ready: x": service(ready="False"),
    "applications that do not run yet: m": service(status="DEPLOYING"),
    "not ready: no condition yet": {"metadata": {"generation": 0}, "status": {}},
}


@pytest.mark.parametrize("said", NOT_YET)
def test_wait_waits_for_all_of_it(said: str) -> None:
    left = [NOT_YET[said]]
    asked: list[str] = []

    def answer(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        asked.append(path)
        return 200, json.dumps(left.pop() if left else service()).encode()

    with server(answer) as url:
        done = run("wait.py", url, "vision", "x-fovea", "30")
    assert done.returncode == 0 and done.stdout.splitlines() == [said, "ready"]
    assert set(asked) == {"/apis/ray.io/v1/namespaces/vision/rayservices/x-fovea"}


def test_wait_gives_up() -> None:
    with server(lambda *_: (403, b"forbidden")) as url:
        done = run("wait.py", url, "vision", "x", "1")
    assert done.returncode == 1 and "403" in done.stdout and done.stdout.endswith("not ready after 1 s\n")
