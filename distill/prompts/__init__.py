"""Prompts: Jinja files, the recipe's own or the shipped ones, rendered in a sandbox; an unknown name is an error."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill.recipe import Recipe
from distill.rows import Row
from models.support.errors import UsageError

SHIPPED = Path(__file__).parent
_SAMPLE = Row(id="sample", image="sample.png", question="What is it?")


@dataclass(frozen=True)
class Words:
    """What one request says."""

    system: str | None
    text: str


class PromptSet:
    """The four prompts of a recipe, read and tried out when it is made.

    Raises:
        UsageError: a file is missing, is not Jinja, or uses a name that it is not given.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self._task = recipe.task
        self._labels: dict[str, Words] = {}
        self._rationale = recipe.prompts.rationale
        self._plain = recipe.prompts.reply == "text"
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, trim_blocks=False)
        self._templates: dict[str, tuple[Template, str]] = {}
        sources = []
        for name in ("system", "user", "blind", "judge"):
            own = getattr(recipe.prompts, name)
            file = folder / own if own is not None else SHIPPED / f"{name}.jinja"
            field = f"prompts.{name}"
            try:
                sources.append(file.read_text(encoding="utf-8"))
                template = environment.from_string(sources[-1])
            except OSError as error:
                raise UsageError(f"cannot read: {error.strerror}", field=field, value=str(file)) from error
            except (TemplateError, UnicodeDecodeError) as error:
                line = getattr(error, "lineno", None)
                raise UsageError(f"not a Jinja file: {error}", field=field, value=f"{file}:{line or 1}") from error
            self._templates[name] = (template, str(file))
        self.digest = hashlib.sha256("\0".join(sources).encode()).hexdigest()
        self._no_system = self._plain and recipe.prompts.system is None
        for name in self._templates:
            self._render(name, row=_SAMPLE, answer="sample")

    def label(self, row: Row) -> Words:
        """Return the words that ask a teacher about a row."""
        if row.id not in self._labels:  # asked for once a round and more
            self._labels[row.id] = self._words("user", row)
        return self._labels[row.id]

    def blind(self, row: Row) -> Words:
        """Return the words that ask about a row without its picture."""
        if self._plain and self._templates["blind"][1] == str(SHIPPED / "blind.jinja"):
            return self.label(row)  # a small model knows only the form it was trained on
        return self._words("blind", row)

    def judge(self, row: Row, answer: Any) -> Words:
        """Return the words that ask a judge about an answer to a row."""
        return Words(None, self._render("judge", row=row, answer=answer))

    def _words(self, name: str, row: Row) -> Words:
        system = None if self._no_system else self._render("system", row=row)
        return Words(system or None, self._render(name, row=row))

    def _render(self, name: str, **given: Any) -> str:
        template, file = self._templates[name]
        try:
            return template.render(
                task=self._task.description,
                answer_schema=self._task.answer_schema,
                rationale=self._rationale,
                **given,
            ).strip()
        except (TemplateError, TypeError, ValueError) as error:
            known = ", ".join(sorted({"task", "answer_schema", "rationale", *given}))
            raise UsageError(
                f"cannot be rendered: {error}", field=f"prompts.{name}", value=file, fix=f"it knows {known}"
            ) from error
