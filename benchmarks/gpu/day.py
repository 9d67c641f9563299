"""Parts one after the other, each in a process of its own, within a budget of seconds. Needs no package."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.parts import Part
from benchmarks.gpu.results import PartResults

ROOT = Path(__file__).parent.parent.parent
"""The project's root."""

GRACE_SECONDS = 4.0
"""Time that a part has between the request to end and its end."""

LEAST_SECONDS = 12.0
"""Time below which no part begins: torch alone takes some of it to load."""

AGAIN = 75
"""Exit status of a part whose device can no longer be used in its process, and that has items left to try."""

LAST_LINES = 14


class Day:
    """The parts of one call.

    Args:
        folder: folder of the results.
        device: `cuda` or `cpu`.
        budget: seconds within which the call ends.
        data: folder of the real data sets, if any.
        least: seconds below which no part begins.
        say: function that shows a line.
    """

    def __init__(
        self, folder: Path, device: str, budget: float, *, data: Path | None = None, least: float = LEAST_SECONDS,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self._folder, self._device, self._data, self._least = folder, device, data, least
        self._began = time.monotonic()
        self._end = self._began + budget
        self._tell = say
        self._call = secrets.token_hex(4)

    def run(self, parts: Sequence[Part], *, again: bool = False) -> bool:
        """Run the parts that are not done, and return whether all are done.

        Parts that were cut off come last, because they have had their time.

        Args:
            parts: parts in the order of their worth.
            again: look at those that are done, too, because they may have new items.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        known = {part.name: PartResults(self._folder, part.name).read() for part in parts}
        left = [part for part in parts if again or (known[part.name] or {}).get("status") != "done"]
        left.sort(key=lambda part: (known[part.name] or {}).get("status") == "cut off")
        for part in parts:
            if part not in left:
                self._say(f"{part.name}: done before")
        for part in left:
            seconds = min(part.seconds, self._left())
            if seconds < min(self._least, part.seconds):
                self._say(f"{part.name}: no time left")
                continue
            self._run(part, seconds)
        return all((PartResults(self._folder, part.name).read() or {}).get("status") == "done" for part in parts)

    def _left(self) -> float:
        """Seconds that a part may take, so that even one that does not end by itself ends within the budget."""
        return self._end - time.monotonic() - GRACE_SECONDS - 1

    def _say(self, text: str) -> None:
        self._tell(f"[{time.monotonic() - self._began:.0f} s] {text}")

    def _run(self, part: Part, seconds: float) -> None:
        results, began = PartResults(self._folder, part.name), time.monotonic()
        log = self._folder / f"{part.name}.log"
        self._say(f"{part.name}: begins, at most {seconds:.0f} s")
        results.update(status="cut off", message="the command ended meanwhile")
        before = (results.read() or {})["seconds"]
        ending: dict[str, str] = {"status": "cut off", "message": "interrupted"}
        try:
            tried, status = -1, self._child(part, seconds, log)
            # A process that lost its device, or that a signal ended, leaves items that another one can try.
            while status is not None and (status == AGAIN or status < 0) and self._tried(results) > tried:
                tried, rest = self._tried(results), seconds - (time.monotonic() - began)
                status = self._child(part, rest, log) if rest > 0 else None
            ending = _ending(status, seconds, log)
        finally:
            results.update(**ending, seconds=round(before + time.monotonic() - began, 1))
            items = results.items()
            count = sum("error" not in found for found in items.values())
            self._say(f"{part.name}: {ending['status']}, {count} of {len(items)} items that were begun; {ending['message']}")
            for line in _tail(log, LAST_LINES):
                self._tell(f"    {line[:200]}")

    def _tried(self, results: PartResults) -> int:
        """Number of items that failed in this call so far."""
        return sum(found.get("call") == self._call for found in results.items().values())

    def _child(self, part: Part, seconds: float, log: Path) -> int | None:
        """Run the process of a part; returns its exit status, or None if it did not end in time."""
        words = [part.name, part.items, str(self._folder), self._device, f"{seconds:.1f}", self._call, str(self._data or "")]
        environment = {
            **os.environ,
            # The working tree before a wheel that was made of it, for tests and workers alike.
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            # Without a GPU means without one, even where one is.
            **({"CUDA_VISIBLE_DEVICES": ""} if self._device == "cpu" else {}),
        }
        with log.open("ab") as written:
            # In a session of its own, which is ended as a whole. It ends by itself when its standard input closes.
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.child", *words],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=written, stderr=written, start_new_session=True,
            )  # fmt: skip
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a process and its group: first as Ctrl-C would, so that it can keep what it has."""
    if child.poll() is None:
        _signal(child, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    _signal(child, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _ending(status: int | None, seconds: float, log: Path) -> dict[str, str]:
    """Fields for the end of a part's process."""
    if status == 0:
        return {"status": "done", "message": ""}
    if status is None:
        return {"status": "cut off", "message": f"after {seconds:.0f} s"}
    last = "".join(_tail(log, 1)) or "no message"
    how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return {"status": "failed", "message": f"{how}: {last[:200]}"}


def _tail(log: Path, count: int) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if line.strip()][-count:]
