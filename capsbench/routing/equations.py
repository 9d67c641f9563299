"""Parts of SDA and EM that are computed for a whole layer at once, shared by the kernels. Letters as in `reference`.

Each is small against the votes; computations on votes have one form per kernel.
"""

import math

import torch
from torch import Tensor

from capsbench.routing.squash import length

SDA_EPSILON = 1e-12
EM_VARIANCE_FLOOR = 1e-4
EM_LOG_2PI = math.log(2 * math.pi)
_SDA_TARGET = 0.9
"""Coupling that SDA gives to a vote at half the mean distance."""
_EM_FINAL, _EM_DECAY = 0.01, 0.95
"""Constants of λ = 0.01 · (1 − 0.95ⁿ) in round n, the inverse temperature of EM's activations."""


def sda_limited(u_hat: Tensor, inputs: Tensor) -> Tensor:
    """û·min(‖û‖, ‖u‖)/‖û‖: no vote is longer than its capsule. `[B, I, J, D]`, `[B, I, K]` → `[B, I, J, D]`."""
    norm, most = length(u_hat, keepdim=True), length(inputs)[:, :, None, None]
    longer = norm > most
    return u_hat * torch.where(longer, most / torch.where(longer, norm, 1), 1)


def sda_temperature(mean_distance: Tensor, outputs: int, *, published: bool) -> Tensor:
    """The temperature t = [ln(0.9(J−1)) − ln(1−0.9)] / (d_p − d_o + 1e-12), with d_p = d_o/2.

    Args:
        mean_distance: d_o, over batch, input and output capsules.
        outputs: J. With one output capsule the coupling is 1 for any t, and t is 0.
        published: the published code divides ln(1−0.9) alone by the difference.
    """
    if outputs == 1:
        return torch.zeros_like(mean_distance)
    addend, factor = sda_terms(outputs, published=published)
    quotient = factor / (mean_distance / 2 - mean_distance + SDA_EPSILON)
    return addend + quotient if addend else quotient


def sda_terms(outputs: int, *, published: bool) -> tuple[float, float]:
    """The numbers a and b of the temperature a + b / (d_p − d_o + 1e-12), for more than one output capsule.

    The arguments are those of `sda_temperature`.
    """
    wanted, rest = math.log(_SDA_TARGET * (outputs - 1)), math.log(1 - _SDA_TARGET)
    return (wanted, -rest) if published else (0.0, wanted - rest)


def em_mean(first: Tensor, total: Tensor) -> Tensor:
    """μ = Σ R a V / Σ R a, and 0 where nothing is active. `[B, J, D]`, `[B, J]` → `[B, J, D]`."""
    active = (total > 0).unsqueeze(-1)
    return torch.where(active, first / torch.where(active, total.unsqueeze(-1), 1), 0)


def em_variance(second: Tensor, total: Tensor) -> Tensor:
    """σ² = Σ R a (V − μ)² / Σ R a + 1e-4. `[B, J, D]`, `[B, J]` → `[B, J, D]`."""
    return em_mean(second, total) + EM_VARIANCE_FLOOR


def em_log_activation(total: Tensor, variance: Tensor, beta_u: Tensor, beta_a: Tensor, index: int) -> Tensor:
    """The log activation ln sigmoid(λ(β_a − cost)) with cost = Σ_h (β_u + ½ ln σ²)·S, in round `index` from 0. → `[B, J]`."""
    inverse_temperature = _EM_FINAL * (1 - _EM_DECAY ** (index + 1))
    cost = (beta_u.unsqueeze(-1) + 0.5 * variance.log()).sum(-1) * total
    return torch.nn.functional.logsigmoid(inverse_temperature * (beta_a - cost))


def em_log_prior(log_active: Tensor, variance: Tensor) -> Tensor:
    """The log prior ln a_out − Σ_h ½ ln 2πσ², the value of a vote at the mean. `[B, J]`, `[B, J, D]` → `[B, J]`."""
    return log_active - 0.5 * (EM_LOG_2PI + variance.log()).sum(-1)
