"""What can go wrong at a vendor, the same for all of them."""

from __future__ import annotations

from models.support.errors import FoveaError, UsageError


class ProviderError(FoveaError):
    """A vendor did not answer.

    Attributes:
        retryable: whether the same request may succeed later.
        status: HTTP status, when there was one.
        retry_after_s: seconds that the vendor asks to wait, when it said so.
        partial: text that had arrived before the error (streams).
        may_be_billed: whether the vendor may charge for the request all the same.
    """

    retryable = False
    may_be_billed = False

    def __init__(
        self,
        message: str,
        *,
        vendor: str,
        status: int | None = None,
        retry_after_s: float | None = None,
        partial: str = "",
        fix: str | None = None,
    ):
        super().__init__(message, field=vendor, value=status, fix=fix)
        self.vendor, self.status, self.retry_after_s, self.partial = vendor, status, retry_after_s, partial


class BadRequest(ProviderError):
    """400, 413, 422: the vendor does not take this request."""


class KeyRefused(ProviderError, UsageError):
    """401, 403: no key, or a wrong one."""


class UnknownModel(ProviderError, UsageError):
    """404: the vendor has no such model."""


class RateLimited(ProviderError):
    """429: too many requests or tokens for this account."""

    retryable = True


class Overloaded(ProviderError):
    """503, 529: the vendor has no capacity now."""

    retryable = True


class ServerFault(ProviderError):
    """Another 5xx, or a reply that is not what the API promises."""

    retryable = True


class ProviderTimeout(ProviderError):
    """No answer in time."""

    retryable = True
    may_be_billed = True


class ConnectionLost(ProviderError):
    """No connection, or it broke before an answer began."""

    retryable = True
    may_be_billed = True


class CutStream(ProviderError):
    """A stream ended before its end; `partial` holds what came.  Not retried: tokens were billed and perhaps shown."""

    may_be_billed = True


class SpendLimitReached(FoveaError):
    """The next request could pass the spend limit, so it was not sent."""


_BY_STATUS: dict[int, type[ProviderError]] = {
    400: BadRequest,
    401: KeyRefused,
    403: KeyRefused,
    404: UnknownModel,
    408: ProviderTimeout,
    413: BadRequest,
    422: BadRequest,
    429: RateLimited,
    503: Overloaded,
    504: ProviderTimeout,
    529: Overloaded,
}


def from_status(vendor: str, status: int, message: str, *, retry_after_s: float | None = None) -> ProviderError:
    """Return the error for an HTTP status."""
    kind = _BY_STATUS.get(status) or (ServerFault if status >= 500 else BadRequest)
    # vendors put whole requests into messages; one line is enough
    text = " ".join(message.split())[:300] or "no reason given"
    return kind(text, vendor=vendor, status=status, retry_after_s=retry_after_s)
