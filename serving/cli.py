"""`fovea serve`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.stack import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `fovea serve`'s arguments."""
    parser.add_argument("stack", nargs="?", default="stack.yaml", help="stack file (default: stack.yaml)")
    parser.add_argument("--schema", action="store_true", help="print the stack file's JSON Schema and exit")
    parser.add_argument("--check", action="store_true", help="check the stack file and exit")
    parser.add_argument("--host", help="override listen.host")
    parser.add_argument("--port", type=int, help="override listen.port")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; return 0 when everything stopped cleanly."""
    from serving import processes
    from serving.stack import Stack

    if args.schema:
        print(json.dumps(Stack.model_json_schema(), indent=2))
        return 0
    stack = read_stack(args)
    if args.check:
        print(
            json.dumps(stack.model_dump(mode="json"))
            if args.json
            else f"{args.stack}: {len(stack.models)} model(s), ok"
        )
        return 0
    folder = Path(tempfile.mkdtemp(prefix="fovea-"))
    processes.guard(folder)
    return serve(stack, Events(args.json), folder, again=lambda: read_stack(args))


def read_stack(args: argparse.Namespace) -> Stack:
    """Return the stack of the command line, everything checked that can be checked before it is started.

    Raises:
        UsageError: something about it is wrong.
    """
    from serving.adapters import check_adapters
    from serving.stack import load_stack, parse_stack

    stack = load_stack(args.stack)
    listen = {k: v for k, v in (("host", args.host), ("port", args.port)) if v is not None}
    if listen:
        data = stack.model_dump(mode="json")
        stack = parse_stack({**data, "listen": {**data["listen"], **listen}})
    for model in stack.models:
        _ = model.path  # a missing checkpoint is told before anything is started
        check_adapters(model, fetch=False)
    check_stores(stack)
    return stack


def check_stores(stack: Stack) -> None:
    """Refuse what could not be opened later, before anything is started.

    Raises:
        UsageError: the keys cannot be read, or there are none.
    """
    if stack.identify is None:
        return
    import asyncio

    from models.support.errors import UsageError
    from serving.errors import StoreDown
    from serving.keys import open_keys

    async def read() -> int:
        store = open_keys(identify.keys)
        try:
            found = await store.snapshot(None)
        finally:
            await store.close()
        return len(found[1]) if found else 0

    identify = stack.identify
    make = f"make a key: fovea keys create --tenant {identify.tenants[0].name}"
    try:
        count = asyncio.run(read())
    except StoreDown as error:
        raise UsageError(f"cannot read the keys: {error}", field="identify.keys", fix=make) from error
    if not count:
        raise UsageError("there are no keys, so nobody could call", field="identify.keys", fix=make)


class Events:
    """Tells a person (or, as JSON lines, a program) what is going on: lines with the time since the start."""

    def __init__(self, as_json: bool):
        self.as_json, self.began = as_json, time.monotonic()

    def say(self, text: str, **fields: Any) -> None:
        """Print one event."""
        if self.as_json:
            print(json.dumps({"event": text, "seconds": round(time.monotonic() - self.began, 1), **fields}), flush=True)
        else:
            print(f"[{time.monotonic() - self.began:5.1f} s] {text}", file=sys.stderr, flush=True)


def serve(
    stack: Stack,
    events: Events,
    folder: Path,
    again: Callable[[], Stack],
) -> int:
    """Start Ray and the stack, serve until SIGTERM or SIGINT, then drain and stop.  For the main thread.

    Args:
        stack: what to serve.
        events: where to report.
        folder: Ray's files, removed at the end.
        again: reads the stack anew, on SIGHUP; raises what is wrong with it.
    """
    from serving import processes, runtime

    stop, interrupts, hangups = threading.Event(), 0, threading.Semaphore(0)

    def on_hangup(number: int, frame: object) -> None:
        hangups.release()

    def on_signal(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        stop.set()
        if interrupts > 2:
            processes.kill_all()
            os._exit(130)

    def listen_for_signals() -> dict[int, Any]:
        handlers = {signal.SIGTERM: on_signal, signal.SIGINT: on_signal, signal.SIGHUP: on_hangup}
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}

    runtime.check_port(stack.listen.host, stack.listen.port)
    old = listen_for_signals()
    try:
        events.say("starting Ray")
        with runtime.local_ray(stack, folder):
            listen_for_signals()  # Ray has put its own handlers in place
            if stop.is_set():
                return 130
            runtime.deploy(stack)
            if not runtime.wait_until_running(stack, events.say, stop):
                return 130
            host = f"[{stack.listen.host}]" if ":" in stack.listen.host else stack.listen.host
            url = f"http://{host}:{stack.listen.port}/v1"
            runtime.wait_until_answering(stack, stop)
            events.say(f"ready at {url} ({', '.join(stack.names)})", url=url, ready=True, pid=os.getpid())
            if not events.as_json:
                print(paste(url, stack.models[0].name, key=bool(stack.identify)), flush=True)
            while not stop.wait(0.1):
                if hangups.acquire(blocking=False):
                    stack = reload(stack, again, events, stop)
            events.say("draining")
            runtime.drain(stack, events.say)
            runtime.stop_serve()
        events.say("stopped")
        return 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def reload(stack: Stack, again: Callable[[], Stack], events: Events, stop: threading.Event) -> Stack:
    """Read the stack file again and change what serves; return what serves now: the old stack where that failed."""
    from serving.update import update

    try:
        new = again()
        if update(stack, new, events.say, stop):
            events.say(f"updated: {', '.join(new.names)}", updated=True)
        return new
    except Exception as error:  # Ray has many kinds; none of them may end what serves
        events.say(f"not updated: {str(error) or type(error).__name__}", updated=False)
        return stack


# a red rectangle on 64x64 pixels, so that the example below needs no file
_SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX18Pr/AAD/"
    "T6MWAAAAE0lEQVR42mNgGJLgPxAMR8aQAwCchV+h2mB/YAAAAABJRU5ErkJggg=="
)


def paste(url: str, model: str, key: bool = False) -> str:
    """Return a curl command with an image in it that a person can paste; with `key` it sends $FOVEA_API_KEY."""
    body = {
        "model": model,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_SQUARE}"}},
                    {"type": "text", "text": "what color is the shape?"},
                ],
            }
        ],
        "max_tokens": 8,
    }
    who = '-H "authorization: Bearer $FOVEA_API_KEY" ' if key else ""
    return f"curl -s {url}/chat/completions {who}-H 'content-type: application/json' -d '{json.dumps(body)}'"
