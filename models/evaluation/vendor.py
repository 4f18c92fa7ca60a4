"""The same questions to a vendor, through its own SDK: a measured baseline."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from models.evaluation.answers import Answer
from models.evaluation.settings import EvaluationSettings
from models.golden import GoldenItem
from models.prices import load_prices
from models.providers import Ask, ImagePart, ProviderError, SpendLimit, open_provider
from models.support.errors import UsageError

# Thinking models spend output tokens before the first word of the answer: a limit for a served model cuts them off.
LEAST_MAX_TOKENS = 1024


class VendorClient:
    """Asks a vendor; has the interface of `EvaluationClient`."""

    def __init__(self, settings: EvaluationSettings):
        assert settings.max_usd is not None, "EvaluationSettings requires it"
        self.spend = SpendLimit(settings.max_usd)
        self._question = settings.question
        self._max_tokens = max(settings.max_tokens, LEAST_MAX_TOKENS)
        self._provider = open_provider(
            settings.url,
            api_key=settings.api_key,
            base_url=settings.vendor_url,
            book=load_prices(settings.prices),
            spend=self.spend,
            timeout_s=settings.timeout_s,
        )

    async def __aenter__(self) -> VendorClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._provider.close()

    async def check(self) -> dict[str, Any]:
        """Nothing is asked before the first item: it would cost as much as an item."""
        return {}

    async def ask(self, item: GoldenItem) -> Answer:
        """Return the answer to one item with its price; an error of this item alone is recorded in it.

        Raises:
            UsageError: the key is refused or the model is unknown.
            SpendLimitReached: the item could pass the limit.
        """
        image = ImagePart(item.image_bytes(), item.media_type, item.width, item.height)
        try:
            reply = await self._provider.ask(Ask(self._question(item.question), (image,), max_tokens=self._max_tokens))
        except ProviderError as error:
            if isinstance(error, UsageError):
                raise
            kind = f"http_{error.status}" if error.status is not None else type(error).__name__
            return Answer(item.id, None, None, error=kind, at=time.time())
        return Answer(
            item.id,
            reply.text,
            reply.latency_ms,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.usage.input_tokens if reply.usage else None,
            completion_tokens=reply.usage.output_tokens if reply.usage else None,
            usd=f"{reply.cost.total:f}" if reply.cost else None,
            image_tokens_difference=reply.image_tokens_difference,
            attempts=reply.attempts,
            at=time.time(),
        )
