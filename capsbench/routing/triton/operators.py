"""Sums over the input capsules as operators of PyTorch, in the namespace `capsbench`, computed by `kernels`.

Each has its shapes for fake tensors, so `torch.compile` accepts it unchanged. None has a gradient: gradients are operators of
their own, and `fused` connects them (one registered with an operator would not go through `torch.func`).
Letters as in `reference`. Inputs and weight may be of any floating dtype; the other tensors have one dtype, that of the sums.
"""

import torch
from torch import Tensor

from capsbench.routing.equations import em_mean
from capsbench.routing.triton.launch import launch, over_capsules, over_samples


@torch.library.custom_op("capsbench::coupled_sum", mutates_args=())
def coupled_sum(inputs: Tensor, weight: Tensor, anchor: Tensor, temperature: Tensor | None = None) -> Tensor:
    """The sum Σ_i c_i û_i.

    Args:
        inputs: `[B, I, K]`.
        weight: `[I, K, J, D]`.
        anchor: `[B, J, D]`; c = softmax_J(û·anchor).
        temperature: a scalar: c = softmax_J(temperature · ‖anchor − û‖) instead, with votes no longer than their capsule.

    Returns:
        `[B, J, D]`.
    """
    plan = over_samples(inputs, weight, 4)
    parts = anchor.new_empty((plan.chunks, *anchor.shape))
    launch("coupled_sum", plan, inputs, weight, anchor, temperature, parts)
    return _added(parts)


@torch.library.custom_op("capsbench::coupled_sum_vjp", mutates_args=())
def coupled_sum_vjp(
    inputs: Tensor, weight: Tensor, grad: Tensor, anchor: Tensor, temperature: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of `(coupled_sum(…) * grad).sum()` with respect to inputs and weight, c being a constant."""
    plan = over_capsules(inputs, weight, share=4)
    grad_inputs = _fresh(inputs)
    parts = anchor.new_empty((plan.chunks, *weight.shape))
    launch("coupled_sum_vjp", plan, inputs, weight, anchor, temperature, grad, grad_inputs, parts)
    return grad_inputs, _added(parts).to(weight.dtype)


@torch.library.custom_op("capsbench::mean_distance", mutates_args=())
def mean_distance(inputs: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
    """The mean of ‖v_j − û_ij‖ over batch, I and J, votes being no longer than their capsule; a scalar."""
    plan = over_samples(inputs, weight, 4)
    parts = outputs.new_empty((plan.chunks, inputs.shape[0]))
    launch("summed_distance", plan, inputs, weight, outputs, parts)
    return parts.sum() / (inputs.shape[0] * inputs.shape[1] * weight.shape[2])


@torch.library.custom_op("capsbench::em_round", mutates_args=())
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
    launch("em_moment", plan, *state, None, totals, parts)
    total = _added(totals)
    new_mean = em_mean(_added(parts), total)
    launch("em_moment", plan, *state, new_mean, None, parts)
    return total, new_mean, _added(parts)


@torch.library.custom_op("capsbench::em_state_vjp", mutates_args=())
def em_state_vjp(
    inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor,
    new_mean: Tensor, grad_total: Tensor, grad_mean: Tensor, grad_scatter: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `em_round` with respect to log_prior, mean and precision; `grad_mean` divided by the total."""
    plan = over_samples(inputs, weight, 2)
    zeroth, first, second = (tensor.new_empty((plan.chunks, *tensor.shape)) for tensor in (log_prior, mean, mean))
    given = (inputs, weight, log_prior, mean, precision, new_mean, grad_total, grad_mean, grad_scatter)
    launch("em_state_vjp", plan, *given, zeroth, first, second)
    return _added(zeroth), 2 * precision * _added(first), -_added(second)


@torch.library.custom_op("capsbench::em_votes_vjp", mutates_args=())
def em_votes_vjp(
    inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor,
    new_mean: Tensor, grad_total: Tensor, grad_mean: Tensor, grad_scatter: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of `em_round` with respect to inputs and weight; `grad_mean` divided by the total."""
    plan = over_capsules(inputs, weight, share=8)
    grad_inputs = _fresh(inputs)
    parts = mean.new_empty((plan.chunks, *weight.shape))
    given = (inputs, weight, log_prior, mean, precision, new_mean, grad_total, grad_mean, grad_scatter)
    launch("em_votes_vjp", plan, *given, grad_inputs, parts)
    return grad_inputs, _added(parts).to(weight.dtype)


@coupled_sum.register_fake
def _(inputs: Tensor, weight: Tensor, anchor: Tensor, temperature: Tensor | None = None) -> Tensor:
    return _fresh(anchor)


@coupled_sum_vjp.register_fake
def _(inputs: Tensor, weight: Tensor, grad: Tensor, anchor: Tensor, temperature: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _fresh(inputs), _fresh(weight)


@mean_distance.register_fake
def _(inputs: Tensor, weight: Tensor, outputs: Tensor) -> Tensor:
    return outputs.new_empty(())


@em_round.register_fake
def _(inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(log_prior), _fresh(mean), _fresh(mean)


@em_state_vjp.register_fake
def _(inputs: Tensor, weight: Tensor, log_prior: Tensor, mean: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return _fresh(log_prior), _fresh(mean), _fresh(mean)


@em_votes_vjp.register_fake
def _(inputs: Tensor, weight: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _fresh(inputs), _fresh(weight)


def _fresh(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _added(parts: Tensor) -> Tensor:
    """The sum over chunks."""
    return parts.squeeze(0) if parts.shape[0] == 1 else parts.sum(0)
