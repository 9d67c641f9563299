"""The dispatcher of a step that is followed: it sees the operators that the step is made of, on tensors without values."""

from functools import cache, partial
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Runs(Protocol):
    """An object that runs operators for `Operators`."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, and return its outputs."""


class Operators(TorchDispatchMode):
    """A mode that passes every operator that autograd calls to an object that runs it."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self._runs = runs

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would wrap every operator's handling for a compiler that does not run here, and import it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._runs.run(func, args, kwargs or {})


@cache
def is_composite(func: Any) -> bool:
    """Return whether an operator is made of others, and no device has a kernel of its own for it."""
    has_kernel = partial(torch._C._dispatch_has_kernel_for_dispatch_key, func.name())
    return has_kernel("CompositeImplicitAutograd") and not (has_kernel("CPU") or has_kernel("CUDA"))


class Shapes(FakeTensorMode):
    """Tensors without values, which touch no device unless its driver is there.

    Args:
        kind: kind of the device that they are for, `cpu` or `cuda`.
    """

    def __init__(self, kind: str) -> None:
        # Torch asks again later, when the device appears to be there. A CPU's tensors need no answer, and where a process
        # has asked, no fork of it can use CUDA.
        self._without_driver = kind != "cpu" and not torch.cuda.is_available()
        super().__init__(allow_non_fake_inputs=True)

    @property
    def avoid_device_init(self) -> bool:
        """Return whether the device must not be touched."""
        return self._without_driver
