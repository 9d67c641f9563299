"""The length of a capsule and the squash non-linearity, exact for tiny vectors and safe at the zero vector.

With the paper's initialisation a network's first output lengths are near 1e-10, so no epsilon may stand under a
root here: the gradient of ‖v‖ is v/‖v‖ as long as float32 can distinguish ‖v‖² from 0, and 0 from there on, never NaN.
"""

import torch
from torch import Tensor


def length(capsules: Tensor, *, keepdim: bool = False) -> Tensor:
    """Length ‖v‖ over the last dimension; its gradient is v/‖v‖, and 0 at the zero vector. `[..., D]` → `[...]`."""
    # vector_norm's own backward masks the zero vector; norm(), sqrt(sum of squares) and eps-variants do not.
    return torch.linalg.vector_norm(capsules, dim=-1, keepdim=keepdim)


def squash(s: Tensor) -> Tensor:
    """Squash s to ‖s‖²/(1+‖s‖²) · s/‖s‖ over the last dimension, and 0 at 0 (Sabour et al. 2017, equation 1). `[..., D]` → same.

    It is computed as s · ‖s‖/(1+‖s‖²), so that nothing is divided by a length.
    """
    norm = length(s, keepdim=True)
    return s * (norm / (1 + norm * norm))


def unit(s: Tensor) -> Tensor:
    """Unit vector s/‖s‖ over the last dimension, and 0 at 0. `[..., D]` → same."""
    norm = length(s, keepdim=True)
    nonzero = norm > 0
    return torch.where(nonzero, s / torch.where(nonzero, norm, 1), 0)


def squash_and_vjp(s: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `squash(s)`, bit for bit, and the gradient of `(squash(s) * grad).sum()` in closed form. `[..., D]` → two of it.

    With n = ‖s‖ the gradient is g·n/(1+n²) + s·(s·g)·(1−n²)/(n(1+n²)²), and 0 at 0.
    """
    norm = length(s, keepdim=True)
    square = norm * norm
    above = 1 + square
    scale = norm / above
    along = (s * grad).sum(-1, keepdim=True) / norm.clamp_min(torch.finfo(s.dtype).tiny)
    return s * scale, torch.addcmul(grad * scale, s, along * ((1 - square) / (above * above)))


def squash_vjp(s: Tensor, grad: Tensor) -> Tensor:
    """The gradient of `squash_and_vjp` alone."""
    return squash_and_vjp(s, grad)[1]
