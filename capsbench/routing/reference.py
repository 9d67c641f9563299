"""Routing, equation by equation, in plain autograd: the specification of every other kernel.

Shapes:
    B  batch            I  input capsules     K  input dimension
    J  output capsules  D  output dimension

Inputs `[B, I, K]`, weight `[I, K, J, D]`, bias `[J, D]`, votes û `[B, I, J, D]`, logits and coupling `[B, I, J]`, outputs
`[B, J, D]`.
"""

import torch
from torch import Tensor

from capsbench.routing.equations import em_log_activation, em_log_prior, em_mean, em_variance, sda_limited, sda_temperature
from capsbench.routing.squash import length, squash, unit


def votes(inputs: Tensor, weight: Tensor) -> Tensor:
    """The votes û_ij = u_i W_ij, the prediction of each input capsule for each output capsule. `[B, I, J, D]`."""
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


def sda(inputs: Tensor, weight: Tensor, bias: Tensor, iterations: int, *, published: bool = False) -> Tensor:
    """Scaled-distance-agreement routing (Peer et al. 2018, gamma-capsule networks, algorithm 1).

    Votes are no longer than the capsule that casts them. b = 0, then in each round c = softmax_J(b), s = Σ_i c û + bias,
    v = squash(s), and b = t·‖v − û‖, with one t for the whole batch. As with `rba` no gradient runs through the loop.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`.
        bias: `[J, D]`.
        iterations: rounds.
        published: t with the published code's slip in operator precedence.
    """
    u_hat = sda_limited(votes(inputs, weight), inputs)
    fixed = u_hat.detach()
    logits = fixed.new_zeros(fixed.shape[:3])
    for _ in range(iterations - 1):
        outputs = squash(_weighted_sum(logits, fixed) + bias.detach())
        distances = length(outputs.unsqueeze(1) - fixed)
        logits = sda_temperature(distances.mean(), weight.shape[2], published=published) * distances
    return squash(_weighted_sum(logits, u_hat) + bias)


def em(inputs: Tensor, weight: Tensor, bias: Tensor, beta_u: Tensor, beta_a: Tensor, iterations: int) -> Tensor:
    """EM routing (Hinton et al. 2018, procedure 1) in the form for vector capsules: a capsule's length is its activation.

    Gradients run through all rounds.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`.
        bias: `[J, D]`, added to the votes.
        beta_u: `[J]`, the cost of describing one dimension.
        beta_a: `[J]`, cost that an active capsule may have.
        iterations: rounds.
    """
    u_hat = votes(inputs, weight) + bias
    activation = length(inputs).unsqueeze(-1)
    responsibility = u_hat.new_full(u_hat.shape[:3], 1 / weight.shape[2])
    for index in range(iterations):
        mass = responsibility * activation
        total = mass.sum(1)
        mean = em_mean(torch.einsum("bij,bijd->bjd", mass, u_hat), total)
        deviation = (u_hat - mean.unsqueeze(1)).square()
        variance = em_variance(torch.einsum("bij,bijd->bjd", mass, deviation), total)
        log_active = em_log_activation(total, variance, beta_u, beta_a, index)
        log_density = em_log_prior(log_active, variance).unsqueeze(1) - (deviation / (2 * variance).unsqueeze(1)).sum(-1)
        responsibility = torch.softmax(log_density, dim=-1)
    return log_active.exp().unsqueeze(-1) * unit(mean)


def _weighted_sum(logits: Tensor, u_hat: Tensor) -> Tensor:
    return torch.einsum("bij,bijd->bjd", torch.softmax(logits, dim=-1), u_hat)
