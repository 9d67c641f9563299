"""Passes on systems that say less of processes than others, each in a process of its own, which stays as it is then."""

import os
from collections.abc import Iterator

import psutil

from capsbench.measure.cell import run_pass
from capsbench.measure.messages import Reply, Request


def without_pidfd(request: Request, seconds: float, *, missing: bool = False) -> Reply:
    """Run a pass where no descriptor of a process can be had, or where Python has no function for it."""

    def refuse(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    if not missing:
        os.pidfd_open = refuse
    elif hasattr(os, "pidfd_open"):
        del os.pidfd_open
    return run_pass(request, seconds)


def without_processes(request: Request, seconds: float, error: Exception) -> Reply:
    """Run a pass where the system lists no processes, but raises an error."""

    def refuse() -> Iterator[psutil.Process]:
        raise error
        yield

    psutil.process_iter = refuse
    return run_pass(request, seconds)
