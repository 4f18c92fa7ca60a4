"""The closed form of a catalog file: unknown keys are refused, every figure has a unit and a place it came from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.catalog.image_rules import ImageRule

Confidence = Literal["high", "medium", "low"]
Modality = Literal["text", "image", "video", "audio"]
Role = Literal["vision-language", "speech", "retrieval", "safety", "embedded"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
Patterns = Annotated[list[str], Field(default_factory=list)]


class Closed(BaseModel):
    """No unknown keys, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _compiles(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return patterns


class Revision(Closed):
    """A commit of the hub repository; null where none was found in a source that could be read."""

    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    confidence: Confidence | None = None
    note: str = Field(min_length=1)

    @model_validator(mode="after")
    def _doubt_named(self) -> Revision:
        if (self.commit is None) != (self.confidence is None):
            raise ValueError("confidence goes with a commit, and only with one")
        return self


class Parameters(Closed):
    """Parameter counts by part.  `embeddings` (input embedding and output head) and `active` are within `language`.

    `active`: used per token where experts are routed.  `adapters`: LoRA weights shipped with the checkpoint.
    """

    vision: int = Field(ge=0, default=0)
    projector: int = Field(ge=0, default=0)
    audio: int = Field(ge=0, default=0)
    language: int = Field(gt=0)
    embeddings: int = Field(ge=0)
    active: int | None = None
    adapters: int = Field(ge=0, default=0)
    how: str = Field(min_length=1, description="how the numbers were obtained")

    @property
    def total(self) -> int:
        """All parameters of the model, shipped adapters left out."""
        return self.vision + self.projector + self.audio + self.language

    @model_validator(mode="after")
    def _within(self) -> Parameters:
        if self.embeddings > self.language:
            raise ValueError("embeddings are a part of language and cannot be more")
        if self.active is not None and self.active > self.language:
            raise ValueError("active is a part of language and cannot be more")
        return self


class Decoder(Closed):
    """The shape of the language model, as the KV cache and the activations need it.

    `intermediate`: width of the feed-forward layer that one token passes (routed experts: those that are active).
    `window`: tokens that the `window_layers` local layers keep; the other layers keep the whole context.
    `cross_tokens`: encoder positions kept per request by cross-attention (Whisper), with the same heads.
    """

    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    vocab: int = Field(gt=0)
    window: int | None = Field(default=None, gt=0)
    window_layers: int = Field(default=0, ge=0)
    cross_tokens: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Decoder:
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        if (self.window is None) != (self.window_layers == 0) or self.window_layers > self.layers:
            raise ValueError("window and window_layers go together, and window_layers is at most layers")
        return self

    def kv_values_per_token(self) -> int:
        """Numbers (keys and values) that one token adds to the cache over all layers, window aside."""
        return 2 * self.layers * self.kv_heads * self.head_dim


class Encoder(Closed):
    """The shape of the vision (or audio) encoder; `patches_per_token` patches are merged into one language token."""

    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    patches_per_token: int = Field(gt=0)


class Config(Closed):
    """What rebuilds the architecture: the transformers config class, the model class, and the checkpoint's values."""

    config_class: str
    model_class: str
    values: dict[str, Any]


class Variant(Closed):
    """One checkpoint of a family."""

    name: Name
    hub: str | None = Field(description="hub id; null for what ships with the project")
    revision: Revision
    licence: str
    gated: bool = False
    context: int = Field(gt=0, description="longest context in tokens that the checkpoint declares")
    confidence: Confidence = "high"
    note: str | None = None
    image: ImageRule | None = None
    parameters: Parameters
    decoder: Decoder
    encoder: Encoder | None = None
    config: Config

    @field_validator("hub")
    @classmethod
    def _hub_id(cls, hub: str | None) -> str | None:
        if hub is not None and not re.fullmatch(r"[\w.\-]+/[\w.\-]+", hub):
            raise ValueError("a hub id is owner/name")
        return hub


class Chat(Closed):
    """How a request is put to the model."""

    form: Literal["chat-template", "task-prefix", "transcription", "embedding", "safety-verdict"]
    example: str
    note: str | None = None


class Engine(Closed):
    """What vLLM 0.29 needs to serve it.

    `evidence`: ran (this very checkpoint, on CPU), ran-small (in this project, on CPU, with a small checkpoint of this
    architecture), documented (vLLM's or the maker's own pages), registered (the architecture is in vLLM's registry,
    nothing more), none (not served by vLLM).
    """

    architecture: str
    evidence: Literal["ran", "ran-small", "documented", "registered", "none"]
    args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    note: str | None = None


class Parts(Closed):
    """Regular expressions on module or parameter names (transformers 5), one list per part."""

    vision: Patterns
    projector: Patterns
    audio: Patterns
    language: Patterns
    embeddings: Patterns

    _check = field_validator("vision", "projector", "audio", "language", "embeddings")(_compiles)


class Quantize(Closed):
    """What may be quantized: linear modules of `targets` less `ignore` (regular expressions), by which schemes."""

    targets: Patterns
    ignore: Patterns
    schemes: list[Literal["w8a8", "fp8", "w4a16"]]
    note: str | None = None

    _check = field_validator("targets", "ignore")(_compiles)


class Lora(Closed):
    """Module names that LoRA adapts, and what is left frozen."""

    targets: list[str]
    note: str | None = None


class Family(Closed):
    """One file of the catalog."""

    family: Name
    title: str
    maker: str
    role: Role
    aliases: list[Name] = Field(default_factory=list)
    summary: str
    inputs: list[Modality]
    output: Literal["text", "transcript", "embeddings", "verdict"]
    chat: Chat
    engine: Engine
    parts: Parts
    quantize: Quantize | None
    lora: Lora | None
    good_at: list[str] = Field(min_length=1)
    bad_at: list[str] = Field(min_length=1)
    sources: list[str] = Field(min_length=1)
    variants: list[Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> Family:
        names = [v.name for v in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("two variants of one name")
        if "image" in self.inputs and any(v.image is None for v in self.variants):
            raise ValueError("a family that takes images needs an image rule for every variant")
        return self
