"""Rows as a model takes them: token ids with the answer marked, and each picture once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.training_rows import Example, RowError, TrainingRows

CACHE_BYTES = 2**30
"""Memory for pictures that are already processed; beyond it they are processed again."""
IGNORED = -100


@dataclass
class _Run:
    """The tokens that a picture's placeholder becomes, with what the processor says of each."""

    token: int
    ids: list[int]
    extra: dict[str, list[int]]


@dataclass
class Encoded:
    """One row: `ids` of prompt and answer, which begins at `start`; `positions` where the model has its own."""

    id: str
    picture: str
    category: str
    ids: list[int]
    start: int
    extra: dict[str, list[int]]
    positions: Any = None


class EncodedRows:
    """The rows of a split, encoded once.

    Args:
        longest: most tokens of a row.
        core: the module that merges pictures and words, for models with positions of their own.
        shared: whether a picture that several rows of a batch ask about is handed over once.

    Raises:
        RowError: the processor makes more tokens of a row than `student.max_tokens`, or a picture has gone.
    """

    def __init__(self, rows: TrainingRows, processor: Any, *, longest: int, core: Any = None, shared: bool = False):
        self.shared = shared
        self.rows, self.processor, self.core, self.longest = rows, processor, core, longest
        self._cache: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._bytes = 0
        self._first: dict[str, int] = {}
        self._runs: dict[str, _Run | None] = {}
        self.items = [self._encode(index) for index in range(len(rows))]

    def __len__(self) -> int:
        return len(self.items)

    def _encode(self, index: int) -> Encoded:
        example = self.rows[index]
        prompt, answer = texts(self.processor, example.question, example.target)
        key = hashlib.sha256(example.image.tobytes() + repr(example.image.size).encode()).hexdigest()
        ids, extra = self._again(key, prompt) or self._process(key, prompt, example, index)
        tail = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) + len(tail) > self.longest:
            raise RowError(
                example.id,
                f"{len(ids)} tokens of prompt and picture and {len(tail)} of answer are more than {self.longest}: "
                "some would be cut off",
                fix="raise student.max_tokens, or lower train.image_tokens",
            )
        # what the processor says of each token (its type): an answer's are words, 0
        extra = {name: [*values, *([0] * len(tail))] for name, values in extra.items()}
        item = Encoded(example.id, key, self.rows.category(index), [*ids, *tail], len(ids), extra)
        if self.core is not None and hasattr(self.core, "get_rope_index"):
            item.positions = _rope(self.core, item, self._cache[key])
        return item

    def _process(self, key: str, prompt: str, example: Example, index: int) -> tuple[list[int], dict[str, list[int]]]:
        """Run the processor on a row, and remember what it makes of the picture."""
        made = self.processor(text=[prompt], images=[example.image], return_tensors="pt")
        made.pop("labels", None)
        made.pop("attention_mask", None)
        ids = made.pop("input_ids")[0].tolist()
        extra = {k: v[0].tolist() for k, v in made.items() if v.shape == (1, len(ids))}
        self._first.setdefault(key, index)
        self._keep(key, {k: v for k, v in made.items() if k not in extra})
        self._runs.setdefault(key, self._run(ids, extra, prompt))
        return ids, extra

    def _run(self, ids: list[int], extra: dict[str, list[int]], prompt: str) -> _Run | None:
        """Return the tokens that stand for a picture, where the prompt has one placeholder and nothing else differs."""
        plain = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        token = getattr(self.processor, "image_token_id", None)
        if token is None or plain.count(token) != 1:
            return None
        at = plain.index(token)
        end = len(ids) - (len(plain) - at - 1)
        if (
            ids[:at] != plain[:at]
            or ids[end:] != plain[at + 1 :]
            or any(any(v[:at]) or any(v[end:]) for v in extra.values())
        ):
            return None
        return _Run(token, ids[at:end], {name: values[at:end] for name, values in extra.items()})

    def _again(self, key: str, prompt: str) -> tuple[list[int], dict[str, list[int]]] | None:
        """Return what the processor would for another question about a known picture, several times as fast."""
        run = self._runs.get(key)
        if run is None or key not in self._cache:
            return None
        plain = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if plain.count(run.token) != 1:
            return None
        at, after = plain.index(run.token), len(plain) - plain.index(run.token) - 1
        extra = {name: [*([0] * at), *values, *([0] * after)] for name, values in run.extra.items()}
        return [*plain[:at], *run.ids, *plain[at + 1 :]], extra

    def _keep(self, key: str, pixels: dict[str, Any]) -> None:
        if key in self._cache:
            self._cache.move_to_end(key)
            return
        self._cache[key] = pixels
        self._bytes += sum(v.numel() * v.element_size() for v in pixels.values())
        while self._bytes > CACHE_BYTES and len(self._cache) > 1:
            _, gone = self._cache.popitem(last=False)
            self._bytes -= sum(v.numel() * v.element_size() for v in gone.values())

    def pixels(self, key: str) -> dict[str, Any]:
        """Return what the processor made of a picture.  Raises RowError when it has gone since."""
        if key not in self._cache:
            example = self.rows[self._first[key]]
            self._process(key, texts(self.processor, example.question, example.target)[0], example, self._first[key])
        self._cache.move_to_end(key)
        return self._cache[key]

    def batch(self, items: Sequence[Encoded], pad: int, *, asked: bool = False) -> Batch:
        """Return the rows padded on the right, every picture once.

        `asked`: padded on the left and every row with a picture of its own, as `generate` wants it.
        """
        import torch

        length = max(len(item.ids) for item in items)
        ids = torch.full((len(items), length), pad)
        mask = torch.zeros(len(items), length, dtype=torch.long)
        labels = torch.full((len(items), length), IGNORED)
        extra = {name: torch.zeros(len(items), length, dtype=torch.long) for name in items[0].extra}
        positions = None if items[0].positions is None else torch.ones(3, len(items), length, dtype=torch.long)
        for row, item in enumerate(items):
            first = length - len(item.ids) if asked else 0
            at = slice(first, first + len(item.ids))
            ids[row, at], mask[row, at] = torch.tensor(item.ids), 1
            labels[row, first + item.start : at.stop] = torch.tensor(item.ids[item.start :])
            for name, values in item.extra.items():
                extra[name][row, at] = torch.tensor(values)
            if positions is not None:
                positions[:, row, at] = item.positions
        every = [item.picture for item in items]
        shared = self.shared and not asked
        keys = list(dict.fromkeys(every)) if shared else every
        made = [self.pixels(key) for key in keys]
        pixels = {name: _joined([one[name] for one in made]) for name in made[0]}
        owner = [keys.index(key) for key in every] if shared else list(range(len(every)))
        return Batch(ids, mask, labels, extra, positions, pixels, owner)


