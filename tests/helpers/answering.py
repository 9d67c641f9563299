"""A function that processes of their own can call."""

import os
import time

from capsbench.errors import ConfigurationError
from capsbench.records import Configuration


def answered(configuration: Configuration, what: str, *_: object) -> tuple[int, int | None, str]:
    """The parent's process, the batch, and what was asked; a larger batch takes longer, and 13 is refused."""
    batch = configuration.batch_size or 0
    if batch == 13:
        raise ConfigurationError("thirteen", "take another")
    time.sleep(0.002 * batch)
    return os.getppid(), batch, what
