"""What the three SDKs have in common below their own error classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import httpx

from models.providers.errors import ConnectionLost, CutStream, ProviderError, ProviderTimeout

try:
    import httpx2

    _HTTPX2_ERRORS: tuple[type[Exception], ...] = (httpx2.HTTPError, httpx2.StreamError)
    _HTTPX2_TIMEOUTS: tuple[type[Exception], ...] = (httpx2.TimeoutException,)
except ImportError:  # older SDKs stand on httpx alone
    _HTTPX2_ERRORS = _HTTPX2_TIMEOUTS = ()

# Errors of the HTTP libraries that an SDK lets through, above all while a stream is read
TRANSPORT_ERRORS: tuple[type[Exception], ...] = (
    httpx.HTTPError,
    httpx.StreamError,
    *_HTTPX2_ERRORS,
    aiohttp.ClientError,
    OSError,
    EOFError,
)
TIMEOUTS: tuple[type[Exception], ...] = (httpx.TimeoutException, *_HTTPX2_TIMEOUTS, TimeoutError)


def transport_error(vendor: str, error: Exception, partial: str = "") -> ProviderError:
    """Return the error for a broken connection; text that had come makes it a cut stream."""
    reason = (str(error) or type(error).__name__).split("\n")[0][:200]
    if partial:
        return CutStream(f"the stream broke off: {reason}", vendor=vendor, partial=partial)
    kind = ProviderTimeout if isinstance(error, TIMEOUTS) else ConnectionLost
    return kind(reason, vendor=vendor)


def unfinished(vendor: str, partial: str) -> CutStream:
    """Return the error for a stream that ended without saying that it was finished."""
    return CutStream("the stream ended before its end", vendor=vendor, partial=partial)


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return the seconds of a Retry-After header, or None."""
    try:
        seconds = float((headers or {}).get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86_400 else None


def parse_arguments(text: str) -> Mapping[str, Any]:
    """Return a tool call's arguments; {"_raw": text} where the model wrote broken JSON."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {"_raw": text}
    return value if isinstance(value, dict) else {"_raw": text}
