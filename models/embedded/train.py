"""Train an embedded model from nothing: `python -m models.embedded.train --family qwen2_5_vl --out DIR`.

Three stages, all seeded:

1. *look*: the vision tower alone learns to name colour and shape and to find the box (linear heads, thrown away after).
   A tower that already sees makes the second stage several times shorter than training end to end on words alone.
2. *answer*: the whole model learns to answer; the loss is on the answer's tokens only.  Several questions share one
   picture, so that the tower runs once for them.

3. *verify*: the yes/no questions, with yes as often as no.  Among the published ones the answer no to "is there a blue
   shape?" is right seven times in eight, which a model learns before it learns to look; a balanced stage ends that.
   It begins without negations: what "there is" and "there is not" teach about looking cancels out until it is known.
   Families that got over it in the second stage do without.

Pictures: half of the published easy-VQA training split (mirrored at random), half rendered (`shapes.py`).  A part of
the published *training* pictures is held out to follow progress; the test split is never read.  A run that is
interrupted continues from its last checkpoint with the same command.  It runs on a GPU where there is one: the same
pictures and first weights, and other rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from models.embedded import shapes
from models.embedded.architectures import ARCHITECTURES, Architecture, QwenVL
from models.embedded.batches import Pictures
from models.embedded.card import hashes
from models.embedded.recipe import QUICK, SCHEDULES, Recipe
from models.support.files import write_json

SAVE_EVERY = 500


@dataclass
class Progress:
    """Where a run is; saved with the weights so that it can continue."""

    stage: str = "look"
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


def look_loss(arch: Architecture, model: Any, heads: Any, data: Pictures, rng: np.random.Generator) -> torch.Tensor:
    """Return the loss of naming colour and shape and finding the box from the mean picture embedding."""
    pixels, scenes, _ = data.batch(rng, dense=1.0, canvases=isinstance(arch, QwenVL), detect=False)
    known = [i for i, scene in enumerate(scenes) if scene is not None]
    pixels, kept = pixels[known], [scene for scene in scenes if scene is not None]
    pooled = arch.encode_pictures(model, pixels).float().mean(dim=1)
    color = torch.tensor([list(shapes.COLORS).index(scene.color) for scene in kept])
    shape = torch.tensor([shapes.SHAPES.index(scene.shape) for scene in kept])
    box = torch.tensor([scene.box for scene in kept], dtype=torch.float32)
    boxed = box.sum(dim=1) > 0  # a published picture says nothing of where its shape is
    loss = functional.cross_entropy(heads["color"](pooled), color) + functional.cross_entropy(
        heads["shape"](pooled), shape
    )
    if not boxed.any():  # the mean over nothing is no number
        return loss
    return loss + 2 * functional.l1_loss(heads["box"](pooled)[boxed], box[boxed])


def answer_loss(
    arch: Architecture,
    model: Any,
    data: Pictures,
    rng: np.random.Generator,
    dense: float,
    balanced: float | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of the answers' tokens, given picture and question."""
    qwen = isinstance(arch, QwenVL)
    pixels, _, questions = data.batch(
        rng, dense, canvases=qwen, detect=not qwen and balanced is None, balanced=balanced
    )
    hidden, targets = forward(arch, model, pixels, questions)
    at = targets != -100
    return functional.cross_entropy(arch.logits(model, hidden[at]).float(), targets[at])


