"""How many language tokens an image becomes in each family, as pydantic models that a catalog file can hold.

Where `models.image_tokens` has the rule already, `rule: table` names it; the others follow the processors of
transformers 5.14 (named in each class), and the tests compare them with those processors.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TableRule(_Rule):
    """The rule that `fovea models image-tokens` has under `name`."""

    rule: Literal["table"]
    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from models.image_tokens import known_models

        if name not in known_models():
            raise ValueError("is not a rule of models/image_tokens")
        return name

    def tokens(self, width: int, height: int) -> int:
        from models.image_tokens import image_tokens

        return image_tokens(self.name, width, height).tokens


class FixedRule(_Rule):
    """`count` tokens whatever the size: the processor resizes to one square."""

    rule: Literal["fixed"]
    count: int = Field(gt=0)

    def tokens(self, width: int, height: int) -> int:
        return self.count


class SmartResizeRule(_Rule):
    """One token per `factor` x `factor` px between a least and a greatest area (Qwen's `smart_resize`)."""

    rule: Literal["smart-resize"]
    factor: int = Field(gt=0)
    min_pixels: int = Field(gt=0)
    max_pixels: int = Field(gt=0)

    def tokens(self, width: int, height: int) -> int:
        from models.image_tokens.rules import QwenSmartResize

        return QwenSmartResize(self.factor, self.min_pixels, self.max_pixels).tokens(width, height, "high")


class AnyResRule(_Rule):
    """LLaVA-NeXT and OneVision: a base view plus the tiles of the best fitting grid, without the padding.

    `side` is a tile's pixels, `patches` its patches per side, `grids` the allowed (rows, columns).  `max_tiles` is
    OneVision's `anyres_max_N`: above it the features are shrunk.  Source: processing_llava_next.py and
    processing_llava_onevision.py, `_get_number_of_features`.
    """

    rule: Literal["any-res"]
    side: int = Field(gt=0)
    patches: int = Field(gt=0)
    grids: tuple[tuple[int, int], ...]
    max_tiles: int | None = None

    def _best_grid(self, width: int, height: int) -> tuple[int, int]:
        """Most pixels kept, then least area wasted (transformers' `select_best_resolution`)."""
        best, best_key = self.grids[0], (-1, 0)
        for rows, columns in self.grids:
            grid_h, grid_w = rows * self.side, columns * self.side
            scale = min(grid_w / width, grid_h / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            key = (kept, -(grid_h * grid_w - kept))
            if key > best_key:
                best, best_key = (rows, columns), key
        return best

    def tokens(self, width: int, height: int) -> int:
        rows, columns = self._best_grid(width, height)
        down, across = rows * self.patches, columns * self.patches
        if width / height > across / down:
            down -= 2 * ((down - int(round(height * (across / width), 7))) // 2)
        else:
            across -= 2 * ((across - int(round(width * (down / height), 7))) // 2)
        features, newlines = down * across, down
        if self.max_tiles is not None:
            ratio = math.sqrt(down * across / (self.max_tiles * self.patches**2))
            if ratio > 1.1:
                features, newlines = int(down // ratio) * int(across // ratio), int(down // ratio)
        return features + newlines + self.patches**2


class SplitRule(_Rule):
    """SmolVLM (Idefics3): the long edge is scaled to `longest_edge`, then cut into `tile` squares, plus one whole view.

    Each view costs `per_tile` tokens and its markers.  Source: image_processing_idefics3.py
    (`get_number_of_image_patches`) and processing_idefics3.py (the counts of markers).
    """

    rule: Literal["split"]
    longest_edge: int = Field(gt=0)
    tile: int = Field(gt=0)
    per_tile: int = Field(gt=0)

    def tokens(self, width: int, height: int) -> int:
        long_side = max(width, height)
        aspect = width / height
        other = int(self.longest_edge / aspect if width >= height else self.longest_edge * aspect)
        other += other % 2
        along, beside = math.ceil(self.longest_edge / self.tile), math.ceil(max(1, other) / self.tile)
        rows, columns = (beside, along) if width == long_side else (along, beside)
        whole = self.per_tile + 3
        if along <= 1 and beside <= 1:
            return whole
        return whole + rows * (columns * (self.per_tile + 2) + 1)


class CanvasRule(_Rule):
    """Llama 4: the image is put on the best canvas of up to `max_tiles` tiles of `tile` px, plus one whole view.

    Source: image_processing_llama4.py (`find_supported_resolutions`, `get_best_fit`) and processing_llama4.py
    (`_prompt_split_image`).
    """

    rule: Literal["canvas"]
    tile: int = Field(gt=0)
    per_tile: int = Field(gt=0)
    max_tiles: int = Field(gt=0)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (rows, columns): the least enlargement, else the least shrinking, then the smallest area."""
        grids = [
            (rows, count // rows)
            for count in range(1, self.max_tiles + 1)
            for rows in range(1, count + 1)
            if count % rows == 0
        ]
        scales = {g: min(Fraction(g[1] * self.tile, width), Fraction(g[0] * self.tile, height)) for g in grids}
        enlarging = [s for s in scales.values() if s >= 1]
        chosen = min(enlarging) if enlarging else max(scales.values())
        return min((g for g in grids if scales[g] == chosen), key=lambda g: g[0] * g[1])

    def tokens(self, width: int, height: int) -> int:
        rows, columns = self.grid(width, height)
        markers = 3  # image start, image, image end
        if rows * columns == 1:
            return self.per_tile + markers
        return (rows * columns + 1) * self.per_tile + markers + rows * (columns - 1) + rows


class HdCropsRule(_Rule):
    """Phi-4-multimodal: crops of `crop` px plus one whole view, each `per_crop` tokens; an upper bound.

    `(h w + 1) per_crop + 1 + (h + 1) sqrt(per_crop)`; the engine leaves out rows that are only padding.
    Source: vLLM 0.29 phi4mm.py (`temp_len` of the HD transform).
    """

    rule: Literal["hd-crops"]
    crop: int = Field(gt=0)
    per_crop: int = Field(gt=0)
    max_crops: int = Field(gt=0)

    def tokens(self, width: int, height: int) -> int:
        across, down = math.ceil(width / self.crop), math.ceil(height / self.crop)
        if across * down > self.max_crops:
            # the processor then takes the grid nearest in shape with at most max_crops crops
            down = max(1, min(self.max_crops, round(math.sqrt(self.max_crops * height / width))))
            across = max(1, self.max_crops // down)
        return (across * down + 1) * self.per_crop + 1 + (down + 1) * math.isqrt(self.per_crop)


ImageRule = Annotated[
    TableRule | FixedRule | SmartResizeRule | AnyResRule | SplitRule | CanvasRule | HdCropsRule,
    Field(discriminator="rule"),
]
