"""TF32, in which a GPU rounds the factors of float32 products to 10 bits: never used where capsbench computes at precision fp32.

PyTorch uses it for convolutions and recurrent layers by default, and for matrix products on request. Its
settings are those of a whole process, and have an old form and a new one: whoever sets one form alone makes the other unreadable.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class _Settings(NamedTuple):
    """The settings of a process."""

    old: tuple[str, bool] | None
    """Settings of matrix products and of cuDNN in their old form; None if it is unreadable."""
    new: tuple[str, ...]
    """Settings of `_places`."""


_lock = threading.Lock()
_inside = 0
"""Number of contexts that are entered, by any thread: the first one changes the settings, the last one restores them."""
_before: _Settings | None = None


def _places() -> tuple[Any, ...]:
    """Holders of the settings in their new form: of matrix products, convolutions and recurrent layers."""
    backends: Any = torch.backends  # its types lack these attributes
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


def allows_tf32() -> bool:
    """Return whether this process allows TF32 for any kind of product of float32 values."""
    # The driver's libraries obey this variable whatever a program sets.
    return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0" and any(one.fp32_precision == "tf32" for one in _places())


def forbid_tf32() -> None:
    """Have this process compute all products of float32 values in float32."""
    _set(_Settings(("highest", False), ("ieee",) * len(_places())))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute products of float32 values inside in float32; afterwards the settings are those from before."""
    global _inside, _before
    with _lock:
        # An inherited setting is read as its parent's, and written back it no longer inherits: none is touched without need.
        if not _inside and torch.cuda.is_available() and allows_tf32():
            _before = _read()
            # An old form that cannot be read could not be restored either.
            _set(_Settings(_before.old and ("highest", False), ("ieee",) * len(_before.new)))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _before is not None:
                _set(_before)
                _before = None


def _read() -> _Settings:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form is deprecated, and still read by torch itself
        try:
            old = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        except RuntimeError:
            old = None
    return _Settings(old, tuple(one.fp32_precision for one in _places()))


def _set(settings: _Settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if settings.old is not None:
            torch.set_float32_matmul_precision(settings.old[0])
            torch.backends.cudnn.allow_tf32 = settings.old[1]
        for place, value in zip(_places(), settings.new, strict=True):
            place.fp32_precision = value
