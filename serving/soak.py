"""`python -m serving.soak --minutes 30`: a steady load on a stack with every layer on; is its memory flat?

The resident memory of every process of the stack is read every few seconds.  Compared are the means of the second and
the last third (the first fills caches): a kind of process may not grow by more than `--percent` and 16 MiB.  Exit code
1 when one does, when an answer was wrong, or when a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from serving.bench_stack import Served, served
from serving.steady import MODEL, Load

MIB = 2**20
KINDS = (
    ("VLLM::", "engine"), ("ray::ServeReplica", "replica"), ("/haproxy -db", "HAProxy"), ("ray::", "Serve"),
    ("gcs_server", "Ray"), ("raylet", "Ray"), ("/ray/", "Ray"), ("fovea.py", "fovea serve"),
)  # fmt: skip


def memory(stack: Served) -> dict[str, float]:
    """Return the resident memory of each kind of process, MiB."""
    import psutil

    found: dict[str, float] = defaultdict(float)
    root = psutil.Process(stack.process.pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            kind = next((kind for mark, kind in KINDS if mark in title), "other")
            found[kind] += process.memory_info().rss / MIB
    return dict(found)


async def soak(stack: Served, minutes: float, every_s: float, users: int) -> tuple[Load, list[dict[str, float]]]:
    """Run the load and read the memory."""
    load = Load(stack.url, users)
    running = asyncio.create_task(load.run())
    ends = time.monotonic() + 60 * minutes
    samples = []
    while time.monotonic() < ends:
        await asyncio.sleep(every_s)
        samples.append(await asyncio.to_thread(memory, stack))
    load.stop.set()
    await running
    return load, samples


def growth(samples: list[dict[str, float]], percent: float) -> dict[str, dict[str, Any]]:
    """Return, for each kind of process, the mean MiB of the second and the last third, and whether that is flat."""
    third = len(samples) // 3
    rows = {}
    for kind in sorted({kind for sample in samples for kind in sample}):
        values = [sample.get(kind, 0.0) for sample in samples]
        middle, last = statistics.fmean(values[third : 2 * third]), statistics.fmean(values[2 * third :])
        rows[kind] = {
            "first_mib": round(values[0], 1), "second_third_mib": round(middle, 1), "last_third_mib": round(last, 1),
            "highest_mib": round(max(values), 1),
            "flat": last - middle <= max(16.0, middle * percent / 100),
        }  # fmt: skip
    return rows


def main() -> int:
    """Serve, load, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=5, help="seconds between two readings (default: %(default)s)")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--percent", type=float, default=3, help="growth that is allowed (default: %(default)s)")
    args = parser.parse_args()
    if args.minutes * 60 / args.every < 9:
        parser.error("--minutes: too short for nine readings")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        stack = {
            "models": [{"name": MODEL, "source": "embedded:qwen2_5_vl", "max_model_len": 2048}],
            "recall": {"store": str(folder / "answers.db"), "memory_bytes": 8 * MIB, "file_bytes": 32 * MIB,
                       "semantic": {}},
            "admit": {"store": str(folder / "limits.db"),
                      "default": {"requests_per_minute": 10**6, "concurrent": 1000}},
            "lane": {}, "batches": {"folder": str(folder / "batches")},
            "money": {"usd_per_hour": "3.6", "capacity_rps": "1"},
        }  # fmt: skip
        with served(stack, folder) as running:
            load, samples = asyncio.run(soak(running, args.minutes, args.every, args.users))
    seen = load.account.between(0, float("inf"))
    rows = growth(samples, args.percent)
    result = {
        "minutes": args.minutes, "answers": seen["answers"], "failed": seen["failed"], "wrong": load.account.wrong,
        "given_up": load.account.given_up, "memory": rows,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    flat = all(row["flat"] for row in rows.values())
    return int(not flat or bool(result["wrong"] or result["failed"] or result["given_up"]))


if __name__ == "__main__":
    sys.exit(main())
