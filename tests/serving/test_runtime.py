"""Starting and stopping: the parts that need no Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from models.support.errors import UsageError
from serving import runtime


def test_the_reason_is_the_last_exception() -> None:
    message = """The replica failed to start:
      Traceback (most recent call last):
        File "x.py", line 1, in y
      ValueError: first: with a colon

    The above exception was the direct cause of the following exception:
      RuntimeError: Engine core initialization failed
    """
    assert runtime.reason_of(message) == "RuntimeError: Engine core initialization failed"
    quoted = "Traceback\nvllm.exceptions.SomeError: no\n  more text\n"
    assert runtime.reason_of(quoted) == "vllm.exceptions.SomeError: no more text"


def test_without_an_exception_the_reason_is_the_message() -> None:
    assert runtime.reason_of("replica\n  died ") == "replica died"
    assert runtime.reason_of("") == ""
    assert len(runtime.reason_of("x" * 10_000)) == 500


def test_a_free_port_is_free() -> None:
    port = runtime.free_port()
    runtime.check_port("127.0.0.1", port)
    assert port > 1024


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            runtime.check_port("127.0.0.1", port)
    assert caught.value.field and str(port) in str(caught.value) and caught.value.fix
    runtime.check_port("127.0.0.1", port)  # free again, although the last connection may linger


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "2001:db8::1"])
def test_an_address_that_is_not_this_machines(host: str) -> None:
    with pytest.raises(UsageError) as caught:
        runtime.check_port(host, runtime.free_port())
    assert host in str(caught.value)


def test_no_haproxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="HAProxy"):
        runtime.haproxy_binary()
    (tmp_path / "haproxy").write_text("#!/bin/sh\n")
    (tmp_path / "haproxy").chmod(0o755)
    assert runtime.haproxy_binary() == str(tmp_path / "haproxy")


CONFIG = """global
    stats socket /tmp/x level admin
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    http-request return status 200 content-type text/plain string "bind :9 is not a bind" if { path /x }
frontend public
    bind *:8001
frontend six
    bind [::1]:8002
listen stats
  bind *:8404
\tbind *:8405
"""


def test_haproxys_own_ports_are_put_on_loopback(tmp_path: Path) -> None:
    told = tmp_path / "told"
    real = tmp_path / "haproxy"
    real.write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word" >> {told}; done\nexit 7\n')
    real.chmod(0o755)
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    script = Path(runtime.__file__).with_name("haproxy.sh")
    assert os.access(script, os.X_OK)
    arguments = ["-db", "-f", str(config), "-sf", "1 2"]
    ran = subprocess.run(
        [script, *arguments], env={"PATH": os.environ["PATH"], "FOVEA_HAPROXY": str(real)}, check=False
    )
    assert ran.returncode == 7  # its exit status and its arguments are HAProxy's own
    assert told.read_text().splitlines() == arguments
    binds = [line.strip() for line in config.read_text().splitlines() if line.strip().startswith("bind ")]
    assert binds == [
        "bind 127.0.0.1:9101", "bind 127.0.0.1:8000", "bind *:8001", "bind [::1]:8002",
        "bind 127.0.0.1:8404", "bind 127.0.0.1:8405",
    ]  # fmt: skip
    changed = [(a, b) for a, b in zip(CONFIG.splitlines(), config.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 3


def test_a_stack_that_listens_everywhere_is_heard_everywhere(tmp_path: Path) -> None:
    """Ray writes its own template; the proxy that it starts is asked at an address that is not 127.0.0.1."""
    from ray.serve._private import haproxy as ray_haproxy
    from ray.serve.config import HTTPOptions

    port, stats, metrics = runtime.free_port(), runtime.free_port(), runtime.free_port()
    options = HTTPOptions(host="0.0.0.0", port=port)
    made = ray_haproxy.HAProxyConfig(
        http_options=options, stats_port=stats, metrics_port=metrics, socket_path=str(tmp_path / "admin.sock")
    )
    config = tmp_path / "haproxy.cfg"
    ray_haproxy.HAProxyApi(cfg=made, config_file_path=str(config))._generate_config_file_internal()
    script = Path(runtime.__file__).with_name("haproxy.sh")
    environment = {"PATH": os.environ["PATH"], "FOVEA_HAPROXY": runtime.haproxy_binary()}
    process = subprocess.Popen([str(script), "-db", "-f", str(config)], env=environment)

    def heard(address: str, port: int) -> bool:
        try:
            httpx.get(f"http://{address}:{port}/-/healthz", timeout=5)
        except httpx.HTTPError:
            return False
        return True

    try:
        for _ in range(200):
            if heard("127.0.0.1", port):
                break
            time.sleep(0.05)
        assert heard("127.0.0.2", port), config.read_text()
        assert heard("127.0.0.1", stats) and not heard("127.0.0.2", stats)
        assert heard("127.0.0.1", metrics) and not heard("127.0.0.2", metrics)
    finally:
        process.kill()
        process.wait()


PROXY = """defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend http_frontend
    bind 127.0.0.1:{port}
{routes}    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found. Ping /-/routes."
backend one
    http-request return status 200 content-type text/plain string "one"
"""


@pytest.mark.parametrize(
    ("routes", "status"), [("", 503), ("    acl is_one path_beg /one/\n    use_backend one if is_one\n", 404)]
)
def test_a_proxy_that_knows_of_no_application_asks_for_patience(tmp_path: Path, routes: str, status: int) -> None:
    port, config = runtime.free_port(), tmp_path / "haproxy.cfg"
    config.write_text(PROXY.format(port=port, routes=routes))
    script = Path(runtime.__file__).with_name("haproxy.sh")
    environment = {"PATH": os.environ["PATH"], "FOVEA_HAPROXY": runtime.haproxy_binary()}
    process = subprocess.Popen([str(script), "-db", "-f", str(config)], env=environment)
    try:
        answer = None
        for _ in range(200):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/x", timeout=5)
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        assert answer is not None and answer.status_code == status
        if status == 503:
            assert answer.headers["retry-after"] == "1" and answer.json()["error"]["code"] == "starting"
        else:
            assert httpx.get(f"http://127.0.0.1:{port}/one/x", timeout=5).text == "one" and "/x" in answer.text
    finally:
        process.kill()
        process.wait()
