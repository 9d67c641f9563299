"""The front of a capsule network: two convolutions as one operator that keeps only the images.

    images → conv₁, ReLU → conv₂ → maps

Plain autograd keeps the output of conv₁ (50 MiB at 28×28 and batch 128), and in backward holds its gradient and the
library's copies of both. Here the batch goes through in chunks, and backward evaluates conv₁ again, chunk by chunk: 1/24
of conv₂'s work. Both passes are operators of `torch.library`, which `torch.compile` and fake tensors accept unchanged.

On a GPU a chunk must also fill the device. Of 28×28 pixels conv₂ makes 36 places of an image, so that its output for 64
images is 36 tiles of 128×128, for 132 multiprocessors of an H100, each of which sums over 20,736 numbers: 27 % of the device, and
for 128 images 55 %, in the same time. Backward's products have 324 tiles and more for 64 images. So forward takes twice as many
images at a time (`FORWARD`), and 128 of them cost what they cost at once. Then it holds what backward holds for half as many:
the output of conv₁, where backward has its gradient too.
"""

from typing import Any

import torch
from torch import Tensor, nn

from capsbench.errors import unknown_name
from capsbench.models.convolution import LibraryGradients, OffsetGradients
from capsbench.pretend import kind_of
from capsbench.reversible import is_altered
from capsbench.routing.autograd import is_autocasting

FRONTS = ("auto", "plain", "chunked")
"""Ways to compute the two convolutions."""

CHUNKS = {"cpu": 24, "cuda": 64}
"""Number of images of a chunk, on the devices on which chunks cost nothing."""

FORWARD = {"cuda": 2}
"""Chunks that forward takes at a time, where it is more than one."""


def check_front(front: str) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigurationError: it is none of `FRONTS`.
    """
    if front not in FRONTS:
        raise unknown_name("`front`", front, FRONTS)


def resolve_front(front: str, batch_size: int, device_type: str) -> str:
    """Resolve `auto`: `chunked` if a batch is more than one chunk of that device, else `plain`.

    Args:
        front: one of `FRONTS`.
        batch_size: images.
        device_type: `cpu`, `cuda`, …

    Raises:
        ConfigurationError: an unknown name.
    """
    check_front(front)
    if front != "auto":
        return front
    return "chunked" if batch_size > CHUNKS.get(device_type, batch_size) else "plain"


def can_chunk(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two modules are the convolutions of a front, neither replaced nor modified nor hooked."""
    return _is_plain(first) and _is_plain(second) and first.stride == (1, 1)


def chunked_front(images: Tensor, first: nn.Conv2d, second: nn.Conv2d, *, chunk: int | None = None) -> Tensor:
    """Compute `second(relu(first(images)))`, for which backward keeps the images alone; differentiable once.

    Args:
        images: `[B, C, H, W]`.
        first: conv₁; `can_chunk` checks the two.
        second: conv₂.
        chunk: images at a time in both directions, by default numbers that suit the device. It changes results by rounding
            only.

    Returns:
        The maps `[B, C₂, H₂, W₂]` in the dtype that the two convolutions would give, under autocast too.
    """
    kind = kind_of(images.device)
    tensors: list[Any] = [images, first.weight, first.bias, second.weight, second.bias]
    if is_autocasting(images.device):
        dtype = torch.get_autocast_dtype(images.device.type)
        # Autocast leaves float64 as it is, and so does this.
        tensors = [it if it.dtype == torch.float64 else it.to(dtype) for it in tensors]
    together = CHUNKS.get(kind, CHUNKS["cuda"])
    chunks = (chunk, chunk) if chunk else (together * FORWARD.get(kind, 1), together)
    return _Front.apply(*tensors, second.stride[0], *chunks)


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module.bias is None:
        return False
    geometry = (module.padding, module.dilation, module.groups, module.stride[0])
    return geometry == ((0, 0), (1, 1), 1, module.stride[1]) and not is_altered(module)


