"""Sums over the input capsules as operators of PyTorch, in the namespace `capsbench`, computed by `kernels`.

Each has its shapes for fake tensors, so `torch.compile` accepts it unchanged. None has a gradient: gradients are operators of
their own, and `fused` connects them (one registered with an operator would not go through `torch.func`).
Letters as in `reference`. Inputs and weight may be of any floating dtype; the other tensors have one dtype, that of the sums.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from capsbench.routing.equations import SDA_EPSILON, em_mean, sda_terms
from capsbench.routing.triton.launch import (
    FEWER_REGISTERS,
    LaunchPlan,
    at_once,
    bits_of,
    for_numbers,
    launch,
    over_capsules,
    over_rows,
    over_samples,
)

_LIBRARY = torch.library.Library("capsbench", "FRAGMENT")

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
"""Functions behind the operators, by full name, for a trace of what an operator allocates and starts."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _operator(function: _Function) -> _Function:
    """Register a function of tensors as an operator of PyTorch; return the operator.

    `torch.library.custom_op` would also wrap it for autograd, which takes longer than the rest of a call and has no use here.
    """
    name = function.__name__
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, function, device)
    IMPLEMENTATIONS[f"capsbench::{name}"] = function
    return cast("_Function", getattr(torch.ops.capsbench, name).default)


@_operator
def rba_round(inputs: Tensor, weight: Tensor, agreed: Tensor | None) -> tuple[Tensor, Tensor]:
    """One round of RBA.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`.
        agreed: Σv of the rounds before, `[B, J, D]`: c = softmax_J(û·Σv). None before the first round.

    Returns:
        The outputs squash(s), and s = Σ_i c_i û_i; `[B, J, D]` each.
    """
    outputs, sums, unused = (_sums(inputs, weight) for _ in range(3))
    plan = at_once(inputs, weight)
    if plan is not None:
        _at_once(plan, inputs, weight, agreed, (outputs, sums, unused), 1)
    else:
        _rba(inputs, weight, agreed, outputs, sums, None)
    return outputs, sums


