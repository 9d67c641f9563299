"""Rounds of cells that took turns, as the times of one cell."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from capsbench.records import Cell, GrowingFigures, Record, Round, TimeFigures, Turn


@dataclass(frozen=True)
class TurnsTaken:
    """The state of cells that take turns, after a round."""

    cells: Sequence[Cell]
    rounds: int
    """Rounds that the cells have taken, those of an earlier process included."""
    seconds_left: float
    """Seconds of the time budget that are left."""
    slopes_share: float | None
    """Width of the widest interval of a slope of training time, as a share of the slope; None if it is not known yet."""


def times_of(rounds: Sequence[Round], cell: str, noise: Collection[str] = ()) -> TimeFigures | None:
    """The times of a cell; None if it had no turn.

    Args:
        rounds: rounds in the order in which they were taken.
        cell: key of the cell.
        noise: reasons not to trust the samples, beside those of the rounds.
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
        noise=list(dict.fromkeys([*noise, *found])),
        rounds=[one.number for one, _ in taken],
        processes=[one.process for one, _ in taken],
        growing=_growing(turns, last.modules.get(cell, []), last.edges_seconds),
    )


def with_rounds(records: Iterable[Record], rounds: Sequence[Round]) -> list[Record]:
    """Records of which those without times have what rounds say of them: a sweep that was cut off while cells took turns."""
    cells = {turn.cell for one in rounds for turn in one.turns}
    return [
        record.model_copy(update={"time": times_of(rounds, key)})
        if record.status == "ok" and record.time is None and (key := record.cell.key()) in cells
        else record
        for record in records
    ]


def _growing(turns: Sequence[Turn], modules: list[str], edges_seconds: float) -> GrowingFigures | None:
    """The parts that grow; None if they are unknown for any turn, since samples would lack their values."""
    train = [turn.growing_train_step_seconds for turn in turns]
    forward = [turn.growing_forward_seconds for turn in turns]
    inference = [turn.growing_inference_seconds for turn in turns]
    known = [[one for one in values if one is not None] for values in (train, forward, inference)]
    if not modules or any(len(values) < len(turns) for values in known):
        return None
    return GrowingFigures(
        modules=modules, train_step_seconds=known[0], forward_seconds=known[1], inference_seconds=known[2],
        edges_seconds=edges_seconds,
    )  # fmt: skip
