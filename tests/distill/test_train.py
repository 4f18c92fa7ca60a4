"""Training: the loss is the model's own on the answer alone, and a method moves what it should."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.labels import read_labels, write_labels
from distill.recipe.train import OnPolicy, Stage, Train
from distill.steps import run_steps
from distill.train.losses import divergence
from distill.train.model import (
    SHARING,
    adapter_targets,
    answer_logits,
    core_of,
    in_tower,
    load_model,
    load_processor,
    moving,
)
from distill.train.rows import Encoded, EncodedRows, draws
from distill.train.run import inputs
from distill.train.sample import own_answers
from distill.train.state import rate_at
from distill.training_rows import TrainingRows
from distill.work import Work
from models.support.errors import UsageError
from serving.adapters import Adapter
from tests.distill.training import EMBEDDED, training_work

QWEN, PALIGEMMA = EMBEDDED / "qwen2_5_vl", EMBEDDED / "paligemma"


def encoded(work: Work, source: Path, model: Any) -> EncodedRows:
    assert work.recipe.student is not None
    rows = TrainingRows(work.out / "filter/kept.jsonl", work.folder, work.recipe.student, len)
    shared = model.config.model_type in SHARING
    return EncodedRows(rows, load_processor(source), longest=2000, core=core_of(model), shared=shared)


def losses(folder: Path, **train: Any) -> list[float]:
    """Train, and return the losses of the curve."""
    run_steps(training_work(folder, **train), ["train"])
    return [json.loads(line)["loss"] for line in (folder / "out/train/curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM with random weights, as the catalog's proofs make it: pictures in tiles, another chat template."""
    from models.proof.families import llava  # fills RECIPES
    from models.proof.tiny import RECIPES

    folder = tmp_path_factory.mktemp("smolvlm")
    one = next(one for name, one in RECIPES.items() if name.startswith("smolvlm") and llava)
    one.build(one, folder)
    return folder


@pytest.mark.parametrize("family", ["qwen", "paligemma", "smolvlm"])
def test_the_loss_is_the_models_own_and_pictures_are_shared(
    tmp_path: Path, family: str, request: pytest.FixtureRequest
) -> None:
    """One row at a time through transformers' own forward, labels on the answer alone, gives the same numbers."""
    source = {"qwen": QWEN, "paligemma": PALIGEMMA}.get(family) or request.getfixturevalue("smolvlm")
    work = training_work(tmp_path)
    found = read_labels(work.out / "filter/kept.jsonl")
    for row in found:  # four pictures, two questions each: the tower must see four
        row.image = f"p{int(row.id[1:]) // 2}.png"
        row.image_sha256 = work.pictures[f"r{int(row.id[1:]) // 2}"].digest
    write_labels(work.out / "filter/kept.jsonl", found)
    model = load_model(Train(base=str(source)), source)
    rows = encoded(work, source, model)
    batch = rows.batch(rows.items, pad=0)
    assert len(rows.items) == 8 and max(batch.owner) + 1 == (8 if family == "smolvlm" else 4)
    with torch.no_grad():
        logits, targets = answer_logits(model, batch)
        mine = torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        theirs, tokens = 0.0, 0
        for item in rows.items:
            alone = rows.batch([item], pad=0)
            extra = alone.extra
            count = int((alone.labels[:, 1:] != -100).sum())
            own = model(
                input_ids=alone.ids, attention_mask=alone.mask, labels=alone.labels, **alone.pixels, **extra
            ).loss  # fmt: skip
            theirs, tokens = theirs + own.item() * count, tokens + count
    assert tokens == len(targets) and mine == pytest.approx(theirs, rel=2e-3)
    # the answer, what ends it, and nothing else
    tokenizer = rows.processor.tokenizer
    ends = {tokenizer.decode(item.ids[item.start :]) for item in rows.items}
    assert ends <= {f"{colour}{tokenizer.eos_token}" for colour in ("red", "green", "blue")}


def test_a_known_picture_is_encoded_as_the_processor_does(tmp_path: Path) -> None:
    work = training_work(tmp_path, 4, validation=0)
    model = load_model(Train(base=str(QWEN)), QWEN)
    rows = encoded(work, QWEN, model)
    slow = encoded(work, QWEN, model)
    for item in rows.items:
        slow._runs.clear()
        slow._cache.clear()
        again = slow._encode(int(item.id[1:]))
        assert rows._again(item.picture, "<|image_pad|>") is not None
        assert (again.ids, again.extra, again.start) == (item.ids, item.extra, item.start)
        assert torch.equal(again.positions, item.positions)


