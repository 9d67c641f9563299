"""Flags of torch that hold for a whole process, and that a network may set: number formats, algorithms, gradients, threads.

In a process of its own a network finds them as it set them. Of networks that share a process, each gets its own for its turn.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.backends import mha

Flags = Mapping[str, Any]
"""Values by the names of flags."""


class _Flag(NamedTuple):
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _attribute(path: str) -> _Flag:
    owner, _, name = path.rpartition(".")
    return _Flag(lambda: attrgetter(path)(torch), lambda value: setattr(attrgetter(owner)(torch), name, value))


# The older names of TF32 come first: writing one sets others, and those that are written later hold.
_FLAGS: dict[str, _Flag] = {
    "float32_matmul_precision": _Flag(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{
        path: _attribute(path)
        for path in (
            "backends.cudnn.allow_tf32",
            "backends.cuda.matmul.allow_tf32",
            "backends.fp32_precision",
            "backends.cudnn.fp32_precision",
            "backends.cudnn.conv.fp32_precision",
            "backends.cudnn.rnn.fp32_precision",
            "backends.cuda.matmul.fp32_precision",
            "backends.mkldnn.fp32_precision",
            "backends.mkldnn.matmul.fp32_precision",
            "backends.mkldnn.conv.fp32_precision",
            "backends.mkldnn.rnn.fp32_precision",
            "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
            "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
            "backends.cuda.matmul.allow_fp16_accumulation",
            "backends.cudnn.enabled",
            "backends.cudnn.benchmark",
            "backends.cudnn.benchmark_limit",
            "backends.cudnn.deterministic",
            "backends.mkldnn.enabled",
            "backends.mkldnn.deterministic",
            "utils.deterministic.fill_uninitialized_memory",
        )
    },
    "flash_sdp": _Flag(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "mem_efficient_sdp": _Flag(torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    "math_sdp": _Flag(torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn_sdp": _Flag(torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "fast_path_of_attention": _Flag(mha.get_fastpath_enabled, mha.set_fastpath_enabled),
    "deterministic_algorithms": _Flag(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "default_dtype": _Flag(torch.get_default_dtype, torch.set_default_dtype),
    "anomalies": _Flag(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "gradients": _Flag(torch.is_grad_enabled, torch.set_grad_enabled),
    "threads": _Flag(torch.get_num_threads, torch.set_num_threads),
}


def read_flags() -> Flags:
    """Return the present value of every flag that this release of torch has.

    The older name of a flag that was set by its newer name cannot be read, and is left out.
    """
    return {name: value for name, flag in _FLAGS.items() if (value := _read(flag)) is not None}


def set_flags(wanted: Flags) -> None:
    """Set flags to these values, those alone that have others.

    Args:
        wanted: values from `read_flags`.
    """
    for name, value in wanted.items():
        if _read(_FLAGS[name]) != value:
            _FLAGS[name].write(value)


def _read(flag: _Flag) -> Any:
    with suppress(AttributeError, RuntimeError):
        return flag.read()
    return None


class FlagsInTurn:
    """The flags of networks that share a process; between their turns those hold that held when this object was made."""

    def __init__(self) -> None:
        self._usual = read_flags()
        self._of_modules: dict[str, Flags] = {}
        """Flags after the import of each module of networks, by its name."""
        self._of_cells: dict[str, Flags] = {}
        """Flags after each cell's last turn, by its key."""

    @contextmanager
    def importing(self, module: str) -> Iterator[None]:
        """Keep the flags that are set in the body for all networks of a module, which is imported there once.

        Args:
            module: name of the module.
        """
        yield
        self._of_modules.setdefault(module, read_flags())
        set_flags(self._usual)

    @contextmanager
    def of(self, cell: str, module: str) -> Iterator[None]:
        """Let the flags hold in the body that a cell had after its last turn; before the first one, those of its module.

        Args:
            cell: key of the cell.
            module: name of the module of its network.
        """
        set_flags(self._of_cells.get(cell, self._of_modules.get(module, self._usual)))
        try:
            yield
        finally:
            self._of_cells[cell] = read_flags()
            set_flags(self._usual)
