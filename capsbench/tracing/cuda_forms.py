"""Decisions that CUDA's own libraries take when a step runs: the kernel of an attention, and the form of a recurrent layer.

The device is asked for its attention kernel, and cuDNN for what it keeps of a recurrent layer. Without either, attention
takes the kernel that PyTorch prefers for its shapes, and a recurrent layer PyTorch's own form. Neither is certain, and is noted.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from capsbench.tracing.fake_cuda import Capability
from capsbench.tracing.surroundings import replaced

ATTENTION = "the device chooses the kernel of scaled_dot_product_attention: counted as its {} one"
RECURRENT = "cuDNN's _cudnn_rnn says only on the device what it keeps: {} is counted in PyTorch's own form"
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_HALF = {torch.float16, torch.bfloat16}
_MOST_FLASH, _MULTIPLE_FLASH, _MULTIPLE_MASK = 256, 8, 16


class CudaForms:
    """Substitutes for the functions whose form only a CUDA device knows.

    Args:
        capability: the device's compute capability.
        unsure: receives each assumption that affects bytes alone.
        notes: receives each assumption that affects what the step computes.
    """

    def __init__(self, capability: Capability, unsure: dict[str, None], notes: dict[str, None]) -> None:
        self._capability, self._unsure, self._notes = capability, unsure, notes

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the substitutes in place. A mode would also reach functions imported by name, but networks see a mode."""
        with ExitStack() as entered:
            for owner in (torch.nn.functional, torch._C._nn):
                entered.enter_context(replaced(owner, "scaled_dot_product_attention", self._attend))
            for name in _RECURRENT:
                recur = partial(self._recur, getattr(torch, name))
                for owner in (torch, torch._VF):
                    entered.enter_context(replaced(owner, name, recur))
            yield

    def _recur(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        self._notes[RECURRENT.format(layer.__name__)] = None
        with torch.backends.cudnn.flags(enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it checks the addresses of tensors, which have none
            return layer(*args, **kwargs)

    def _attend(self, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.is_cuda:
            return self._attention(query, *args, **kwargs)
        return scaled_dot_product_attention(query, *args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            # Autocast would do it inside the call; float64 stays float64.
            query, key, value = (self._cast(one) for one in (query, key, value))
            attn_mask = attn_mask if attn_mask is None or not attn_mask.is_floating_point() else self._cast(attn_mask)
        kernel = self._kernel(query, value, attn_mask, enable_gqa)
        self._unsure[ATTENTION.format(kernel)] = None
        options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        if kernel == "flash":
            return _flash(query, key, value, **options)
        if kernel == "memory-efficient":
            return _efficient(query, key, value, attn_mask, **options)
        return scaled_dot_product_attention(query, key, value, attn_mask, enable_gqa=enable_gqa, **options)

    @staticmethod
    def _cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype("cuda"))

    def _kernel(self, query: Tensor, value: Tensor, attn_mask: Tensor | None, enable_gqa: bool) -> str:
        """The first kernel that takes these tensors, in PyTorch's order."""
        backends = torch.backends.cuda
        square = query.shape[-1] == value.shape[-1]
        if query.dim() != 4 or query.dtype not in {*_HALF, torch.float32}:
            return "plain"
        flash = query.dtype in _HALF and attn_mask is None and self._capability >= (8, 0) and square
        if flash and query.shape[-1] <= _MOST_FLASH and backends.flash_sdp_enabled():
            return "flash"
        aligned = all(one.shape[-1] % (8 if query.dtype in _HALF else 4) == 0 for one in (query, value))
        return "memory-efficient" if aligned and not enable_gqa and backends.mem_efficient_sdp_enabled() else "plain"


def _flash(query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    more = -width % _MULTIPLE_FLASH
    if more:
        query, key, value = (pad(one, (0, more)) for one in (query, key, value))
    found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return found[..., :width] if more else found


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *, dropout_p: float, is_causal: bool, scale: float | None
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
    if attn_mask is not None:
        size = attn_mask.shape[-1]
        padded = pad(attn_mask, (0, -size % _MULTIPLE_MASK)) if size % _MULTIPLE_MASK else attn_mask
        attn_mask = padded[..., :size].expand(*query.shape[:2], query.shape[2], key.shape[2])
    needed = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needed, dropout_p, is_causal, scale=scale
    )[0]


def gru_cell(_input_gates: Tensor, _hidden_gates: Tensor, hx: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Shapes of the outputs of CUDA's fused cell, which torch has no fake form of. Its workspace holds five numbers per state."""
    return torch.empty_like(hx), hx.new_empty((hx.shape[0], hx.shape[1] * 5))


def gru_cell_backward(grad: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    """Shapes of the outputs of that cell's backward."""
    gates = (workspace.shape[0], workspace.shape[1] // 5 * 3)
    bias = (lambda: workspace.new_empty(gates[1])) if has_bias else (lambda: None)
    return workspace.new_empty(gates), workspace.new_empty(gates), torch.empty_like(grad), bias(), bias()


SHAPES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._thnn_fused_gru_cell: gru_cell,
    torch.ops.aten._thnn_fused_gru_cell_backward: gru_cell_backward,
}
"""Shape functions of CUDA's operators for which torch has none."""

PLAIN_ATTENTION = torch.ops.aten._safe_softmax
"""An operator that the plain kernel of attention alone uses."""

ONLY_DEVICE_KNOWS = {
    getattr(torch.ops.aten, name)
    for name in ("cudnn_batch_norm", "miopen_batch_norm", "_cudnn_ctc_loss", "_cudnn_rnn", "miopen_rnn")
    if hasattr(torch.ops.aten, name)
}
"""Operators that return memory of a library, whose size the library alone knows."""