def test_full_training_learns_and_writes_a_student(tmp_path: Path) -> None:
    work = training_work(tmp_path, stages=[{"steps": 4, "rate": 1e-3, "shares": {"red": 3, "blue": 1}},
                                           {"steps": 26, "rate": 1e-3}])  # fmt: skip
    report = run_steps(work, ["train"])["train"]
    curve = [json.loads(line) for line in (tmp_path / "out/train/curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < curve[0]["loss"] / 2 and report["steps"] == 30
    assert [p["step"] for p in curve] == [*range(2, 31, 2)] and {p["stage"] for p in curve} == {0, 1}
    assert report["exact"]["n"] == 4 and report["validation_loss"] == min(
        p["validation_loss"] for p in curve if p["stage"] == 1
    )
    student = load_model(Train(base="x"), tmp_path / "out/train/student")
    assert sum(p.numel() for p in student.parameters()) == report["parameters"] == report["parameters_trained"]
    page = (tmp_path / "out/train/curve.html").read_text()
    assert "Loss over steps" in page and "<script" not in page and "http" not in page
    assert run_steps(work, ["train"])["train"]["cached"]
    assert not (tmp_path / "out/train/checkpoint.pt").exists()


def test_a_step_in_parts_is_the_same_step(tmp_path: Path) -> None:
    found = []
    for parts in (1, 3):
        folder = tmp_path / str(parts)
        folder.mkdir()
        found.append(losses(folder, accumulate=parts, precision="fp32", stages=[{"steps": 3}], evaluate_every=1))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_move_alone_and_are_merged(tmp_path: Path, method: str) -> None:
    work = training_work(tmp_path, method=method, tower="frozen", lora={"rank": 4, "targets": ["q_proj", "v_proj"]})
    report = run_steps(work, ["train"])["train"]
    out = tmp_path / "out/train"
    adapter = json.loads((out / "adapter/adapter_config.json").read_text())
    assert adapter["r"] == 4 and {name.split(".")[-1] for name in adapter["target_modules"]} == {"q_proj", "v_proj"}
    assert 0 < report["parameters_trained"] < report["parameters"] / 50
    assert Adapter(name="colours", source=str(out / "adapter")).check() == 4  # a stack takes it beside its base
    plain = Train(base="x")
    before, after = load_model(plain, QWEN).state_dict(), load_model(plain, out / "student").state_dict()
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}
    assert moved and all(name.split(".")[-2] in ("q_proj", "v_proj") and "language_model" in name for name in moved)
    if method == "qlora":
        model = load_model(Train(base="x", method="qlora"), QWEN)
        kinds = {type(m).__name__ for n, m in model.named_modules() if n.endswith("q_proj.base_layer")}
        assert kinds == {"Linear4bit"}


def test_a_frozen_tower_stays(tmp_path: Path) -> None:
    work = training_work(tmp_path, tower="frozen")
    run_steps(work, ["train"])
    plain = Train(base="x")
    before, after = load_model(plain, QWEN).state_dict(), load_model(plain, tmp_path / "out/train/student").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in n for n in moved) and any("merger" in n for n in moved)
    assert not any(in_tower(name) for name in moved)


def test_adapter_targets_by_name() -> None:
    model = load_model(Train(base="x"), QWEN)
    train = Train(base="x", method="lora")
    every = adapter_targets(model, train.lora, tower=False)
    assert len(every) == 4 * 7 and not any("visual" in name or "lm_head" in name for name in every)
    assert any("visual" in name for name in adapter_targets(model, train.lora, tower=True))
    with pytest.raises(UsageError, match=r"train.lora.targets: no layer has this name .*q_proj"):
        adapter_targets(model, train.lora.model_copy(update={"targets": ["q_prj"]}), tower=False)


def test_a_budget_of_image_tokens(tmp_path: Path) -> None:
    work = training_work(tmp_path, image_tokens=4)
    run_steps(work, ["train"])
    processor = load_processor(tmp_path / "out/train/student")  # it is served with the same budget
    assert processor.image_processor.size["longest_edge"] == 4 * 16 * 16
    rows = encoded(work, tmp_path / "out/train/student", load_model(Train(base="x"), QWEN))
    token = processor.image_token_id
    assert {item.ids.count(token) for item in rows.items} == {4}
    with pytest.raises(UsageError, match=r"train.image_tokens: cannot be set for this model"):
        load_processor(PALIGEMMA, 16)


