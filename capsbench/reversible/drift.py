"""Drift of a float inverse from the original values, its bound, and the warning about it.

One step backwards, with c = (1 − γ)·L for functions of Lipschitz constant L, magnifies the errors of x and v to

    e_x ← e_x + e_v + 2u            e_v ← (e_v + c·e_x) / γ + (3/γ + 1)·u·L

at most, relative to |x|: u = 2⁻²⁴ is float32's rounding, 2 roundings of x and 7 of v (|v| ≤ L·|x|) are made in the step and
its inverse. So errors grow by the larger root of ρ² − (1 + (1 + c)/γ)·ρ + 1/γ = 0 per function, which is 1/γ where L = 0.
"""

import atexit
import math
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

DRIFT_BOUND = 1e-4
"""Largest difference of a rebuilt x or v from the original, over the largest |x|, that raises no warning."""

LIPSCHITZ = 0.5
"""Lipschitz constant that residual functions are assumed to have; capsule layers begin far flatter, as squash does near 0."""

_ROUNDING = 2.0**-24


class DriftWarning(UserWarning):
    """A warning that going backwards did not lead to the start of the stack, so that the gradients just computed are wrong."""


@lru_cache
def segment_length(gamma: float, lipschitz: float = LIPSCHITZ, bound: float = DRIFT_BOUND) -> int | None:
    """Number of functions that a float32 inverse can go back before the drift may pass `bound`, by the formula above.

    Args:
        gamma: the momentum term, above 0.
        lipschitz: the functions' constant L, in the largest norm.
        bound: relative to the largest |x|.

    Returns:
        At least 1; None if nothing drifts (γ = 1 never moves v).
    """
    if gamma == 1:
        return None
    return max(1, sum(1 for _ in takewhile(lambda drift: drift <= bound, _drifts(gamma, lipschitz))))


def drift_bound(functions: int, gamma: float, lipschitz: float = LIPSCHITZ) -> float:
    """Bound of the drift of a float32 inverse on the way back through at least one function, relative to |x|."""
    return 0.0 if gamma == 1 else next(islice(_drifts(gamma, lipschitz), functions - 1, None))


def _drifts(gamma: float, lipschitz: float) -> Iterator[float]:
    """The bound of the drift after one function, two functions, and so on."""
    of_x = of_v = 0.0
    while True:
        of_x = of_x + of_v + 2 * _ROUNDING
        of_v = (of_v + (1 - gamma) * lipschitz * of_x) / gamma + (3 / gamma + 1) * _ROUNDING * lipschitz
        yield max(of_x, of_v)


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor has values to check; a step may be traced on shapes alone."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def is_capturing(tensor: Tensor) -> bool:
    """Return whether operators on a tensor are recorded in a CUDA graph, in which the host can read nothing."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def bound_of(precision: torch.dtype) -> float:
    """Drift that is accepted of functions computed in a precision: at least the effect of one of their roundings."""
    return max(DRIFT_BOUND, torch.finfo(precision).eps)


def check_drift(difference: Tensor, states: Sequence[Tensor], *, inverse: str, depth: int, bound: float = DRIFT_BOUND) -> None:
    """Warn if the largest difference of rebuilt values passes `bound` times the largest magnitude of states.

    Values that were not finite in forward raise no warning: nothing was lost on the way back. On CUDA the host does not wait for
    the values: the warning comes with a later check, once the device is through, or at the end of the program (`settle`).
    While a CUDA graph is captured nothing has values, and nothing is checked.

    Args:
        difference: any shape.
        states: values of x, of the dtype of `difference`.
        inverse: inverse of the stack.
        depth: index of the function whose input was rebuilt.
        bound: relative to the largest |x|.
    """
    if not has_values(difference) or not difference.numel() or is_capturing(difference):
        return
    check = _Check(inverse, depth, bound)
    ends = torch.stack([end for one in (difference, *states) for end in torch.aminmax(one)]).to(torch.float64)
    if not _is_awaited(ends):
        check(ends.tolist())
        return
    # Before the others are settled, since their warnings may be errors.
    _UNSETTLED.append(_Unsettled.start(check, ends))
    settle(wait=False)


def settle(*, wait: bool = True) -> None:
    """Give the warnings of all checks whose values have arrived from a device.

    Args:
        wait: whether to wait for values that have not arrived.
    """
    while (unsettled := _next_settled(wait)) is not None:
        unsettled.check(unsettled.values.tolist())


def _next_settled(wait: bool) -> "_Unsettled | None":
    """Remove and return the oldest check if its values have arrived; None if they have not, or if there is none."""
    with _SETTLING:
        if not (_UNSETTLED and (wait or len(_UNSETTLED) > _MOST_UNSETTLED or _UNSETTLED[0].event.query())):
            return None
        unsettled = _UNSETTLED.popleft()
    unsettled.event.synchronize()
    return unsettled


@dataclass(frozen=True)
class _Check:
    inverse: str
    depth: int
    bound: float

    def __call__(self, ends: Sequence[float]) -> None:
        """Warn if a difference is too large against states, given the ends of the difference and of each state."""
        off, *sizes = (max(-low, high) for low, high in zip(ends[::2], ends[1::2], strict=True))
        size = max(sizes)
        # In this form NaN is past the bound.
        if off <= self.bound * size or not all(map(math.isfinite, sizes)):
            return
        relative = off / size if size else float("inf")
        better = "'exact' has no drift" if self.inverse != "exact" else "a function did not give the same bits twice"
        warnings.warn(
            f"a reversible stack drifted by {relative:.2g} (bound {self.bound:g}) on its way back to function {self.depth}: "
            f"its gradients are wrong\ninverse was '{self.inverse}'; {better}",
            DriftWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class _Unsettled:
    """A check whose values are on their way from a device."""

    check: _Check
    values: Tensor
    """Least and largest values, in the host's memory once `event` has happened."""
    event: torch.cuda.Event

    @classmethod
    def start(cls, check: _Check, values: Tensor) -> "_Unsettled":
        """Start to copy values from a device, without waiting."""
        arriving = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        event = torch.cuda.Event()
        with torch.cuda.device_of(values):
            arriving.copy_(values, non_blocking=True)
            event.record()
        return cls(check, arriving, event)


_UNSETTLED: deque[_Unsettled] = deque()
_SETTLING = threading.Lock()
"""Held while a check is taken from the row: each device has a thread of its own for backward."""
_MOST_UNSETTLED = 1000
"""Number of checks from which on the oldest is waited for."""
atexit.register(settle)


def _is_awaited(tensor: Tensor) -> bool:
    """Return whether a read of the tensor waits for a device."""
    return tensor.is_cuda


def check_replay(function: object, same: bool) -> None:
    """Warn if a function took another path in backward than in forward.

    Args:
        function: the function, whose text names it.
        same: whether both evaluations recorded the same graph.
    """
    if same:
        return
    warnings.warn(
        f"{function} of a reversible stack was computed differently in backward than in forward: its gradients are wrong\n"
        "it depends on a counter, or on a generator that cannot be replayed: draw from torch, random or numpy, or from a "
        "generator that is an attribute of the module",
        DriftWarning,
        stacklevel=3,
    )
