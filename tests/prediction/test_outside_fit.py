"""The largest fit, compared with a search over every depth, on peaks with every kind of kink."""

import math

import pytest

from capsbench.options import DEEPEST
from capsbench.prediction.depth_fit import DEEPEST_TRACED
from capsbench.prediction.fit import largest_fit
from helpers.made import MIB, make_configuration
from helpers.pretended import pretend_steps


def square_root(blocks):
    """A checkpoint at the root of the blocks: as many segments are kept as the longest is deep."""
    segment = math.isqrt(blocks - 1) + 1
    return 1_000 + 3 * blocks + 400 * (math.ceil(blocks / segment) + segment)


KINKS = {
    "line": lambda b: 900 + 10 * b,
    "level": lambda b: 900,
    "two lines that cross at 40": lambda b: max(1_000 + 10 * b, 30 * b + 200),
    "two lines that cross at 70": lambda b: max(3_000 + 10 * b, 50 * b + 200),
    "three lines": lambda b: max(3_000 + 5 * b, 2_900 + 10 * b, 1_600 + 40 * b),
    "root of the blocks": square_root,
    "a step every 10": lambda b: 1_000 + 10 * b + 50 * (b // 10),
    "a step every 8": lambda b: 1_000 + 10 * b + 50 * ((b + 1) // 8),
    "a step every 7, none between": lambda b: 1_000 + 700 * (b // 7),
    "uneven at first": lambda b: 1_000 + 10 * b + {8: 3, 16: 40, 24: 11, 32: 90}.get(min(b, 32), 90),
    "step down at 17": lambda b: 1_000 + (100 * b if b < 17 else 10 * b),
    "cheaper from 30 on": lambda b: 1_000 + 100 * min(b, 30) + 10 * max(b - 30, 0),
    "more than linear": lambda b: 1_000 + 10 * b * math.log2(b + 1),
    "square": lambda b: 1_000 + b * b,
}
ROOMS = [950, 1_500, 2_600, 4_321, 9_999, 30_000, 123_456, 1_000_003]
SEARCHED = 30_000
"""The depths of the search that looks at every one."""


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", KINKS)
def test_what_is_said_to_fit_fits(kind, room, monkeypatch):
    taken = KINKS[kind]
    asked = pretend_steps(monkeypatch, lambda b: int(taken(b)), room)
    found = largest_fit(make_configuration(), "depth")
    assert found.value == 0 or int(taken(found.value)) <= room
    assert max(asked) <= DEEPEST_TRACED
    assert len(asked) == len(set(asked)) < 30
    if found.traced and found.bounded:
        assert int(taken(found.value + 1)) > room
    if not found.traced:
        assert found.memory_bytes >= int(taken(found.value))
    if found.bounded:
        best = max((b for b in range(1, SEARCHED) if int(taken(b)) <= room), default=0)
        nearly = kind in ("step down at 17", "cheaper from 30 on")
        assert found.value >= (best if found.traced and not nearly else 0.9 * best)


@pytest.mark.parametrize("kind", ["root of the blocks", "more than linear", "square", "a step every 10"])
def test_a_search_that_stopped_early_says_at_least(kind, monkeypatch):
    pretend_steps(monkeypatch, lambda b: int(KINKS[kind](b)), 10**7)
    found = largest_fit(make_configuration(), "depth")
    assert not found.bounded
    assert found.value >= DEEPEST_TRACED
    assert int(KINKS[kind](found.value)) <= 10**7


def test_peaks_that_grow_unevenly_at_8_16_24_and_32_are_followed_until_they_settle(monkeypatch):
    """Forward's peak, which is not the highest yet: 2.00 MiB a block at first, 2.25 in the end."""

    def forward(b):
        return max(240 * MIB + int(1.5 * MIB) * b, 200 * MIB + int(2.25 * MIB) * b)

    def backward(b):
        return 330 * MIB + 2 * MIB * b

    def peak(b):
        return max(forward(b), backward(b))

    room = 24 * 1024 * MIB
    asked = pretend_steps(
        monkeypatch,
        lambda b: {"peak_allocated_bytes": peak(b), "peak_forward_bytes": forward(b), "peak_backward_bytes": backward(b)},
        room,
    )
    found = largest_fit(make_configuration(), "depth")
    best = max(b for b in range(20_000) if peak(b) <= room)
    assert 0.99 * best <= found.value <= best
    assert max(asked) <= DEEPEST_TRACED


def test_what_stands_at_the_end_of_forward_bounds_the_depth_before_it_is_the_peak(monkeypatch):
    """The peak is that of the first layer's backward, and moves by 2 MiB a block; what forward keeps grows by 3."""

    def peak(b):
        return max(5_000 * MIB + 2 * MIB * b, 3 * MIB * b)

    room = 24 * 1024 * MIB
    pretend_steps(monkeypatch, lambda b: {"peak_allocated_bytes": peak(b), "retained_bytes": 3 * MIB * b}, room)
    found = largest_fit(make_configuration(), "depth")
    assert peak(found.value) <= room
    assert found.value >= (room - 5_000 * MIB) // (3 * MIB)


@pytest.mark.parametrize("segment", [2 * MIB, 20 * MIB])
@pytest.mark.parametrize("per_block", [MIB // 3, 2 * MIB, 5 * MIB])
def test_an_allocator_s_jumps_are_room_that_is_not_there(segment, per_block, monkeypatch):
    room = 8 * 1024 * MIB

    def taken(b):
        return 300 * MIB + per_block * b

    def reserved(b):
        return 500 * MIB + -(-taken(b) // segment) * segment

    pretend_steps(monkeypatch, lambda b: {"peak_allocated_bytes": taken(b), "process_bytes": reserved(b)}, room)
    found = largest_fit(make_configuration(), "depth")
    best = max(b for b in range(40_000) if reserved(b) <= room)
    assert 0.85 * best <= found.value <= best


def test_a_level_peak_is_at_least_as_deep_as_was_looked_at(monkeypatch):
    pretend_steps(monkeypatch, KINKS["level"], 1_000)
    found = largest_fit(make_configuration(), "depth")
    assert (found.value, found.bounded) == (DEEPEST, False)


def test_each_size_is_announced_before_it_is_traced(monkeypatch):
    asked = pretend_steps(monkeypatch, lambda b: 1_000 + 10 * b, 4_321, name="batch_size")
    announced = []
    largest_fit(make_configuration(), "batch", lambda axis, size: announced.append((axis, size, len(asked))))
    assert announced == [("batch_size", size, place) for place, size in enumerate(asked)]
