"""Comparisons that can fail, and what autograd saves."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def relative_error(actual: Array, expected: Array) -> float:
    """Largest absolute difference over the largest absolute expected value; refuses what cannot be compared."""
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.numel() > 0, "nothing to compare"
    assert torch.isfinite(actual).all(), "actual is not finite"
    assert torch.isfinite(expected).all(), "expected is not finite"
    difference = (actual.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    if scale == 0:
        # No scale to measure against: only zeros are as close as anything can be.
        return 0.0 if difference == 0 else float("inf")
    return difference / scale


def assert_close(actual: Array, expected: Array, *, relative: float) -> None:
    """`relative_error` is at most `relative`."""
    error = relative_error(actual, expected)
    assert error <= relative, f"relative error {error:.3g} exceeds {relative:.3g}"


def assert_all_close(actual: Sequence[Array | None], expected: Sequence[Array | None], *, relative: float) -> None:
    """`assert_close` one by one; a missing gradient (None) matches only a missing one."""
    assert len(actual) == len(expected), f"{len(actual)} tensors, expected {len(expected)}"
    assert len(expected) > 0, "nothing to compare"
    for index, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert (mine is None) == (theirs is None), f"tensor {index} is {mine}, expected {theirs}"
        if mine is not None and theirs is not None:
            error = relative_error(mine, theirs)
            assert error <= relative, f"tensor {index}: relative error {error:.3g} exceeds {relative:.3g}"


def assert_alive(tensor: Tensor | None) -> None:
    """Finite everywhere and not zero everywhere."""
    assert tensor is not None, "there is no tensor"
    assert torch.isfinite(tensor).all(), "not finite"
    assert tensor.count_nonzero() > 0, "zero everywhere"


@contextmanager
def saved_by_autograd() -> Iterator[list[Tensor]]:
    """Collects every tensor that autograd saves for backward inside the context, inputs and parameters included."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


class _Kept:
    """A tensor that a node of the graph keeps, which dies with that node."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(forward: Callable[[], Tensor], earlier: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps after a forward pass: those of its loss, and of each storage behind a tensor that a node saved.

    Args:
        forward: returns the loss.
        earlier: tensors that were there before, whose storages do not count.
    """
    kept = weakref.WeakSet[_Kept]()

    def pack(tensor: Tensor) -> _Kept:
        one = _Kept(tensor.detach())  # an output that its own node saved would keep that node alive
        kept.add(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        loss = forward()
    return bytes_other_than([loss, *(one.tensor for one in kept)], earlier)


def bytes_other_than(tensors: Iterable[Tensor], earlier: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once, without those that are behind other tensors too."""
    before = {tensor.untyped_storage().data_ptr() for tensor in earlier}
    alive = [tensor.untyped_storage() for tensor in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in alive if one.data_ptr() not in before}.values())


def tensors_within(value: object) -> Iterator[Tensor]:
    """Tensors in an output, however deep they lie in lists, mappings and objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (found for part in value.values() for found in tensors_within(part))
    elif isinstance(value, list | tuple):
        yield from (found for part in value for found in tensors_within(part))
    elif hasattr(value, "__dict__"):
        yield from tensors_within(vars(value))