def forward(
    arch: Architecture, model: Any, pixels: np.ndarray, questions: list[list[tuple[str, str]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model on packed rows: one picture, then all of its questions, none of which sees another.

    Returns:
        Hidden states (pictures, length, width), and for each position the next token of an answer (-100 elsewhere).
    """
    pictures = arch.encode_pictures(model, pixels)
    tokens = pictures.shape[1]
    grid = arch.grid(pixels.shape[2], pixels.shape[1])
    start = len(arch.prompt("")[0])
    rows = [_pack(arch, asked, start, tokens) for asked in questions]
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -100)
    owner = torch.full((len(rows), length), -1)  # -1: padding, 0: picture and what is before it, n: question n
    offset = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row.ids)
        ids[index, :size], targets[index, :size] = torch.tensor(row.ids), torch.tensor(row.targets)
        owner[index, :size], offset[index, :size] = torch.tensor(row.owner), torch.tensor(row.offset)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
    mask = (causal & same)[:, None]
    embeds = model.get_input_embeddings()(ids)
    embeds = torch.cat([embeds[:, :start], pictures.to(embeds.dtype), embeds[:, start + tokens :]], dim=1)
    return arch.hidden_states(model, embeds, mask, arch.positions(offset, start, grid)), targets


@dataclass
class _Packed:
    ids: list[int]
    targets: list[int]
    owner: list[int]
    offset: list[int]


def _pack(arch: Architecture, asked: list[tuple[str, str]], start: int, tokens: int) -> _Packed:
    """Lay out one picture and its questions; `offset` counts tokens as if each question stood alone."""
    before = arch.prompt("")[0]
    ids = [*before, *([0] * tokens)]
    packed = _Packed(ids, [-100] * len(ids), [0] * len(ids), list(range(len(ids))))
    for number, (question, truth) in enumerate(asked, 1):
        after = arch.prompt(question)[1]
        answer = [*arch.tokenizer.encode(truth), arch.answer_end]
        packed.ids += [*after, *answer]
        packed.targets += [*([-100] * (len(after) - 1)), *answer, -100]
        packed.owner += [number] * (len(after) + len(answer))
        packed.offset += range(start + tokens, start + tokens + len(after) + len(answer))
    return packed


@torch.no_grad()
def held_out_accuracy(arch: Architecture, model: Any, data: Pictures) -> float:
    """Return the share of held-out published training questions whose first answer token is right."""
    right = total = 0
    for first in range(0, len(data.held_out), 20):
        items = data.held_out[first : first + 20]
        questions = [list(item.questions) for item in items]
        hidden, targets = forward(arch, model, np.stack([item.pixels for item in items]), questions)
        answers = targets != -100
        answers[:, 1:] &= ~answers[:, :-1]  # the first token of each answer
        predicted = arch.logits(model, hidden[answers]).argmax(-1)
        right += int((predicted == targets[answers]).sum())
        total += int(answers.sum())
    return right / total


def rate_at(step: int, steps: int, peak: float, warm: int, hold: int) -> float:
    """Return the learning rate: linear warm-up, constant, then a cosine to zero from step `hold`."""
    if step < warm:
        return peak * (step + 1) / warm
    if step < hold:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - hold) / (steps - hold)))


def train(recipe: Recipe, out: Path, threads: int, report_every: int = 100) -> None:
    """Run (or continue) a recipe and write the checkpoint and its manifest to `out`."""
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    arch = ARCHITECTURES[recipe.family]()
    model: Any = arch.make_model().train()
    width = model.get_input_embeddings().weight.shape[1]
    heads = torch.nn.ModuleDict({n: torch.nn.Linear(width, k) for n, k in (("color", 8), ("shape", 3), ("box", 4))})
    data, progress, saved = Pictures(recipe), Progress(), out / "training.pt"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # after the first weights, which are the same everywhere; every batch is made on it from here on
    torch.set_default_device(device)
    model.to(device)
    heads.to(device)
    state = torch.load(saved, weights_only=False, map_location=device) if saved.exists() else None
    if state is not None and state["recipe"] == asdict(recipe):
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        progress = Progress(**state["progress"])
        print(f"continues at {progress.stage} step {progress.step}", flush=True)
    tower = [*arch_tower(arch, model), *heads.parameters()]
    look, answer = recipe.look_steps, recipe.answer_steps
    verify, everything = recipe.verify_steps, list(model.parameters())
    for number, (stage, stop, steps, peak, warm, hold, parameters) in enumerate(
        (
            ("look", look, look, recipe.look_rate, look * 3 // 100, look * 6 // 10, tower),
            (
                "answer",
                recipe.answer_stop,
                answer,
                recipe.answer_rate,
                recipe.warm_steps,
                recipe.hold_steps,
                everything,
            ),
            ("verify", verify, verify, recipe.verify_rate, 22, recipe.verify_hold, everything),
        )
    ):
        if progress.stage != stage:
            continue
        optimizer = torch.optim.AdamW(
            parameters, lr=peak, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
        )
        if state is not None and state["progress"]["stage"] == stage:
            optimizer.load_state_dict(state["optimizer"])
        began, running = time.monotonic() - progress.seconds, 0.0
        while progress.step < stop:
            rng = np.random.default_rng([recipe.seed, number, progress.step])
            for group in optimizer.param_groups:
                group["lr"] = rate_at(progress.step, steps, peak, warm, hold)
            dense = max(0.3, 0.9 - 0.6 * progress.step / recipe.dense_steps)
            with torch.autocast(device, dtype=torch.bfloat16):
                if stage == "look":
                    loss = look_loss(arch, model, heads, data, rng)
                elif stage == "answer":
                    loss = answer_loss(arch, model, data, rng, dense)
                else:
                    plain = progress.step < recipe.plain_steps
                    loss = answer_loss(arch, model, data, rng, dense=0.15, balanced=0.0 if plain else 0.5)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            progress.step += 1
            running += float(loss.detach())
            if progress.step % report_every == 0 or progress.step == stop:
                progress.seconds = time.monotonic() - began
                row = {"step": progress.step, "loss": running / report_every, "seconds": round(progress.seconds, 1)}
                if stage != "look" and (progress.step % (2 * report_every) == 0 or progress.step == stop):
                    row["held_out_accuracy"] = held_out_accuracy(arch, model, data)
                progress.curve.append({"stage": stage, **row})
                print(stage, json.dumps(row), flush=True)
                running = 0.0
            if progress.step % SAVE_EVERY == 0:
                _save_state(saved, recipe, model, heads, optimizer, progress)
        if stage != "verify":
            progress.stage, progress.step = ("answer", "verify")[number], 0
    _finish(arch, model, recipe, progress, out, threads)


def arch_tower(arch: Architecture, model: Any) -> list[torch.nn.Parameter]:
    """Return the parameters of the vision tower and projector."""
    core = model.model
    if isinstance(arch, QwenVL):
        return list(core.visual.parameters())
    return [*core.vision_tower.parameters(), *core.multi_modal_projector.parameters()]


def _save_state(path: Path, recipe: Recipe, model: Any, heads: Any, optimizer: Any, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    torch.save(
        {
            "recipe": asdict(recipe),
            "model": model.state_dict(),
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "progress": asdict(progress),
        },
        beside,
    )
    beside.replace(path)


def _finish(arch: Architecture, model: Any, recipe: Recipe, progress: Progress, out: Path, threads: int) -> None:
    import transformers

    accuracy = progress.curve[-1].get("held_out_accuracy") if progress.curve else None
    parameters = sum(p.numel() for p in model.parameters())
    arch.save(model, out)
    write_json(
        out / "manifest.json",
        {
            "family": recipe.family,
            "parameters": parameters,
            "recipe": asdict(recipe),
            "data": {
                "easy-vqa": "1.0, training split only, last 200 pictures held out",
                "rendered": "models/embedded/shapes.py",
            },
            "held_out_training_accuracy": accuracy,
            "training_seconds": round(progress.seconds, 1),
            "curve": progress.curve,
            "hardware": {
                "cpu": platform.processor() or platform.machine(),
                "threads": threads,
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
            "sha256": hashes(out),
        },
    )
    (out / "training.pt").unlink(missing_ok=True)
    print(f"wrote {out}: {parameters / 1e6:.2f} M parameters, held-out accuracy {accuracy}", flush=True)


def main() -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m models.embedded.train", description=__doc__)
    parser.add_argument("--family", required=True, choices=sorted(ARCHITECTURES))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a shortened schedule: ten minutes on two cores")
    args = parser.parse_args()
    schedule = QUICK if args.quick else SCHEDULES[args.family]
    train(Recipe(args.family, seed=args.seed, **schedule), args.out, args.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
