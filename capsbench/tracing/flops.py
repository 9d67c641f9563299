"""Floating-point operations of the package's own operators, in the registry of torch's counter.

Votes are counted: one product `[B, K] × [K, J·D]` for each input capsule and evaluation, and two more where gradients of
both are taken. Agreement and weighted sums are element-wise to torch's counter where plain torch computes them, and here too.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

_DEFINED_IN = ("capsbench.models.front", "capsbench.routing.compiled", "capsbench.routing.triton.operators")
"""The modules whose import registers the operators with torch."""

Dimensions = Sequence[int]


def votes_flops(inputs: Dimensions, weight: Dimensions) -> int:
    """Operations of one evaluation of all votes; inputs `[B, I, K]`, weight `[I, K, J, D]`."""
    batch = inputs[0]
    count, in_dim, outputs, dim = weight
    return 2 * batch * count * in_dim * outputs * dim


def _front(
    images: Dimensions, weight1: Dimensions, _bias1: Dimensions, weight2: Dimensions, *_: Any, out_shape: Dimensions, **__: Any
) -> int:
    hidden = _hidden(images, weight1)
    return _conv(images, weight1, hidden) + _conv(hidden, weight2, out_shape)


def _front_backward(
    grad: Dimensions, images: Dimensions, weight1: Dimensions, _bias1: Dimensions, weight2: Dimensions, *rest: Any, **_: Any
) -> int:
    hidden, needs = _hidden(images, weight1), rest[2]
    # conv₁ again, and the gradients that each convolution is asked for.
    again = 1 + needs[0] + needs[1]
    return again * _conv(images, weight1, hidden) + (any(needs[:3]) + needs[3]) * _conv(hidden, weight2, grad)


def _hidden(images: Dimensions, weight1: Dimensions) -> Dimensions:
    """The shape of the map between the two convolutions."""
    return [images[0], weight1[0], *(side - kernel + 1 for side, kernel in zip(images[2:], weight1[2:], strict=True))]


def _conv(inputs: Dimensions, weight: Dimensions, out: Dimensions) -> int:
    return conv_flop_count([*inputs], [*weight], [*out])


def _evaluations(count: int) -> Callable[..., int]:
    """The formula of an operator that evaluates all votes, or takes a product of the same size, this often."""
    return lambda inputs, weight, *_, **__: count * votes_flops(inputs, weight)


def _rounds(inputs: Dimensions, weight: Dimensions, rounds: int, *_: Any, **__: Any) -> int:
    return rounds * votes_flops(inputs, weight)


def _rounds_with_both(inputs: Dimensions, weight: Dimensions, rounds: int, *_: Any, **__: Any) -> int:
    # As if no round knew the votes of the one before, which is so where they do not fit a cache.
    return (rounds + 2) * votes_flops(inputs, weight)


def _with_both(inputs: Dimensions, weight: Dimensions, _state: Any, _t: Any, limited: bool, *_: Any, **__: Any) -> int:
    # Couplings of the round are reused; SDA needs the votes once more.
    return (4 if limited else 3) * votes_flops(inputs, weight)


_FORMULAS: dict[str, Any] = {
    "front": _front,
    "front_backward": _front_backward,
    "votes_round": _evaluations(1),
    "votes_rounds": _rounds,
    "votes_distance": _evaluations(1),
    "votes_vjp": _evaluations(3),
    "votes_value_and_vjp": _with_both,
    "votes_rounds_and_vjp": _rounds_with_both,
    "rba_round": _evaluations(1),
    "rba_rounds": _rounds,
    "sda_round": _evaluations(1),
    "round_vjp": _evaluations(3),
    "sda_temperature": _evaluations(1),
    "em_round": _evaluations(2),
    "em_state_vjp": _evaluations(1),
    "em_votes_vjp": _evaluations(3),
}


def register_formulas() -> None:
    """Add the formulas of all operators to torch's registry, where they are not in it."""
    for module in _DEFINED_IN:
        import_module(module)
    for name, formula in _FORMULAS.items():
        packet = getattr(torch.ops.capsbench, name)
        if packet not in flop_registry:
            register_flop_formula(packet)(formula)
