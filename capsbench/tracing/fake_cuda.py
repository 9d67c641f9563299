"""A CUDA device that need not be there, for steps that are followed on tensors without values.

Operators take the forms that they have on CUDA, and autocast its lists for CUDA, because tensors report to be there. Autograd's
engine would ask the driver. Where there is none, or this process has not begun to use it, a stand-in answers instead
(`native/no_cuda.cpp`), so that a prediction never makes a context, which takes hundreds of MiB of a device.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor

from capsbench.system.native import NativeLibrary, built
from capsbench.tracing.surroundings import replaced

Capability = tuple[int, int]

_COMPILER = "torch._dynamo.trace_rules"


@cache
def driver_stand_in() -> NativeLibrary:
    """The compiled help for a machine without a driver, or the reason that there is none."""
    return built(Path(__file__).parent / "native" / "no_cuda.cpp", "no_cuda_begin")


def can_follow() -> bool:
    """Return whether a step can be followed on CUDA tensors here."""
    return torch.cuda.is_available() or driver_stand_in().library is not None


def stands_in(capability: Capability | None) -> bool:
    """Return whether a stand-in answers for the driver: there is none, or a prediction can leave it alone.

    Args:
        capability: the compute capability of the device; None if the present device is asked for its own.
    """
    if not torch.cuda.is_available():
        return True
    in_use = capability is None or torch.cuda.is_initialized()
    return not in_use and driver_stand_in().library is not None


def reason_not_followed() -> str:
    """The reason that it cannot."""
    return driver_stand_in().reason


@contextmanager
def fake_cuda(capability: Capability | None = None) -> Iterator[Capability]:
    """Let torch answer inside as if a CUDA device were there; tensors that are computed there must have no values.

    Args:
        capability: the compute capability of the device; None for that of the present device, or of a common one.

    Yields:
        The compute capability that torch reports.

    Raises:
        RuntimeError: `can_follow` is false.
    """
    helper = None
    if stands_in(capability):
        helper = driver_stand_in().library
        if helper is None:
            raise RuntimeError(f"CUDA tensors cannot be followed: {reason_not_followed()}")
        capability = capability or (9, 0)
    else:
        capability = capability or torch.cuda.get_device_capability()
    answers = _answers(capability)
    had_compiler = _COMPILER in sys.modules
    try:
        with torch.autograd.set_multithreading_enabled(False), ExitStack() as entered:
            if helper is not None:
                helper.no_cuda_begin()
                entered.callback(helper.no_cuda_end)
            for name, answer in answers.items():
                entered.enter_context(replaced(torch.cuda, name, answer))
            # Recurrent layers would move their weights together, and ask for their addresses.
            entered.enter_context(replaced(torch.backends.cudnn, "is_acceptable", lambda _: False))
            if helper is not None:
                entered.enter_context(replaced(torch._C, "_select_conv_backend", _conv_backend(torch._C._select_conv_backend)))
            if helper is not None and hasattr(fake_tensor, "init_gpu_context"):
                # Some releases make a tensor with a value on the device with the first one without, for autograd's engine.
                # The helper already reports that the device has a context.
                entered.enter_context(replaced(fake_tensor, "init_gpu_context", _nothing()))
            yield capability
    finally:
        # The compiler lists torch's functions when it is first imported; it has to find the real ones.
        if not had_compiler and _COMPILER in sys.modules:
            sys.modules[_COMPILER].get_torch_obj_rule_map.cache_clear()


def _answers(capability: Capability) -> dict[str, Any]:
    """Answers of `torch.cuda`'s functions about the device. A random state stays in the host's memory, which is not followed."""
    state = torch.zeros(16, dtype=torch.uint8)
    generator = SimpleNamespace(
        initial_seed=lambda: 0, get_offset=lambda: 0, manual_seed=_nothing(), set_offset=_nothing(),
        get_state=lambda: state, set_state=_nothing(),
    )  # fmt: skip
    properties = SimpleNamespace(
        name="predicted", major=capability[0], minor=capability[1], total_memory=0, multi_processor_count=1, warp_size=32
    )

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda *_: capability,
        "get_device_name": lambda *_: "predicted",
        "get_device_properties": lambda *_: properties,
        "default_generators": (generator,),
        "get_rng_state": lambda *_: state,
        "set_rng_state": _nothing(),
        "Stream": _Stream,
        "Event": _Stream,
        "stream": lambda *_: nullcontext(),
        "current_stream": lambda *_: _STREAM,
        "default_stream": lambda *_: _STREAM,
        "set_device": _nothing(),
        "synchronize": _nothing(),
        "_lazy_init": _nothing(),
        "_exchange_device": lambda *_: 0,
        "_maybe_exchange_device": lambda *_: 0,
    }


def _conv_backend(select: Callable[..., Any]) -> Callable[..., Any]:
    """Make the choice of a convolution's library for bfloat16 as for float16: about the former torch 2.9 asks the driver."""

    def halved(value: Any) -> Any:
        return value.half() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value

    def choice(*args: Any, **kwargs: Any) -> Any:
        return select(*map(halved, args), **{name: halved(value) for name, value in kwargs.items()})

    return choice


class _Stream:
    """A stream of the device, on which no work waits, or an event on one."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take the arguments of a stream."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of what it is not, such as a function
            raise AttributeError(name)
        return _nothing()


_STREAM = _Stream()


def _nothing() -> Callable[..., None]:
    """Make a function without effect, a new one each time, since the compiler takes one function of torch for one name."""
    return lambda *_, **__: None
