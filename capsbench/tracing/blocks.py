"""The memory that a step makes while it is followed: each block from its first event to its last, and its tags."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsbench.tracing.storages import dense_parts
from capsbench.tracing.trace import Category, Trace

_NO_BLOCK = -1
"""The block of a storage that has no bytes at present."""


@dataclass(frozen=True)
class Recording:
    """Events that can be repeated with other blocks."""

    events: list[tuple[int, int]]
    """Block and bytes of each event."""
    kept: list[int]
    """Blocks behind the tensors that were kept."""


class Blocks:
    """Blocks of memory on a device, in the order of their events.

    Args:
        device: tensors on other devices are not followed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        """Device that tensors on it report."""
        self.alive = 0
        """Bytes that storages hold now."""
        self.made_in: dict[int, str] = {}
        """The value of `place` when each block was made."""
        self.made_by: dict[int, tuple[str, int]] = {}
        """The operator that was running when each block was made, and the number of its autograd node (`current_node`)."""
        self.place = ""
        """Name of the running module."""
        self.operator = ""
        """The running operator as autograd called it, not the operators that it is made of."""
        self.block_of_event: list[int] = []
        self.bytes_of_event: list[int] = []
        self._spans: dict[str, tuple[int, int]] = {}
        self._tags: dict[Category, set[int]] = {}
        self._known: dict[int, tuple[weakref.ref[Any], int, int]] = {}
        self._summed: tuple[int, int, int] | None = None
        """Storages of an addend and of the sum, and the number of events after it was made."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name a part of the step."""
        first = len(self.block_of_event)
        yield
        self._spans[name] = (first, len(self.block_of_event))

    def tag(self, category: Category, tensors: Iterable[Tensor]) -> None:
        """Record what the storages behind tensors hold."""
        self._tags.setdefault(category, set()).update(self.blocks_of(tensors))

    def blocks_of(self, tensors: Iterable[Tensor]) -> list[int]:
        """The blocks behind tensors; none for those that were made outside."""
        keys = [tensor.untyped_storage()._cdata for tensor in dense_parts(tensors)]
        return [self._known[key][1] for key in keys if key in self._known]

    def made_since(self, first: int) -> list[int]:
        """The blocks that were made since event number `first`, in their order."""
        return [block for block in self.made_in if block >= first]

    def alive_since(self, first: int) -> dict[int, int]:
        """Bytes of each block that was made since event number `first` and is alive."""
        return {block: nbytes for _, block, nbytes in self._known.values() if block >= first}

    def events(self) -> int:
        """Number of events so far; a block's number is that of the event that made it."""
        return len(self.block_of_event)

    def recording(self, first: int, kept: Iterable[Tensor]) -> Recording:
        """The events since event number `first`, of which these tensors were kept."""
        events = zip(self.block_of_event[first:], self.bytes_of_event[first:], strict=True)
        return Recording(list(events), self.blocks_of(kept))

    def replay(self, recording: Recording, kept: Iterable[Tensor]) -> None:
        """Repeat events, with other tensors in place of those that were kept."""
        tensors = dict(zip(recording.kept, kept, strict=True))
        blocks: dict[int, int] = {}
        for block, nbytes in recording.events:
            if block in tensors:
                self.follow(tensors[block])
            elif block not in blocks:
                blocks[block] = self.add(nbytes)
            else:
                self.free(blocks[block], -nbytes)

    def trace(self) -> Trace:
        """The trace of everything that was followed."""
        blocks, nbytes = (np.array(one, dtype=np.int64) for one in (self.block_of_event, self.bytes_of_event))
        return Trace(blocks, nbytes, dict(self._spans), {name: set(found) for name, found in self._tags.items()})

    def is_followed(self, tensor: Tensor) -> bool:
        """Return whether the storage behind a tensor was seen being made."""
        return tensor.untyped_storage()._cdata in self._known

    def follow(self, tensor: Tensor) -> None:
        """Follow the storage behind a tensor to its end, if it is on the device and not followed yet."""
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None:
            if known[2] == nbytes:
                return
            self._drop(key)  # it was given another size
        block = self.add(nbytes)
        self._known[key] = (weakref.ref(storage, lambda _: self._drop(key)), block, nbytes)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """Follow a storage that was given another size outside operators, as FSDP lets parameters go and makes room for them."""
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is None or known[2] == nbytes:
            return
        self._drop(key)
        block = self.add(nbytes) if nbytes else _NO_BLOCK
        self._known[key] = (weakref.ref(storage, lambda _: self._drop(key)), block, nbytes)
        self._tags.setdefault("communication", set()).add(block)

    def follow_sum(self, addend: Tensor, total: Tensor) -> None:
        """Take a sum for written over an addend of another node's making, if that is freed before anything else happens.

        Autograd adds to a gradient in place if nobody else holds it, but not where operators are followed.
        """
        blocks = self.blocks_of([addend, total])
        of_other_node = len(blocks) == 2 and self.made_by[blocks[0]][1] != current_node()
        if of_other_node and addend.nbytes == addend.untyped_storage().nbytes() == total.untyped_storage().nbytes():
            self._summed = addend.untyped_storage()._cdata, total.untyped_storage()._cdata, self.events()

    def fill(self, block: int, tensor: Tensor) -> None:
        """Follow the storage behind a tensor, which was made when an empty block was added."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._known:
            self.bytes_of_event[block] = nbytes
            self.alive += nbytes
            self._known[key] = (weakref.ref(storage, lambda _: self._drop(key)), block, nbytes)

    def add(self, nbytes: int) -> int:
        """Note that a block was made, and return its number."""
        block = len(self.block_of_event)
        self.block_of_event.append(block)
        self.bytes_of_event.append(nbytes)
        self.made_in[block] = self.place
        self.made_by[block] = self.operator, current_node()
        self.alive += nbytes
        return block

    def _drop(self, key: int) -> None:
        found = self._known.pop(key, None)
        if found is None:
            return
        if found[1] == _NO_BLOCK:
            return
        if self._summed is not None and self._summed[0] == key and self._summed[2] == self.events():
            self._join(found[1], self._summed[1])
        else:
            self.free(*found[1:])

    def _join(self, block: int, key: int) -> None:
        """Undo the event that made the last block, and let its storage have another one."""
        reference, last, nbytes = self._known[key]
        self._known[key] = reference, block, nbytes
        for log in (self.block_of_event, self.bytes_of_event):
            log.pop()
        del self.made_in[last], self.made_by[last]
        self.alive -= nbytes
        self._summed = None

    def free(self, block: int, nbytes: int) -> None:
        """Record that a block was freed."""
        self.block_of_event.append(block)
        self.bytes_of_event.append(-nbytes)
        self.alive -= nbytes


def current_node() -> int:
    """The sequence number of the autograd node whose backward is running; -1 if there is none."""
    node = torch._C._current_autograd_node()
    return -1 if node is None else node._sequence_nr()
