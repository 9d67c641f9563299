"""Traces: known answers, and a plain bookkeeper who writes down every block."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsbench.tracing.cuda_allocator import CachingAllocator, OutOfMemory
from capsbench.tracing.trace import CATEGORIES, Phase, Trace, trace_of

# A step of five blocks. Block 0 is a weight, 1 the batch, 2 is kept by forward, 3 is a gradient, 4 passes by.
BLOCKS = [0, 1, 2, 4, 4, 3, 2, 3]
NBYTES = [1000, 200, 5000, 30, -30, 7000, -5000, -7000]
SPANS = {"forward": (2, 5), "backward": (5, 7), "optimizer": (7, 8)}


def trace(blocks=BLOCKS, nbytes=NBYTES, spans=None, **tags):
    return Trace(np.array(blocks, dtype=np.int64), np.array(nbytes, dtype=np.int64), spans or SPANS, tags)


def tagged():
    return trace(state={0}, batch={1}, gradient={3})


def test_what_is_alive():
    assert trace().alive().tolist() == [0, 1000, 1200, 6200, 6230, 6200, 13200, 8200, 1200]


def test_phases():
    assert trace().phases() == {
        "forward": Phase(1200, 6200, 6230),
        "backward": Phase(6200, 8200, 13200),
        "optimizer": Phase(8200, 1200, 8200),
    }


def test_a_phase_in_which_nothing_happens():
    assert trace(spans={"idle": (3, 3)}).phases() == {"idle": Phase(6200, 6200, 6200)}


def test_blocks_that_are_alive():
    assert trace().alive_blocks(0) == {}
    assert trace().alive_blocks(4) == {0: 1000, 1: 200, 2: 5000, 4: 30}
    assert trace().alive_blocks(8) == {0: 1000, 1: 200}
    assert trace().retained_blocks() == {2: 5000}


def test_categories():
    assert tagged().categories() == {0: "state", 1: "batch", 2: "retained", 3: "gradient", 4: "temporary"}
    # What nobody knows and was there before; what was kept and is known to be something else.
    assert trace(optimizer={2}).categories() == {0: "other", 1: "other", 2: "optimizer", 3: "temporary", 4: "temporary"}


def test_what_is_alive_at_the_peak():
    assert tagged().peak() == ("backward", 6)
    peak = tagged().at_peak()
    assert peak.model_dump() == {
        "phase": "backward",
        "state_bytes": 1000,
        "gradient_bytes": 7000,
        "optimizer_bytes": 0,
        "batch_bytes": 200,
        "retained_bytes": 5000,
        "temporary_bytes": 0,
        "other_bytes": 0,
        "communication_bytes": None,
    }
    assert peak.total() == 13200


def test_a_peak_before_the_step_is_not_the_steps():
    early = trace([0, 1, 0, 2, 2], [10**6, 50, -(10**6), 7, -7], {"forward": (3, 4), "backward": (4, 5), "optimizer": (5, 5)})
    assert (early.peak(), early.at_peak().total()) == (("forward", 4), 57)


def test_an_inference_after_the_step_is_no_part_of_it():
    later = trace([*BLOCKS, 8, 8], [*NBYTES, 10**6, -(10**6)], {**SPANS, "inference": (8, 10)})
    assert (later.peak(), later.at_peak()) == (trace().peak(), trace().at_peak())
    assert later.phases()["inference"] == Phase(1200, 1200, 1_001_200)


def test_the_timeline_stacks_up_to_what_is_alive():
    stacked = tagged().stacked()
    assert tuple(stacked) == CATEGORIES
    assert stacked["retained"].tolist() == [0, 0, 0, 5000, 5000, 5000, 5000, 0, 0]
    assert stacked["gradient"].tolist() == [0, 0, 0, 0, 0, 0, 7000, 7000, 0]
    assert sum(stacked.values()).tolist() == tagged().alive().tolist()


def test_a_replay_has_the_peaks_of_the_step_alone():
    early = trace([0, 1, 0, 2, 2], [2**22, 50, -(2**22), 700, -700], {"forward": (3, 4), "backward": (4, 5)})
    allocator = CachingAllocator()
    early.replay(allocator)
    # 50 bytes take 512, 700 take 1024; the segment of the large block before the step is still reserved.
    assert (allocator.allocated, allocator.allocated_peak) == (512, 1536)
    assert (allocator.reserved, allocator.reserved_peak) == (22 * 2**20, 22 * 2**20)
    emptied = CachingAllocator()
    early.replay(emptied, empty_first=True)
    # The large block's segment is given back before the step, whose bytes stay the same.
    assert (emptied.allocated, emptied.allocated_peak) == (512, 1536)
    assert (emptied.reserved, emptied.reserved_peak) == (2 * 2**20, 2 * 2**20)


def test_a_replay_on_a_device_that_is_too_small():
    with pytest.raises(OutOfMemory, match=r"into 1\.00 MiB"):
        trace().replay(CachingAllocator(capacity=2**20))


def test_addresses_are_used_again():
    events = [(8, 100), (16, 20), (8, -100), (8, 3), (16, -20), (8, -3)]
    found = trace_of(events, {"forward": (3, 6)}, [(2, "state", [8, 99]), (4, "batch", [8]), (6, "gradient", [8])])
    assert found.blocks.tolist() == [0, 1, 0, 3, 1, 3]
    assert found.nbytes.tolist() == [100, 20, -100, 3, -20, -3]
    # Before event 2 the address held the first block, before event 4 the second, and at the end none.
    assert found.tags == {"state": {0}, "batch": {3}, "gradient": set()}
    assert found.spans == {"forward": (3, 6)}


def test_what_was_made_before_counting_began_is_not_counted_when_it_goes():
    found = trace_of([(8, -100), (8, 7)], {"forward": (0, 2)}, [])
    assert found.alive().tolist() == [0, 0, 7]
    assert found.at_peak().total() == 7


def test_a_trace_without_events():
    empty = trace_of([], {"forward": (0, 0), "backward": (0, 0), "optimizer": (0, 0)}, [(0, "state", [8])])
    assert empty.phases()["backward"] == Phase(0, 0, 0)
    assert empty.at_peak().total() == 0
    assert sum(empty.stacked().values()).tolist() == [0]


@st.composite
def histories(draw):
    """Events of an allocator with few addresses, which are used again and again; spans that follow one another; tags."""
    events, taken = [], {}
    for _ in range(draw(st.integers(0, 40))):
        address = 8 * draw(st.integers(1, 6))
        if address in taken:
            events.append((address, -taken.pop(address)))
        else:
            taken[address] = draw(st.integers(1, 5000))
            events.append((address, taken[address]))
    ends = sorted(draw(st.lists(st.integers(0, len(events)), min_size=4, max_size=4)))
    spans = dict(zip(("forward", "backward", "optimizer"), pairwise(ends), strict=True))
    one_tag = st.tuples(
        st.integers(0, len(events)),
        st.sampled_from(("state", "batch", "gradient")),
        st.lists(st.integers(1, 6).map(lambda number: 8 * number), max_size=3),
    )
    return events, spans, draw(st.lists(one_tag, max_size=5))


class Bookkeeper:
    """A naive reader of a history, event by event. A block is the event that made it."""

    def __init__(self, events, spans, tags):
        self.alive, self.made = [{}], {}
        at_address, now = {}, {}
        self.tagged = {}
        for index in range(len(events) + 1):
            for at, category, addresses in tags:
                if at == index:
                    self.tagged.setdefault(category, set()).update(at_address[it] for it in addresses if it in at_address)
            if index == len(events):
                break
            address, nbytes = events[index]
            if nbytes > 0:
                at_address[address] = index
                now[index] = self.made[index] = nbytes
            else:
                del now[at_address.pop(address)]
            self.alive.append(dict(now))
        self.spans = spans

    def totals(self):
        return [sum(alive.values()) for alive in self.alive]

    def category(self, block):
        """The first that fits, of those reported last."""
        first, last = self.spans["forward"]
        known = [category for category, blocks in self.tagged.items() if block in blocks]
        if known:
            return known
        if first <= block < last and block in self.alive[last]:
            return ["retained"]
        return ["other" if block < first else "temporary"]


@given(histories())
def test_any_trace_is_what_a_bookkeeper_writes_down(history):
    spans = history[1]
    found, book = trace_of(*history), Bookkeeper(*history)
    totals = book.totals()
    assert found.alive().tolist() == totals
    for at, alive in enumerate(book.alive):
        assert found.alive_blocks(at) == alive
    for name, (first, last) in spans.items():
        assert found.phases()[name] == Phase(totals[first], totals[last], max(totals[first : last + 1]))
    assert {name: blocks for name, blocks in found.tags.items() if blocks} == {
        name: blocks for name, blocks in book.tagged.items() if blocks
    }
    categories = found.categories()
    assert set(categories) == set(book.made)
    assert all(category in book.category(block) for block, category in categories.items())
    name, at = found.peak()
    assert spans[name][0] <= at <= spans[name][1]
    first, last = spans["forward"][0], spans["optimizer"][1]
    assert totals[at] == max(totals[first : last + 1]) == found.at_peak().total()
    assert sum(found.stacked().values()).tolist() == totals


@given(histories())
def test_a_replay_keeps_what_is_alive(history):
    events, spans, _ = history
    found, book = trace_of(*history), Bookkeeper(*history)
    allocator = CachingAllocator()
    found.replay(allocator)
    rounded = [sum(-(-nbytes // 512) * 512 for nbytes in alive.values()) for alive in book.alive]
    # A rest of 512 bytes is split off, so that no block of the small pool holds more than it was asked for.
    assert allocator.allocated == rounded[-1]
    start = spans["forward"][0]
    if start < len(events):
        assert allocator.allocated_peak == max(rounded[start:])
