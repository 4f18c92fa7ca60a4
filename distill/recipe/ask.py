"""Sections about whom to ask, with which words, and for how many dollars."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from distill.recipe.parts import Dollars, Money, Name, Section


class TokenPrice(Section):
    """What a self-hosted model is charged at, per 1M tokens; vendors' prices come from the price book."""

    input: Money = Field(description="Dollars per 1M input tokens, quoted.")
    output: Money = Field(description="Dollars per 1M output tokens, quoted.")
    image_tokens_at_most: int = Field(
        16_384, ge=1, description="Most tokens that one image can be; bounds the price of a request before it is sent."
    )


class Licence(Section):
    """What the terms of a teacher say about training on its answers."""

    training: Literal["allowed", "unclear", "forbidden"] = Field(
        "unclear", description="Whether its answers may train a model; `forbidden` is refused, `unclear` is flagged."
    )
    terms: str = Field("", description="Where the terms stand, and when they were read.")


class Batch(Section):
    """The vendor's batch API: half the price, answers within 24 hours."""

    size: int = Field(500, ge=1, le=50_000, description="Requests in a batch (fewer where pictures fill it).")
    poll_s: float = Field(30.0, ge=0, description="Seconds between questions whether it is done.")


class Volume(Section):
    """Batch inference with Ray Data and vLLM instead of a served endpoint: for many rows."""

    replicas: int = Field(1, ge=1, le=1024, description="Engines, each on a GPU of its own where there are any.")
    batch: int = Field(32, ge=1, le=4096, description="Rows that go through the job together.")
    engine: dict[str, Any] = Field(default_factory=dict, description="More vLLM engine arguments, by their field name.")


class Teacher(Section):
    """A model that is asked: a vendor's, or any server that speaks OpenAI's API."""

    name: Name = Field(description="Short name, kept in every row that it answers.")
    model: str = Field(
        min_length=1,
        description="`openai/gpt-4o-mini`, `anthropic/...`, `google/...`; with `base_url` the served name.",
    )
    base_url: str | None = Field(
        None, pattern=r"^https?://", description="URL of a self-hosted server with OpenAI's API (ends in /v1)."
    )
    vendor_url: str | None = Field(
        None, pattern=r"^https?://", description="Another address of the vendor's own API (a proxy of the company)."
    )
    checkpoint: str | None = Field(
        None,
        description="Checkpoint of a self-hosted teacher, relative to the recipe: it is served on this machine with "
        "`fovea serve` for as long as it is asked. Instead of `base_url`.",
    )
    api_key_env: str | None = Field(None, description="Environment variable of the key; default: the vendor's own.")
    price: TokenPrice | None = Field(None, description="Price of a self-hosted model; without it its answers cost $0.")
    samples: int = Field(1, ge=1, le=32, description="Answers per row.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Not sent when left out: the newest models refuse any."
    )
    max_tokens: int = Field(512, ge=1, description="Longest answer, thinking included.")
    concurrency: int = Field(8, ge=1, le=1024, description="Requests in flight.")
    requests_per_minute: float | None = Field(None, gt=0, description="Rate limit of the account, in requests.")
    tokens_per_minute: float | None = Field(
        None, gt=0, description="Rate limit of the account, in tokens (counted at their highest before asking)."
    )
    timeout_s: float = Field(120.0, gt=0, description="Longest wait for one answer, seconds.")
    attempts: int = Field(
        4, ge=1, le=20, description="Requests per answer at most; only errors that may pass are retried."
    )
    batch: Batch | None = Field(None, description="Ask through the vendor's batch API, at the batch price.")
    volume: Volume | None = Field(
        None, description="Run the checkpoint in a batch job (Ray Data), not as a server; needs temperature."
    )
    licence: Licence = Field(default_factory=Licence, description="Whether its answers may train a model.")

    @property
    def self_hosted(self) -> bool:
        """Whether it is no vendor's model."""
        return self.base_url is not None or self.checkpoint is not None

    @model_validator(mode="after")
    def _coherent(self) -> Teacher:
        if self.base_url is not None and self.checkpoint is not None:
            raise ValueError("give base_url (a server that runs) or checkpoint (it is served here), not both")
        if self.price is not None and not self.self_hosted:
            raise ValueError("price is for a self-hosted model (base_url); a vendor's price comes from the price book")
        if self.self_hosted and self.vendor_url is not None:
            raise ValueError("give base_url (self-hosted) or vendor_url (the vendor's API elsewhere), not both")
        if self.batch is not None and self.self_hosted:
            raise ValueError("batch is for a vendor's batch API; leave it out for a self-hosted model")
        if self.volume is not None and (self.checkpoint is None or self.temperature is None):
            raise ValueError("volume runs a checkpoint at a temperature: give both")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 with temperature 0 buys one answer several times")
        if self.licence.training == "forbidden":
            raise ValueError("licence.training is forbidden: its answers must not train a model; name another teacher")
        return self


