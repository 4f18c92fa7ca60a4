"""The two embedded architectures: real Qwen2.5-VL and PaliGemma 2 classes in a size that 2 CPU cores can train.

Each `Architecture` knows how to build its checkpoint parts (configuration, tokenizer, processor) and how to run a
training batch in which all pictures have one size, which lets one attention call serve the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.embedded.tokenizers import paligemma_tokenizer, qwen_tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
SOFT_CAP = 30.0  # Gemma 2: final_logit_softcapping
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Architecture(ABC):
    """One embedded model family.

    Attributes:
        name: folder name of the checkpoint and value of `--family`.
        tokenizer: the family's tokenizer.
        answer_end: token id that ends an answer.
    """

    name: str
    answer_end: int

    def __init__(self) -> None:
        self.tokenizer = self.make_tokenizer()

    @abstractmethod
    def make_tokenizer(self) -> Any:
        """Return a newly trained tokenizer."""

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Return the randomly initialized transformers model (seed torch first)."""

    @abstractmethod
    def make_processor(self) -> Any:
        """Return the transformers processor that belongs to the checkpoint."""

    @abstractmethod
    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the picture for one question (the answer follows)."""

    @abstractmethod
    def encode_pictures(self, model: nn.Module, pixels: np.ndarray) -> Tensor:
        """Return picture embeddings (pictures, tokens, width) of `pixels` (pictures, height, width, 3) uint8."""

    @abstractmethod
    def hidden_states(self, model: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Return the language model's last hidden states (batch, length, width) for input embeddings.

        `mask` (batch, 1, length, length) is true where a token may look; `positions` come from `positions()`.
        """

    @abstractmethod
    def positions(self, offset: Tensor, start: int, grid: tuple[int, int]) -> Tensor:
        """Return position ids for token offsets (batch, length) with a picture of `grid` tokens at `start`."""

    @abstractmethod
    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Return next-token logits (..., vocabulary) of hidden states, soft cap included."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the complete checkpoint (bf16 safetensors, configurations, tokenizer, processor, template)."""

    @abstractmethod
    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (rows, columns) of picture tokens for a picture of that size in pixels."""

    def _save_common(self, model: nn.Module, folder: Path) -> None:
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[operator]
        self.make_processor().save_pretrained(folder)


@dataclass(frozen=True)
class QwenSize:
    """How large a Qwen2.5-VL is; every head, of the language model and of the tower, is 32 wide.

    The default is the embedded model's (2.9 M weights); its tokenizer and processor serve all sizes.
    """

    width: int = 192
    mlp: int = 512
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    tower_width: int = 128
    tower_mlp: int = 384
    tower_layers: int = 4


class QwenVL(Architecture):
    """Qwen2.5-VL with 8-pixel patches: a 64x64 picture becomes 4x4 tokens; every picture is scaled to about 64x64."""

    name = "qwen2_5_vl"
    patch, merge, least, most = 8, 2, 48 * 64, 64 * 64

    def __init__(self, size: QwenSize | None = None) -> None:
        super().__init__()
        self.size = size or QwenSize()
        self.ids = {token: self.tokenizer.convert_tokens_to_ids(token) for token in self.tokenizer.all_special_tokens}
        self.answer_end = self.ids["<|im_end|>"]

    def make_tokenizer(self) -> Any:
        return qwen_tokenizer()

    def config(self) -> Any:
        """Return the model configuration; vocabulary rounded up to a multiple of 64."""
        from transformers import Qwen2_5_VLConfig

        size = self.size
        return Qwen2_5_VLConfig(
            architectures=["Qwen2_5_VLForConditionalGeneration"],
            text_config={
                "vocab_size": -(-len(self.tokenizer) // 64) * 64,
                "hidden_size": size.width,
                "intermediate_size": size.mlp,
                "num_hidden_layers": size.layers,
                "num_attention_heads": size.heads,
                "num_key_value_heads": size.kv_heads,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
                "bos_token_id": self.ids["<|endoftext|>"],
                "eos_token_id": self.ids["<|im_end|>"],
                "pad_token_id": self.ids["<|endoftext|>"],
                "tie_word_embeddings": True,
            },
            vision_config={
                "depth": size.tower_layers,
                "hidden_size": size.tower_width,
                "intermediate_size": size.tower_mlp,
                "num_heads": size.tower_width // 32,
                "patch_size": self.patch,
                "spatial_merge_size": self.merge,
                "window_size": 128,
                "fullatt_block_indexes": list(range(1, size.tower_layers, 2)),
                "out_hidden_size": size.width,
            },
            image_token_id=self.ids["<|image_pad|>"],
            video_token_id=self.ids["<|video_pad|>"],
            vision_start_token_id=self.ids["<|vision_start|>"],
            vision_end_token_id=self.ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )

    def make_model(self) -> nn.Module:
        from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

        model = Qwen2_5_VLForConditionalGeneration(self.config())
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.ids["<|im_end|>"], pad_token_id=self.ids["<|endoftext|>"]
        )
        batch_vision_attention()
        return model

    def make_processor(self) -> Any:
        from transformers import Qwen2_5_VLProcessor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

        size = {"shortest_edge": self.least, "longest_edge": self.most}
        common = {"patch_size": self.patch, "merge_size": self.merge, "temporal_patch_size": 2}
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessorPil(size=size, **common),
            tokenizer=self.tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=size, **common),
            chat_template=self.tokenizer.chat_template,
        )

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        before = self.tokenizer.encode("<|im_start|>user\n<|vision_start|>")
        after = self.tokenizer.encode(f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n")
        return before, after

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return height // self.patch // self.merge, width // self.patch // self.merge

    def encode_pictures(self, model: nn.Module, pixels: np.ndarray) -> Tensor:
        import torch

        count, height, width, _ = pixels.shape
        rows, columns = height // self.patch, width // self.patch
        x = torch.tensor(pixels).float().div_(255)
        x = (x - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        # (picture, row block, row in block, y, column block, column in block, x, channel) to the processor's order
        m, p = self.merge, self.patch
        x = x.reshape(count, rows // m, m, p, columns // m, m, p, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
        x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)  # a picture is two equal video frames
        patches = x.reshape(count * rows * columns, 3 * 2 * p * p)
        thw = torch.tensor([[1, rows, columns]]).expand(count, 3)
        merged = model.model.visual(patches, grid_thw=thw).pooler_output  # type: ignore[union-attr, operator]
        return merged.reshape(count, rows * columns // m**2, -1)

    def hidden_states(self, model: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        text = model.model.language_model  # type: ignore[union-attr]
        output = text(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)  # type: ignore[operator]
        return output.last_hidden_state

    def positions(self, offset: Tensor, start: int, grid: tuple[int, int]) -> Tensor:
        """Return the (3, batch, length) temporal, height and width positions (M-RoPE, arXiv 2409.12191)."""
        import torch

        rows, columns = grid
        count = rows * columns
        index = offset - start
        inside = (index >= 0) & (index < count)
        after = torch.where(index >= count, offset - count + max(rows, columns), offset)
        picture = [torch.zeros_like(index), index // columns, index % columns]
        return torch.stack([torch.where(inside, start + axis, after) for axis in picture])

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        return model.lm_head(hidden)  # type: ignore[operator]

    def save(self, model: nn.Module, folder: Path) -> None:
        self._save_common(model, folder)


class PaliGemma(Architecture):
    """PaliGemma 2 (SigLIP + Gemma 2) with 8-pixel patches on a 64x64 picture: 64 picture tokens.

    The language model attends causally everywhere.  The published PaliGemma attends in both directions over the prefix;
    vLLM's CPU attention cannot, so the model is trained the way it is served, and `is_mm_prefix_lm: false` in its
    configuration makes vLLM do the same on a GPU.
    """

    name = "paligemma"
    patch, size = 8, 64

    def __init__(self) -> None:
        super().__init__()
        self.answer_end = self.tokenizer.eos_token_id

    def make_tokenizer(self) -> Any:
        return paligemma_tokenizer()

    def config(self) -> Any:
        """Return the model configuration; vocabulary rounded up to a multiple of 64."""
        from transformers import PaliGemmaConfig

        vocabulary = -(-len(self.tokenizer) // 64) * 64
        image_token = self.tokenizer.convert_tokens_to_ids("<image>")
        make: Any = PaliGemmaConfig  # takes more than its signature says
        return make(
            architectures=["PaliGemmaForConditionalGeneration"],
            text_config={
                "model_type": "gemma2",
                "vocab_size": vocabulary,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "query_pre_attn_scalar": 32,
                "max_position_embeddings": 2048,
                "sliding_window": 2048,
                "layer_types": ["full_attention"] * 4,
                "use_bidirectional_attention": False,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": SOFT_CAP,
                "bos_token_id": self.tokenizer.bos_token_id,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
                "tie_word_embeddings": True,
            },
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": self.size,
                "patch_size": self.patch,
                "projection_dim": 128,
                "num_image_tokens": (self.size // self.patch) ** 2,
                "vision_use_head": False,
            },
            image_token_index=image_token,
            image_token_id=image_token,
            projection_dim=128,
            hidden_size=128,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            tie_word_embeddings=True,
            is_mm_prefix_lm=False,
        )

    def make_model(self) -> nn.Module:
        from transformers import GenerationConfig, PaliGemmaForConditionalGeneration

        model = PaliGemmaForConditionalGeneration._from_config(self.config(), attn_implementation="sdpa")
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id
        )
        return model

    def make_processor(self) -> Any:
        from transformers import PaliGemmaProcessor
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        images: Any = SiglipImageProcessorPil(
            size={"height": self.size, "width": self.size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            do_convert_rgb=True,
        )
        images.image_seq_length = (self.size // self.patch) ** 2
        return PaliGemmaProcessor(images, self.tokenizer, chat_template=self.tokenizer.chat_template)

    def prompt(self, question: str) -> tuple[list[int], list[int]]:
        tasks = ("answer", "caption", "detect")
        text = question if question.split(" ")[0] in tasks else f"answer en {question}"
        return [], [self.tokenizer.bos_token_id, *self.tokenizer.encode(f"{text}\n")]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return self.size // self.patch, self.size // self.patch

    def encode_pictures(self, model: nn.Module, pixels: np.ndarray) -> Tensor:
        import torch

        x = torch.tensor(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        return model.model.get_image_features(x).pooler_output  # type: ignore[union-attr, operator]

    def hidden_states(self, model: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        text = model.model.language_model  # type: ignore[union-attr]
        masks = {"full_attention": mask, "sliding_attention": mask}
        output = text(inputs_embeds=embeds, attention_mask=masks, position_ids=positions, use_cache=False)  # type: ignore[operator]
        return output.last_hidden_state

    def positions(self, offset: Tensor, start: int, grid: tuple[int, int]) -> Tensor:
        return offset + 1  # counted from one, as transformers does

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        import torch

        return SOFT_CAP * torch.tanh(model.lm_head(hidden) / SOFT_CAP)  # type: ignore[operator]

    def save(self, model: nn.Module, folder: Path) -> None:
        self._save_common(model, folder)
        rename_tower(folder)


def rename_tower(folder: Path) -> None:
    """Write a PaliGemma checkpoint's tower as the hub and vLLM have it.

    transformers 5 writes `vision_tower.*`; the hub's checkpoints have `vision_tower.vision_model.*`.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    tower = "vision_tower."
    renamed = {}
    for key, value in weights.items():
        if tower in key and f"{tower}vision_model." not in key:
            key = key.replace(tower, f"{tower}vision_model.")
        renamed[key] = value
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


