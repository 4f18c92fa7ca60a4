"""A grown model answers as the small one did, and all of it can learn."""

from __future__ import annotations

import pytest
import torch

from models.embedded.architectures import QwenSize, QwenVL
from models.embedded.grow import grow
from models.support.errors import UsageError

SMALL = QwenSize(width=96, mlp=64, layers=2, heads=3, kv_heads=1, tower_width=32, tower_mlp=32, tower_layers=2)
LARGE = QwenSize(width=192, mlp=160, layers=5, heads=6, kv_heads=2, tower_width=32, tower_mlp=32, tower_layers=2)


def make(size: QwenSize, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return QwenVL(size).make_model().eval()


def test_the_grown_model_says_the_same_and_every_part_of_it_learns() -> None:
    small, large = make(SMALL, 1), make(LARGE, 2)
    grow(small, large)
    ids = torch.randint(0, 400, (2, 20), generator=torch.Generator().manual_seed(3))
    first, second = small(input_ids=ids).logits, large(input_ids=ids).logits
    # not to the last digit: the norms add their epsilon to a mean square over more dimensions
    assert torch.allclose(first, second, atol=2e-3) and first.std() > 0.01
    optimizer = torch.optim.SGD(large.parameters(), 0.1)
    before = {n: p.detach().clone() for n, p in large.named_parameters() if "language_model" in n}
    for _ in range(3):  # what reads the new part moves once something has been written there
        optimizer.zero_grad()
        large(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    still = [n for n, p in large.named_parameters() if n in before and torch.equal(before[n], p.detach())]
    assert not [n for n in still if "k_proj.bias" not in n]


def test_what_cannot_be_grown() -> None:
    with pytest.raises(UsageError, match="hidden_size: is smaller than in the model that is grown"):
        grow(make(LARGE, 1), make(SMALL, 1))
    other = QwenSize(**(LARGE.__dict__ | {"kv_heads": 6}))
    with pytest.raises(UsageError, match="heads are grouped or sized otherwise"):
        grow(make(SMALL, 1), make(other, 1))
