"""`make demo`: serve the embedded model, ask it about real images, score it, load it, and show what an answer costs.

Runs the same public commands that a person would: `fovea serve`, `fovea ask`, `fovea models evaluate`,
`fovea loadtest run`.  Everything it starts ends with it, Ctrl-C included.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from serving.runtime import free_port  # noqa: E402

FOVEA = [sys.executable, str(ROOT / "fovea.py")]
NAME = "fovea-qwen"


class Stopped(Exception):
    """The demo was interrupted."""


def step(number: int, text: str) -> None:
    """Print a headline."""
    print(f"\n\033[1m{number}. {text}\033[0m" if sys.stdout.isatty() else f"\n{number}. {text}", flush=True)


def start(port: int) -> tuple[subprocess.Popen[str], str]:
    """Start `fovea serve` and return it with its API address when it is ready.

    Raises:
        RuntimeError: it ended before it was ready.
    """
    command = [*FOVEA, "serve", str(ROOT / "stack.yaml"), "--port", str(port), "--json"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    errors: list[str] = []
    threading.Thread(target=lambda: errors.extend(server.stderr or ()), daemon=True).start()
    SERVERS.append(server)
    for line in server.stdout or ():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        if "event" not in event:
            continue
        print(f"   [{event['seconds']:5.1f} s] {event['event']}", flush=True)
        if event.get("ready"):
            threading.Thread(target=lambda: [None for _ in server.stdout or ()], daemon=True).start()
            return server, event["url"]
    server.wait()
    raise RuntimeError("fovea serve ended: " + " ".join("".join(errors).split())[-500:])


SERVERS: list[subprocess.Popen[str]] = []


def stop_servers() -> None:
    """Stop what was started: SIGTERM, and SIGKILL for the whole process group if that does not do."""
    for server in SERVERS:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
    for server in SERVERS:
        with suppress(subprocess.TimeoutExpired):
            server.wait(40)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def run(*arguments: str) -> None:
    """Run one fovea command in the foreground.

    Raises:
        RuntimeError: it failed.
    """
    code = subprocess.run([*FOVEA, *arguments], check=False).returncode
    if code:
        raise RuntimeError(f"`fovea {' '.join(arguments)}` ended with code {code}")


def pictures(folder: Path) -> list[tuple[Path, str, str]]:
    """Write three test pictures into `folder` and return them with a question and its true answer each."""
    from models.golden import load_golden

    chosen: dict[str, tuple[Path, str, str]] = {}
    for item in load_golden("easy-vqa").items:
        if item.category not in chosen:
            path = folder / f"{item.category}.png"
            path.write_bytes(item.image_bytes())
            chosen[item.category] = (path, item.question, str(item.expected))
        if len(chosen) == 3:
            break
    return list(chosen.values())


def demo(args: argparse.Namespace) -> None:
    """Run the whole demo."""
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    step(1, "Serving the embedded Qwen2.5-VL with Ray Serve and vLLM")
    _, url = start(args.port or free_port())

    step(2, "Asking about test pictures through the OpenAI API")
    with tempfile.TemporaryDirectory(prefix="fovea-demo-") as folder:
        for path, question, truth in pictures(Path(folder)):
            done = subprocess.run(
                [*FOVEA, "ask", str(path), question, "--url", url, "--json"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"fovea ask failed: {done.stderr.strip()}")
            answer: dict[str, Any] = json.loads(done.stdout)
            print(f"   {question:45s} -> {answer['answer']!r} (truth: {truth}; {1000 * answer['latency_s']:.0f} ms)")

    step(3, f"Scoring {args.questions} easy-VQA test questions through the served endpoint")
    run(
        "models",
        "evaluate",
        url,
        "--model",
        NAME,
        "--golden",
        "easy-vqa",
        "--limit",
        str(args.questions),
        "--out",
        str(out / "evaluation"),
    )

    step(4, f"Load test: Poisson arrivals at {args.rate:g} requests/s for {args.seconds:g} s")
    run(
        "loadtest",
        "run",
        "--url",
        url,
        "--model",
        NAME,
        "--workload",
        "easy-vqa",
        "--rate",
        str(args.rate),
        "--warmup",
        "3",
        "--duration",
        str(args.seconds),
        "--max-tokens",
        "8",
        "--no-cache-bust",
        "--usd-per-hour",
        str(args.usd_per_hour),
        "--utilization",
        "0.4",
        "--max-slip-ms",
        "250",
        "--out",
        str(out / "loadtest"),
    )

    step(5, "What a right answer costs, beside the vendors: tokens by each vendor's rule, prices with source and date")
    run("loadtest", "cost", str(out / "loadtest"), "--out", str(out / "cost"))
    print(f"\nReports: {out / 'loadtest' / 'report.html'}, {out / 'cost' / 'cost.html'}")


def main() -> int:
    """Parse the command line, run the demo, and leave nothing behind."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--usd-per-hour", type=float, default=0.10, help="price of this machine; 2 shared cores in a cloud"
    )
    args = parser.parse_args()

    def stop(number: int, frame: object) -> None:
        raise Stopped

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        demo(args)
        return 0
    except Stopped:
        print("\nInterrupted; stopping the server.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"\nmake demo: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop_servers()


if __name__ == "__main__":
    sys.exit(main())
