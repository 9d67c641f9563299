"""Standard output that is reserved for the command's own text."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def printing_aside() -> Iterator[None]:
    """Send to standard error what a network, or a program that it starts, writes to standard output inside."""
    _flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # Redirect Python's own stream too, which need not be the process's.
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()