@dataclass
class Batch:
    """`pixels` are of the different pictures; `owner[row]` says which one a row is about."""

    ids: Any
    mask: Any
    labels: Any
    extra: dict[str, Any]
    positions: Any
    pixels: dict[str, Any]
    owner: list[int]

    def to(self, device: Any) -> Batch:
        """Return the batch with its tensors on `device`."""

        def moved(value: Any) -> Any:
            return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)

        positions = None if self.positions is None else moved(self.positions)
        tensors = (moved(self.ids), moved(self.mask), moved(self.labels), moved(self.extra))
        return Batch(*tensors, positions, moved(self.pixels), self.owner)


def _joined(tensors: Sequence[Any]) -> Any:
    """Return the tensors one after the other; zeros fill up where pictures have different numbers of tiles."""
    import torch

    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) == 1 or tensors[0].ndim < 4:
        return torch.cat(list(tensors))
    most = [max(sizes) for sizes in zip(*shapes, strict=True)]
    filled = []
    for tensor in tensors:
        whole = tensor.new_zeros(tensor.shape[0], *most)
        whole[tuple(slice(0, n) for n in tensor.shape)] = tensor
        filled.append(whole)
    return torch.cat(filled)


def texts(processor: Any, question: str, target: str) -> tuple[str, str]:
    """Return the prompt, as the chat template writes it for generation, and the answer with what ends it."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    asked = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    if (mark := getattr(processor, "image_token", None)) is not None and mark not in prompt:
        # a template without a place for the picture (PaliGemma): it comes first, and the processor ends the prompt
        return mark + prompt.removesuffix("\n"), target + processor.tokenizer.eos_token
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": target}]}]
    whole: str = processor.apply_chat_template(answered, add_generation_prompt=False, tokenize=False)
    end = processor.tokenizer.eos_token
    after = whole[len(prompt) :] if whole.startswith(prompt) else ""
    if end in after and after.startswith(target):
        return prompt, after[: after.index(end) + len(end)]
    return prompt, target + end  # a template that shows the last question only


def _rope(core: Any, item: Encoded, pixels: dict[str, Any]) -> Any:
    import torch

    types = item.extra.get("mm_token_type_ids")
    if types is None:
        return None
    found, _ = core.get_rope_index(
        torch.tensor([item.ids]), mm_token_type_ids=torch.tensor([types]), image_grid_thw=pixels.get("image_grid_thw")
    )
    return found[:, 0]


def order(items: Sequence[Encoded], rows_per_picture: int, rng: np.random.Generator) -> list[int]:
    """Return one pass over all rows: chunks of rows that share a picture, in random order."""
    by_picture: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_picture.setdefault(item.picture, []).append(index)
    chunks: list[list[int]] = []
    for members in by_picture.values():
        mixed = [members[i] for i in rng.permutation(len(members))]
        chunks += [mixed[i : i + rows_per_picture] for i in range(0, len(mixed), rows_per_picture)]
    return [index for c in rng.permutation(len(chunks)) for index in chunks[c]]


def stream(items: Sequence[Encoded], rows_per_picture: int, key: Sequence[int], start: int) -> Iterator[int]:
    """Yield rows from place `start` on, pass after pass; `key` decides every draw."""
    number, offset = divmod(start, len(items))
    while True:
        yield from order(items, rows_per_picture, np.random.default_rng([*key, number]))[offset:]
        number, offset = number + 1, 0


def draws(
    pools: Sequence[Sequence[Encoded]],
    shares: Sequence[float],
    batch: int,
    rows_per_picture: int,
    key: Sequence[int],
    start: int,
) -> Iterator[list[Encoded]]:
    """Yield the rows of step `start` and of those after it; `key` decides every draw.

    Args:
        pools: rows by category, or all of them as one.
        shares: of every pool in a batch, on average; they add up to 1.
    """
    if len(pools) == 1:
        drawn = stream(pools[0], rows_per_picture, key, start * batch)
        while True:
            yield [pools[0][next(drawn)] for _ in range(batch)]
    rng = np.random.default_rng(key)
    before = rng.multinomial(batch, shares, size=start).sum(axis=0)
    several = [
        stream(pool, rows_per_picture, [*key, place], int(at))
        for place, (pool, at) in enumerate(zip(pools, before, strict=True))
    ]
    while True:
        counts = rng.multinomial(batch, shares)
        yield [
            pool[next(drawn)] for pool, drawn, count in zip(pools, several, counts, strict=True) for _ in range(count)
        ]
