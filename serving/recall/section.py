"""Section `recall` of the stack file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.section import LocationOrMemory, Section

THRESHOLD = 0.75
"""By `fovea cache calibrate` on `pairs.jsonl`; docs/serving.md has the table."""


class Semantic(Section):
    """Also give the answer to the same question in other words, about the same images (part of `recall`)."""

    model: str = Field(
        "minilm",
        min_length=1,
        description="Embedding model: `minilm` (all-MiniLM-L6-v2, int8, a package), a folder with tokenizer.json and "
        "model.onnx, or a hub id of such a repository.",
    )
    threshold: float = Field(
        THRESHOLD, gt=0, le=1, description="Least cosine of the two texts' embeddings; see `fovea cache calibrate`."
    )
    characters: int = Field(400, ge=1, description="Longer questions are compared exactly only.")


class Recall(Section):
    """Answers that were given before (layer `recall`): exact cache and in-flight coalescing."""

    store: LocationOrMemory = Field(
        "memory",
        description="Behind each replica's own memory: `memory` (nothing), a file (replicas of one machine), or "
        "valkey://HOST:PORT/DB.",
    )
    memory_bytes: int = Field(64 * 2**20, ge=0, description="Most bytes of answers in a replica's memory.")
    file_bytes: int = Field(2**30, ge=2**20, description="Most bytes of the file; a server has its own maxmemory.")
    entry_bytes: int = Field(2**20, ge=1024, description="Larger answers are not kept, bytes.")
    ttl_s: float = Field(86_400.0, gt=0, description="How long an answer may be given again, seconds.")
    sampled: bool = Field(
        False,
        description="Keep answers sampled at temperature > 0 too; one request asks with `x-fovea-cache: sampled`.",
    )
    coalesce: bool = Field(True, description="Answer identical requests that run at the same time by one generation.")
    semantic: Semantic | None = Field(
        None, description="Also questions in other words; never for requests at temperature > 0 that do not ask."
    )
    purge_s: float = Field(1.0, gt=0, description="A purge is known to every replica after at most so long, seconds.")
    on_failure: Literal["refuse", "open"] = Field(
        "refuse",
        description="When the store cannot be reached at start: `refuse`, or `open`: go on without and say so in "
        "/health. Later it never refuses: an answer that cannot be looked up is generated.",
    )
