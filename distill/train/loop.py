"""The training loop.  Every draw depends on seed, stage and step alone, so that a restart goes on as if nothing was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distill.recipe.train import OnPolicy, Stage, Train
from distill.train import checkpoint
from distill.train.group import Group
from distill.train.losses import divergence
from distill.train.model import answer_logits, moving
from distill.train.rows import Encoded, EncodedRows, draws
from distill.train.sample import own_answers
from distill.train.state import Point, State, rate_at
from models.support.errors import CheckFailed, UsageError
from models.support.files import atomic_write

VALIDATION_BATCH = 64
ALONE = Group()


class Loop:
    """One training in `folder`: `checkpoint.pt`, `best.pt`, `curve.jsonl`.

    Args:
        identity: what must be the same for a checkpoint to be gone on from.
        teacher: for logit distillation.
        group: the processes that share every step.
        told: called with every point of the curve.
    """

    def __init__(
        self,
        model: Any,
        train: Train,
        seed: int,
        rows: EncodedRows,
        validation: EncodedRows | None,
        folder: Path,
        identity: str,
        *,
        teacher: Any = None,
        group: Group = ALONE,
        told: Callable[[Point, int], None] | None = None,
    ):
        import torch

        self.model, self.train, self.seed = model, train, seed
        self.rows, self.validation, self.folder, self.identity = rows, validation, folder, identity
        self.teacher, self.group, self.told = teacher, group, told
        self.pad = int(rows.processor.tokenizer.pad_token_id or 0)
        self.parameters = moving(model)
        if not self.parameters:
            raise UsageError("nothing is trained: every weight is frozen", field="train")
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]  # norms and biases are not decayed
        groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.98))
        self.state = State()
        self.resumed_at = self._resume()

    # -- checkpoints

    def _resume(self) -> int:
        import torch

        found = checkpoint.load(self.folder / "checkpoint.pt")
        if found is None or found["identity"] != self.identity:
            (self.folder / "best.pt").unlink(missing_ok=True)
            return 0
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(found["weights"][name])
        self.optimizer.load_state_dict(found["optimizer"])
        saved = found["state"]
        self.state = State(**(saved | {"curve": [Point(**p) for p in saved["curve"]]}))
        self._write_curve()
        return self.state.step

    def _save(self) -> None:
        if not self.group.first:
            return
        checkpoint.save(
            self.folder / "checkpoint.pt",
            {
                "identity": self.identity,
                "weights": {name: p.detach() for name, p in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "state": asdict(self.state),
            },
        )

    def _write_curve(self) -> None:
        """Write the whole curve: what was after the checkpoint is trained, and written, again."""
        if not self.group.first:
            return
        with atomic_write(self.folder / "curve.jsonl") as file:
            file.writelines(json.dumps(asdict(point)) + "\n" for point in self.state.curve)

    # -- training

    def run(self) -> State:
        """Train to the end, or until no look brings a better model; the best weights are in the model afterwards.

        Raises:
            CheckFailed: out of memory, or the loss is no number.
            UsageError: a checkpoint cannot be written.
        """
        import torch

        first = 0
        for number, stage in enumerate(self.train.stages):
            if self.state.stopped is None and self.state.step < first + stage.steps:
                try:
                    self._stage(number, stage, first)
                except torch.OutOfMemoryError as error:
                    self._out_of_memory(error)
            first += stage.steps
        self._save()
        best = checkpoint.load(self.folder / "best.pt") if self.validation is not None else None
        if best is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(best["weights"][name])
        return self.state

    def _stage(self, number: int, stage: Stage, first: int) -> None:
        pools, shares = self._of(stage)
        train, state, last = self.train, self.state, number == len(self.train.stages) - 1
        key = [self.seed, number]
        drawn = draws(pools, shares, train.batch, train.rows_per_picture, key, state.step - first)
        began = time.monotonic() - state.seconds
        while state.step < first + stage.steps:
            rate = rate_at(state.step - first, stage)
            loss = self._step(next(drawn), rate, [*key, state.step - first])
            state.step += 1
            state.total, state.since = state.total + loss, state.since + 1
            if not math.isfinite(loss):
                raise CheckFailed(f"the loss is {loss} at step {state.step}", field=f"train.stages[{number}].rate",
                                  value=stage.rate, fix="lower it, or warm up longer")  # fmt: skip
            end = state.step == first + stage.steps
            if state.step % train.evaluate_every == 0 or end:
                state.seconds = time.monotonic() - began
                point = Point(number, state.step, state.total / state.since, rate, round(state.seconds, 2))
                state.total, state.since = 0.0, 0
                self._look(point, last)
            if state.step % train.checkpoint_every == 0 and not end:
                state.seconds = time.monotonic() - began
                self._save()
            if state.stopped is not None:
                return
        self._save()

    def _of(self, stage: Stage) -> tuple[list[list[Encoded]], list[float]]:
        """Return the stage's rows, by category where it gives shares, and the shares."""
        by_category: dict[str, list[Encoded]] = {}
        for item in self.rows.items:
            by_category.setdefault(item.category, []).append(item)
        # a share is asked of every category; `categories` may name some that this data does not have
        missing = [name for name in stage.shares or stage.categories if name not in by_category]
        if missing and (stage.shares or len(missing) == len(stage.categories)):
            raise UsageError("no training row has one of these categories",
                             field=f"train.stages.{'shares' if stage.shares else 'categories'}",
                             value=", ".join(missing), fix=f"known: {', '.join(sorted(by_category))}")  # fmt: skip
        if not stage.shares:
            return [[i for i in self.rows.items if not stage.categories or i.category in stage.categories]], [1.0]
        total = sum(stage.shares.values())
        return [by_category[name] for name in stage.shares], [share / total for share in stage.shares.values()]

    def _step(self, items: list[Encoded], rate: float, key: list[int]) -> float:
        """Take a step; `key` decides what is random in it: dropout, and what the student writes."""
        import torch

        torch.manual_seed(int(np.random.SeedSequence([*key, self.group.rank]).generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        items = self.group.mine(items)
        own = self.train.logits.on_policy if self.train.logits is not None else None
        if own is not None and np.random.default_rng([*key, 1]).random() >= own.share:
            own = None
        if own is not None:
            items = own_answers(self.model, self.rows, items, own, self._autocast())
        size = -(-len(items) // self.train.accumulate)
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        answers = self.group.total(sum(len(item.ids) - item.start for item in items))
        total = 0.0
        for part in parts:
            # the mean over all answer tokens of the step, whatever the parts are and whoever has them
            loss = self._loss(part, own) / answers
            loss.backward()
            total += float(loss.detach())
        self.group.add_gradients(self.parameters.values())
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.train.clip)
        self.optimizer.step()
        self.state.tokens += int(self.group.total(sum(len(item.ids) for item in items)))
        return self.group.total(total)

    def _loss(self, items: list[Encoded], own: OnPolicy | None = None) -> Any:
        """Return the sum of the loss over the answer tokens of `items`; with `own` the student wrote them itself."""
        import torch
        from torch.nn.functional import cross_entropy

        batch = self.rows.batch(items, self.pad)
        with self._autocast():
            logits, targets = answer_logits(self.model, batch)
        mix = self.train.logits
        if mix is None:
            return cross_entropy(logits.float(), targets, reduction="sum")
        with torch.no_grad(), self._autocast():
            wanted, _ = answer_logits(self.teacher, batch)
        if own is not None:
            return divergence(logits, wanted, own.beta)
        gap = mix.temperature**2 * divergence(logits, wanted, 0.0, mix.temperature)
        return (1 - mix.weight) * cross_entropy(logits.float(), targets, reduction="sum") + mix.weight * gap

    def _autocast(self) -> Any:
        import torch

        kind = next(iter(self.parameters.values())).device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.train.precision == "bf16")

    # -- looking

    def _look(self, point: Point, last: bool) -> None:
        if self.validation is not None and self.group.first:
            point.validation_loss, point.exact = self.measure(self.validation)
            self._judge(point, last)
        self.state.stopped = self.group.told(self.state.stopped)
        self.state.curve.append(point)
        self._write_curve()
        if self.told is not None and self.group.first:
            self.told(point, self.train.steps)

    def _judge(self, point: Point, last: bool) -> None:
        state, loss = self.state, point.validation_loss
        if not last or loss is None:
            return
        if loss < state.best:
            state.best, state.best_step, state.poor = loss, point.step, 0
            weights = {name: p.detach() for name, p in self.parameters.items()}
            checkpoint.save(self.folder / "best.pt", {"weights": weights})
            return
        state.poor += 1
        if self.train.patience is not None and state.poor >= self.train.patience:
            state.stopped = f"no better model in {state.poor} looks"

    def measure(self, rows: EncodedRows) -> tuple[float, float]:
        """Return (mean loss of an answer token, share of rows whose every answer token is the likeliest)."""
        import torch
        from torch.nn.functional import cross_entropy

        self.model.eval()
        total, tokens, exact = 0.0, 0, 0
        ordered = sorted(rows.items, key=lambda item: (item.picture, item.id))
        with torch.no_grad():
            for first in range(0, len(ordered), VALIDATION_BATCH):
                part = ordered[first : first + VALIDATION_BATCH]
                with self._autocast():
                    logits, targets = answer_logits(self.model, rows.batch(part, self.pad))
                total += float(cross_entropy(logits.float(), targets, reduction="sum"))
                tokens += len(targets)
                right = (logits.argmax(-1) == targets).tolist()
                start = 0
                for item in part:
                    size = len(item.ids) - item.start
                    exact += all(right[start : start + size])
                    start += size
        return total / tokens, exact / len(ordered)

    def _out_of_memory(self, error: Exception) -> None:
        raise CheckFailed(
            f"out of memory at step {self.state.step + 1}: {self.train.batch} rows in {self.train.accumulate} parts",
            field="train.batch", value=self.train.batch,
            fix="raise train.accumulate, or lower train.batch or train.image_tokens, or use method lora or qlora; "
            "the last checkpoint is kept",
        ) from error  # fmt: skip
