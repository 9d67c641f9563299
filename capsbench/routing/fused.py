"""Routing on CUDA that keeps no votes: the rounds, `[B, J, D]` in plain torch, between the sums of `operators`.

RBA and SDA let no gradient through their loop: backward needs the coupling of the last round alone, and a small state fixes
it (see `recompute`). Nothing waits for the device. Letters as in `reference`; outputs are in the widest dtype given, at least
float32.

Importing this needs neither Triton nor a device. Calling it needs both, or `TRITON_INTERPRET=1` in the environment: then Triton's
interpreter runs the kernels on a CPU, slowly.
"""

import torch
from torch import Tensor

from capsbench.routing.equations import em_log_activation, em_log_prior, em_variance, sda_temperature
from capsbench.routing.operators import coupled_sum, coupled_sum_vjp, em_round, mean_distance
from capsbench.routing.squash import squash, squash_vjp, unit

State = tuple[Tensor, ...]
"""What fixes the coupling of a round: for RBA the summed outputs, for SDA the last outputs and the temperature."""


def rba(inputs: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Routing by agreement, equal to `reference.rba` up to rounding; keeps `[B, J, D]` a few times and no votes.

    Raises:
        ConfigurationError: there is no Triton, or the tensors are not on a CUDA device. So do all functions here.
    """
    return squash(coupled_sum(inputs, weight, *_rba_state(inputs, weight, iterations)))


@torch.no_grad()
def rba_keeping(inputs: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, State]:
    """The same without a graph, and the state that spares `rba_and_vjp` the rounds."""
    state = _rba_state(inputs, weight, iterations)
    return squash(coupled_sum(inputs, weight, *state)), state


@torch.no_grad()
def rba_and_vjp(
    inputs: Tensor, weight: Tensor, iterations: int, grad: Tensor, kept: State = ()
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The outputs, bit for bit those of `rba`, and the gradients of `(outputs * grad).sum()`; no graph."""
    state = kept or _rba_state(inputs, weight, iterations)
    s = coupled_sum(inputs, weight, *state)
    return squash(s), coupled_sum_vjp(inputs, weight, squash_vjp(s, grad), *state)


def sda(inputs: Tensor, weight: Tensor, bias: Tensor, iterations: int, *, published: bool = False) -> Tensor:
    """Scaled-distance agreement, equal to `reference.sda` up to rounding; keeps `[B, J, D]` a few times and no votes."""
    return squash(coupled_sum(inputs, weight, *_sda_state(inputs, weight, bias, iterations, published)) + bias)


@torch.no_grad()
def sda_keeping(
    inputs: Tensor, weight: Tensor, bias: Tensor, iterations: int, *, published: bool = False
) -> tuple[Tensor, State]:
    """The same without a graph, and the state that spares `sda_and_vjp` the rounds."""
    state = _sda_state(inputs, weight, bias, iterations, published)
    return squash(coupled_sum(inputs, weight, *state) + bias), state


@torch.no_grad()
def sda_and_vjp(
    inputs: Tensor, weight: Tensor, bias: Tensor, iterations: int, grad: Tensor, kept: State = (), *, published: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The outputs, bit for bit those of `sda`, and the gradients of `(outputs * grad).sum()`; no graph."""
    state = kept or _sda_state(inputs, weight, bias, iterations, published)
    s = coupled_sum(inputs, weight, *state) + bias
    grad_s = squash_vjp(s, grad)
    return squash(s), (*coupled_sum_vjp(inputs, weight, grad_s, *state), grad_s.sum(0).to(bias.dtype))


def em(inputs: Tensor, weight: Tensor, bias: Tensor, beta_u: Tensor, beta_a: Tensor, iterations: int) -> Tensor:
    """EM routing, equal to `reference.em` up to rounding; keeps `[B, J, D]` a few times per round and no votes."""
    # The bias moves votes and means alike: what is between them does not see it.
    mean = _no_outputs(inputs, weight)
    precision, log_prior = torch.zeros_like(mean), mean.new_zeros(mean.shape[:2])
    log_active = total = log_prior
    for index in range(iterations):
        total, mean, scatter = em_round(inputs, weight, log_prior, mean, precision)
        variance = em_variance(scatter, total)
        log_active = em_log_activation(total, variance, beta_u, beta_a, index)
        log_prior, precision = em_log_prior(log_active, variance), 0.5 / variance
    return log_active.exp().unsqueeze(-1) * unit(torch.where((total > 0).unsqueeze(-1), mean + bias, 0))


@torch.no_grad()
def _rba_state(inputs: Tensor, weight: Tensor, iterations: int) -> State:
    agreed = _no_outputs(inputs, weight)
    for _ in range(iterations - 1):
        agreed = agreed + squash(coupled_sum(inputs, weight, agreed))
    return (agreed,)


@torch.no_grad()
def _sda_state(inputs: Tensor, weight: Tensor, bias: Tensor, iterations: int, published: bool) -> State:
    outputs = _no_outputs(inputs, weight)
    temperature = outputs.new_zeros(())
    for _ in range(iterations - 1):
        outputs = squash(coupled_sum(inputs, weight, outputs, temperature) + bias)
        temperature = sda_temperature(mean_distance(inputs, weight, outputs), weight.shape[2], published=published)
    return outputs, temperature


def _no_outputs(inputs: Tensor, weight: Tensor) -> Tensor:
    """Zeros `[B, J, D]`, with which the coupling is uniform, in the dtype that all is summed in."""
    precise = torch.promote_types(torch.promote_types(inputs.dtype, weight.dtype), torch.float32)
    return inputs.new_zeros((inputs.shape[0], *weight.shape[2:]), dtype=precise)
