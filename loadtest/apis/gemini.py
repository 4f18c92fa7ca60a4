"""generateContent of the Gemini API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadtest.apis.base import Api, Message, Part, Reply, as_dict, count_of, first_of, load
from models.support.errors import UsageError

CONFIG = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
    "seed": "seed",
}
UNKNOWN = ("ignore_eos",)  # of vLLM; the API refuses fields that it does not know


class Gemini(Api):
    """generateContent and streamGenerateContent."""

    name = "gemini"
    key_env = "GEMINI_API_KEY"
    answer_key = "candidates"

    def path(self, base: str, model: str, stream: bool) -> str:
        return f"{base}/models/{model}:" + ("streamGenerateContent?alt=sse" if stream else "generateContent")

    def headers(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key} if key else {}

    def body(self, model: str, messages: Sequence[Message], options: dict[str, Any], stream: bool) -> dict[str, Any]:
        config = {CONFIG[key]: value for key, value in options.items() if key in CONFIG}
        if isinstance(config.get("stopSequences"), str):
            config["stopSequences"] = [config["stopSequences"]]
        more = {key: value for key, value in options.items() if key not in CONFIG and key not in UNKNOWN}
        config |= as_dict(more.pop("generationConfig", None))
        system = [p.text for m in messages if m.role == "system" for p in m.parts]
        contents = [
            {"role": "model" if m.role == "assistant" else "user", "parts": [self._part(p) for p in m.parts]}
            for m in messages
            if m.role != "system"
        ]
        body: dict[str, Any] = {"contents": contents, **more}
        if system:
            body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
        if config:
            body["generationConfig"] = config
        return body

    def _part(self, part: Part) -> dict[str, Any]:
        if part.kind == "text":
            return {"text": part.text}
        if part.text.startswith("data:"):  # frames in one URI, as vLLM takes them
            fix = "send the frames one by one: --workload-option send=images"
            raise UsageError(f"the Gemini API takes no {part.kind} in this form", field="--api", fix=fix)
        if part.text:
            return {"fileData": {"fileUri": part.text}}
        return {"inlineData": {"mimeType": part.media_type, "data": part.base64()}}

    def has_content(self, event: bytes) -> bool:
        if b'"text"' not in event and b'"functionCall"' not in event:
            return False
        return any(as_dict(p).get("text") or "functionCall" in as_dict(p) for p in self._parts(as_dict(load(event))))

    def finished(self, events: Sequence[bytes]) -> bool:
        return any(b'"finishReason"' in event for event in events[-2:])

    def read_usage(self, reply: Reply, value: dict[str, Any]) -> None:
        usage = as_dict(value.get("usageMetadata"))
        if "promptTokenCount" in usage:
            reply.prompt_tokens = count_of(usage["promptTokenCount"])
        if "candidatesTokenCount" in usage:
            # Thoughts are generated, and billed as output, but counted apart.
            parts = [count_of(usage[key]) for key in ("candidatesTokenCount", "thoughtsTokenCount") if key in usage]
            reply.completion_tokens = -1 if min(parts) < 0 else count_of(sum(parts))

    def piece(self, value: dict[str, Any]) -> str:
        said = [as_dict(part) for part in self._parts(value)]
        return "".join(str(part.get("text", "")) for part in said if not part.get("thought"))

    answer = piece

    def _parts(self, value: dict[str, Any]) -> list[Any]:
        parts = as_dict(first_of(value.get("candidates")).get("content")).get("parts")
        return parts if isinstance(parts, list) else []
