"""Standard output kept for what a command itself prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def printing_aside() -> Iterator[None]:
    """Whatever is written to standard output inside, by a network or by what it starts, goes to standard error."""
    _flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # Python's own stream too: it need not be the process's.
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
