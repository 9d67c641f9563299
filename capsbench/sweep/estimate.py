"""An estimate of a sweep's time: rough before it starts, and better with each finished cell."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from capsbench.cases.factories import BUILT_IN
from capsbench.measure.timing import MAX_SAMPLES, WARMUP_STEPS
from capsbench.records import Cell, Pass, Plan, Record
from capsbench.sweep.groups import groups_of
from capsbench.timed_rounds import TurnsTaken

_START_SECONDS = {"cpu": 4.0, "cuda": 8.0}
"""Seconds for a process's imports, and for a GPU's context."""

_FORK_SECONDS = 1.2
"""Seconds for the building and the trace of a cell whose bytes are counted by a fork that has everything imported."""

_BUILD_SECONDS = 0.5
"""Seconds to build a cell in a process that has everything imported."""

_CHANNELS, _KERNEL = 256, 81
_FLOPS_PER_COST = {"published": 40.0, "reference": 20.0}
"""Cost of a vote over its arithmetic for these kernels, which are bound by memory."""

_ROUTING_COST = {"sda": 3.0, "sda-published": 3.0, "em": 12.0}
"""Cost of a vote with the other algorithms, over that with RBA."""

_EVALUATED_ONCE = (None, "stored", "offload", "reversible-kept")
"""Memory strategies whose backward does not repeat all of a block's forward."""

_CUDA_FLOPS = 1e13

_TRACE_SECONDS, _TRACE_SECONDS_PER_BLOCK = 1.5, 0.1
"""Seconds of a step that is traced, not run."""


class _Guess(NamedTuple):
    """Expected seconds of a cell."""

    settled: float
    """Seconds that do not depend on its samples."""
    fewest: float = 0.0
    """Seconds of the least number of samples."""
    longest: float = 0.0
    """Seconds of its samples if the time budget is spent, which does not grow on a slower machine."""

    def least(self, factor: float = 1.0) -> float:
        """The least seconds on a machine that is slower by a factor."""
        return factor * (self.settled + self.fewest)

    def most(self, factor: float = 1.0) -> float:
        """The most seconds there."""
        return factor * self.settled + max(factor * self.fewest, self.longest)


