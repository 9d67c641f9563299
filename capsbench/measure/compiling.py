"""Compilations by torch.compile, which are no part of a step that is measured."""

import sys
from collections.abc import Callable

MOST_COMPILING_STEPS = 8
"""Steps after which a network is measured even if each of them compiles something."""


def compilations() -> int:
    """Number of functions that torch.compile has compiled in this process so far."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["frames"]["total"])


def run_until_compiled(step: Callable[[], object]) -> int:
    """Run a step until one compiles nothing, which is the first one of a network that is not compiled.

    Returns:
        The number of steps.
    """
    count, compiled = 0, -1
    while compiled != compilations() and count < MOST_COMPILING_STEPS:
        compiled = compilations()
        step()
        count += 1
    return count
