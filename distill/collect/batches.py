"""The vendors' batch APIs, at the batch price: hand over many requests, come back later for the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol, cast

from models.providers import Ask, Provider, ProviderError
from models.providers import anthropic as anthropic_wire
from models.providers import google as google_wire
from models.providers import openai as openai_wire
from models.providers.anthropic import AnthropicProvider
from models.providers.base import Parsed
from models.providers.errors import ServerFault, from_status
from models.providers.google import GoogleProvider
from models.providers.openai import OpenAIProvider

Results = Mapping[str, "Parsed | ProviderError"]


class Batches(Protocol):
    """What a vendor's batch API does; custom ids are 1 to 64 letters, digits, `_` and `-`."""

    async def submit(self, asks: Sequence[tuple[str, Ask]]) -> str:
        """Hand over (custom id, request) pairs; return the vendor's id of the batch.  Raises ProviderError."""
        ...

    async def ended(self, batch: str) -> bool:
        """Return whether the vendor will do no more on this batch.  Raises ProviderError."""
        ...

    async def results(self, batch: str) -> Results:
        """Return custom id -> answer or error; requests that the vendor never got to are missing and not billed."""
        ...


class _AtBatchPrice(Provider):
    """A provider whose estimates are at the batch price."""

    def estimate(self, ask: Ask) -> Decimal:
        assert self.price is not None and self.price.batch_factor is not None, "checked when the teacher is opened"
        return super().estimate(ask) * self.price.batch_factor


class OpenAIBatches(OpenAIProvider, _AtBatchPrice):
    """A file of requests, a batch on it, a file of results (and one of errors)."""

    async def submit(self, asks: Sequence[tuple[str, Ask]]) -> str:
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": self._request(ask)})
            for name, ask in asks
        ]
        try:
            file = await self._client.files.create(file=("batch.jsonl", "\n".join(lines).encode()), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        except Exception as error:
            raise self._translate(error) from error
        return batch.id

    async def ended(self, batch: str) -> bool:
        try:
            found = await self._client.batches.retrieve(batch)
        except Exception as error:
            raise self._translate(error) from error
        return found.status in ("completed", "failed", "expired", "cancelled")

    async def results(self, batch: str) -> Results:
        try:
            found = await self._client.batches.retrieve(batch)
            files = [f for f in (found.output_file_id, found.error_file_id) if f]
            texts = [(await self._client.files.content(f)).text for f in files]
        except Exception as error:
            raise self._translate(error) from error
        lines = [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]
        return {line["custom_id"]: self._parsed(line) for line in lines}

    def _parsed(self, line: Mapping[str, Any]) -> Parsed | ProviderError:
        from openai.types.chat import ChatCompletion

        reply = line.get("response") or {}
        status, body = reply.get("status_code"), reply.get("body") or {}
        if status != 200:
            message = (body.get("error") or line.get("error") or {}).get("message") or "no reason given"
            return from_status(self.vendor, status or 500, message)
        try:
            found = ChatCompletion.model_validate(body)
            choice = found.choices[0]
            finish = openai_wire.FINISH.get(choice.finish_reason, choice.finish_reason)
            return Parsed(choice.message.content or "", openai_wire.read_usage(found.usage), finish, model=found.model)
        except (ValueError, IndexError) as error:
            return ServerFault(f"not a chat completion: {type(error).__name__}", vendor=self.vendor)


class AnthropicBatches(AnthropicProvider, _AtBatchPrice):
    """Message Batches."""

    async def submit(self, asks: Sequence[tuple[str, Ask]]) -> str:
        requests = []
        for name, ask in asks:
            params = self._request(ask)
            requests.append({"custom_id": name, "params": params | params.pop("extra_body", {})})
        try:
            return (await self._client.messages.batches.create(requests=cast(Any, requests))).id
        except Exception as error:
            raise self._translate(error) from error

    async def ended(self, batch: str) -> bool:
        try:
            return (await self._client.messages.batches.retrieve(batch)).processing_status == "ended"
        except Exception as error:
            raise self._translate(error) from error

    async def results(self, batch: str) -> Results:
        found: dict[str, Parsed | ProviderError] = {}
        try:
            async for line in await self._client.messages.batches.results(batch):
                result = line.result
                if result.type == "succeeded":
                    found[line.custom_id] = self._parsed(result.message)
                elif result.type == "errored":
                    inner = result.error.error
                    status = anthropic_wire.EVENT_STATUS.get(inner.type, 500)
                    found[line.custom_id] = from_status(self.vendor, status, inner.message)
        except Exception as error:
            raise self._translate(error) from error
        return found

    @staticmethod
    def _parsed(message: Any) -> Parsed:
        finish = anthropic_wire.FINISH.get(message.stop_reason or "", message.stop_reason or "unknown")
        text = "".join(block.text for block in message.content if block.type == "text")
        return Parsed(text, anthropic_wire.read_usage(message.usage), finish, model=message.model)


class GoogleBatches(GoogleProvider, _AtBatchPrice):
    """Gemini's batch mode with requests in line (up to 20 MB a batch)."""

    async def submit(self, asks: Sequence[tuple[str, Ask]]) -> str:
        from google.genai import types

        requests = [
            types.InlinedRequest(
                contents=[google_wire.contents_of(ask)], config=google_wire.config_of(ask), metadata={"key": name}
            )
            for name, ask in asks
        ]
        try:
            job = await self._client.aio.batches.create(model=self.model, src=requests)
        except Exception as error:
            raise self._translate(error) from error
        if not job.name:
            raise ServerFault("the batch has no name", vendor=self.vendor)
        return job.name

    async def ended(self, batch: str) -> bool:
        try:
            job = await self._client.aio.batches.get(name=batch)
        except Exception as error:
            raise self._translate(error) from error
        return job.state is not None and job.state.value.removeprefix("JOB_STATE_") in (
            "SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED",
        )  # fmt: skip

    async def results(self, batch: str) -> Results:
        try:
            job = await self._client.aio.batches.get(name=batch)
        except Exception as error:
            raise self._translate(error) from error
        responses = (job.dest.inlined_responses or []) if job.dest is not None else []
        return {str((one.metadata or {}).get("key")): self._parsed(one) for one in responses}

    def _parsed(self, one: Any) -> Parsed | ProviderError:
        if one.response is None:
            code = one.error.code if one.error is not None else 500
            message = one.error.message if one.error is not None else "no response"
            # Google's own numbers (google.rpc.Code): 3 invalid argument, 8 exhausted, 14 unavailable
            return from_status(self.vendor, {3: 400, 8: 429, 14: 503}.get(code, 500), message or "no reason given")
        text, calls, finish = google_wire.read_reply(one.response)
        if finish is None:
            finish = "refused" if one.response.prompt_feedback is not None else "unknown"
        usage = google_wire.read_usage(one.response.usage_metadata)
        return Parsed(text, usage, finish, calls, one.response.model_version)


BATCHES: dict[str, type[OpenAIBatches | AnthropicBatches | GoogleBatches]] = {
    "openai": OpenAIBatches,
    "anthropic": AnthropicBatches,
    "google": GoogleBatches,
}
