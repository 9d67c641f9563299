"""The operators that a step calls: one call, the traits that a trace takes account of, and the mode that sees every call."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from capsbench.routing.triton.operators import IMPLEMENTATIONS


class Trait(Flag):
    """Traits of an operator, of which most have none."""

    NONE = 0
    ONE_DTYPE = auto()
    """A device refuses tensors of several dtypes, which shapes alone do not."""
    WORKSPACE = auto()
    """The first of these operators takes a workspace for its library."""
    SCRATCH = auto()
    """The library takes memory that the device alone knows."""
    ANY_LAYOUT = auto()
    """Tensors may have any memory layout."""
    INDEXES = auto()
    """Among the arguments are indices, which may be masks."""
    READS = auto()
    """The result depends on values, and is no tensor."""


_TRAITS = {
    Trait.ONE_DTYPE | Trait.WORKSPACE | Trait.ANY_LAYOUT: ("mm", "addmm", "bmm", "baddbmm"),
    Trait.ONE_DTYPE | Trait.SCRATCH: ("convolution",),
    Trait.SCRATCH: (
        "convolution_backward",
        "mkldnn_rnn_layer",
        "mkldnn_rnn_layer_backward",
        "_transformer_encoder_layer_fwd",
        "_native_multi_head_attention",
    ),
    Trait.ANY_LAYOUT: ("clone", "copy_", "_to_copy", "cat", "stack", "sum", "mean", "fill_", "zero_"),
    Trait.INDEXES: ("index", "index_put", "index_put_", "_index_put_impl_"),
    Trait.READS: ("_local_scalar_dense", "equal"),
}
_TRAITS_OF = {getattr(torch.ops.aten, name): traits for traits, names in _TRAITS.items() for name in names}


@dataclass(frozen=True)
class Call:
    """One call of an operator; its tensors may have no values."""

    func: Any
    args: Any
    kwargs: Any

    @property
    def packet(self) -> Any:
        """The operator, whichever overload of it is called."""
        return self.func.overloadpacket

    @property
    def traits(self) -> Trait:
        """Traits of the operator."""
        return _TRAITS_OF.get(self.packet, Trait.NONE)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors_in((self.args, self.kwargs))

    def run(self) -> Any:
        """Run the operator, and return its outputs."""
        return self.func(*self.args, **self.kwargs)

    def changed(self, change: Callable[[Any], Any]) -> "Call":
        """The call with a function applied to each argument."""
        return Call(self.func, *tree_map(change, (self.args, self.kwargs)))

    def signature(self) -> str:
        """The part of a call that memory depends on: of a tensor its shape, strides and dtype; any other argument itself."""
        shapes = self.changed(lambda one: (tuple(one.shape), tuple(one.stride()), one.dtype) if isinstance(one, Tensor) else one)
        return repr(shapes)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in lists, tuples and dictionaries."""
    return [one for one in tree_iter(values) if isinstance(one, Tensor)]


def written(call: Call) -> list[Tensor]:
    """Tensors that an operator may have written into."""
    schema = call.func._schema
    if "batch_norm" in schema.name:  # it writes into arguments although its schema does not say so
        return call.tensors
    if not schema.is_mutable:
        return []
    named = dict(zip((argument.name for argument in schema.arguments), call.args, strict=False)) | call.kwargs
    return tensors_in([named.get(argument.name) for argument in schema.arguments if argument.is_write])


class Operators(TorchDispatchMode, ABC):
    """A mode that sees every operator that autograd calls; subclasses run it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would wrap every operator's handling for a compiler that does not run here, and import it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(_is_in_parts, types)):
            return NotImplemented  # it calls operators on this process's part
        return self.run(Call(func, args, kwargs or {}))

    @abstractmethod
    def run(self, call: Call) -> Any:
        """Run an operator, and return its outputs."""


@cache
def _is_in_parts(kind: type) -> bool:
    """Return whether a type of tensors is torch's own of tensors in parts, one in each of several processes."""
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed.")


@cache
def is_composite(func: Any) -> bool:
    """Return whether an operator is made of others, and no device has a kernel of its own for it."""
    has_kernel = partial(torch._C._dispatch_has_kernel_for_dispatch_key, func.name())
    return has_kernel("CompositeImplicitAutograd") and not (has_kernel("CPU") or has_kernel("CUDA"))


def written_in_torch(name: str) -> Callable[..., Any] | None:
    """The function behind an operator that is made of others at each call; None if there is no such function.

    Torch's primitives, of which it makes derivatives in forward mode, are single operators although Python has their names.
    """
    if name in OPDEFS and not name.startswith("prims::"):
        return OPDEFS[name]._init_fn
    return IMPLEMENTATIONS.get(name)
