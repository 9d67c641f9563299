"""Rounds of cells that take turns in a real process."""

import random
from collections.abc import Mapping

from capsbench.measure.together import ProcessEnded, Together
from capsbench.measure.turn_messages import Failed, TurnsRequest
from capsbench.records import Configuration, Round

PATIENCE = 120.0

Taken = tuple[list[tuple[list[str], Round | None]], dict[str, Failed], tuple[str, str, str | None] | None]


def take_rounds(
    cells: Mapping[str, Configuration], count: int = 3, timeout: float = PATIENCE, axes: tuple[str, ...] = ("blocks",)
) -> Taken:
    """Rounds of some cells with the order that was asked for, the cells that failed, and how the process ended."""
    request = TurnsRequest(cells=dict(cells), channel=0, process=4, axes=axes)
    found: list[tuple[list[str], Round | None]] = []
    drawn = random.Random(0)
    process = Together(request, timeout)
    try:
        with process:
            for number in range(count):
                order = drawn.sample(list(cells), len(cells))
                found.append((order, process.round(number, order)))
            return found, process.failed, None
    except ProcessEnded as ended:
        return found, process.failed, (ended.status, ended.message, ended.cell)


def take_shared_round(cells: Mapping[str, Configuration]) -> tuple[list[str], list[str]]:
    """The noise of a round that was taken while other work had the cores, and the notes of the first cell."""
    request = TurnsRequest(cells=dict(cells), channel=0, process=4, shared=True)
    with Together(request, PATIENCE) as process:
        one = process.round(0, list(cells))
        assert one is not None
        return one.noise, process.built[next(iter(cells))].notes
