"""Reasons not to trust times: names for what shows in the samples, and on the machine while they were taken.

Pure functions of numbers; `watch` observes the machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from capsbench.stats.median import is_host_bound, median_interval

NOISES: dict[str, str] = {
    "spread": "the middle half of the samples spans more than 10 % of their median",
    "drift": "the samples rise or fall by more than 5 % from first to last",
    "throttled": "the processor's clock fell by more than 10 %, or the GPU slowed itself down",
    "load": "other processes, or other machines on the same host, took more than 5 % of the cores that this process may use",
    "host-bound": "the GPU waited for the host in more than 10 % of a step, so that these are times of the host",
    "compiled": "torch.compile compiled something again, which is in some of the samples",
    "unsettled": "the time budget was spent before the median was known within 2 % or, of cells in turn, a slope within 20 %",
}
"""Name and meaning of each sign of noise, in the order in which they are reported."""

SETTLED_WITHIN = 0.02
_SPREAD, _DRIFT, _CLOCK_FELL, _LOAD = 0.10, 0.05, 0.10, 0.05
_TREND_BY_CHANCE = 0.01


@dataclass(frozen=True)
class Machine:
    """Observations of the machine while samples were taken."""

    others: float | None = None
    """Share of the process's cores that others took; None where the watch was too short."""
    clocks: Sequence[float] = ()
    """The fastest core's clock at several moments, in any unit; empty where the system does not report it."""
    gpu_throttled: bool = False
    """True if the GPU reported that it was slowing itself down."""
    compiled: bool = False
    """True if torch.compile compiled something."""


def noise_of(
    train: Sequence[float],
    inference: Sequence[float],
    machine: Machine,
    *,
    of_device: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> list[str]:
    """Names of `NOISES` that hold.

    Args:
        train: seconds of training steps in the order in which they were taken.
        inference: seconds of inference steps, likewise in order.
        machine: observations made meanwhile.
        of_device: seconds that the device alone takes for each; empty where they are not known.
    """
    series, seen = (train, inference), machine_noise(machine)
    held = {
        "spread": any(_spread(samples) > _SPREAD for samples in series),
        "drift": any(_drifts(samples) for samples in series),
        "throttled": "throttled" in seen,
        "load": "load" in seen,
        "host-bound": any(is_host_bound(samples, alone) for samples, alone in zip(series, of_device, strict=True)),
        "compiled": "compiled" in seen,
        "unsettled": not is_settled(train),
    }
    return [name for name in NOISES if held[name]]


def machine_noise(machine: Machine) -> list[str]:
    """Names of `NOISES` that were seen on the machine, whatever was timed."""
    held = {
        "throttled": machine.gpu_throttled or _fell(machine.clocks),
        "load": machine.others is not None and machine.others > _LOAD,
        "compiled": machine.compiled,
    }
    return [name for name in held if held[name]]


def is_settled(samples: Sequence[float]) -> bool:
    """Return whether the 95 % interval of the median lies within 2 % of the median.

    Asked after every sample, it is True a little too early: 95 % holds for a number of samples fixed beforehand.
    """
    interval = median_interval(samples)
    middle = float(np.median(samples)) if interval else 0.0
    return interval is not None and max(middle - interval[0], interval[1] - middle) <= SETTLED_WITHIN * middle


def _spread(samples: Sequence[float]) -> float:
    low, middle, high = np.percentile(samples, (25, 50, 75))
    return float((high - low) / middle)


def _drifts(samples: Sequence[float]) -> bool:
    """Return whether there is a trend that chance does not explain (Kendall), and that matters (Theil and Sen's slope)."""
    if len(samples) < 3 or np.ptp(samples) == 0:
        return False
    order = range(len(samples))
    if stats.kendalltau(order, samples).pvalue >= _TREND_BY_CHANCE:
        return False
    change = stats.theilslopes(samples, order).slope * (len(samples) - 1)
    return bool(abs(change) > _DRIFT * np.median(samples))


def _fell(clocks: Sequence[float]) -> bool:
    """Return whether a clock was slower in the last third than in the first; a single reading means little."""
    third = len(clocks) // 3
    return third > 0 and bool(np.median(clocks[-third:]) < (1 - _CLOCK_FELL) * np.median(clocks[:third]))
