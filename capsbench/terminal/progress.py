"""Progress of a sweep: the current cell, elapsed and remaining time, the figures so far."""

import time
from collections.abc import Callable
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from capsbench.errors import brief_reason
from capsbench.frame import to_frame
from capsbench.records import FAULTS, Cell, Record
from capsbench.terminal.live import Display
from capsbench.terminal.tables import cells_table
from capsbench.timed_rounds import TurnsTaken
from capsbench.words.printable import printable
from capsbench.words.slopes_in_words import inexact_mark
from capsbench.words.units import bytes_text, duration_range, duration_text, seconds_text

_ROWS = 8
_BAR = 16
"""Columns of the bar, whose length is the share of the time that has passed."""
_LATE_SECONDS = 5.0
"""Seconds after the expected end from which on a sweep takes longer than was estimated."""


class Progress(Display):
    """A display of a sweep: live on a terminal, a line per cell elsewhere.

    Args:
        console: console to draw on.
        cells: number of cells left to measure.
        remaining: the least and the most seconds that the cells not yet done will take.
        times_follow: whether cells whose memory was measured have their times later.
        worded: a function that puts messages into the words of the command line.
    """

    def __init__(
        self, console: Console, cells: int, remaining: Callable[[], tuple[float, float]], *, times_follow: bool = False,
        worded: Callable[[str], str] = str,
    ) -> None:  # fmt: skip
        # Once a second, because a display that draws more often would disturb the measurement.
        super().__init__(console, per_second=1)
        self._cells = cells
        self._remaining = remaining
        self._times_follow = times_follow
        self._worded = worded
        self._began = time.monotonic()
        self._current = ""
        self._records: dict[str, Record] = {}
        self._round = 0
        self._taking = 0
        """Number of cells that take turns; 0 before they do."""
        self._timed: set[str] = set()
        """Keys of the cells whose times followed their memory."""
        self._messages: dict[str, str] = {}
        """The first cell of each message of a failure."""
        self._ending: float | None = None
        """Time from which on less than a second was expected to be left; None if more is."""

    def started(self, cell: Cell) -> None:
        """Show a cell that is about to be measured."""
        self._current = printable(cell.label())

    def finished(self, record: Record) -> None:
        """Show a record that is on the disk."""
        key = record.cell.key()
        if self._taking and key in self._records:
            self._timed.add(key)
        self._records[key] = record
        self._current = ""
        self._say(f"{self._counter(record)}  {printable(_one_line(record, self._message(record)))}; {self._times()}")

    def took_turns(self, state: TurnsTaken) -> None:
        """Show a round of cells that take turns."""
        known = "" if state.slopes_share is None else f", {_known(state.slopes_share)}"
        rounds = state.rounds
        self._taking = max(self._taking, len(state.cells))
        where = " on a worker" if rounds is None else f": round {rounds}{known}"
        self._current = f"times of {len(state.cells)} cell{'' if len(state.cells) == 1 else 's'} in turn{where}"
        # A line for every round would be hundreds.
        if rounds is None or rounds >= 2 * self._round:
            self._round = rounds or 0
            self._say(f"{self._current}; {self._times()}")

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(text), soft_wrap=True)

    def _message(self, record: Record) -> str | None:
        """The message of a record, that of a failure in brief, since the end of a sweep has it in full; none is printed twice."""
        if not record.message:
            return None
        label = record.cell.label()
        earlier = self._messages.setdefault(record.message, label)
        if earlier != label:
            return f"as {earlier}"
        failed = record.status in FAULTS
        return self._worded(brief_reason(record.cell.configuration.model, record.message) if failed else record.message)

    def _counter(self, record: Record | None = None) -> str:
        """The number of cells that are done: `2/9`, `memory 2/9` if their times follow, `times 2/9` of cells that took turns."""
        if record is not None and record.cell.key() in self._timed:
            return f"times {len(self._timed)}/{self._taking}"
        has_memory = (
            record is not None
            and record.kind == "measured"
            and record.status == "ok"
            and record.memory is not None
            and record.time is None
        )
        return f"{'memory ' if has_memory and self._times_follow else ''}{len(self._records)}/{self._cells}"

    def _times(self) -> str:
        now = time.monotonic()
        least, most = self._remaining()
        self._ending = None if most >= 1 else self._ending or now
        if self._ending is None:
            left = f"{duration_range(least, most)} left"
        else:
            left = "almost done" if now - self._ending < _LATE_SECONDS else "longer than estimated"
        return f"{duration_text(now - self._began)} elapsed, {left}"

    def _render(self) -> RenderableType:
        elapsed, (_, most) = time.monotonic() - self._began, self._remaining()
        bar = ProgressBar(total=max(elapsed + most, 1e-9), completed=elapsed, width=_BAR)
        head = Table.grid(padding=(0, 1))
        counter = "" if self._taking and self._current else f"{self._counter()}  "
        head.add_row(bar, Text(f"{counter}{self._current or 'done'}  ({self._times()})", style="bold"))
        if not self._records:
            return head
        return Group(cells_table(to_frame(("", record) for record in self._records.values()), last=_ROWS), head)


def _known(share: float) -> str:
    """Text on the slopes so far, of which this is the width of the widest interval over its slope."""
    return f"intervals of slopes up to {share:.0%} of the slope wide so far" if share <= 2 else "slopes not yet known"


def _one_line(record: Record, message: str | None) -> str:
    parts = [f"{record.cell.label()}: {record.status}", *([message] if message else [])]
    if record.memory and not (record.time and record.time.rounds):
        certainty = record.memory.certainty or {}
        for name, figure in (("retained", "retained_bytes"), ("peak", "peak_allocated_bytes")):
            nbytes = getattr(record.memory, figure)
            parts += [] if nbytes is None else [f"{name} {inexact_mark(certainty.get(figure))}{bytes_text(nbytes)}"]
    if record.time:
        steps = record.time.train_step_seconds
        # A cell between the ends of a line takes part in few rounds, whose median may be far from what figures draw.
        count = f" (median of {len(steps)})" if record.time.rounds else ""
        parts.append(f"step {seconds_text(median(steps))}{count}")
    return ", ".join(parts)
