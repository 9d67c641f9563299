"""Floating-point operations of the package's own operators, in the registry of torch's counter.

Votes are what is counted: one product `[B, K] × [K, J·D]` for each input capsule and evaluation, and two more where gradients of
both are taken. Agreement and weighted sums are element-wise to torch's counter where plain torch computes them, and are here too.
"""

from collections.abc import Sequence
from typing import Any

import torch

# The operators are registered where they are defined.
import capsbench.models.front
import capsbench.routing.compiled
import capsbench.routing.triton_operators  # noqa: F401
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

Shape = Sequence[int]


def votes_flops(inputs: Shape, weight: Shape) -> int:
    """Of one evaluation of all votes; inputs `[B, I, K]`, weight `[I, K, J, D]`."""
    batch = inputs[0]
    count, in_dim, outputs, dim = weight
    return 2 * batch * count * in_dim * outputs * dim


def _front(images: Shape, weight1: Shape, bias1: Shape, weight2: Shape, bias2: Shape, stride: int, *_: Any, out_shape: Shape, **__: Any) -> int:
    batch, out_channels, height, width = out_shape
    hidden = [side - kernel + 1 for side, kernel in zip(images[2:], weight1[2:], strict=True)]
    return conv_flop_count(images, weight1, [batch, weight1[0], *hidden]) + conv_flop_count(
        [batch, weight1[0], *hidden], weight2, [batch, out_channels, height, width]
    )


def _front_backward(
    grad: Shape, images: Shape, weight1: Shape, bias1: Shape, weight2: Shape, stride: int, chunk: int, needs: list[bool], **_: Any
) -> int:
    hidden = [images[0], weight1[0], *(side - kernel + 1 for side, kernel in zip(images[2:], weight1[2:], strict=True))]
    first, second = conv_flop_count(images, weight1, hidden), conv_flop_count(hidden, weight2, grad)
    # conv₁ again, and what is asked for of each.
    return first * (1 + needs[0] + needs[1]) + second * (any(needs[:3]) + needs[3])


def _once(inputs: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return votes_flops(inputs, weight)


def _rounds(inputs: Shape, weight: Shape, rounds: int, *_: Any, **__: Any) -> int:
    return rounds * votes_flops(inputs, weight)


def _twice(inputs: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * votes_flops(inputs, weight)


def _with_gradients(inputs: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 3 * votes_flops(inputs, weight)


_FORMULAS = {
    "front": _front,
    "front_backward": _front_backward,
    "votes_sum": _once,
    "votes_rounds": _rounds,
    "votes_distance": _once,
    "votes_vjp": _with_gradients,
    "coupled_sum": _once,
    "coupled_sum_vjp": _with_gradients,
    "mean_distance": _once,
    "em_round": _twice,
    "em_state_vjp": _once,
    "em_votes_vjp": _with_gradients,
}

for _name, _formula in _FORMULAS.items():
    _packet = getattr(torch.ops.capsbench, _name)
    if _packet not in flop_registry:
        register_flop_formula(_packet)(_formula)
