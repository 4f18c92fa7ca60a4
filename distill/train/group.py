"""Several processes that share every step: each takes a part of the rows, and all apply the same sum of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """Who this process is among them.  The first one looks at validation rows and writes the files.

    Alone, every method returns what it was given.  In a group `torch.distributed` has been set up (by Ray Train).
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part: neighbours stay together, because they share pictures."""
        n = len(items)
        return list(items[self.rank * n // self.size : (self.rank + 1) * n // self.size])

    def total(self, value: float) -> float:
        """Return the sum of everybody's value."""
        if self.size == 1:
            return value
        import torch
        from torch import distributed

        # NCCL adds up on the GPU only
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return float(tensor)

    def add_gradients(self, parameters: Iterable[Any]) -> None:
        """Put the sum of everybody's gradients into every parameter's."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        for parameter in parameters:
            if parameter.grad is None:  # not reached from these rows, perhaps from another's
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def told(self, value: Item) -> Item:
        """Return the first one's value."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]