def _hidden(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The output of conv₁ and the ReLU."""
    return torch.conv2d(images, weight, bias).relu_()


class _Front(torch.autograd.Function):
    """The two operators as one function; `register_autograd` would shut out `torch.func.grad`."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *given, _ = inputs
        return torch.ops.capsbench.front(*given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        *kept, _, ctx.stride, _, ctx.chunk = inputs
        ctx.save_for_backward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *needs, _, _, _ = ctx.needs_input_grad
        # Compiled code cannot be differentiated twice anyway, and some compilers reject a function in a function.
        gradients = torch.ops.capsbench.front_backward if torch.compiler.is_compiling() else _FrontGradients.apply
        found = gradients(grad, *ctx.saved_tensors, ctx.stride, ctx.chunk, needs)
        return *(it if need else None for it, need in zip(found, needs, strict=True)), None, None, None


class _FrontGradients(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.capsbench.front_backward(*inputs))

    @staticmethod
    def setup_context(*_: Any) -> None:
        """Keep nothing, since `backward` refuses."""

    @staticmethod
    def backward(*_: Any) -> None:
        raise RuntimeError("a chunked front is differentiable once; use front='plain' for gradients of gradients")


@torch.library.custom_op("capsbench::front", mutates_args=())
def _front(images: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, stride: int, chunk: int) -> Tensor:
    parts = [torch.conv2d(_hidden(part, weight1, bias1), weight2, bias2, stride) for part in images.split(chunk)]
    return torch.cat(parts).contiguous()


@_front.register_fake
def _(images: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, stride: int, *_: Any) -> Tensor:
    return torch.conv2d(torch.conv2d(images, weight1, bias1), weight2, bias2, stride).contiguous()


@torch.library.custom_op("capsbench::front_backward", mutates_args=())
def _front_backward(
    grad: Tensor, images: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, stride: int, chunk: int, needs: list[bool]
) -> list[Tensor]:
    """Gradients of images, weight₁, bias₁, weight₂, bias₂; an empty tensor for each that is not needed."""
    need_hidden = any(needs[:3])
    # On a CPU the library's own is slower, and copies its arguments into layouts of its own.
    by_offset = kind_of(images.device) == "cpu" and images.dtype in {torch.float32, torch.float64}
    kind = OffsetGradients if by_offset else LibraryGradients
    second = kind(weight2, stride, need_inputs=need_hidden, need_weight=needs[3])
    first = LibraryGradients(weight1, 1, need_inputs=needs[0], need_weight=needs[1])
    grad_images: list[Any] = []
    grad_bias1 = torch.zeros_like(bias1, dtype=torch.promote_types(bias1.dtype, torch.float32))
    layout = torch.channels_last if by_offset else torch.contiguous_format
    for part, part_grad in zip(images.split(chunk), grad.split(chunk), strict=True):
        hidden = _hidden(part, weight1, bias1).contiguous(memory_format=layout)
        grad_hidden = second.add(hidden, part_grad)
        if grad_hidden is None:
            continue
        torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0, grad_input=grad_hidden)
        del hidden  # the library copies the gradient next, and all three at once would be too much
        grad_bias1 += grad_hidden.sum((0, 2, 3))
        grad_images.append(first.add(part, grad_hidden))
    found = (
        torch.cat(grad_images) if needs[0] else None,
        first.weight_gradient(),
        grad_bias1.to(bias1.dtype) if needs[2] else None,
        second.weight_gradient(),
        grad.sum((0, 2, 3)) if needs[4] else None,
    )
    return [images.new_empty(0) if it is None else it for it in found]


@_front_backward.register_fake
def _(_grad: Tensor, images: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, *rest: Any) -> list[Tensor]:
    like, needs = (images, weight1, bias1, weight2, bias1.new_empty(weight2.shape[0])), rest[-1]
    return [torch.empty_like(it) if need else it.new_empty(0) for it, need in zip(like, needs, strict=True)]
