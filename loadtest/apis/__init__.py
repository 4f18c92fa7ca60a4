"""What differs between the APIs that can be loaded: path, headers, body, and where the answer is in the reply.

One class per API, registered by name: `make_api("anthropic")`.
"""

from __future__ import annotations

from collections.abc import Callable

from loadtest.apis.anthropic import Anthropic
from loadtest.apis.base import Api, Message, Part, Reply, error_text
from loadtest.apis.gemini import Gemini
from loadtest.apis.openai import OpenAI
from models.support.errors import UsageError

__all__ = ["APIS", "Anthropic", "Api", "Gemini", "Message", "OpenAI", "Part", "Reply", "error_text", "make_api"]

APIS: dict[str, Callable[[], Api]] = {api.name: api for api in (OpenAI, Anthropic, Gemini)}


def make_api(name: str) -> Api:
    """Return the API of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in APIS:
        raise UsageError("unknown API", field="--api", value=name, fix=f"use one of {', '.join(APIS)}")
    return APIS[name]()
