"""Detection of a network's export."""

import torch


def is_exporting() -> bool:
    """Return whether `torch.export` is tracing.

    Before torch 2.14 the compiler treats `torch.compiler.is_exporting()` as true wherever it traces; the flag that it reads
    is right everywhere.
    """
    return torch.compiler._is_exporting_flag
