"""`fovea ask IMAGE "question"`: the smallest client; takes a key from $FOVEA_API_KEY only."""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import mimetypes
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `fovea ask`'s arguments."""
    parser.add_argument("image", help="an image file, an http(s) URL, or - for an image on standard input")
    parser.add_argument("question", help="what to ask about it")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the API's address (default: %(default)s)")
    parser.add_argument("--model", help="model name (default: the only one, or the first, that is served)")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer, tokens (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait (default: %(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print the answer, its confidence, usage and latency as JSON"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask one question and print the answer."""
    url = args.url.rstrip("/")
    image = image_url(args.image)
    model = args.model or _take(_call(f"{url}/models", None, args.timeout), url, "data", 0, "id")
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": args.question}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": args.max_tokens,
        "temperature": 0,
        "logprobs": True,
    }
    began = time.perf_counter()
    answer = _call(f"{url}/chat/completions", body, args.timeout)
    seconds = time.perf_counter() - began
    text = _take(answer, url, "choices", 0, "message", "content") or ""
    if not args.json:
        print(text)
        return 0
    tokens = ((answer["choices"][0].get("logprobs") or {}).get("content")) or []
    logprob = sum(token["logprob"] for token in tokens) if tokens else None
    result = {
        "answer": text,
        "model": answer.get("model"),
        "logprob": logprob,
        "usage": answer.get("usage"),
        "latency_s": round(seconds, 4),
    }
    print(json.dumps(result))
    return 0


def image_url(image: str) -> str:
    """Return what goes into the request for an image given on the command line.

    Raises:
        UsageError: the file cannot be read.
    """
    if image.startswith(("http://", "https://", "data:")):
        return image
    try:
        data = sys.stdin.buffer.read() if image == "-" else Path(image).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the image: {error.strerror}",
            field="IMAGE",
            value=image,
            fix="name an existing file, a URL, or - for standard input",
        ) from error
    kind = mimetypes.guess_type(image)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _take(answer: Any, url: str, *path: str | int) -> Any:
    """Return a field of an answer.

    Raises:
        CheckFailed: it is not there: something else than this API answers.
    """
    for key in path:
        try:
            answer = answer[key]
        except (KeyError, IndexError, TypeError) as error:
            where = ".".join(str(part) for part in path)
            raise CheckFailed(
                f"the answer has no {where}", field="--url", value=url, fix="give the address of `/v1`"
            ) from error
    return answer


def _call(url: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
    """Call the API and return the parsed answer.

    Raises:
        UsageError: the server refused the request (4xx), or the URL is not one.
        CheckFailed: nothing answers there, or the server failed (5xx).
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError("not a usable address", field="--url", value=url, fix="write http://HOST:PORT/v1")
    data = None if body is None else json.dumps(body).encode()
    try:
        headers = {"content-type": "application/json"}
        if key := os.environ.get("FOVEA_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, data, headers)
        with opener(request.host).open(request, timeout=timeout_s) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            said = json.loads(text)["error"]
            text = said["message"] if isinstance(said, dict) else str(said)
        except (ValueError, KeyError, TypeError):
            text = " ".join(text.split())[:300]
        kind = UsageError if error.code < 500 else CheckFailed
        raise kind(f"the server answered {error.code}: {text}", field="--url", value=url) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise UsageError(
            f"not a usable address: {error}", field="--url", value=url, fix="write it like http://127.0.0.1:8000/v1"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        fix = "start `fovea serve` first, or give --url"
        raise CheckFailed(f"nothing answers there: {reason}", field="--url", value=url, fix=fix) from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckFailed(
            "the answer is not JSON", field="--url", value=url, fix="give the address of `/v1`"
        ) from error


def opener(host: str) -> urllib.request.OpenerDirector:
    """Return an opener that asks this machine directly, whatever proxy the environment names for the rest."""
    local = host.rsplit(":", 1)[0].strip("[]") in ("127.0.0.1", "localhost", "::1")
    return urllib.request.build_opener(*[urllib.request.ProxyHandler({})] if local else [])
