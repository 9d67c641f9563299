"""Whether a network is being exported."""

import torch


def is_exporting() -> bool:
    """Whether `torch.export` is tracing.

    Before torch 2.14 the compiler takes `torch.compiler.is_exporting()` for true wherever it traces; what that function reads
    is right everywhere.
    """
    return torch.compiler._is_exporting_flag
