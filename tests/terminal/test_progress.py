"""The progress of a sweep, line by line."""

import io

import pytest
from rich.console import Console

from capsbench.terminal import progress
from capsbench.terminal.progress import Progress
from capsbench.timed_rounds import TurnsTaken
from helpers.made import make_record, make_turns


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def shown(left, share=None, rounds=4):
    """Text that a round of turns prints, while so many seconds are left and slopes are known within a share."""
    out = io.StringIO()
    with Progress(Console(file=out, width=200), 3, left) as made:
        made.took_turns(TurnsTaken([], rounds, 0.0, share))
    return out.getvalue().strip()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "times of 0 cells in turn: round 4;"),
        (7.1, "round 4, slopes not yet known;"),
        (2.0, "intervals of slopes up to 200% of the slope wide so far"),
        (0.4, "intervals of slopes up to 40% of the slope wide so far"),
    ],
)
def test_a_slope_that_is_hardly_known_is_called_so(share, text):
    assert text in shown(lambda: (3.0, 9.0), share)


def test_rounds_that_a_worker_takes_are_not_counted():
    assert shown(lambda: (3.0, 9.0), rounds=None).startswith("times of 0 cells in turn on a worker; ")


def test_the_last_second_is_not_counted(clock):
    out, left = io.StringIO(), [(3.0, 9.0), (0.0, 0.4), (0.0, 0.0), (0.0, 0.0), (20.0, 30.0), (0.0, 0.0)]
    with Progress(Console(file=out, width=200), 3, lambda: left.pop(0)) as made:
        for rounds, seconds in ((1, 0), (2, 10), (4, 4), (8, 20), (16, 1), (32, 1)):
            clock.now += seconds
            made.took_turns(TurnsTaken([], rounds, 0.0, None))
    assert [line.rpartition(", ")[2] for line in out.getvalue().splitlines()] == [
        "3 s to 9 s left",
        "almost done",
        "almost done",
        "longer than estimated",
        "20 s to 30 s left",
        "almost done",
    ]


def lines_of(*records, turns=()):
    """Lines that records print, the last as many of which follow turns of their cells."""
    out = io.StringIO()
    count, later = len(records) - len(turns), bool(turns)
    with Progress(Console(file=out, width=400), count, lambda: (3.0, 9.0), times_follow=later) as made:
        for number, record in enumerate(records):
            if turns and number == len(records) - len(turns):
                made.took_turns(TurnsTaken(turns, 1, 9.0, None))
            made.finished(record)
    return [line.partition(";")[0] for line in out.getvalue().splitlines()]


def test_each_pass_counts_its_own_cells():
    timed = [make_record("rescapsnet", blocks) for blocks in (1, 2)]
    counted = [one.model_copy(update={"time": None}) for one in timed]
    lines = lines_of(*counted, *timed, turns=[one.cell for one in timed])
    assert [line.partition("  ")[0] for line in lines] == [
        "memory 1/2",
        "memory 2/2",
        "times of 2 cells in turn: round 1",
        "times 1/2",
        "times 2/2",
    ]
    assert lines_of(timed[0])[0].startswith("1/1  ")
    assert lines_of(counted[0])[0].startswith("1/1  "), "no times follow"


def test_predicted_figures_that_are_not_exact_are_marked():
    record = make_record("rescapsnet", 1, device="cpu:predicted", threads=None)
    sure = {"retained_bytes": "exact", "peak_allocated_bytes": "modelled"}
    memory = record.memory.model_copy(update={"certainty": sure})
    line = lines_of(record.model_copy(update={"kind": "predicted", "memory": memory, "time": None}))[0]
    assert line.endswith("retained 11.00 MiB, peak ≈ 184.00 MiB")


def test_an_error_of_several_cells_is_printed_once():
    failed = [make_record("rescapsnet", blocks, status="error") for blocks in (1, 2)]
    first, second, other = lines_of(*failed, make_record("rescapsnet", 3, status="timeout"))
    assert first.endswith(": error, it was error")
    assert second.endswith(f": error, as {failed[0].cell.label()}")
    assert other.endswith(": timeout, it was timeout")


def test_a_failure_is_printed_in_brief_since_the_end_has_it_in_full():
    full = "model 'my:net' fails in a step: ValueError: no such head (my.py:7 in forward) - call the network in Python"
    failed = make_record("my:net", 2, status="error").model_copy(update={"message": full})
    assert lines_of(failed)[0].endswith(": error, ValueError: no such head")
    making = "model 'my:net' cannot be made: FileNotFoundError: vocab - small.txt (my.py:7 in net) - it is called so"
    not_made = failed.model_copy(update={"message": making})
    assert lines_of(not_made)[0].endswith(": error, FileNotFoundError: vocab - small.txt")
    long = failed.model_copy(update={"message": f"the process ended: {'x' * 200} - try again"})
    assert lines_of(long)[0].endswith(f"{'x' * 40}…")
    full_disk = failed.model_copy(update={"status": "oom", "message": full})
    assert lines_of(full_disk)[0].endswith(full), "running out of memory is a result, which the end does not repeat"


def test_times_that_failed_are_counted_as_times():
    counted = make_record("rescapsnet", 1).model_copy(update={"time": None})
    late = counted.model_copy(update={"status": "timeout", "message": "no answer"})
    assert lines_of(counted, late, turns=[counted.cell])[-1].startswith("times 1/1  ")
    out = io.StringIO()
    with Progress(Console(file=out, width=400), 1, lambda: (3.0, 9.0), times_follow=True) as made:
        made.finished(counted)
        made.finished(late)
    assert out.getvalue().splitlines()[-1].startswith("1/1  "), "no turn was reported"


def test_a_field_in_a_message_is_put_into_the_words_of_the_command_line():
    out = io.StringIO()
    with Progress(
        Console(file=out, width=400), 1, lambda: (3.0, 9.0), worded=lambda text: text.replace("`kernel`", "--kernel")
    ) as made:
        made.finished(make_record(status="error").model_copy(update={"message": "no `kernel` here"}))
    assert ": error, no --kernel here;" in out.getvalue()


def test_the_step_of_a_cell_in_turn_names_its_number_of_rounds():
    first, between, _ = make_turns(["rescapsnet"], depths=(1, 2, 4), full=3, ends=20)
    shown = lines_of(first, between, make_record("rescapsnet", 2))
    assert shown[0].endswith(" (median of 23)")
    assert shown[1].endswith(" (median of 3)")
    assert shown[2].endswith("step 140.0 ms")