ARCHITECTURES: dict[str, type[Architecture]] = {cls.name: cls for cls in (QwenVL, PaliGemma)}


def batch_vision_attention() -> None:
    """Make transformers' Qwen2.5-VL vision attention one call per layer when all pictures have one size.

    Without flash attention transformers runs one attention call per picture; for a training batch of equal pictures
    the reshaped single call computes the same values several times faster on a CPU.
    """
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    attention: Any = modeling.Qwen2_5_VLVisionAttention
    if hasattr(attention, "_one_picture_at_a_time"):
        return

    def forward(
        self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any, **kwargs: Any
    ) -> Tensor:
        lengths = cu_seqlens[1:] - cu_seqlens[:-1]
        if not bool((lengths == lengths[0]).all()):
            return attention._one_picture_at_a_time(
                self, hidden_states, cu_seqlens=cu_seqlens, position_embeddings=position_embeddings, **kwargs
            )
        total = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).reshape(total, 3, self.num_heads, -1).unbind(1)
        query, key = modeling.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        shape = (len(lengths), int(lengths[0]), self.num_heads, self.head_dim)
        query, key, value = (x.reshape(shape).transpose(1, 2) for x in (query, key, value))
        output = scaled_dot_product_attention(query, key, value.to(query.dtype), scale=self.scaling)
        return self.proj(output.transpose(1, 2).reshape(total, -1).to(hidden_states.dtype))

    attention._one_picture_at_a_time = attention.forward
    attention.forward = forward
