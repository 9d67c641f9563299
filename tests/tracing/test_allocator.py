"""The model of the CUDA caching allocator: PyTorch's own answers, and what must hold on any trace."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsbench.errors import CapsbenchError
from capsbench.tracing.cuda_allocator import CachingAllocator, OutOfMemory
from helpers import GOLDEN

MIB = 2**20
TRACES = sorted(GOLDEN.glob("allocator_trace_*.npz"))


def counters(allocator):
    return [allocator.allocated, allocator.allocated_peak, allocator.reserved, allocator.reserved_peak]


def replay(data, after=lambda done, allocator: None):
    """The allocator after a trace, and the index of the operation that failed, or −1."""
    allocator, blocks = CachingAllocator(capacity=int(data["capacity"])), {}
    for index, (op, nbytes) in enumerate(zip(data["op"].tolist(), data["nbytes"].tolist(), strict=True)):
        try:
            if op > 0:
                blocks[op] = allocator.allocate(nbytes)
            else:
                allocator.free(blocks.pop(-op))
        except OutOfMemory:
            return allocator, index
        after(index + 1, allocator)
    return allocator, -1


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem.removeprefix("allocator_trace_"))
def test_every_answer_of_pytorchs_own_allocator(path):
    with np.load(path) as data:
        expected = {row[0]: row[1:] for row in data["expected"].tolist()}
        found = {}

        def after(done, allocator):
            if done in expected:
                found[done] = counters(allocator)

        allocator, failed_at = replay(data, after)
        assert failed_at == int(data["oom_at"])
    if failed_at >= 0 and failed_at in expected:
        # What it gave back before it gave up.
        found[failed_at] = counters(allocator)
    assert found == expected
    assert len(found) > 10


def test_there_are_golden_traces_of_both_kinds():
    kinds = set()
    for path in TRACES:
        with np.load(path) as data:
            kinds.add(int(data["oom_at"]) >= 0)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("nbytes", "allocated", "reserved"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (19 * MIB + 512, 19 * MIB + 512, 20 * MIB),
    ],
)
def test_sizes_of_blocks_and_segments(nbytes, allocated, reserved):
    allocator = CachingAllocator()
    block = allocator.allocate(nbytes)
    # Of a rest up to 1 MiB in a large segment nothing is split off: it counts as allocated.
    rest = reserved - allocated
    expected = reserved if allocated > MIB and 0 < rest <= MIB else allocated
    assert counters(allocator) == [expected, expected, reserved, reserved]
    allocator.free(block)
    assert counters(allocator) == [0, expected, reserved, reserved]


def test_the_best_fit_is_taken_and_what_is_left_over_used():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(nbytes) for nbytes in (4096, 512, 2048, 512)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    fitting = allocator.allocate(2000)
    assert fitting.address == blocks[2].address
    assert allocator.allocate(1024).address == blocks[0].address
    assert allocator.allocate(3072).address == blocks[0].address + 1024
    assert allocator.reserved == 2 * MIB


def test_neighbours_merge_when_they_are_freed():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(512) for _ in range(4)]
    for index in (0, 2, 1, 3):
        allocator.free(blocks[index])
    assert allocator.allocate(MIB).address == 0
    assert allocator.reserved == 2 * MIB


def test_a_full_device_gives_free_segments_back_and_tries_again():
    allocator = CachingAllocator(capacity=24 * MIB)
    small, large = allocator.allocate(512), allocator.allocate(20 * MIB)
    allocator.free(large)
    assert allocator.reserved == 22 * MIB
    # The small segment is in use and stays.
    assert allocator.allocate(22 * MIB) is not None
    assert counters(allocator) == [22 * MIB + 512, 22 * MIB + 512, 24 * MIB, 24 * MIB]
    allocator.free(small)


def test_a_request_that_does_not_fit_is_refused_with_its_numbers_and_changes_nothing():
    allocator = CachingAllocator(capacity=8 * MIB)
    allocator.allocate(MIB // 2)
    before = counters(allocator)
    said = r"^10\.00 MiB more do not fit into 8\.00 MiB for tensors, of which 0\.50 are allocated and 2\.00 reserved\n.*memory"
    with pytest.raises(OutOfMemory, match=said) as full:
        allocator.allocate(10 * MIB)
    assert isinstance(full.value, CapsbenchError)
    assert counters(allocator) == before
    assert allocator.allocate(512) is not None


def test_a_block_is_freed_once():
    allocator = CachingAllocator()
    block = allocator.allocate(100)
    allocator.free(block)
    before = counters(allocator)
    with pytest.raises(ValueError, match="bytes at 0 is free already"):
        allocator.free(block)
    assert counters(allocator) == before


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match="-1 bytes"):
        CachingAllocator().allocate(-1)


def test_a_request_for_nothing_takes_nothing():
    allocator = CachingAllocator(capacity=0)
    allocator.free(allocator.allocate(0))
    assert counters(allocator) == [0, 0, 0, 0]


def test_peaks_are_counted_from_where_they_are_reset():
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(30 * MIB))
    allocator.empty_cache()
    assert counters(allocator) == [0, 30 * MIB, 0, 30 * MIB]
    allocator.reset_peaks()
    assert counters(allocator) == [0, 0, 0, 0]


SIZES = st.one_of(st.integers(0, 2000), st.integers(0, 3 * MIB), st.integers(MIB, 40 * MIB))


@settings(max_examples=200)
@given(st.lists(st.one_of(SIZES, st.integers(-30, -1)), max_size=80), st.sampled_from([None, 64 * MIB]))
def test_what_must_hold_on_any_trace(operations, capacity):
    """A size is allocated; −n frees the n-th of those that are handed out."""
    allocator, handed, peaks = CachingAllocator(capacity=capacity), [], [0, 0]
    for operation in operations:
        if operation >= 0:
            try:
                block = allocator.allocate(operation)
            except OutOfMemory:
                assert capacity is not None
                continue
            if block is not None:
                assert block.size >= operation
                assert block.size % 512 == 0
                handed.append(block)
        elif handed:
            allocator.free(handed.pop(-operation % len(handed)))
        assert allocator.allocated == sum(block.size for block in handed)
        assert allocator.allocated <= allocator.reserved <= (capacity or allocator.reserved)
        peaks = [max(peaks[0], allocator.allocated), max(peaks[1], allocator.reserved)]
        assert [allocator.allocated_peak, allocator.reserved_peak] == peaks
        by_address = sorted(handed, key=lambda block: block.address)
        for one, after in pairwise(by_address):
            assert one.address + one.size <= after.address
    for block in handed:
        allocator.free(block)
    assert allocator.allocated == 0
    allocator.empty_cache()
    assert allocator.reserved == 0


def seconds_per_operation(count):
    """Replay a trace with many free blocks of all sizes, so that searching them would show."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 4 * MIB, count).tolist()
    allocator, began = CachingAllocator(), time.process_time()
    blocks = [allocator.allocate(size) for size in sizes]
    for block in blocks[::2]:
        allocator.free(block)
    for size in sizes[::2]:
        allocator.allocate(size)
    return (time.process_time() - began) / (2 * count)


def test_an_operation_takes_no_longer_among_many_blocks():
    few, many = (min(seconds_per_operation(count) for _ in range(5)) for count in (500, 10_000))
    # Caches make it three times as long; searching twenty times the blocks one by one would make it fifty.
    assert many < 15 * few
