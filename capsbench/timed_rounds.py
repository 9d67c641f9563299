"""Rounds of cells that took turns, as the times of one cell."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from capsbench.records import Cell, GrowingFigures, Record, Round, TimeFigures, Turn


@dataclass(frozen=True)
class TurnsTaken:
    """The state of cells that take turns, after a round."""

    cells: Sequence[Cell]
    rounds: int | None
    """Rounds that the cells have taken, those of an earlier process included; None while a worker elsewhere takes them."""
    seconds_left: float
    """Seconds of the time budget that are left."""
    slopes_share: float | None
    """Width of the widest interval of a slope of training time, as a share of the slope; None if it is not known yet."""


def times_of(rounds: Sequence[Round], cell: str, noise: Collection[str] = ()) -> TimeFigures | None:
    """The times of a cell; None if it had no turn.

    Args:
        rounds: rounds in the order in which they were taken.
        cell: key of the cell.
        noise: reasons not to trust the samples, other than those of the rounds.
    """
    taken = [(one, turn) for one in rounds for turn in one.turns if turn.cell == cell]
    if not taken:
        return None
    last, turns = taken[-1][0], [turn for _, turn in taken]
    found = [name for one, _ in taken for name in one.noise]
    return TimeFigures(
        clock=last.clock,
        warmup_steps=last.warmup_steps,
        train_step_seconds=[turn.train_step_seconds for turn in turns],
        forward_seconds=[turn.forward_seconds for turn in turns],
        inference_seconds=[turn.inference_seconds for turn in turns],
        yardstick_seconds=list(chain.from_iterable(one.yardstick_seconds for one, _ in taken)),
        # Not every round has time for the yardstick.
        yardstick_flops=next((one.yardstick_flops for one, _ in taken if one.yardstick_flops is not None), None),
        launch_yardstick_seconds=list(chain.from_iterable(one.launch_yardstick_seconds for one, _ in taken)),
        device_train_step_seconds=last.device_train_step_seconds.get(cell, []),
        device_inference_seconds=last.device_inference_seconds.get(cell, []),
        noise=list(dict.fromkeys([*noise, *found])),
        rounds=[one.number for one, _ in taken],
        processes=[one.process for one, _ in taken],
        growing=_growing(turns, last, cell),
    )


def joined(earlier: TimeFigures, later: TimeFigures) -> TimeFigures:
    """The times of a cell that has taken further turns, those of both in their order.

    Samples of a cell that was timed alone belong to no round and cannot be compared with others, so that the turns take their
    place. Parts that grow are known if they are of the same modules in both.
    """
    if not earlier.rounds:
        return later
    lists = ("train_step_seconds", "forward_seconds", "inference_seconds", "yardstick_seconds", "rounds", "processes")
    together = {name: getattr(earlier, name) + getattr(later, name) for name in lists}
    return later.model_copy(
        update={
            **together,
            "yardstick_flops": later.yardstick_flops or earlier.yardstick_flops,
            "noise": list(dict.fromkeys([*earlier.noise, *later.noise])),
            "growing": _joined_parts(earlier.growing, later.growing),
        }
    )


def _joined_parts(earlier: GrowingFigures | None, later: GrowingFigures | None) -> GrowingFigures | None:
    if earlier is None or later is None or (earlier.modules, earlier.axis) != (later.modules, later.axis):
        return None
    both_in_inference = bool(earlier.inference_seconds and later.inference_seconds)
    return later.model_copy(
        update={
            "train_step_seconds": earlier.train_step_seconds + later.train_step_seconds,
            "forward_seconds": earlier.forward_seconds + later.forward_seconds,
            "inference_seconds": earlier.inference_seconds + later.inference_seconds if both_in_inference else [],
        }
    )


def without_record(rounds: Iterable[Round], records: Iterable[Record]) -> list[Round]:
    """Rounds with those of their turns that are in none of these records; a round without any is left out."""
    recorded = {(record.cell.key(), number) for record in records if record.time for number in record.time.rounds}
    found = []
    for one in rounds:
        turns = [turn for turn in one.turns if (turn.cell, one.number) not in recorded]
        if turns:
            found.append(one if len(turns) == len(one.turns) else one.model_copy(update={"turns": turns}))
    return found


def with_rounds(records: Iterable[Record], rounds: Sequence[Round]) -> list[Record]:
    """Records with the turns of their cells added, as far as these ended well.

    Args:
        records: records of cells.
        rounds: rounds of which no turn is in a record, from `without_record`.
    """
    cells = {turn.cell for one in rounds for turn in one.turns}
    found = []
    for record in records:
        key = record.cell.key()
        times = times_of(rounds, key) if record.status == "ok" and key in cells else None
        if times is not None and record.time is not None:
            times = joined(record.time, times)
        found.append(record if times is None else record.model_copy(update={"time": times}))
    return found


def _growing(turns: Sequence[Turn], last: Round, cell: str) -> GrowingFigures | None:
    """The parts that grow; None if they are unknown for any training step, since samples would lack their values.

    Args:
        turns: turns of the cell.
        last: the last of its rounds.
        cell: key of the cell.
    """
    modules = last.modules.get(cell, [])
    train = [turn.growing_train_step_seconds for turn in turns]
    forward = [turn.growing_forward_seconds for turn in turns]
    inference = [turn.growing_inference_seconds for turn in turns]
    known = [[one for one in values if one is not None] for values in (train, forward, inference)]
    if not modules or any(len(values) < len(turns) for values in known[:2]):
        return None
    return GrowingFigures(
        modules=modules, axis=last.growing_along.get(cell, "blocks"), train_step_seconds=known[0], forward_seconds=known[1],
        inference_seconds=known[2] if len(known[2]) == len(turns) else [], edges_seconds=last.edges_seconds,
    )  # fmt: skip
