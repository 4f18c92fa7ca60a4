"""What the student is taught by: the answer's tokens, and the distance from a teacher's distribution over them."""

from __future__ import annotations

import math
from typing import Any


def divergence(student: Any, teacher: Any, beta: float, temperature: float = 1.0) -> Any:
    """Return the generalised Jensen-Shannon divergence, summed over tokens (Agarwal et al. 2024, GKD, section 3).

    beta KL(P || M) + (1 - beta) KL(Q || M) with P the teacher, Q the student and M = beta P + (1 - beta) Q.  At its
    ends, where that is 0, its limits in direction are meant: 0 is KL(P || Q), what logit distillation uses (Hinton et
    al. 2015); 1 is KL(Q || P), which forgives what the student leaves out and not what it makes up.

    Args:
        student, teacher: logits (tokens, vocabulary).
        temperature: softens both.
    """
    import torch
    from torch.nn.functional import kl_div, log_softmax

    q, p = log_softmax(student.float() / temperature, -1), log_softmax(teacher.float() / temperature, -1)

    def kl(
        of: Any, from_: Any
    ) -> Any:  # torch names them the other way round: kl_div(input, target) = KL(target||input)
        return kl_div(from_, of, reduction="sum", log_target=True)

    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    mixed = torch.logsumexp(torch.stack([p + math.log(beta), q + math.log1p(-beta)]), 0)
    return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)
