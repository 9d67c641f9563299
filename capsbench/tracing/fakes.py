"""Tensors without values, and the networks that are made of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, _BypassDispatchCache
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass

from capsbench.errors import ConfigurationError
from capsbench.tracing.fake_cuda import Capability, stands_in
from capsbench.tracing.known import MOST_ELEMENTS, Values, host_copy

Memory = dict[tuple[int, torch.dtype], Tensor]
"""Memory without values, by the storage that it stands for and its type."""


class Shapes(FakeTensorMode):
    """Tensors without values, which touch no device unless its driver is there and in use.

    Args:
        kind: kind of the device that they are for, `cpu` or `cuda`.
        capability: the compute capability of a CUDA device; None for that of the present device.
    """

    def __init__(self, kind: str, capability: Capability | None = None) -> None:
        # Torch asks again later, when the device appears to be there. A CPU's tensors need no answer, and where a process
        # has asked, no fork of it can use CUDA.
        self._without_driver = kind != "cpu" and stands_in(capability)
        # An operator without a form for shapes would be run for real, on the device.
        super().__init__(allow_non_fake_inputs=True, allow_fallback_kernels=kind == "cpu")

    def _validate_output_for_cache_entry(self, state: Any, key: Any, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Refuse to remember a tensor that is a part of its memory: what is remembered would be made with less memory."""
        super()._validate_output_for_cache_entry(state, key, func, args, kwargs, output)
        if isinstance(output, FakeTensor) and not func.is_view and not any(output is one for one in args):
            needed = sum((side - 1) * stride for side, stride in zip(output.shape, output.stride(), strict=True)) + 1
            if output.numel() and output.untyped_storage().nbytes() > needed * output.itemsize:
                raise _BypassDispatchCache("part of its memory")

    @property
    def avoid_device_init(self) -> bool:
        """Return whether the device must not be touched."""
        return self._without_driver


def made_fake(model: nn.Module, device: torch.device, values: Values) -> nn.Module:
    """Return the same network with new parameters and buffers on the device, as `to` moves them.

    They may have been made outside or here; a copy of a tensor without values may differ from what it looks like.

    Args:
        model: the network.
        device: device that is followed.
        values: receives the values of small buffers.
    """
    replaced: dict[int, Any] = {}
    memory: Memory = {}
    for module in model.modules():
        # The module that a script was made of lives on, and shares these tensors with it.
        shares = isinstance(module, torch.jit.ScriptModule)
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if (
                    tensor is None
                    or is_lazy(tensor)
                    or (shares and isinstance(tensor, FakeTensor) and tensor.device.type == device.type)
                ):
                    continue
                if id(tensor) not in replaced:
                    moved = fake_like(tensor, device, values, memory)
                    replaced[id(tensor)] = _as_before(tensor, moved)
                held[name] = replaced[id(tensor)]
    return model


def _as_before(tensor: Tensor, moved: Tensor) -> Tensor:
    """The counterpart of a parameter or buffer, with the hooks and the attributes that its user gave it."""
    made = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    copy_additions(tensor, made, lambda value: value)
    return made


def copy_additions(tensor: Tensor, other: Tensor, twin: Callable[[Any], Any]) -> None:
    """Give another tensor the attributes that a user gave to one, and if it needs a gradient the hooks of that of a leaf.

    Args:
        tensor: tensor that has them.
        other: leaf that is given them.
        twin: makes each attribute and hook of the other one.
    """
    for name, value in vars(tensor).items():
        if name not in vars(other):
            setattr(other, name, twin(value))
    if not (other.requires_grad and tensor.is_leaf):
        return
    for hook in (tensor._backward_hooks or {}).values():
        other.register_hook(twin(hook))
    for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
        other.register_post_accumulate_grad_hook(twin(hook))


def fake_like(tensor: Tensor, device: torch.device, values: Values, memory: Memory | None = None) -> Tensor:
    """A new tensor on the device in place of one, with its sizes; a small one keeps its values, unless it is a parameter.

    Args:
        tensor: tensor with values or without.
        device: device that is followed.
        values: receives the values.
        memory: counterparts so far, of which those on a CPU share memory as the originals do.
    """
    _check_kind(tensor)
    if device.type == "cpu":
        moved = shared_like(tensor, device, {} if memory is None else memory)
    else:
        # By its sizes, since an operator on a real tensor would be run for real.
        moved = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    if not isinstance(tensor, nn.Parameter):
        give_values(moved, tensor, values)
    return moved


def twin_like(tensor: Tensor, device: torch.device, values: Values, memory: Memory, *, registered: bool) -> Tensor:
    """The twin of a live network's tensor, which needs a gradient as that does.

    Args:
        tensor: parameter, buffer, or any other tensor that a step finds.
        device: device that is followed.
        values: receives the values of small tensors.
        memory: counterparts so far.
        registered: True for what moves with a module; any other number on a CPU stays there, which goes with any device.

    Raises:
        ConfigurationError: the bytes of its kind of tensor are not known here.
    """
    if is_lazy(tensor):
        with _disable_current_modes():  # it has no bytes yet
            kind: Any = type(tensor)
            return kind(requires_grad=tensor.requires_grad, dtype=tensor.data.dtype)
    _check_kind(tensor)
    stays = not registered and tensor.dim() == 0 and tensor.device.type == "cpu"
    twin = fake_like(tensor, tensor.device if stays else device, values, memory)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def _check_kind(tensor: Tensor) -> None:
    """Refuse a tensor that is made of others, such as a sparse one."""
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    if wrapped or tensor.layout is not torch.strided:
        raise unknown_bytes(f"kind {type(tensor).__name__ if wrapped else tensor.layout}")


def unknown_bytes(kind: str) -> ConfigurationError:
    """The error for a tensor that is made of others."""
    return ConfigurationError(
        f"there is a tensor of {kind}, whose bytes a trace does not know", "measure its step with 'run', or give plain tensors"
    )


def give_values(moved: Tensor, tensor: Tensor, values: Values) -> None:
    """Record the values of a small tensor for the one without values that takes its place."""
    if tensor.numel() <= MOST_ELEMENTS and tensor.device.type != "meta":
        known = values.of(tensor) if isinstance(tensor, FakeTensor) else host_copy(tensor)
        if known is not None:
            values.give(moved, known)


def shared_like(tensor: Tensor, device: torch.device, memory: Memory) -> Tensor:
    """The counterpart of a tensor on a device; tensors that share memory share it there too, in `memory`."""
    _check_kind(tensor)
    storage = tensor.untyped_storage()
    key = storage._cdata, tensor.dtype
    if key not in memory:
        memory[key] = torch.empty(storage.nbytes() // tensor.itemsize, dtype=tensor.dtype, device=device)
    return memory[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).detach()
