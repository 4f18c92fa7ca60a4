"""LoRA modules beside their base: one engine, several tasks, chosen by the request's `model`.

    models:
      - name: qwen
        source: Qwen/Qwen2.5-VL-3B-Instruct
        adapters:
          - {name: receipts, source: ./runs/receipts/train/adapter}

vLLM loads them at the start and computes requests for different ones in one batch.  What it would load and compute
wrongly or in part is refused here, before anything is started.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from models.support.errors import UsageError
from serving.section import Section
from serving.tenants import NAME

if TYPE_CHECKING:
    import argparse

    from serving.stack import Model

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM reserves memory for (`vllm.config.lora.MaxLoRARanks`)."""
TOGETHER = 8
"""Adapters that one batch may mix, if the stack does not say `max_loras`: each reserves memory in every layer."""
TOWER = re.compile(r"\.(visual|vision_tower|vision_model|multi_modal_projector|connector|audio_tower)\.")
"""Parts of a checkpoint that vLLM leaves alone unless told otherwise (`enable_tower_connector_lora`)."""
NOT_SERVED = (
    "use_dora", "bias", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora",
)  # fmt: skip
"""Settings of PEFT that vLLM 0.29 refuses, or does not look at, so that it would compute something else."""
NEUTRAL: tuple[Any, ...] = (None, False, "none", [], {})
FIX = "name the folder that PEFT or `fovea distill` wrote (train/adapter)"


class Adapter(Section):
    """One LoRA module, in PEFT's format, served beside its base by the same engine."""

    name: str = Field(pattern=NAME, description="Name that clients put into `model`; no other of the stack has it.")
    source: str = Field(min_length=1, description="A folder with adapter_config.json, or a Hugging Face hub id.")
    revision: str | None = Field(None, description="Hub revision (commit) to load.")

    @field_validator("source")
    @classmethod
    def _absolute(cls, source: str) -> str:
        """The processes of a stack may run in other folders."""
        return str(Path(source).expanduser().resolve()) if source.startswith(("/", "./", "../", "~")) else source

    @property
    def folder(self) -> Path:
        """Where its files are; what comes from the hub is fetched.

        Raises:
            UsageError: it cannot be fetched.
        """
        if self.source.startswith("/"):
            return Path(self.source)
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.source, revision=self.revision))
        except (OSError, ValueError) as error:  # huggingface_hub's errors are of these kinds
            first = str(error).strip().partition("\n")[0]
            raise self._wrong(f"cannot be fetched: {first}") from error

    def check(self, tower: bool = False) -> int:
        """Return its rank, if vLLM serves all of it.

        Args:
            tower: whether the engine applies adapters to the vision tower too.

        Raises:
            UsageError: it is no LoRA module, or one that vLLM would serve in part, or not at all.
        """
        folder = self.folder
        try:
            config = json.loads((folder / "adapter_config.json").read_bytes())
            kind, rank = config["peft_type"], config["r"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._wrong("no LoRA module (adapter_config.json) in that folder") from error
        if kind != "LORA" or not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
            raise self._wrong(f"is {kind} of rank {rank}; served is LORA of rank 1 to {RANKS[-1]}")
        for key in NOT_SERVED:
            if config.get(key) not in NEUTRAL:
                raise self._wrong(f"adapter_config.json has {key}, which vLLM does not serve", "train it without")
        weights = folder / "adapter_model.safetensors"
        names = _names(weights)
        if not names:
            raise self._wrong("no weights (adapter_model.safetensors), or they are damaged")
        inside = next((name for name in names if TOWER.search(name)), None)
        if inside and not tower:
            fix = "train the language model's layers only, or set engine_args: {enable_tower_connector_lora: true}"
            raise self._wrong(f"adapts the vision part ({inside}), which vLLM would leave out", fix)
        return rank

    def _wrong(self, what: str, fix: str = FIX) -> UsageError:
        return UsageError(what, field=f"models.adapters.{self.name}.source", value=self.source, fix=fix)


def _names(weights: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError):
        return []


def check_adapters(model: Model, fetch: bool = True) -> int:
    """Return the highest rank of a model's adapters; 0 when it has none.

    Args:
        model: of a stack.
        fetch: also those that come from the hub.

    Raises:
        UsageError: one of them cannot be served.
    """
    tower = bool(model.engine_args.get("enable_tower_connector_lora"))
    return max((one.check(tower) for one in model.adapters if fetch or one.source.startswith("/")), default=0)


def engine_settings(args: argparse.Namespace, model: Model) -> None:
    """Tell vLLM's server arguments about a model's adapters, before the stack's own `engine_args` are set.

    Raises:
        UsageError: one of them cannot be served.
    """
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath

    highest = check_adapters(model)
    if not highest:
        return
    args.enable_lora = True
    args.lora_modules = [LoRAModulePath(adapter.name, str(adapter.folder)) for adapter in model.adapters]
    args.max_lora_rank = next(rank for rank in RANKS if rank >= highest)
    args.max_loras = min(len(model.adapters), TOGETHER)
    args.max_cpu_loras = len(model.adapters)  # all stay loaded
