"""The section about training: from which checkpoint, which weights move, how long, and what is saved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.recipe.parts import Money, Section, Share


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021) on the linear layers of the language model."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of an adapter.")
    alpha: int = Field(32, ge=1, description="Scale: an adapter's output is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in front of an adapter.")
    targets: list[str] = Field(
        default_factory=list,
        description="Ends of the names of the layers that get one (`q_proj`); empty: every linear layer of the "
        "language model, and of the tower where `tower` is `trained`.",
    )


class Stage(Section):
    """A part of the training with its own learning rate: warm-up, constant, cosine to `floor`."""

    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate.")
    warmup: Share = Field(0.03, description="Share of the steps in which the rate grows from 0.")
    hold: Share = Field(0.5, description="Share of the steps after which it decays.")
    floor: Share = Field(0.0, description="Where the decay ends, as a share of the peak.")
    categories: list[str] = Field(
        default_factory=list,
        description="Rows of these categories only; empty: all. Answers that name what is seen teach a picture "
        "sooner than yes and no.",
    )
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Instead of `categories`: how much of a batch, on average, is of each category. They are "
        "scaled to add up to 1.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Stage:
        if self.categories and self.shares:
            raise ValueError("categories and shares are two ways to choose rows: give one of them")
        return self


class OnPolicy(Section):
    """On-policy distillation (Agarwal et al. 2024, "GKD"): the student writes answers and learns the teacher's
    distribution on its own words.
    """

    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the steps whose answers the student writes itself; the others are as usual.",
    )
    beta: Share = Field(
        1.0,
        description="Divergence: 1 is the reverse KL (student from teacher), 0 the forward KL, between them the "
        "generalised Jensen-Shannon divergence.",
    )
    temperature: float = Field(1.0, gt=0, le=5, description="At which the student's answers are drawn.")
    max_tokens: int = Field(64, ge=1, description="Longest answer that it writes.")


class Logits(Section):
    """Logit distillation (Hinton et al. 2015): the teacher's weights are here and it has the student's vocabulary."""

    checkpoint: str = Field(min_length=1, description="The teacher's checkpoint, relative to the recipe.")
    weight: Share = Field(0.5, description="Share of the loss that is the divergence from the teacher.")
    temperature: float = Field(2.0, gt=0, le=20, description="Softens both distributions.")
    on_policy: OnPolicy | None = Field(None, description="Learn on the student's own answers too.")


class Prune(Section):
    """Structured pruning of the base before it is trained: whole layers, whole units of the MLPs."""

    layers: int | None = Field(None, ge=1, description="Layers of the language model that stay.")
    mlp: float | None = Field(None, gt=0, le=1, description="Share of the MLP's units that stay in each of them.")


class Train(Section):
    """How the student learns."""

    base: str = Field(min_length=1, description="Checkpoint to start from: a folder relative to the recipe, or hub id.")
    method: Literal["full", "lora", "qlora"] = Field(
        "full", description="All weights; adapters; adapters on a base in NF4 (bitsandbytes)."
    )
    lora: Lora = Field(default_factory=Lora, description="For `lora` and `qlora`.")
    tower: Literal["trained", "frozen"] = Field(
        "trained", description="Vision tower: `frozen` keeps it as it is (the projector learns all the same)."
    )
    stages: list[Stage] = Field(default_factory=lambda: [Stage()], min_length=1, description="One after the other.")
    batch: int = Field(16, ge=1, description="Rows in a step.")
    accumulate: int = Field(1, ge=1, description="Parts of a step, where a whole batch is too much for the memory.")
    rows_per_picture: int = Field(
        8, ge=1, description="Rows of one picture that go into a batch together: the tower sees the picture once."
    )
    image_tokens: int | None = Field(
        None, ge=4, description="Most tokens of a picture: larger ones are scaled down, when it is served too."
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="Of the forward pass; weights are kept in fp32.")
    weight_decay: float = Field(0.05, ge=0, le=1, description="AdamW's.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    logits: Logits | None = Field(None, description="Learn the teacher's distribution too, not its words alone.")
    prune: Prune | None = Field(None, description="Prune the base first.")
    evaluate_every: int = Field(200, ge=1, description="Steps between looks at the validation rows.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many looks in the last stage without a better one; the best is kept."
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints: what a kill loses at most.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share every step (Ray Train), each on a GPU where there are any. On several "
        "machines the output folder has to be shared.",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; the same number, the same curve after a restart.")
    usd_per_hour: Money | None = Field(None, description="Price of the machine, quoted: dollars of the training.")

    @model_validator(mode="after")
    def _coherent(self) -> Train:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate is {self.accumulate}, but a batch has {self.batch} rows")
        if self.workers > self.batch:
            raise ValueError(f"workers is {self.workers}, but a batch has {self.batch} rows")
        if self.prune is not None and self.method != "full":
            raise ValueError("prune needs method full: what was cut has to be relearned by the weights themselves")
        if self.prune is not None and self.prune.layers is None and self.prune.mlp is None:
            raise ValueError("prune cuts nothing: give layers or mlp")
        return self

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)
