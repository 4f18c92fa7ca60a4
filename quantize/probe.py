"""What one engine shows at one request at a time: first-token distributions, and how long the picture takes.

The picture's share is measured, not modelled: the time to the first token with a picture, less that of a text prompt of
as many tokens.  The difference is decoding, preprocessing and the vision encoder, which quantization leaves alone.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from models.golden import GoldenItem
from models.stats import Interval, paired_difference, quantile
from models.support.errors import CheckFailed

TOP = 20
FILLER = "shape "


@dataclass
class Probe:
    """Measurements of one engine.  `first`: item id -> {token: log probability} of the likeliest 20 first tokens."""

    first: dict[str, dict[str, float]] = field(default_factory=dict)
    picture_ms: list[float] = field(default_factory=list)
    text_ms: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    text_note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "first": self.first,
            "picture_ms": self.picture_ms,
            "text_ms": self.text_ms,
            "prompt_tokens": self.prompt_tokens,
            "text_note": self.text_note,
        }


class Asker:
    """One kept-alive connection to an OpenAI-compatible API."""

    def __init__(self, url: str, model: str, timeout_s: float = 300.0):
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        self._path = f"{parts.path.rstrip('/')}/chat/completions"
        self._model = model

    def ask(self, content: list[dict[str, Any]]) -> tuple[dict[str, Any], float]:
        """Return (chat completion of one token with its 20 likeliest tokens, milliseconds).

        Raises:
            CheckFailed: another status than 200.
        """
        body = {
            "model": self._model,
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": TOP,
            "return_tokens_as_token_ids": True,
            "messages": [{"role": "user", "content": content}],
        }
        data = json.dumps(body).encode()
        started = time.perf_counter()
        try:
            self._connection.request("POST", self._path, data, {"Content-Type": "application/json"})
            reply = self._connection.getresponse()
            raw = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise CheckFailed(f"the engine stopped answering: {type(error).__name__}", field="engine") from error
        elapsed = (time.perf_counter() - started) * 1e3
        if reply.status != 200:
            raise CheckFailed(
                f"the engine answers {reply.status}", field="engine", value=raw[:200].decode(errors="replace")
            )
        return json.loads(raw), elapsed

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def probe(url: str, model: str, items: Sequence[GoldenItem], warm: int = 4) -> Probe:
    """Ask each item for its first token, then as many text prompts of the same length; the first `warm` do not count.

    Raises:
        CheckFailed: the engine fails on a picture.
    """
    found = Probe()
    asker = Asker(url, model)
    try:
        for number, item in enumerate(items):
            reply, ms = asker.ask(_picture(item))
            found.first[item.id] = _distribution(reply)
            if number >= warm:
                found.picture_ms.append(ms)
                found.prompt_tokens.append(int(reply["usage"]["prompt_tokens"]))
        _probe_text(asker, found, warm)
    finally:
        asker.close()
    return found


def _picture(item: GoldenItem) -> list[dict[str, Any]]:
    source = f"data:{item.media_type};base64,{base64.b64encode(item.image_bytes()).decode()}"
    return [{"type": "image_url", "image_url": {"url": source}}, {"type": "text", "text": item.question}]


def _distribution(reply: Mapping[str, Any]) -> dict[str, float]:
    entry = reply["choices"][0]["logprobs"]["content"][0]
    return {t["token"]: float(t["logprob"]) for t in entry["top_logprobs"] if math.isfinite(float(t["logprob"]))}


def _probe_text(asker: Asker, found: Probe, warm: int) -> None:
    """Time text prompts with as many tokens as the picture prompts; each begins differently (no prefix cache hit)."""
    if not found.prompt_tokens:
        return
    wanted = float(np.median(found.prompt_tokens))
    try:
        short, _ = asker.ask([{"type": "text", "text": FILLER * 2}])
        long, _ = asker.ask([{"type": "text", "text": FILLER * 42}])
        per_word = (long["usage"]["prompt_tokens"] - short["usage"]["prompt_tokens"]) / 40
        if per_word <= 0:
            raise CheckFailed("filler words add no tokens", field="engine")
        words = max(1, round(2 + (wanted - short["usage"]["prompt_tokens"] - 2) / per_word))
        for number in range(len(found.picture_ms) + warm):
            _, ms = asker.ask([{"type": "text", "text": f"{number} {FILLER * words}".strip()}])
            if number >= warm:
                found.text_ms.append(ms)
    except CheckFailed as error:
        found.text_ms.clear()
        found.text_note = f"no text prompts: {error}"


def divergence(parent: Mapping[str, Mapping[str, float]], candidate: Mapping[str, Mapping[str, float]]) -> Interval:
    """Return the mean KL(parent || candidate) of the first token over common items, nats, with a bootstrap interval."""
    values = [kl(parent[i], candidate[i]) for i in parent if i in candidate]
    if not values:
        return Interval(None, None, None, 0)
    return paired_difference(np.zeros(len(values)), values)


def kl(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Return KL(p || q) in nats of two truncated distributions (token -> log probability), at least 0.

    Tokens of `p` count one by one, all others together.  A token that `q` does not list gets an equal share of what its
    listed tokens leave, at most its smallest listed probability.
    """
    missing = [t for t in p if t not in q]
    left = max(1e-9, 1.0 - sum(math.exp(v) for v in q.values()))
    share = min(left / max(1, len(missing)), math.exp(min(q.values(), default=0.0)))
    total = rest_p = 0.0
    rest_q = left - share * len(missing) + sum(math.exp(v) for t, v in q.items() if t not in p)
    rest_p = max(0.0, 1.0 - sum(math.exp(v) for v in p.values()))
    for token, logp in p.items():
        logq = q[token] if token in q else math.log(share)
        total += math.exp(logp) * (logp - logq)
    if rest_p > 1e-12:
        total += rest_p * (math.log(rest_p) - math.log(max(rest_q, 1e-9)))
    return max(0.0, total)


def picture_share(found: Probe) -> dict[str, Any] | None:
    """Return the picture's part of the time to the first token: medians with intervals, and the share.

    None without text times.
    """
    if not found.text_ms or not found.picture_ms:
        return None
    with_picture, text = float(np.median(found.picture_ms)), float(np.median(found.text_ms))
    first, plain = quantile(found.picture_ms, 0.5).as_dict(), quantile(found.text_ms, 0.5).as_dict()
    ends = (first["low"], first["high"], plain["low"], plain["high"])
    # the ends of both intervals at their worst: at least 95 %
    inside = None if None in ends else [max(0.0, ends[0] - ends[3]), max(0.0, ends[1] - ends[2])]
    return {
        "first_token_ms": with_picture,
        "text_ms": text,
        "picture_ms": max(0.0, with_picture - text),
        "picture_range_ms": inside,
        "share": max(0.0, 1 - text / with_picture),
        "first_token": first,
        "text": plain,
        "n": min(len(found.picture_ms), len(found.text_ms)),
        "prompt_tokens": float(np.median(found.prompt_tokens)),
    }
