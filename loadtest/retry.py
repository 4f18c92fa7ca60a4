"""When a client sends a failed request again, as the vendors' SDKs do it: off unless asked for, and always counted.

A retry hides an error from the user and from every figure but the latency, so a load test that retries must say how
often.  The policy is the one of the OpenAI and Anthropic Python clients (`_base_client.py`, `_should_retry` and
`_calculate_retry_timeout`): connection errors, timeouts, 408, 409, 429 and 5xx; the server's `Retry-After` when it is
at most a minute, otherwise half a second, doubled up to 8 s, less up to a quarter of it by chance.
"""

from __future__ import annotations

import random

from loadtest.client import Exchange, Kind

FIRST_S, MOST_S, HEED_S = 0.5, 8.0, 60.0
JITTER = 0.25
STATUSES = (408, 409, 429)


def retryable(exchange: Exchange) -> bool:
    """Would a client send this failed request again?  (Not when part of the answer has been shown already.)"""
    if exchange.kind is Kind.STATUS:
        return exchange.status in STATUSES or exchange.status >= 500
    if exchange.kind is Kind.CUT:
        return not exchange.chunks
    return exchange.kind in (Kind.CONNECT, Kind.RESET, Kind.TIMEOUT)


def pause_s(exchange: Exchange, chance: random.Random) -> float:
    """Return how long the client waits before the next try, in seconds."""
    if 0 < exchange.retry_after <= HEED_S:
        return exchange.retry_after
    return float(min(MOST_S, FIRST_S * 2**exchange.retries) * (1 - JITTER * chance.random()))
