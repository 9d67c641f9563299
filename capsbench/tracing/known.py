"""Values that are known although a step is followed without any, of small tensors that depend on no parameter and no input.

A mask that is made of ones, positions that are counted up, rates in a list: a network may read them and branch on them. They
are computed for real, in addition to the tensors without values that stand for them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from capsbench.tracing.operator_calls import Call, tensors_in, written

MOST_ELEMENTS = 2**18
"""Largest number of elements that is computed: more would take the time and memory that a trace is there to save."""

_RANDOM = torch.Tag.nondeterministic_seeded
_ALIKE = {getattr(torch.ops.aten, name) for name in ("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full")}
"""Operators that look at a tensor's shape alone."""
_FILLING = {torch.ops.aten.fill_, torch.ops.aten.zero_, torch.ops.aten.copy_}


class Values:
    """The values that tensors without values would hold."""

    def __init__(self) -> None:
        self._twins: Any = WeakTensorKeyDictionary()
        self._blank: Any = WeakTensorKeyDictionary()
        """Tensors that hold nothing yet."""
        self._lost: dict[int, Any] = {}
        """Storages of twins into which something unknown was written, kept so that no other storage gets their number."""

    def give(self, tensor: Tensor, real: Tensor) -> None:
        """Record the value of a tensor, if it is small."""
        if real.numel() <= MOST_ELEMENTS:
            self._twins[tensor] = real

    def of(self, tensor: Tensor) -> Tensor | None:
        """The value of a tensor; None where it is not known."""
        twin: Tensor | None = self._twins.get(tensor)
        if twin is None or twin.untyped_storage()._cdata in self._lost:
            return None
        return twin

    def stand_in(self, real: Tensor, device: torch.device) -> Tensor:
        """A tensor without values in place of one whose values are known."""
        shape = torch.ops.aten.empty_strided.default(real.size(), real.stride(), dtype=real.dtype, device=device)
        self.give(shape, real)
        return shape

    def indices(self, index: Tensor | None) -> list[Tensor | None]:
        """Indices of the elements that a mask chooses, if it is known; any other index as it is."""
        known = self.of(index) if index is not None and index.dtype in (torch.bool, torch.uint8) else None
        if index is None or known is None:
            return [index]
        with _disable_current_modes():
            chosen = known.nonzero().unbind(1)
        return [self.stand_in(one, index.device) for one in chosen]

    def chosen_bytes(self, index: Tensor | None) -> int:
        """Bytes of the indices of the elements that a known mask chooses, which a kernel holds while it runs."""
        return sum(one.nbytes for one in self.indices(index) if one is not index and one is not None)

    def computed(self, call: Call) -> Any:
        """The outputs of an operator, if all of its arguments are known and it draws no random numbers; None otherwise.

        An operator that returns nothing, such as those that write into lists of tensors, has an empty tuple.
        """
        alike = call.packet in _ALIKE
        if _RANDOM in call.func.tags or not (alike or all(self.of(one) is not None for one in call.tensors)):
            return None
        on_host = {name: "cpu" if name == "device" and value is not None else value for name, value in call.kwargs.items()}
        on_host.pop("pin_memory", None)
        try:
            with _disable_current_modes(), torch.no_grad():
                found = Call(call.func, call.args, on_host).changed(_blank_like if alike else self._real).run()
        except Exception:  # a value that cannot be computed on the host is unknown
            return None
        return found if call.func._schema.returns else ()

    def follow(self, call: Call, out: Any) -> None:
        """Compute what an operator returned without values, and forget what it overwrote with something unknown."""
        made = tensors_in(out)
        if "empty" in call.func._schema.name:
            self._blank.update((one, True) for one in made)
            return
        blank = [one for one in call.tensors if self._blank.pop(one, False)]
        first = blank[0] if blank and blank[0] is call.tensors[0] else None
        if first is not None and call.packet in _FILLING:
            # A tensor that has not been written or read yet is known from here on.
            with _disable_current_modes():
                self.give(first, torch.empty(first.shape, dtype=first.dtype))
        elif first is not None and self.of(first) is None and not self._overwrites(first, call):
            self._twins.pop(first, None)
        if sum(one.numel() for one in made) <= MOST_ELEMENTS:
            real = self.computed(call)
            if real is not None:
                for one, twin in zip(made, tensors_in(real), strict=False):
                    self.give(one, twin)
                return
        for one in written(call):
            twin = self._twins.get(one)
            if twin is not None:
                storage = twin.untyped_storage()
                self._lost[storage._cdata] = storage

    def _overwrites(self, blank: Tensor, call: Call) -> bool:
        """Return whether an operator writes known values into each element of a blank tensor, and give it these values.

        An inverted permutation is made in this way: the outcome does not depend on what was there before.
        """
        if blank.numel() > MOST_ELEMENTS or _RANDOM in call.func.tags or not any(one is blank for one in written(call)):
            return False
        found: list[Tensor | None] = []
        for number in (0, 1):
            with _disable_current_modes():
                self.give(blank, torch.full(blank.shape, number, dtype=blank.dtype))
            found.append(None if self.computed(call) is None else self.of(blank))
        one, other = found
        with _disable_current_modes():
            return one is not None and other is not None and torch.equal(one, other)

    def _real(self, one: Any) -> Any:
        if isinstance(one, Tensor):
            return self.of(one)
        return torch.device("cpu") if isinstance(one, torch.device) else one


def _blank_like(one: Any) -> Any:
    """A blank tensor of the same shape in place of a tensor, and the host in place of a device."""
    if isinstance(one, Tensor):
        with _disable_current_modes():
            return torch.empty((), dtype=one.dtype).expand(one.shape)
    return torch.device("cpu") if isinstance(one, torch.device) else one


def host_copy(tensor: Tensor) -> Tensor:
    """A copy of a tensor's values in the host's memory, outside all modes."""
    with _disable_current_modes(), torch.no_grad():
        return tensor.detach().cpu().clone()