class Estimate:
    """Expected seconds of the remaining cells, corrected by those that are done.

    Args:
        plan: plan of the sweep.
        left: its cells that are not done.
    """

    def __init__(self, plan: Plan, left: Sequence[Cell]) -> None:
        self._plan = plan
        on_cpu = any(cell.configuration.device == "cpu" for cell in left)
        self._speed = _convolution_flops_per_second() if on_cpu else _CUDA_FLOPS
        in_turn = {cell.key() for group in groups_of(plan) for cell in group}
        self._in_turn = in_turn
        self._starts = self._first_starts(left)
        """Seconds of the processes that have yet to start and that several cells share, by the pass that needs them."""
        self._left = {cell.key(): self._guess(cell, in_turn=cell.key() in in_turn) for cell in left}
        """The expected seconds of each cell."""
        self.at_once = 1.0
        """Number of cells that are measured at once."""
        self._of_turns: dict[str, float] = {}
        self._guessed = 0.0
        self._taken = 0.0

    def cells_left(self) -> int:
        """Number of cells that are not done."""
        return len(self._left)

    def seconds_left(self) -> tuple[float, float]:
        """The least and the most seconds that the remaining cells will take together.

        On a quiet machine the times are known early; on a busy one all of the time budget is spent.
        """
        factor = self._taken / self._guessed if self._guessed else 1.0
        guesses = [guess for key, guess in self._left.items() if key not in self._of_turns]
        at_once = max(1.0, min(self.at_once, len(guesses)))
        starts = factor * sum(self._starts.values()) if guesses else 0.0
        least, most = (starts + sum(one(guess, factor) for guess in guesses) for one in (_Guess.least, _Guess.most))
        return least / at_once, most / at_once + self._turns_left()

    def started(self, cell: Cell) -> None:
        """Note a cell that is about to be measured."""

    def took_turns(self, state: TurnsTaken) -> None:
        """Correct the estimate of cells that take turns, whose time budget is one."""
        # Ends of a series that have their times already take part, and are no cells that are left.
        self._starts = {}
        taking = [cell.key() for cell in state.cells if cell.key() in self._left]
        self._of_turns = {key: state.seconds_left / len(taking) for key in taking}

    def finished(self, record: Record) -> None:
        """Correct the estimate by the time of a finished cell, or of its memory pass."""
        key = record.cell.key()
        if record.status == "ok" and record.kind == "measured" and record.time is None and "time" in self._plan.passes:
            self._left[key] = self._guess(record.cell, in_turn=True, passes=("time",))
            self._compare(self._guess(record.cell, in_turn=True, passes=("memory",)), record)
            return
        guess = self._left.pop(key, _Guess(0.0))
        if not self._left.keys() & self._in_turn:
            self._starts.pop("time", None)
        if key in self._of_turns:
            # With the first of their records the turns of all are over, whatever was left of the budget.
            self._of_turns = dict.fromkeys(self._of_turns, 0.0)
            return
        self._compare(guess, record)

    def _compare(self, guess: _Guess, record: Record) -> None:
        """Correct the estimate by the time that something took."""
        # The first cell waits for the process that all others are forks of.
        start = self._starts.pop("memory", 0.0)
        if record.duration_seconds is not None:
            self._guessed += guess.most() + start
            self._taken += record.duration_seconds

    def _first_starts(self, left: Sequence[Cell]) -> dict[Pass, float]:
        """Seconds until the process is ready whose forks count bytes, and until those are in which cells take turns."""
        measured = [cell.configuration for cell in left if not cell.configuration.is_predicted()]
        found: dict[Pass, float] = {}
        if "memory" in self._plan.passes and any(one.device == "cpu" for one in measured):
            found["memory"] = _START_SECONDS["cpu"]
        kinds = {cell.configuration.device_kind() for cell in left if cell.key() in self._in_turn}
        if "time" in self._plan.passes and kinds:
            found["time"] = self._plan.processes * max(_START_SECONDS.get(kind, 8.0) for kind in kinds)
        return found

    def _turns_left(self) -> float:
        return sum(share for key, share in self._of_turns.items() if key in self._left)

    def _guess(self, cell: Cell, *, in_turn: bool, passes: Sequence[Pass] = ()) -> _Guess:
        if cell.configuration.is_predicted():
            return _Guess(_TRACE_SECONDS + _TRACE_SECONDS_PER_BLOCK * cell.configuration.blocks)
        kind = cell.configuration.device.partition(":")[0]
        step = step_flops(cell) / self._speed
        sample = 4 / 3 * step  # an inference is a third of a step
        fewest = self._plan.samples * sample
        longest = max(fewest, min(self._plan.budget_seconds, MAX_SAMPLES * sample or math.inf))
        start = _START_SECONDS.get(kind, 8.0)
        # Cells that take turns have one process together.
        settled = {
            "time": (_BUILD_SECONDS if in_turn else start) + WARMUP_STEPS * step,
            "memory": (_FORK_SECONDS if kind == "cpu" else start) + 2 * step,
        }
        asked = passes or self._plan.passes
        known = sum(settled[what] for what in asked)
        return _Guess(known, fewest, longest) if "time" in asked else _Guess(known)


def step_flops(cell: Cell) -> float:
    """Estimate the floating-point operations of a training step (the two convolutions, and the votes)."""
    it = cell.configuration
    if it.model not in BUILT_IN:
        return 0.0
    channels, height, width = it.spec().shape
    outer = (height - 8) * (width - 8)
    inner = ((height - 16) // 2 + height % 2) * ((width - 16) // 2 + width % 2)
    convolutions = 2 * _KERNEL * _CHANNELS * (outer * channels + inner * _CHANNELS)
    capsules = it.capsules or 32
    first, block = inner * _CHANNELS // 8 * capsules, 2 * it.blocks * capsules * capsules
    cost = max(_FLOPS_PER_COST.get(it.kernel or "", 1.0), _ROUTING_COST.get(it.routing or "", 1.0))
    # Backward costs two forwards; a repeated forward adds a third.
    again = 1.0 if it.memory in _EVALUATED_ONCE else 4 / 3
    votes = (first + again * block) * 2 * 64 * (it.iterations or 3) * cost
    return 3.0 * it.images() * (convolutions + votes)


def _convolution_flops_per_second() -> float:
    """Speed of this CPU on a small convolution, in a fifth of a second.

    One thread computes, and counts for all. Several would wait for each other, which beside other work takes ten times as long as
    in the processes that measure, whose threads sleep then.
    """
    images, weight = torch.rand(8, 64, 20, 20), torch.rand(64, 64, 9, 9)
    flops = 2 * 8 * 64 * 64 * 81 * 12 * 12
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.nn.functional.conv2d(images, weight)
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < 0.2:
            torch.nn.functional.conv2d(images, weight)
            done += 1
        return threads * done * flops / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
