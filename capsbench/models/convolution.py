"""Gradients of a convolution over a batch that comes in chunks; the weight's gradient is summed over them.

No padding, no dilation, no groups, one stride for both directions: as the front of a capsule network needs.
Letters: N images of a chunk, C channels in, O channels out, a kernel of R × S places.
"""

from typing import Protocol

import torch
from torch import Tensor


class ConvolutionGradients(Protocol):
    """An object that takes chunk after chunk, and has the weight's gradient in the end."""

    def add(self, inputs: Tensor, grad: Tensor) -> Tensor | None:
        """Add a chunk to the weight's gradient, and return the gradient of its inputs; None if it is not needed.

        Args:
            inputs: `[N, C, H, W]`.
            grad: gradient of the outputs, `[N, O, H₂, W₂]`.
        """

    def weight_gradient(self) -> Tensor | None:
        """`[O, C, R, S]`, the gradient over all chunks so far; None if it is not needed. Call it once, at the end."""


class LibraryGradients:
    """Gradients by the library's own convolution, which makes a weight gradient for each chunk.

    Args:
        weight: `[O, C, R, S]`.
        stride: stride of the convolution.
        need_inputs: whether the gradient of the inputs is needed.
        need_weight: whether the gradient of the weight is needed.
    """

    def __init__(self, weight: Tensor, stride: int, *, need_inputs: bool, need_weight: bool) -> None:
        self._weight, self._stride, self._mask = weight, stride, [need_inputs, need_weight, False]
        # Half precision would lose what later chunks add.
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._total = torch.zeros_like(weight, dtype=wide) if need_weight else None

    def add(self, inputs: Tensor, grad: Tensor) -> Tensor | None:
        """Add a chunk (`ConvolutionGradients.add`)."""
        geometry = ([self._stride] * 2, [0, 0], [1, 1], False, [0, 0], 1)
        found = torch.ops.aten.convolution_backward(grad, inputs, self._weight, None, *geometry, self._mask)
        if self._total is not None:
            self._total += found[1]
        return found[0]

    def weight_gradient(self) -> Tensor | None:
        """Return the sum (`ConvolutionGradients.weight_gradient`)."""
        return None if self._total is None else self._total.to(self._weight.dtype)


class OffsetGradients:
    """Gradients by one product of matrices for each place of the kernel, over the values of that place for all output positions.

    Each product is added where it belongs, so that in addition to the sum there is no second gradient of the weight's size.
    The arguments are those of `LibraryGradients`.
    """

    def __init__(self, weight: Tensor, stride: int, *, need_inputs: bool, need_weight: bool) -> None:
        # [R, S, O, C]: a matrix for each place.
        self._weight = (
            weight.flatten(0, 1).flatten(1).t().contiguous().unflatten(1, weight.shape[:2]).unflatten(0, weight.shape[2:])
        )
        self._stride, self._need_inputs = stride, need_inputs
        self._total = torch.zeros_like(self._weight) if need_weight else None

    def add(self, inputs: Tensor, grad: Tensor) -> Tensor | None:
        """Add a chunk (`ConvolutionGradients.add`)."""
        # Channels last, so that a place's values are rows of a matrix.
        inputs, grad = inputs.permute(0, 2, 3, 1).contiguous(), grad.permute(0, 2, 3, 1).contiguous()
        grad_inputs = torch.zeros_like(inputs) if self._need_inputs else None
        rows, columns = grad.flatten(0, 2), grad.new_empty(*grad.shape[:3], inputs.shape[3])
        for r, matrices in enumerate(self._weight):
            for s, matrix in enumerate(matrices):
                place = self._place(r, s, grad.shape)
                if self._total is not None:
                    columns.copy_(inputs[place])
                    self._total[r, s].addmm_(rows.t(), columns.flatten(0, 2))
                if grad_inputs is not None:
                    torch.mm(rows, matrix, out=columns.flatten(0, 2))
                    grad_inputs[place] += columns
        return None if grad_inputs is None else grad_inputs.permute(0, 3, 1, 2)

    def weight_gradient(self) -> Tensor | None:
        """Return the sum (`ConvolutionGradients.weight_gradient`)."""
        if self._total is None:
            return None
        del self._weight
        return self._total.permute(2, 3, 0, 1).contiguous()

    def _place(self, r: int, s: int, shape: torch.Size) -> tuple[slice, slice, slice]:
        """Slices of the inputs `[N, H, W, C]` that place (r, s) of the kernel meets, one for each output position."""
        height, width = (side * self._stride for side in shape[1:3])
        return slice(None), slice(r, r + height, self._stride), slice(s, s + width, self._stride)