def test_pruning(tmp_path: Path) -> None:
    work = training_work(tmp_path, prune={"layers": 2, "mlp": 0.5})
    report = run_steps(work, ["train"])["train"]
    student = load_model(Train(base="x"), tmp_path / "out/train/student")
    text = student.config.text_config
    assert (text.num_hidden_layers, text.intermediate_size) == (2, 256)
    whole = sum(p.numel() for p in load_model(Train(base="x"), QWEN).parameters())
    # two layers of attention and MLP, and half of the MLP units of the other two
    assert report["parameters"] < whole - 2 * 3 * 192 * 512
    with pytest.raises(UsageError, match="the base has 4 layers"):
        load_model(Train(base="x", prune={"layers": 9}), QWEN)


def test_pruning_keeps_what_says_most() -> None:
    model = load_model(Train(base="x"), QWEN)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.mlp.down_proj.weight[:, 8:] = 0  # units that say nothing
        from distill.train.prune import prune

        ids = torch.arange(12)[None]
        before = model(input_ids=ids).logits
        prune(model, layers=None, mlp=0.1)
        after = model(input_ids=ids).logits
    assert model.config.text_config.intermediate_size == 48 and torch.allclose(before, after, atol=1e-4)


def pruned_losses(folder: Path, mix: dict[str, Any], steps: int) -> list[float]:
    """Return a pruned student's losses against its teacher, after one that is its teacher had nothing to learn."""
    same = losses(folder, logits=mix, precision="fp32", stages=[{"steps": 2, "rate": 1e-6}], evaluate_every=1)
    assert same[0] == pytest.approx(0, abs=1e-4)
    return losses(folder, logits=mix, prune={"layers": 2}, stages=[{"steps": steps, "rate": 1e-3}])


def test_logit_distillation(tmp_path: Path) -> None:
    found = pruned_losses(tmp_path, {"checkpoint": str(QWEN), "weight": 1.0}, 20)
    assert found[-1] < found[0] / 2
    work = training_work(tmp_path, logits={"checkpoint": str(PALIGEMMA)})
    with pytest.raises(UsageError, match="another vocabulary than the student"):
        run_steps(work, ["train"])


def test_on_policy_distillation(tmp_path: Path) -> None:
    """The same on the student's own answers."""
    mix = {"checkpoint": str(QWEN), "on_policy": {"share": 1.0, "beta": 1.0, "max_tokens": 4}}
    found = pruned_losses(tmp_path, mix, 30)
    assert np.mean(found[-3:]) < found[0] / 2
    refused = {"checkpoint": str(QWEN), "on_policy": {"share": 0}}
    with pytest.raises(UsageError, match=r"train\.logits\.on_policy\.share"):
        training_work(tmp_path, logits=refused)


@pytest.mark.parametrize("family", ["qwen", "paligemma", "smolvlm"])
def test_a_students_own_answers(tmp_path: Path, family: str, request: pytest.FixtureRequest) -> None:
    """At next to no temperature they are what its own logits find likeliest, token by token."""
    source = {"qwen": QWEN, "paligemma": PALIGEMMA}.get(family) or request.getfixturevalue("smolvlm")
    work = training_work(tmp_path, 6, validation=0)
    model = load_model(Train(base=str(source)), source)
    rows = encoded(work, source, model)
    wanted = OnPolicy(temperature=1e-3, max_tokens=5)
    written = own_answers(model, rows, rows.items, wanted, contextlib.nullcontext())
    end = rows.processor.tokenizer.eos_token_id
    for item, own in zip(rows.items, written, strict=True):
        answer = own.ids[own.start :]
        assert own.ids[: own.start] == item.ids[: item.start] and 1 <= len(answer) <= 5
        assert end not in answer[:-1] and (len(answer) == 5 or answer[-1] == end)
        if own.positions is not None and len(own.ids) == len(item.ids):
            assert torch.equal(own.positions, item.positions)
    with torch.no_grad():
        model.eval()
        logits, targets = answer_logits(model, rows.batch(written, pad=0))
    top = logits.topk(2).values
    sure = (top[:, 0] - top[:, 1]) > 1e-2  # a tie may fall either way
    assert torch.equal(logits.argmax(-1)[sure], targets[sure]) and int(sure.sum()) >= 6


