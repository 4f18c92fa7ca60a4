"""`fovea batch`: submit a file of requests, watch a batch, cancel it, fetch its results; over HTTP, like any client.

A key is taken from $FOVEA_API_KEY.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed, UsageError

RUNNING = ("validating", "in_progress", "cancelling", "finalizing")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fovea batch`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    submit = actions.add_parser("submit", help="upload a file of requests and start a batch")
    submit.add_argument("file", help="JSONL, as OpenAI's Batch API takes it")
    submit.add_argument("--endpoint", default="/v1/chat/completions", help="of all its lines (default: %(default)s)")
    watch = actions.add_parser("watch", help="show a batch's progress until it has ended")
    watch.add_argument("--every", type=float, default=1.0, help="seconds between two looks (default: %(default)s)")
    cancel = actions.add_parser("cancel", help="end a batch; what was answered is kept")
    results = actions.add_parser("results", help="print a batch's answers, or its errors")
    results.add_argument("--errors", action="store_true", help="the failed lines instead")
    for action in (watch, cancel, results):
        action.add_argument("id", help="batch id")
    for action in (submit, watch, cancel, results):
        action.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the API (default: %(default)s)")
        action.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one action; return 1 when a watched batch has not completed or some of its lines failed."""
    return int(ACTIONS[args.action](args))


def submit(args: argparse.Namespace) -> int:
    """Upload a file and start a batch."""
    path = Path(args.file)
    if not path.is_file():
        raise UsageError("no such file", field="FILE", value=args.file, fix="name a JSONL file")
    file = _call(args.url, "POST", "/files", *_form(path))
    asked = {"input_file_id": file["id"], "endpoint": args.endpoint, "completion_window": "24h"}
    batch = _call(args.url, "POST", "/batches", json.dumps(asked).encode(), "application/json")
    print(json.dumps(batch) if args.json else batch["id"])
    return 0


def watch(args: argparse.Namespace) -> int:
    """Show progress until the batch has ended."""
    began, first = time.monotonic(), None
    while True:
        batch = _call(args.url, "GET", f"/batches/{args.id}")
        counts = batch["request_counts"]
        done = counts["completed"] + counts["failed"]
        first = done if first is None else first
        seconds = time.monotonic() - began
        if args.json:
            print(json.dumps(batch), flush=True)
        else:
            rate = (done - first) / seconds if seconds and done > first else 0.0
            left = f", {(counts['total'] - done) / rate:.0f} s left" if rate and batch["status"] in RUNNING else ""
            print(
                f"{batch['status']}: {done}/{counts['total']} lines, {counts['failed']} failed, {rate:.1f}/s{left}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        if batch["status"] not in RUNNING:
            return 0 if batch["status"] == "completed" and not counts["failed"] else 1
        time.sleep(args.every)


def cancel(args: argparse.Namespace) -> int:
    """End a batch."""
    batch = _call(args.url, "POST", f"/batches/{args.id}/cancel", b"{}", "application/json")
    print(json.dumps(batch) if args.json else batch["status"])
    return 0


def results(args: argparse.Namespace) -> int:
    """Print the lines of a batch's output, or of its error file."""
    batch = _call(args.url, "GET", f"/batches/{args.id}")
    file_id = batch["error_file_id" if args.errors else "output_file_id"]
    if file_id is None:
        what = "no failed line" if args.errors else "no answer"
        raise CheckFailed(f"the batch has {what} (yet)", field="id", value=args.id, fix=f"it is {batch['status']}")
    with _open(args.url, "GET", f"/files/{file_id}/content", None, "") as answer:
        while piece := answer.read(2**16):
            sys.stdout.write(piece.decode())
    return 0


ACTIONS = {"submit": submit, "watch": watch, "cancel": cancel, "results": results}


def _form(path: Path) -> tuple[Any, str]:
    """Return a form with the file in it, as a body that is read piece by piece, and its content type."""
    mark = uuid.uuid4().hex
    head = (
        f'--{mark}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{mark}\r\n'
        f'content-disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
    ).encode()
    return _Pieces(head, path, f"\r\n--{mark}--\r\n".encode()), f"multipart/form-data; boundary={mark}"


class _Pieces:
    """A request body that is never in memory as a whole."""

    def __init__(self, head: bytes, path: Path, tail: bytes):
        self.head, self.path, self.tail = head, path, tail
        self.length = len(head) + path.stat().st_size + len(tail)

    def __iter__(self) -> Any:
        yield self.head
        with self.path.open("rb") as file:
            while piece := file.read(2**18):
                yield piece
        yield self.tail


def _open(url: str, method: str, path: str, body: Any, kind: str) -> Any:
    """Send a request.

    Raises:
        UsageError: it was refused (4xx), or the URL is not one.
        CheckFailed: nothing answers there, or it failed (5xx).
    """
    headers = {"content-type": kind} if kind else {}
    if isinstance(body, _Pieces):
        headers["content-length"] = str(body.length)
    if key := os.environ.get("FOVEA_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(url.rstrip("/") + path, body, headers, method=method)
        from serving.ask import opener

        return opener(request.host or "").open(request, timeout=120)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            text = " ".join(text.split())[:300]
        kind_of = UsageError if error.code < 500 else CheckFailed
        raise kind_of(f"the server answered {error.code}: {text}", field="--url", value=url) from error
    except (OSError, ValueError) as error:
        fix = "start `fovea serve` first, or give --url"
        raise CheckFailed(f"nothing answers there: {error}", field="--url", value=url, fix=fix) from error


def _call(url: str, method: str, path: str, body: Any = None, kind: str = "") -> Any:
    with _open(url, method, path, body, kind) as answer:
        try:
            return json.loads(answer.read())
        except ValueError as error:
            raise CheckFailed("the answer is not JSON", field="--url", value=url, fix="give the API's /v1") from error
