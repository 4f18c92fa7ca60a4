"""Run a job's command and tell a Pushgateway when it began and how it ended: `job.py URL STACK KIND NAME COMMAND...`.

The exit code is the command's, 128 + N when signal N ended it; SIGTERM is handed on to it.  A gateway that does not
take the figures costs a line in the log and never the job.  Standard library only.  The series are the ones that the
jobs dashboard and the alert FoveaJobFailed look at.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

TEXTS = {
    "fovea_job_started_seconds": "When it last began, seconds since 1970.",
    "fovea_job_finished_seconds": "When it last ended, seconds since 1970.",
    "fovea_job_seconds": "How long it ran.",
    "fovea_job_failed": "1: it failed.",
}


def push(url: str, figures: dict[str, float], tries: int) -> None:
    """Send figures beside what the gateway has already (POST); the start's stay when the end's come."""
    lines = [f"# HELP {name} {TEXTS[name]}\n# TYPE {name} gauge\n{name} {value!r}\n" for name, value in figures.items()]
    request = urllib.request.Request(url, "".join(lines).encode(), {"content-type": "text/plain"}, method="POST")
    for left in reversed(range(tries)):
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except OSError as error:
            print(f"job.py: {url} does not take the job's figures: {error}", file=sys.stderr, flush=True)
            if left:
                time.sleep(float(os.environ.get("EVERY_S", "2")))


def run(command: list[str]) -> int:
    """Run a command and hand SIGTERM on to it; return its exit code."""
    running: list[subprocess.Popen] = []
    told: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        told.append(number)
        for process in running:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    try:
        running.append(subprocess.Popen(command))
    except OSError as error:
        print(f"job.py: {error}", file=sys.stderr)
        return 127
    if told:  # before there was anybody to hand it on to
        running[0].send_signal(told[0])
    code = running[0].wait()
    return code if code >= 0 else 128 - code


def main() -> int:
    """Run it, tell of it; return the exit code."""
    gateway, *names = sys.argv[1:5]
    labels = zip(("stack", "kind", "name"), names, strict=True)
    grouping = "".join(f"/{label}/{urllib.parse.quote(value, safe='')}" for label, value in labels)
    url = f"{gateway.rstrip('/')}/metrics/job/fovea-job{grouping}"
    began = time.time()
    push(url, {"fovea_job_started_seconds": began}, tries=1)
    code = run(sys.argv[5:])
    ended = time.time()
    figures = {
        "fovea_job_finished_seconds": ended,
        "fovea_job_seconds": ended - began,
        "fovea_job_failed": float(code != 0),
    }
    push(url, figures, tries=3)
    return code


if __name__ == "__main__":
    sys.exit(main())
