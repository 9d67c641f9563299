"""Packed sequences in a step that is followed on shapes: the sizes of their batches decide every shape behind them.

Torch reads these sizes where they lie in memory, forward and backward, so they alone keep their values there. The operators that
make them and their data are followed as torch's own code calls them, with the copies that it makes on the way.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from capsbench.tracing.surroundings import replaced

PACK = torch.ops.aten._pack_padded_sequence
"""The operator that packs sequences."""

UNKNOWN_LENGTHS = "the lengths of packed sequences depend on values that the trace does not know: none is taken to be padded"


def batch_sizes(padded: Tensor, lengths: Tensor | None, batch_first: bool) -> Tensor:
    """The number of sequences that are alive at each step, with its values.

    Args:
        padded: sequences with padding.
        lengths: their lengths, with values; None if nobody knows them.
        batch_first: the batch is the first dimension of the sequences, and not the second.
    """
    with _disable_current_modes():
        steps, count = padded.shape[1::-1] if batch_first else padded.shape[:2]
        known = torch.full((count,), steps) if lengths is None else lengths
        # Torch itself refuses lengths that make no sense, here as in a step that is run.
        return torch._VF._pack_padded_sequence(torch.zeros(()).expand(steps, count), known, False)[1]


def packed_data(padded: Tensor, sizes: Tensor, batch_first: bool) -> Tensor:
    """The steps of all sequences without padding, by the operators that torch calls."""
    rows, parts = padded.transpose(0, 1) if batch_first else padded, []
    for first, last, count in _runs(sizes):
        parts.append(rows[first:last, :count].contiguous().view(-1, *rows.shape[2:]))
    return torch.cat(parts)


@contextmanager
def unpacking() -> Iterator[None]:
    """Let packed sequences be padded by operators that are followed: torch's function writes their lengths into memory."""
    with ExitStack() as entered:
        for owner in (torch, torch._VF):
            entered.enter_context(replaced(owner, "_pad_packed_sequence", _padded))
        yield


def _padded(data: Tensor, sizes: Tensor, batch_first: bool, value: float, steps: int) -> tuple[Tensor, Tensor]:
    """Sequences with padding, and their lengths, the longest first."""
    runs = list(_runs(sizes))
    out = torch.full((steps, runs[0][2], *data.shape[1:]), value, dtype=data.dtype, device=data.device)
    done, lengths = 0, list[int]()
    for (first, last, count), (*_, later) in zip(runs, [*runs[1:], (0, 0, 0)], strict=True):
        part = data[done : done + (last - first) * count]
        out[first:last, :count].copy_(part.view(last - first, count, *data.shape[1:]))
        done += len(part)
        lengths += [last] * (count - later)
    return out.transpose(0, 1) if batch_first else out, torch.tensor(lengths[::-1])


def _runs(sizes: Tensor) -> Iterator[tuple[int, int, int]]:
    """First step, end and number of sequences of each run of steps with the same number."""
    with _disable_current_modes():
        known = sizes.tolist()
    first = 0
    for count, run in groupby(known):
        last = first + len(list(run))
        yield first, last, count
        first = last
