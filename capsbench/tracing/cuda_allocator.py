"""A model of PyTorch's CUDA caching allocator: the memory that it would reserve for a trace of allocations, without a device.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` at its default settings, for one stream, checked against PyTorch's own
answers on recorded traces (`tests/golden/allocator_trace_*.npz`), allocated and reserved, at every checkpoint.
"""

from bisect import bisect_left, insort

from capsbench.errors import CapsbenchError
from capsbench.sizes import MIB

SMALLEST = 512
"""Multiple of bytes to which every request is rounded up."""
SMALL = MIB
"""Largest request in bytes that is served from the small pool."""
_SMALL_SEGMENT, _LARGE_SEGMENT, _LARGE_FROM, _LARGE_STEP = 2 * MIB, 20 * MIB, 10 * MIB, 2 * MIB


class OutOfMemory(CapsbenchError):
    """A request that the device has no room for, even after all free segments were given back."""


class Block:
    """A piece of a segment, handed out or free. Its neighbours are those of the same segment."""

    __slots__ = ("address", "after", "before", "in_use", "pool", "size")

    def __init__(self, size: int, address: int, pool: "_Pool") -> None:
        self.size = size
        """Bytes as rounded, with any remainder that could not be split off."""
        self.address = address
        self.pool = pool
        self.before: Block | None = None
        self.after: Block | None = None
        self.in_use = False


class _Pool:
    """Free blocks by size and address."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        # Addresses are never equal, so that a comparison does not reach the block.
        self.free: list[tuple[int, int, Block]] = []

    def add(self, block: Block) -> None:
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        del self.free[bisect_left(self.free, (block.size, block.address))]

    def take(self, nbytes: int) -> Block | None:
        """The smallest free block of at least `nbytes`; among equal ones, the one at the lowest address."""
        place = bisect_left(self.free, (nbytes,))
        return self.free.pop(place)[2] if place < len(self.free) else None

    def splits(self, rest: int) -> bool:
        return rest >= SMALLEST if self.small else rest > SMALL


class CachingAllocator:
    """An allocator that hands out blocks of segments as `torch.cuda` does: best fit, split, merged when freed, segments kept.

    Args:
        capacity: bytes that segments may take together; None for no limit.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.allocated = 0
        """Bytes in blocks that are handed out, as `torch.cuda.memory_allocated` reports."""
        self.allocated_peak = 0
        """Highest value so far, or since `reset_peaks`."""
        self.reserved = 0
        """Bytes in segments, as `torch.cuda.memory_reserved` reports."""
        self.reserved_peak = 0
        """Highest value so far, or since `reset_peaks`."""
        self._pools = _Pool(small=True), _Pool(small=False)
        self._next_address = 0

    def allocate(self, nbytes: int) -> Block | None:
        """Allocate a block of `nbytes`; None for 0 bytes, which take none.

        Raises:
            OutOfMemory: there is no room. Segments that were wholly free have been given back by then.
            ValueError: `nbytes` is negative.
        """
        if nbytes <= 0:
            if nbytes < 0:
                raise ValueError(f"{nbytes} bytes cannot be allocated")
            return None
        size = -(-nbytes // SMALLEST) * SMALLEST
        pool = self._pools[0] if size <= SMALL else self._pools[1]
        block = pool.take(size) or self._new_segment(size, pool)
        rest = block.size - size
        if pool.splits(rest):
            self._split(block, size)
        block.in_use = True
        self.allocated += block.size
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        return block

    def free(self, block: Block | None) -> None:
        """Take a block back, and merge it with free neighbours.

        Raises:
            ValueError: it is not handed out.
        """
        if block is None:
            return
        if not block.in_use:
            raise ValueError(f"the block of {block.size} bytes at {block.address} is free already")
        block.in_use = False
        self.allocated -= block.size
        before, after, pool = block.before, block.after, block.pool
        if after is not None and not after.in_use:
            pool.remove(after)
            _absorb(block, after)
        if before is not None and not before.in_use:
            pool.remove(before)
            _absorb(before, block)
            block = before
        pool.add(block)

    def empty_cache(self) -> None:
        """Give back every segment that is wholly free, as `torch.cuda.empty_cache`."""
        for pool in self._pools:
            kept = [entry for entry in pool.free if entry[2].before is not None or entry[2].after is not None]
            self.reserved -= sum(entry[0] for entry in pool.free) - sum(entry[0] for entry in kept)
            pool.free = kept

    def reset_peaks(self) -> None:
        """Restart the peaks from the present values."""
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved

    def _new_segment(self, size: int, pool: _Pool) -> Block:
        if pool.small:
            nbytes = _SMALL_SEGMENT
        elif size < _LARGE_FROM:
            nbytes = _LARGE_SEGMENT
        else:
            nbytes = -(-size // _LARGE_STEP) * _LARGE_STEP
        if not self._fits(nbytes):
            self.empty_cache()
            if not self._fits(nbytes):
                mebibytes = [nbytes / MIB for nbytes in (size, self.capacity or 0, self.allocated, self.reserved)]
                raise OutOfMemory(
                    "{:,.2f} MiB more do not fit into {:,.2f} MiB for tensors, of which {:,.2f} are allocated and {:,.2f} "
                    "reserved".format(*mebibytes),
                    "give the device more memory, or reduce what the step needs",
                )
        block = Block(nbytes, self._next_address, pool)
        self._next_address += nbytes
        self.reserved += nbytes
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        return block

    def _fits(self, nbytes: int) -> bool:
        return self.capacity is None or self.reserved + nbytes <= self.capacity

    @staticmethod
    def _split(block: Block, size: int) -> None:
        """Leave `size` bytes of a block in use, and return the rest behind it to the pool."""
        rest = Block(block.size - size, block.address + size, block.pool)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        block.pool.add(rest)


def _absorb(block: Block, after: Block) -> None:
    block.size += after.size
    block.after = after.after
    if after.after is not None:
        after.after.before = block