@given(st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_divergence_is_one(beta: float, seed: int) -> None:
    """Never negative, 0 between equals, its ends the two KL divergences, the middle symmetric."""
    draw = torch.Generator().manual_seed(seed)
    q, p = torch.randn(3, 7, generator=draw), torch.randn(3, 7, generator=draw)
    assert float(divergence(q, p, beta)) >= -1e-5
    assert float(divergence(q, q, beta)) == pytest.approx(0, abs=1e-5)
    a, b = p.log_softmax(-1), q.log_softmax(-1)
    assert float(divergence(q, p, 0)) == pytest.approx(float((a.exp() * (a - b)).sum()), rel=1e-4)
    assert float(divergence(q, p, 1)) == pytest.approx(float((b.exp() * (b - a)).sum()), rel=1e-4)
    assert float(divergence(q, p, 0.5)) == pytest.approx(float(divergence(p, q, 0.5)), rel=1e-4)


def test_a_setting_at_its_default_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    said = training_work(tmp_path, clip=1.0, stages=[{"steps": 6, "rate": 0.001, "warmup": 0.2, "shares": {}}])
    before = inputs(said)
    unsaid = training_work(tmp_path)
    assert inputs(unsaid) == before
    assert inputs(training_work(tmp_path, clip=0.9)) != before


def test_early_stop_keeps_the_best(tmp_path: Path) -> None:
    work = training_work(tmp_path, stages=[{"steps": 60, "rate": 0.5, "warmup": 0, "hold": 1}], patience=2)
    report = run_steps(work, ["train"])["train"]
    assert report["stopped"] == "no better model in 2 looks" and report["steps"] < 60
    curve = [json.loads(line) for line in (tmp_path / "out/train/curve.jsonl").read_text().splitlines()]
    best = min(curve, key=lambda p: p["validation_loss"])
    assert report["best_step"] == best["step"] and report["validation_loss"] == pytest.approx(best["validation_loss"])


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_draws_go_on_where_they_were(pictures: list[int], batch: int, per_picture: int, start: int) -> None:
    items = [Encoded(str(i), str(p), "all", [], 0, {}) for i, p in enumerate(pictures)]
    first = draws([items], [1.0], batch, per_picture, [1, 2], 0)
    steps = [next(first) for _ in range(start + len(items))]
    again = draws([items], [1.0], batch, per_picture, [1, 2], start)
    assert [next(again) for _ in range(len(items))] == steps[start:]
    # a pass has every row once
    flat = [int(item.id) for step in steps for item in step]
    assert sorted(flat[: len(items)]) == list(range(len(items)))
    assert np.bincount(flat[: 2 * len(items)], minlength=len(items)).max() <= 2


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(1, 40), st.integers(0, 50), st.data())
@settings(max_examples=60, deadline=None)
def test_shares_of_a_batch_hold_and_go_on(sizes: list[int], batch: int, start: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.05, 1), min_size=len(sizes), max_size=len(sizes)))
    shares = [weight / sum(weights) for weight in weights]
    pools = [
        [Encoded(f"{pool}-{i}", str(i % 5), str(pool), [], 0, {}) for i in range(size)]
        for pool, size in enumerate(sizes)
    ]
    first = draws(pools, shares, batch, 2, [3], 0)
    steps = [next(first) for _ in range(start + 20)]
    assert {len(step) for step in steps} == {batch}
    again = draws(pools, shares, batch, 2, [3], start)
    assert [next(again) for _ in range(20)] == steps[start:]
    for place, pool in enumerate(pools):
        drawn = [item.id for step in steps for item in step if item.category == str(place)]
        # as often as the share says, within seven standard deviations; and pass after pass, every row once
        n = batch * len(steps)
        assert abs(len(drawn) - n * shares[place]) <= 7 * (n * shares[place] * (1 - shares[place])) ** 0.5 + 1
        for at in range(0, len(drawn) - len(pool) + 1, len(pool)):
            assert len(set(drawn[at : at + len(pool)])) == len(pool)


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rates_stay_between_floor_and_peak(steps: int, warmup: float, hold: float, floor: float) -> None:
    stage = Stage(steps=steps, rate=1e-3, warmup=warmup, hold=hold, floor=floor)
    rates = [rate_at(i, stage) for i in range(steps)]
    assert all(r >= 0 for r in rates) and max(rates) <= 1e-3 + 1e-12
    falling = [r for i, r in enumerate(rates) if i >= max(warmup, hold) * steps]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    assert all(r >= floor * 1e-3 - 1e-12 for r in falling)


def test_pictures_beyond_the_memory_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = training_work(tmp_path, 6, validation=0)
    model = load_model(Train(base="x"), QWEN)
    whole = encoded(work, QWEN, model)
    monkeypatch.setattr("distill.train.rows.CACHE_BYTES", 100)
    small = encoded(work, QWEN, model)
    assert len(small._cache) == 1 and len(whole._cache) == 6
    for item in whole.items:
        mine, theirs = small.pixels(item.picture), whole.pixels(item.picture)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_moving_names_what_is_trained() -> None:
    assert len(moving(load_model(Train(base="x"), QWEN))) > len(
        moving(load_model(Train(base="x", tower="frozen"), QWEN))
    )
