"""Routing on CUDA that keeps no votes: the passes of RBA and SDA, and EM's rounds, as operators of `operators`.

Read `rounds` first, and `kernels` for the device's part. Nothing waits for the device. Letters as in `reference`;
inputs and weight may be of any floating dtype, and all is summed in the widest of them, at least float32.

Importing this needs neither Triton nor a device. Calling it needs both, or `TRITON_INTERPRET=1` in the environment: then Triton's
interpreter runs the kernels on a CPU, slowly.
"""

from typing import Any

import torch
from torch import Tensor

from capsbench.routing.autograd import differentiable_once
from capsbench.routing.equations import em_log_activation, em_log_prior, em_mean, em_variance
from capsbench.routing.rounds import Passes, Rounds, State
from capsbench.routing.squash import unit
from capsbench.routing.triton.operators import (
    em_round,
    em_state_vjp,
    em_votes_vjp,
    rba_round,
    rba_rounds,
    round_vjp,
    sda_round,
    sda_temperature,
)


class FusedPasses(Passes):
    """Passes over the votes of a layer in registers; the same call gives the same bits.

    Raises:
        ConfigurationError: raised by every pass if Triton is missing or the tensors are not on a CUDA device.
    """

    def __init__(self, inputs: Tensor, weight: Tensor, *, limited: bool) -> None:
        self._inputs, self._weight, self._limited = inputs, weight, limited

    def outputs(self, state: State, bias: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs squash(s), and s."""
        if self._limited:
            return sda_round(self._inputs, self._weight, *bias, *state)
        return rba_round(self._inputs, self._weight, state[0] if state else None)

    def last_round(self, rounds: Rounds, bias: list[Tensor], iterations: int) -> tuple[Tensor, ...]:
        """The outputs, s, and the state that the last round started from; RBA's rounds are one call."""
        if self._limited or iterations == 1:
            return super().last_round(rounds, bias, iterations)
        return rba_rounds(self._inputs, self._weight, iterations)

    def temperature(self, outputs: Tensor, *, published: bool) -> Tensor:
        """The temperature after a round with these outputs, a scalar."""
        return sda_temperature(self._inputs, self._weight, outputs, published)

    def vjp(
        self, state: State, s: Tensor, grad: Tensor, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of s, inputs and weight; all are computed, since one pass computes them."""
        anchor, *temperature = state or (None,)
        return round_vjp(self._inputs, self._weight, s, grad, anchor, temperature[0] if temperature else None, self._limited)

    def value_and_vjp(
        self, state: State, bias: list[Tensor], grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The outputs, and the gradients of s, inputs and weight."""
        outputs, s = self.outputs(state, bias)
        return outputs, *self.vjp(state, s, grad, True, True)

    def rounds_and_vjp(
        self, rounds: Rounds, bias: list[Tensor], iterations: int, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The outputs after all rounds, and the gradients of s, inputs and weight."""
        outputs, s, *state = self.last_round(rounds, bias, iterations)
        return outputs, *self.vjp(tuple(state), s, grad, True, True)


def em(inputs: Tensor, weight: Tensor, bias: Tensor, beta_u: Tensor, beta_a: Tensor, iterations: int) -> Tensor:
    """EM routing, equal to `reference.em` up to rounding; keeps `[B, J, D]` a few times per round and no votes."""
    # The bias moves votes and means alike, and cancels in their differences.
    mean = _no_outputs(inputs, weight)
    precision, log_prior = torch.zeros_like(mean), mean.new_zeros(mean.shape[:2])
    log_active = total = log_prior
    for index in range(iterations):
        total, mean, scatter = _EmRound.apply(inputs, weight, log_prior, mean, precision)
        variance = em_variance(scatter, total)
        log_active = em_log_activation(total, variance, beta_u, beta_a, index)
        log_prior, precision = em_log_prior(log_active, variance), 0.5 / variance
    return log_active.exp().unsqueeze(-1) * unit(torch.where((total > 0).unsqueeze(-1), mean + bias, 0))


class _EmRound(torch.autograd.Function):
    @staticmethod
    def forward(*state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return em_round(*state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        total, mean, _ = output
        ctx.save_for_backward(*inputs, total, mean)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_total: Tensor, grad_mean: Tensor, grad_scatter: Tensor) -> tuple[Tensor | None, ...]:
        *state, total, mean = ctx.saved_tensors
        # Σ R a (û − μ)² is least if μ is the mean, so no gradient of it reaches μ.
        given = (*state, mean, grad_total, em_mean(grad_mean, total), grad_scatter)
        # In the first round the state is a constant.
        grad_state = em_state_vjp(*given) if any(ctx.needs_input_grad[2:]) else (None, None, None)
        return (*em_votes_vjp(*given), *grad_state)


def _no_outputs(inputs: Tensor, weight: Tensor) -> Tensor:
    """Zeros `[B, J, D]`, in the dtype of the sums."""
    precise = torch.promote_types(torch.promote_types(inputs.dtype, weight.dtype), torch.float32)
    return inputs.new_zeros((inputs.shape[0], *weight.shape[2:]), dtype=precise)
