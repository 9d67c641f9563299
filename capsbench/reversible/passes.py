"""Passes over memory of a reversible stack: one each way of the exact inverse, in place of some twenty operators of torch.

`fixed_point` has the same steps as operators of torch, which are the specification and serve wherever these passes do not. On a
CPU they are C (`native/`), compiled on first use, on CUDA Triton kernels (`triton_passes`); both are operators of torch, so that
fake tensors see their shapes.
"""

import ctypes
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError
from capsbench.reversible import triton_passes
from capsbench.system.native import NativeLibrary, built

_NAMES = {torch.float32: "float", torch.float64: "double"}
_GRAIN = 4096
"""Least number of elements for each thread."""


@cache
def library() -> NativeLibrary:
    """The compiled passes, or the reason that there are none."""
    return built(Path(__file__).parent / "native" / "passes.c", "retreat_x_double")


def has_passes(units: Tensor, dtype: torch.dtype) -> bool:
    """Return whether numbers on this device, whose float form has that dtype, have passes of their own."""
    if dtype not in _NAMES:
        return False
    if units.is_cuda:
        return units.numel() > 0 and triton_passes.is_installed()
    return units.device.type == "cpu" and library().library is not None


def takes(value: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a function's value becomes `dtype` without a rounding."""
    return value.dtype is dtype or (value.dtype.is_floating_point and torch.promote_types(value.dtype, dtype) is dtype)


def advance(
    x: Tensor, v: Tensor, store: Tensor, value: Tensor, ratio: Fraction, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Move past a function, in place: v to v·n/d + value, then x to x + v.

    Args:
        x: in units, int64, any shape.
        v: in units, as x.
        store: the remainders' store, as x, with room for a product with the ratio.
        value: the function's value.
        ratio: n/d, below 1.
        scale: factor of `value` that gives units.
        dtype: dtype of the rounded x.

    Returns:
        The next x rounded to `dtype`; and the largest magnitude of an addend of v or of the next x, in units, which on CUDA is
        one number for each part.
    """
    given = (x, v, store, _laid_out(value, x, dtype), ratio.numerator, ratio.denominator, scale)
    if _is_plain(x, value):
        return _advance(*given)
    operator = torch.ops.capsbench.exact_advance_cuda if x.is_cuda else torch.ops.capsbench.exact_advance
    found: tuple[Tensor, Tensor] = operator(*given)
    return found


def retreat_x(x: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Move x to x - v, in place; return it rounded to `dtype`."""
    found: Tensor = torch.ops.capsbench.exact_retreat_x(x, v, dtype)
    return found


def retreat(x: Tensor, v: Tensor, store: Tensor, value: Tensor, ratio: Fraction, scale: float, dtype: torch.dtype) -> Tensor:
    """Move v back before a function and, in the same walk over memory, x back before the function before; both in place.

    Args:
        x: x before the function, whose value is given.
        v: v after it; the other arguments are those of `advance`.
        store: the store after it.
        value: the function's value.
        ratio: n/d, below 1.
        scale: factor of `value` that gives units.
        dtype: dtype of the rounded x.

    Returns:
        x, which has become x - v with the earlier v, rounded to `dtype`.
    """
    given = (x, v, store, _laid_out(value, v, dtype), ratio.numerator, ratio.denominator, scale)
    found: Tensor = (_retreat if _is_plain(x, value) else torch.ops.capsbench.exact_retreat)(*given)
    return found


def takes_gradients(*tensors: Tensor) -> bool:
    """Return whether `gradients_before` takes these: tensors of one kind, of a size that is worth a call."""
    first = tensors[0]
    if first.numel() < _GRAIN or first.device.type != "cpu" or first.dtype not in _NAMES:
        return False
    alike = all(one.dtype is first.dtype and one.device == first.device and one.is_contiguous() for one in tensors)
    return alike and library().library is not None


def gradients_before(of_x: Tensor, of_v: Tensor, of_input: Tensor, gamma: float, earlier: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `momentum.gradients_before` for tensors that `takes_gradients` takes."""
    run = _gradients if _is_plain(of_x, of_v, of_input) else torch.ops.capsbench.momentum_gradients
    found: tuple[Tensor, Tensor, Tensor] = run(of_x, of_v, of_input, gamma, 1 - earlier)
    return found


def _is_plain(*tensors: Tensor) -> bool:
    """Return whether tensors lie on a CPU and nobody watches operators, whose functions can then be called directly.

    A call by way of torch takes as long again as a pass over a thousand elements.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._autograd._profiler_enabled():
        return False
    # Transforms of torch.func have tensors of the plain type without memory of their own.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(type(one) is Tensor and one.is_cpu and not one.is_neg() for one in tensors)


def _laid_out(value: Tensor, units: Tensor, dtype: torch.dtype) -> Tensor:
    """A value in `dtype`, with the strides of `units`: passes walk over memory as it lies."""
    if value.dtype is dtype and value.stride() == units.stride():
        return value
    return torch.empty_like(units, dtype=dtype).copy_(value)


def _advance(x: Tensor, v: Tensor, store: Tensor, value: Tensor, n: int, d: int, scale: float) -> tuple[Tensor, Tensor]:
    rounded, peak = _advance_shapes(x, v, store, value)
    pointers = _pointers(x, v, store, value, rounded)
    _function("advance", value.dtype)(*pointers, peak.data_ptr(), x.numel(), n, d, scale, _threads(x))
    return rounded, peak


def _advance_shapes(x: Tensor, _v: Tensor, _store: Tensor, value: Tensor, *_: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(value), x.new_empty((), dtype=torch.float64)


def _retreat_x(x: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = _retreat_x_shape(x, v, dtype)
    _function("retreat_x", dtype)(*_pointers(x, v, rounded), x.numel(), _threads(x))
    return rounded


def _retreat_x_shape(x: Tensor, _: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


def _retreat(x: Tensor, v: Tensor, store: Tensor, value: Tensor, n: int, d: int, scale: float) -> Tensor:
    rounded = torch.empty_like(value)
    _function("retreat", value.dtype)(*_pointers(x, v, store, value, rounded), x.numel(), n, d, scale, _threads(x))
    return rounded


def _retreat_shape(_x: Tensor, _v: Tensor, _store: Tensor, value: Tensor, *_: float) -> Tensor:
    return torch.empty_like(value)


def _gradients(of_x: Tensor, of_v: Tensor, of_input: Tensor, gamma: float, share: float) -> tuple[Tensor, Tensor, Tensor]:
    found = _gradients_shapes(of_x)
    pointers = _pointers(of_x, of_v, of_input, *found)
    _function("gradients_before", of_x.dtype)(*pointers, of_x.numel(), gamma, share, _threads(of_x))
    return found


def _gradients_shapes(of_x: Tensor, *_: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(of_x), torch.empty_like(of_x), torch.empty_like(of_x)


def _pointers(*tensors: Tensor) -> list[int]:
    """Addresses of tensors that all lie in memory alike, without gaps."""
    strides = tensors[0].stride()
    for one in tensors:
        if one.stride() != strides:
            raise ValueError("the tensors of a pass must have the same strides")
    return [one.data_ptr() for one in tensors]


def _threads(units: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), units.numel() // _GRAIN))


@cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    found = library()
    if found.library is None:
        raise ConfigurationError(f"the exact inverse has no compiled passes: {found.reason}", "use its operators of torch")
    function = getattr(found.library, f"{name}_{_NAMES[dtype]}")
    # ctypes.c_long would cut numbers in two where a long has 32 bits.
    pointers, numbers = _SIGNATURES[name]
    function.argtypes = [*[ctypes.c_void_p] * pointers, *numbers]
    function.restype = None
    called: Callable[..., None] = function
    return called


_RATIO = (ctypes.c_int64, ctypes.c_int64, ctypes.c_double)
_SIGNATURES = {
    "advance": (6, (ctypes.c_int64, *_RATIO, ctypes.c_int64)),
    "retreat_x": (3, (ctypes.c_int64, ctypes.c_int64)),
    "retreat": (5, (ctypes.c_int64, *_RATIO, ctypes.c_int64)),
    "gradients_before": (6, (ctypes.c_int64, ctypes.c_double, ctypes.c_double, ctypes.c_int64)),
}
"""Number of pointers of each pass, and its numbers after them."""

_OPERATORS = torch.library.Library("capsbench", "FRAGMENT")
_MOVED = "Tensor(a!) x, Tensor(b!) v, Tensor(c!) store, Tensor value, int n, int d, float scale"
for _schema, _meta, _implementations in (
    (f"exact_advance({_MOVED}) -> (Tensor, Tensor)", _advance_shapes, {"CPU": _advance}),
    (f"exact_advance_cuda({_MOVED}) -> (Tensor, Tensor)", triton_passes.advance_shapes, {"CUDA": triton_passes.advance}),
    (
        "exact_retreat_x(Tensor(a!) x, Tensor v, ScalarType dtype) -> Tensor",
        _retreat_x_shape,
        {"CPU": _retreat_x, "CUDA": triton_passes.retreat_x},
    ),
    (f"exact_retreat({_MOVED}) -> Tensor", _retreat_shape, {"CPU": _retreat, "CUDA": triton_passes.retreat}),
    (
        "momentum_gradients(Tensor of_x, Tensor of_v, Tensor of_input, float gamma, float share) -> (Tensor, Tensor, Tensor)",
        _gradients_shapes,
        {"CPU": _gradients},
    ),
):
    _name = _OPERATORS.define(_schema)
    _OPERATORS.impl(_name, _meta, "Meta")
    for _key, _implementation in _implementations.items():
        _OPERATORS.impl(_name, _implementation, _key)
