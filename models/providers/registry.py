"""Which vendor has a model, where its key lies, and which class talks to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.prices import PriceBook, load_prices
from models.providers.base import Provider
from models.providers.spend import SpendLimit
from models.support.errors import UsageError


@dataclass(frozen=True)
class Vendor:
    """A vendor: the environment variables of its key, in order, and what opens a provider (and imports its SDK)."""

    name: str
    key_variables: tuple[str, ...]
    open: Callable[..., Provider]


def _openai(**arguments: Any) -> Provider:
    from models.providers.openai import OpenAIProvider

    return OpenAIProvider(**arguments)


def _anthropic(**arguments: Any) -> Provider:
    from models.providers.anthropic import AnthropicProvider

    return AnthropicProvider(**arguments)


def _google(**arguments: Any) -> Provider:
    from models.providers.google import GoogleProvider

    return GoogleProvider(**arguments)


VENDORS: dict[str, Vendor] = {
    "openai": Vendor("openai", ("OPENAI_API_KEY",), _openai),
    "anthropic": Vendor("anthropic", ("ANTHROPIC_API_KEY",), _anthropic),
    "google": Vendor("google", ("GEMINI_API_KEY", "GOOGLE_API_KEY"), _google),
}


def vendor_of(model: str, book: PriceBook) -> tuple[str, str]:
    """Return (vendor, the vendor's name of the model) for `gpt-4o-mini` or `openai/gpt-4o-mini`.

    Raises:
        UsageError: unknown vendor, or a bare name that the price book does not know (closest names offered).
    """
    head, slash, tail = model.partition("/")
    if slash:
        if head not in VENDORS or not tail:
            fix = f"write vendor/model with one of {', '.join(VENDORS)}"
            raise UsageError("unknown vendor", field="model", value=model, fix=fix)
        return head, tail
    return book.find(model).vendor, model


def open_provider(
    model: str,
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    book: PriceBook | None = None,
    spend: SpendLimit | None = None,
    timeout_s: float = 120.0,
    **shared: Any,
) -> Provider:
    """Return a provider for `model`, priced by the book.

    Args:
        model: `gpt-4o-mini` or `openai/gpt-4o-mini`; with a vendor, a model without a price is allowed.
        api_key: default: the vendor's environment variable.
        base_url: default: the vendor's own address.

    Raises:
        UsageError: unknown vendor or model, no key, or a spend limit for a model without a price.
    """
    prices = book or load_prices()
    vendor, name = vendor_of(model, prices)
    key = api_key or next((os.environ[v] for v in VENDORS[vendor].key_variables if os.environ.get(v)), None)
    if not key:
        variable = VENDORS[vendor].key_variables[0]
        raise UsageError(f"no key for {vendor}", field="api-key", fix=f"set {variable}")
    try:
        price = prices.find(name, vendor=vendor)
    except UsageError:
        price = None
    return VENDORS[vendor].open(
        model=name, api_key=key, base_url=base_url, timeout_s=timeout_s, price=price, spend=spend, **shared
    )
