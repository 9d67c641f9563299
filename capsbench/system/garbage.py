"""Objects that the garbage collector need not look at: a process has a million from its packages alone."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_FROZEN_BY_PYTHON = 1000
"""More objects than Python itself keeps from its garbage collector."""

_frozen_for_good = False


def freeze_for_good() -> None:
    """Collect garbage, and keep all objects that are left from the garbage collector, in this process and its forks."""
    global _frozen_for_good
    gc.collect()
    gc.freeze()
    _frozen_for_good = True


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Let the garbage collector look at the objects that are made inside alone."""
    # To count frozen objects takes as long as to look through them.
    if _frozen_for_good or gc.get_freeze_count() > _FROZEN_BY_PYTHON:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