@_operator
def rba_rounds(inputs: Tensor, weight: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rounds of RBA, of which the last has the bits of `rba_round`.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`.
        rounds: number of rounds, at least 2.

    Returns:
        The outputs and s of the last round, as `rba_round` has them, and the Σv that it started from.
    """
    outputs, sums, agreed = (_sums(inputs, weight) for _ in range(3))
    plan = at_once(inputs, weight)
    if plan is not None:
        _at_once(plan, inputs, weight, None, (outputs, sums, agreed), rounds)
        return outputs, sums, agreed
    _rba(inputs, weight, None, outputs, sums, agreed)
    for index in range(1, rounds):
        # Each row is read before it is written, by the same program.
        _rba(inputs, weight, agreed, outputs, sums, agreed if index < rounds - 1 else None)
    return outputs, sums, agreed


def _at_once(
    plan: LaunchPlan, inputs: Tensor, weight: Tensor, agreed: Tensor | None, found: tuple[Tensor, Tensor, Tensor], rounds: int
) -> None:
    known = agreed is not None
    launch("rounds_at_once", plan, inputs, weight, found[0] if agreed is None else agreed, *found, rounds, int(known))


def _rba(inputs: Tensor, weight: Tensor, agreed: Tensor | None, outputs: Tensor, sums: Tensor, total: Tensor | None) -> None:
    """Start a round from `agreed`, which is None for 0, and write what is not None."""
    parts = _parts(inputs, weight, agreed, None, limited=False)
    # Without a Σv anything may stand in its place, since it is not read, or not written.
    given = (None, sums if agreed is None else agreed, outputs, sums, sums if total is None else total)
    _finish(parts, given, uniform=agreed is None, known=agreed is not None, wanted=total is not None)


@_operator
def sda_round(
    inputs: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor | None = None, temperature: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One round of SDA.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`; no vote is longer than its input capsule.
        bias: `[J, D]`.
        outputs: v of the round before, `[B, J, D]`; None before the first round.
        temperature: its t, a scalar: c = softmax_J(t · ‖v − û‖).

    Returns:
        The outputs squash(s), and s = Σ_i c_i û_i + bias; `[B, J, D]` each.
    """
    new_outputs, sums = (_sums(inputs, weight) for _ in range(2))
    parts = _parts(inputs, weight, outputs, temperature, limited=True)
    _finish(parts, (bias, None, new_outputs, sums, None), uniform=outputs is None)
    return new_outputs, sums


def _parts(inputs: Tensor, weight: Tensor, anchor: Tensor | None, temperature: Tensor | None, *, limited: bool) -> Tensor:
    """The sum Σ_i c_i û_i, or without `anchor` Σ_i û_i, in parts `[., B, J, D]`."""
    # More samples read the weights less often. The first layer at batch 128 has 9.4 MB of them: with 8 samples a program all
    # programs read 16 · 9.4 = 151 MB a round from the second cache, with 4 twice as much. A limit takes too many registers.
    plan = over_samples(inputs, weight, 4 if limited else 8).limiting(limited)
    parts = _sums(inputs, weight, plan.chunks)
    launch("coupled_sum", plan, inputs, weight, anchor, temperature, parts, *inputs.shape[:2], plan.span)
    return parts


def _finish(parts: Tensor, given: tuple[Tensor | None, ...], *, uniform: bool, known: bool = False, wanted: bool = False) -> None:
    """Add the parts of a sum, of which uniform coupling takes the mean over J, and squash it."""
    plan, rows = over_rows(parts)
    chunks, _, outputs, _ = parts.shape
    launch("finish", plan, parts, *given, rows, chunks, outputs, outputs if uniform else 1, int(known), int(wanted))


@_operator
def round_vjp(
    inputs: Tensor, weight: Tensor, sums: Tensor, grad: Tensor,
    anchor: Tensor | None, temperature: Tensor | None, limited: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `(squash(s) * grad).sum()` with respect to s, inputs and weight, c being a constant.

    Args:
        inputs: as in `rba_round`.
        weight: as in `rba_round`.
        sums: s, `[B, J, D]`.
        grad: `[B, J, D]`.
        anchor: Σv of RBA or v of SDA, from which the round started; None for uniform coupling.
        temperature: t of SDA, where there is an anchor.
        limited: whether the round is one of SDA.
    """
    plan = over_capsules(inputs, weight, share=4).limiting(limited)
    if not limited and plan.warps <= 2:
        plan = plan._replace(registers=FEWER_REGISTERS)
    grad_inputs, grad_sums = _fresh(inputs), _fresh(sums)
    parts = sums.new_empty((plan.chunks, *weight.shape))
    if at_once(inputs, weight) is None:
        rows_plan, rows = over_rows(sums)
        launch("squash_vjp", rows_plan, sums, grad, grad_sums, rows)
        given: tuple[Tensor | None, ...] = (None, grad_sums, None)
    else:
        given = (sums, grad, grad_sums)
    numbers = (*inputs.shape[:2], plan.span)
    launch("coupled_sum_vjp", plan, inputs, weight, anchor, temperature, *given, grad_inputs, parts, *numbers)
    return grad_sums, grad_inputs, _added(parts).to(weight.dtype)


@_operator
def sda_temperature(inputs: Tensor, weight: Tensor, outputs: Tensor, published: bool) -> Tensor:
    """The temperature t of SDA (`equations.sda_temperature`) after a round, votes being no longer than their capsule; a scalar.

    Args:
        inputs: as in `sda_round`.
        weight: as in `sda_round`.
        outputs: v of the round, `[B, J, D]`.
        published: whether the temperature is the published code's.
    """
    batch, count, _ = inputs.shape
    of_j = weight.shape[2]
    if of_j == 1:
        return outputs.new_zeros(())
    plan = over_samples(inputs, weight, 4)
    parts, temperature = outputs.new_empty((plan.chunks, batch)), outputs.new_empty(())
    launch("summed_distance", plan, inputs, weight, outputs, parts, batch, count, plan.span)
    numbers = map(bits_of, (*sda_terms(of_j, published=published), SDA_EPSILON))
    launch("temperature_of", for_numbers(parts), parts, temperature, parts.numel(), batch * count * of_j, *numbers)
    return temperature


@_operator
def em_round(inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One round of EM: R = softmax_J(log_prior − Σ_h (û − mean)² precision), and with it the moments of the votes.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`.
        log_prior: `[B, J]`.
        mean: `[B, J, D]`, of the round before.
        precision: `[B, J, D]`, 1/2σ² of the round before.

    Returns:
        Σ R a `[B, J]`, the new mean μ `[B, J, D]` and Σ R a (û − μ)² `[B, J, D]`.
    """
    state = (inputs, weight, log_prior, mean, precision)
    plan = over_samples(inputs, weight, 2)
    totals, parts = (tensor.new_empty((plan.chunks, *tensor.shape)) for tensor in (log_prior, mean))
    launch("em_moment", plan, *state, None, totals, parts, *inputs.shape[:2], plan.span)
    total = _added(totals)
    new_mean = em_mean(_added(parts), total)
    launch("em_moment", plan, *state, new_mean, None, parts, *inputs.shape[:2], plan.span)
    return total, new_mean, _added(parts)


@_operator
def em_state_vjp(
    inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor,
    new_mean: Tensor, grad_total: Tensor, grad_mean: Tensor, grad_scatter: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `em_round` with respect to log_prior, mean and precision; `grad_mean` divided by the total."""
    plan = over_samples(inputs, weight, 2)
    zeroth, first, second = (tensor.new_empty((plan.chunks, *tensor.shape)) for tensor in (log_prior, mean, mean))
    given = (inputs, weight, log_prior, mean, precision, new_mean, grad_total, grad_mean, grad_scatter)
    launch("em_state_vjp", plan, *given, zeroth, first, second, *inputs.shape[:2], plan.span)
    return _added(zeroth), 2 * precision * _added(first), -_added(second)


@_operator
def em_votes_vjp(
    inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor,
    new_mean: Tensor, grad_total: Tensor, grad_mean: Tensor, grad_scatter: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of `em_round` with respect to inputs and weight; `grad_mean` divided by the total."""
    plan = over_capsules(inputs, weight, share=8)
    grad_inputs = _fresh(inputs)
    parts = mean.new_empty((plan.chunks, *weight.shape))
    given = (inputs, weight, log_prior, mean, precision, new_mean, grad_total, grad_mean, grad_scatter)
    launch("em_votes_vjp", plan, *given, grad_inputs, parts, *inputs.shape[:2], plan.span)
    return grad_inputs, _added(parts).to(weight.dtype)


@torch.library.register_fake("capsbench::rba_round", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, agreed: Tensor | None) -> tuple[Tensor, Tensor]:
    return _sums(inputs, weight), _sums(inputs, weight)


@torch.library.register_fake("capsbench::rba_rounds", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, rounds: int) -> tuple[Tensor, ...]:
    return _sums(inputs, weight), _sums(inputs, weight), _sums(inputs, weight)


@torch.library.register_fake("capsbench::sda_round", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    return _sums(inputs, weight), _sums(inputs, weight)


@torch.library.register_fake("capsbench::round_vjp", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, sums: Tensor, *_: Tensor | bool | None) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(sums), _fresh(inputs), _fresh(weight)


@torch.library.register_fake("capsbench::sda_temperature", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, outputs: Tensor, published: bool) -> Tensor:
    return outputs.new_empty(())


@torch.library.register_fake("capsbench::em_round", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(log_prior), _fresh(mean), _fresh(mean)


@torch.library.register_fake("capsbench::em_state_vjp", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return _fresh(log_prior), _fresh(mean), _fresh(mean)


@torch.library.register_fake("capsbench::em_votes_vjp", lib=_LIBRARY)
def _(inputs: Tensor, weight: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _fresh(inputs), _fresh(weight)


def _fresh(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _sums(inputs: Tensor, weight: Tensor, *more: int) -> Tensor:
    """Memory for `[..., B, J, D]`, in the dtype of sums: the widest of both, at least float32."""
    precise = torch.promote_types(torch.promote_types(inputs.dtype, weight.dtype), torch.float32)
    return inputs.new_empty((*more, inputs.shape[0], *weight.shape[2:]), dtype=precise)


def _added(parts: Tensor) -> Tensor:
    """The sum over chunks."""
    return parts.squeeze(0) if parts.shape[0] == 1 else parts.sum(0)
