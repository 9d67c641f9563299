"""Routing, equation by equation, in plain autograd: the specification that every other kernel is held to.

Shapes:
    B  batch            I  input capsules     K  input dimension
    J  output capsules  D  output dimension

Inputs `[B, I, K]`, weight `[I, K, J, D]`, votes û `[B, I, J, D]`, logits and coupling `[B, I, J]`, outputs `[B, J, D]`.
"""

import torch
from torch import Tensor

from capsbench.routing.squash import squash


def votes(inputs: Tensor, weight: Tensor) -> Tensor:
    """û_ij = u_i W_ij: what each input capsule predicts for each output capsule. `[B, I, J, D]`."""
    return torch.einsum("bik,ikjd->bijd", inputs, weight)


def rba(inputs: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Routing by agreement (Sabour et al. 2017, procedure 1).

    b = 0, then in each round c = softmax_J(b), s_j = Σ_i c_ij û_ij, v = squash(s), b += û·v. As in the published
    code no gradient runs through the loop: only the last weighted sum sees û with its gradient.
    """
    u_hat = votes(inputs, weight)
    fixed = u_hat.detach()
    logits = fixed.new_zeros(fixed.shape[:3])
    for _ in range(iterations - 1):
        outputs = squash(_weighted_sum(logits, fixed))
        logits = logits + torch.einsum("bijd,bjd->bij", fixed, outputs)
    return squash(_weighted_sum(logits, u_hat))


def _weighted_sum(logits: Tensor, u_hat: Tensor) -> Tensor:
    return torch.einsum("bij,bijd->bjd", torch.softmax(logits, dim=-1), u_hat)