class Prompts(Section):
    """Jinja files, relative to the recipe; the shipped ones where left out."""

    system: str | None = Field(None, description="System prompt. Knows `task`, `answer_schema`, `rationale`.")
    user: str | None = Field(None, description="The question. Knows also `row` (id, question, category).")
    blind: str | None = Field(None, description="The question when it is asked without its image (image-blind check).")
    judge: str | None = Field(None, description="What the judge is asked. Knows also `answer`.")
    reply: Literal["json", "text"] = Field(
        "json",
        description="`json`: an object with answer, confidence and rationale; `text`: the whole reply is the answer "
        "(small self-hosted teachers), and without a `user` file the question is asked as it is.",
    )
    rationale: bool = Field(True, description="Ask for one sentence of evidence beside the answer.")


class Probe(Section):
    """How the worth of the labels bought so far is measured after a round."""

    kind: Literal["nearest", "student", "command"] = Field(
        "nearest",
        description="`nearest`: the label of the most similar labelled picture with the same question (a cheap "
        "stand-in for a student); `student`: the student itself, trained from its base on the labels so far; "
        "`command`: an own program, which is given the labels and prints the accuracy.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="For `student`: steps of a round's training, all stages shortened alike; default: all.",
    )
    command: list[str] = Field(
        default_factory=list,
        description="Program and arguments; LABELS (JSONL) and TRUTH (JSONL) are appended. It prints one JSON object "
        '{"correct": {row id: true or false}}.',
    )
    timeout_s: float = Field(3600.0, gt=0, description="Longest time of the command, seconds.")

    @model_validator(mode="after")
    def _has_command(self) -> Probe:
        if (self.kind == "command") != bool(self.command):
            raise ValueError("command is given if, and only if, kind is command")
        if self.steps is not None and self.kind != "student":
            raise ValueError("steps is for kind student")
        return self


class Rounds(Section):
    """Budgeted labelling: buy in rounds, and stop when a dollar buys too little accuracy."""

    size: int = Field(200, ge=1, description="Rows labelled in a round.")
    min_points_per_dollar: float = Field(
        0.1, gt=0, description="Stop when a round brings less accuracy, in percentage points, per dollar."
    )
    patience: int = Field(2, ge=1, description="Poor rounds in a row before stopping: one may be chance.")
    probe: Probe = Field(default_factory=Probe, description="How accuracy is measured after a round.")
    student_usd_per_query: Money | None = Field(
        None, description="What the student will cost per query, quoted; gives the payback in queries."
    )


class Budget(Section):
    """What may be spent on answers."""

    max_usd: Dollars = Field(description="Dollars at most, all steps together; quoted decimal text or a whole number.")
    prices: str | None = Field(None, description="A file of prices over the shipped book, relative to the recipe.")
    give_up_after: int = Field(
        20, ge=1, description="Stop when this many answers of one teacher in a row are unusable (refused, prose, cut)."
    )
    rounds: Rounds | None = Field(None, description="Buy in rounds; without it all rows are labelled.")
