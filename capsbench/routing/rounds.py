"""The rounds of RBA and SDA, for kernels that keep no votes.

Both let no gradient through their loop, so backward needs the coupling of the last round alone, and that follows from
something small: for RBA from the summed outputs of the rounds before, since b = û·Σv; for SDA from the outputs of the
round before and one temperature. This `State` is all that is kept. A kernel's `Passes` walk over the votes.

Letters as in `reference`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capsbench.routing.autograd import differentiable_once, full_precision
from capsbench.routing.kernel import Kernel
from capsbench.routing.squash import squash, squash_and_vjp, squash_vjp

State = tuple[Tensor, ...]
"""Tensors that fix the coupling of a round: RBA Σv `[B, J, D]`; SDA v `[B, J, D]` and t. Empty before the first round."""

Couplings = list[Tensor]
"""Couplings of the last round, in a kernel's own layout; empty if they are not known."""


class Passes(ABC):
    """A kernel's walks over the votes of one call. s is the weighted sum of a round with its bias, `[B, J, D]`."""

    @abstractmethod
    def __init__(self, inputs: Tensor, weight: Tensor, *, limited: bool) -> None: ...

    @abstractmethod
    def outputs(self, state: State, bias: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs squash(s), and s."""

    @abstractmethod
    def temperature(self, outputs: Tensor, *, published: bool) -> Tensor:
        """The `sda_temperature` after a round with outputs v `[B, J, D]`, from the mean of ‖v − û‖ over batch, i and j.

        A scalar, without waiting for the device.
        """

    @abstractmethod
    def vjp(
        self, state: State, s: Tensor, grad: Tensor, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of s, inputs and weight from that of squash(s), whose coupling is a constant."""

    @abstractmethod
    def value_and_vjp(
        self, state: State, bias: list[Tensor], grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The outputs squash(s) with the bits of `outputs`, and the gradients of `vjp`."""

    def state(self, rounds: "Rounds", bias: list[Tensor], iterations: int) -> State:
        """The state before the last of this many rounds."""
        state: State = ()
        for _ in range(iterations - 1):
            state = rounds.next_state(state, self.outputs(state, bias)[0], self)
        return state

    def last_round(self, rounds: "Rounds", bias: list[Tensor], iterations: int) -> tuple[Tensor, ...]:
        """The outputs, s, and the state that the last of this many rounds started from; all but a temperature `[B, J, D]`."""
        state = self.state(rounds, bias, iterations)
        return *self.outputs(state, bias), *state

    def rounds_and_vjp(
        self, rounds: "Rounds", bias: list[Tensor], iterations: int, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The outputs of `last_round`, bit for bit, and the gradients of `vjp`."""
        return self.value_and_vjp(self.state(rounds, bias, iterations), bias, grad)


class SumPasses(Passes):
    """Passes of a kernel that sums over votes, and leaves everything after the sums to torch."""

    @abstractmethod
    def weighted_sum(self, state: State, couplings: Couplings | None) -> Tensor:
        """The weighted sum Σ_i c_i û_i `[B, J, D]`; the couplings are added to `couplings` if it is given."""

    @abstractmethod
    def gradients(
        self, state: State, grad: Tensor, couplings: Couplings, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of inputs and weight from that of the weighted sum `[B, J, D]`, whose coupling is a constant."""

    def outputs(self, state: State, bias: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Implement `Passes.outputs`."""
        s = plus(self.weighted_sum(state, None), bias)
        return squash(s), s

    def vjp(
        self, state: State, s: Tensor, grad: Tensor, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Implement `Passes.vjp`."""
        grad_s = squash_vjp(s, grad)
        return grad_s, *self.gradients(state, grad_s, [], need_inputs, need_weight)

    def value_and_vjp(
        self, state: State, bias: list[Tensor], grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Implement `Passes.value_and_vjp`."""
        couplings: Couplings = []
        outputs, grad_s = squash_and_vjp(plus(self.weighted_sum(state, couplings), bias), grad)
        return outputs, grad_s, *self.gradients(state, grad_s, couplings, True, True)


@dataclass(frozen=True)
class Rounds:
    """The step from the outputs of one round to the next round."""

    limited: bool = False
    """True for SDA rather than RBA: votes no longer than their capsule, and agreement by distance."""
    published: bool = False
    """True for SDA with the published code's temperature."""

    def next_state(self, state: State, outputs: Tensor, passes: Passes) -> State:
        """The state after a round with these outputs `[B, J, D]`."""
        if not self.limited:
            return (state[0] + outputs if state else outputs,)
        return outputs, passes.temperature(outputs, published=self.published)


class Staged(Kernel):
    """One kernel for RBA or SDA; the bias, if the algorithm has one, is its only extra parameter."""

    def __init__(self, passes: type[Passes], rounds: Rounds) -> None:
        self._passes = passes
        self.rounds = rounds

    def route(self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int) -> Tensor:
        """Compute a differentiable result, keeping `[B, J, D]` twice, and no votes."""
        if not torch.is_grad_enabled():
            return self.keeping(inputs, weight, extras, iterations)[0]
        output: Tensor = _Routed.apply(self, inputs, weight, extras[0] if extras else None, iterations)[0]
        return output

    def keeping(self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int) -> tuple[Tensor, State]:
        """The outputs without a graph, and the state that spares `and_vjp` the rounds."""
        outputs, _, *state = self.passes(inputs, weight).last_round(self.rounds, extras, iterations)
        return outputs, tuple(state)

    def and_vjp(
        self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int, *, grad: Tensor, kept: State
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the bits of `route`, and the gradients of `(outputs * grad).sum()`."""
        passes = self.passes(inputs, weight)
        if kept:
            outputs, grad_s, *found = passes.value_and_vjp(kept, extras, grad)
        else:
            outputs, grad_s, *found = passes.rounds_and_vjp(self.rounds, extras, iterations, grad)
        if extras:
            found.append(grad_s.sum(0))
        return outputs, tuple(one for one in found if one is not None)

    def passes(self, inputs: Tensor, weight: Tensor) -> Passes:
        """The passes of one call."""
        return self._passes(inputs, weight, limited=self.rounds.limited)


class _Routed(torch.autograd.Function):
    @staticmethod
    def forward(staged: Staged, inputs: Tensor, weight: Tensor, bias: Tensor | None, iterations: int) -> tuple[Tensor, ...]:
        return staged.passes(inputs, weight).last_round(staged.rounds, [] if bias is None else [bias], iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.staged, capsules, weight, *_ = inputs
        _, *internal = output
        ctx.mark_non_differentiable(*internal)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(capsules, weight, *internal)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        inputs, weight, s, *state = ctx.saved_tensors
        _, need_inputs, need_weight, need_bias, _ = ctx.needs_input_grad
        with full_precision(inputs.device):
            if need_inputs or need_weight:
                passes = ctx.staged.passes(inputs, weight)
                grad_s, grad_inputs, grad_weight = passes.vjp(tuple(state), s, grad, need_inputs, need_weight)
            else:
                grad_s, grad_inputs, grad_weight = squash_vjp(s, grad), None, None
            return None, grad_inputs, grad_weight, grad_s.sum(0) if need_bias else None, None


def uniform_sum(inputs: Tensor, weight: Tensor) -> Tensor:
    """The sum Σ_i û_i / J `[B, J, D]` of votes without a limit, which is one plain matrix product over I·K."""
    outputs, dim = weight.shape[2:]
    flat = inputs.flatten(1) @ weight.flatten(2).flatten(0, 1)
    return (flat / outputs).unflatten(1, (outputs, dim))


def plus(s: Tensor, bias: list[Tensor]) -> Tensor:
    """The sum with the bias, if the algorithm has one."""
    return s + bias[0] if bias else s
