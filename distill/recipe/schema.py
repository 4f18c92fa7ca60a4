"""The recipe as a whole, with its sections on the task and the data."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from distill.recipe.ask import Budget, Prompts, Teacher
from distill.recipe.evaluate import Evaluate, Export
from distill.recipe.filters import Filters, Unit
from distill.recipe.parts import Name, Section, Share
from distill.recipe.student import Student
from distill.recipe.train import Train
from models.golden import RULES


class Task(Section):
    """What is to be learned."""

    description: str = Field(min_length=1, description="What the model does, in words that the prompts use.")
    answer_schema: dict[str, Any] = Field(
        default_factory=lambda: {"type": "string", "minLength": 1},
        description="JSON Schema of an answer (draft 2020-12): a string, or an object of fields.",
    )
    units: dict[str, Unit] = Field(
        default_factory=dict,
        description="Quantities: field (`total`, `lines.price`; `.` is the whole answer) -> unit, range.",
    )
    accept: dict[str, Any] = Field(
        default_factory=dict,
        description="When two answers are the same: a rule of golden sets, {rule: numeric, abs: 0.01}. "
        "Default: `normalized` for text, `numeric` for numbers, `json` for objects.",
    )

    @field_validator("answer_schema")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            Draft202012Validator.check_schema(value)
        except SchemaError as error:
            raise ValueError(f"not a JSON Schema: {error.message}") from None
        return value

    @field_validator("accept")
    @classmethod
    def _is_a_rule(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            return value
        rule = RULES.get(str(value.get("rule")))
        if rule is None or rule.name == "abstain":
            raise ValueError(f"rule must be one of {', '.join(r for r in RULES if r != 'abstain')}")
        unknown = sorted(value.keys() - {"rule"} - rule.known_options)
        if unknown:
            raise ValueError(f"rule {rule.name} has no option {unknown[0]!r}")
        return value


class Data(Section):
    """Pictures and questions, and what people already said about them."""

    rows: str = Field(description="JSONL of pictures and questions, relative to the recipe (format: docs/distill.md).")
    human: list[str] = Field(default_factory=list, description="JSONL files of human labels and corrections.")
    audit_human_rows: int = Field(
        0, ge=0, description="Rows with a human label that the teachers answer all the same: how noisy are they?"
    )
    max_synthetic_share: Share = Field(
        0.3, description="Largest share of rows marked `synthetic` among the training rows."
    )
    max_broken_rows: int = Field(
        0, ge=0, description="Rows that may be dropped because their picture is missing or unreadable; 0: stop."
    )


class Recipe(Section):
    """A distillation, from the data to the filtered answers."""

    name: Name = Field(description="Name of the student and of its files.")
    seed: int = Field(0, ge=0, description="Decides every draw: the order of buying, of trimming and of balancing.")
    task: Task = Field(description="What is to be learned, and what an answer looks like.")
    data: Data = Field(description="Pictures and questions.")
    teachers: list[Teacher] = Field(min_length=1, description="Whom to ask; each answers every row.")
    prompts: Prompts = Field(default_factory=Prompts, description="Jinja files.")
    budget: Budget = Field(description="What may be spent.")
    filters: Filters = Field(default_factory=Filters, description="What is dropped before training.")
    student: Student | None = Field(None, description="Who learns; collecting and filtering do not need it.")
    train: Train | None = Field(None, description="How it learns.")
    evaluate: Evaluate | None = Field(None, description="On which truth, at which load and price it is measured.")
    export: Export | None = Field(None, description="How it is registered, and what stands before its promotion.")

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        names = [t.name for t in self.teachers]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ValueError(f"two teachers are called {min(twice)!r}: names must differ")
        if self.train is not None and self.student is None:
            raise ValueError("train needs a student: add the section `student` with its model of the catalog")
        if self.evaluate is not None and self.train is None:
            raise ValueError("evaluate needs a student that was trained: add the section `train`")
        if self.evaluate is not None and self.evaluate.max_usd is None and not self.teachers[0].self_hosted:
            raise ValueError("evaluate asks the vendor's teacher too: say what that may cost in evaluate.max_usd")
        rounds = self.budget.rounds
        if rounds is not None and rounds.probe.kind == "student" and self.train is None:
            raise ValueError("budget.rounds.probe trains the student: add the sections `student` and `train`")
        seeds = [self.seed, *(self.evaluate.seeds if self.evaluate is not None else ())]
        if len(set(seeds)) < len(seeds):
            raise ValueError("evaluate.seeds names a seed twice, or the recipe's own: every student needs its own seed")
        if self.export is not None and self.evaluate is None:
            raise ValueError("export needs a proof: add the section `evaluate`")
        if self.export is not None and self.evaluate is not None:
            unknown = [name for name in self.export.also if name not in self.evaluate.also]
            if unknown:
                raise ValueError(f"export.also names {unknown[0]!r}, which is not in evaluate.also")
        if self.filters.agreement.min_teachers > len(names):
            raise ValueError(
                f"filters.agreement.min_teachers is {self.filters.agreement.min_teachers}, "
                f"but there are {len(names)} teachers"
            )
        return self
