"""Vendors behind one small protocol: ask with images, get an answer with usage, latency and cost.

>>> from models.providers import Ask, ImagePart, open_provider
>>> provider = open_provider("gpt-4o-mini")                       # key from OPENAI_API_KEY
>>> reply = await provider.ask(Ask("What colour is it?", images=(ImagePart(data, "image/png"),)))
>>> reply.text, reply.usage, reply.cost.total
"""

from models.providers.base import Ask, Delta, ImagePart, Provider, Reply, Tool, ToolCall
from models.providers.errors import (
    BadRequest,
    ConnectionLost,
    CutStream,
    KeyRefused,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    ServerFault,
    SpendLimitReached,
    UnknownModel,
)
from models.providers.registry import VENDORS, open_provider, vendor_of
from models.providers.spend import SpendLimit

__all__ = [
    "VENDORS",
    "Ask",
    "BadRequest",
    "ConnectionLost",
    "CutStream",
    "Delta",
    "ImagePart",
    "KeyRefused",
    "Overloaded",
    "Provider",
    "ProviderError",
    "ProviderTimeout",
    "RateLimited",
    "Reply",
    "ServerFault",
    "SpendLimit",
    "SpendLimitReached",
    "Tool",
    "ToolCall",
    "UnknownModel",
    "open_provider",
    "vendor_of",
]
