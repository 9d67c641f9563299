"""The cores that this process may use, and the time that they are busy.

A machine has more cores than a process may get: an affinity limits it to some of them, a container's quota to a share of their
time. Work on other cores does not disturb it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")
"""States of a core in which nothing was done, or whose time is counted twice (guests, in user time)."""

_ONLINE = Path("/sys/devices/system/cpu/online")


@dataclass(frozen=True)
class Quota:
    """A limit on the core time of all processes of a container together."""

    cores: float
    """Core seconds per second."""
    group: Path
    """The control group that has the limit."""

    def used_seconds(self) -> float | None:
        """Core seconds that the container has used; None where the system does not report them."""
        for path, pattern, unit in (
            (self.group / "cpuacct.usage", r"(\d+)", 1e-9),
            (self.group / "cpu.stat", r"usage_usec (\d+)", 1e-6),
        ):
            if (text := _text(path)) is not None and (found := re.search(pattern, text)):
                return int(found[1]) * unit
        return None


class Cores:
    """The cores that this process may use now."""

    def __init__(self) -> None:
        count = len(psutil.cpu_times(percpu=True))
        self.indexes = _allowed(count)
        """Indices of the cores in the system's list."""
        self.quota = quota()
        self.capacity = min(len(self.indexes), self.quota.cores) if self.quota else float(len(self.indexes))
        """Core seconds that this process can get per second."""

    def busy_seconds(self) -> float:
        """Seconds since boot in which these cores did anything, work for other machines on the same host included."""
        every = psutil.cpu_times(percpu=True)
        return sum(seconds for index in self.indexes for name, seconds in every[index]._asdict().items() if name not in _NOT_BUSY)


def allowed_cores() -> int | None:
    """Number of cores that this process may use; None where the system does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Quota | None:
    """The tightest quota of this process's control groups, of either version; None where there is none.

    Args:
        groups: folder in which control groups are mounted.
        own: file that lists the groups of this process.
    """
    found = [Quota(cores, group) for group in _own_groups(groups, own) if (cores := _cores_of(group)) is not None]
    return min(found, key=lambda it: it.cores, default=None)


def _own_groups(groups: Path, own: Path) -> Iterator[Path]:
    """Control groups of this process and all groups around them; a container sees its own as the outermost."""
    for line in (_text(own) or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        mounts = [groups, groups / "unified"] if not controllers else [groups / name for name in (controllers, "cpu")]
        for mount in mounts:
            group = mount / path.lstrip("/")
            while group != mount and mount in group.parents:
                yield group
                group = group.parent
            yield mount


def _cores_of(group: Path) -> float | None:
    """The quota of one group, in cores."""
    if (text := _text(group / "cpu.max")) is not None:
        limit, _, period = text.strip().partition(" ")
    else:
        limit, period = _text(group / "cpu.cfs_quota_us") or "", _text(group / "cpu.cfs_period_us") or ""
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or empty
        return None
    return cores if cores > 0 else None  # version 1 has -1 where there is no limit


def _allowed(count: int) -> list[int]:
    """Indices of the cores that this process may use in the system's list of online cores."""
    everyone = list(range(count))
    if not hasattr(os, "sched_getaffinity"):
        return everyone
    online = _numbers(_text(_ONLINE) or "")
    numbers = online if len(online) == count else everyone
    mine = os.sched_getaffinity(0)
    # A container may renumber its cores in the system's account alone; then no number identifies a core.
    return [index for index, number in enumerate(numbers) if number in mine] if mine <= set(numbers) else everyone


def _numbers(text: str) -> list[int]:
    """`0-3,8` → 0, 1, 2, 3, 8; nothing for any other text."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    except ValueError:
        return []
    return [number for first, *last in ends for number in range(first, (last or [first])[0] + 1)]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
