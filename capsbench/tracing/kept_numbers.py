"""Numbers that autograd's nodes keep as tensors: no operator makes these tensors, but a CPU's allocator does."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from capsbench.tracing.blocks import Blocks, current_node
from capsbench.tracing.operator_calls import Call

_KEEP_NUMBERS = {getattr(torch.ops.aten, name).Tensor for name in ("mul", "mul_", "div", "div_")}
"""Operators whose nodes keep, as a tensor, the number that a tensor is multiplied with, or divided by."""


class KeptNumbers:
    """The tensors of numbers that nodes keep, in the log of a step's memory.

    Args:
        blocks: the log.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._reserved: dict[int, int] = {}
        """The block reserved for the number that an autograd node may keep, by the node's number."""
        self._evaluated_again = set[int]()
        """Nodes of these that backward made, as a checkpoint does, and that nobody has looked at yet, by their numbers."""

    def expect(self, call: Call) -> None:
        """Make room in the log for a number that the node of this operator may keep."""
        if self._evaluated_again:
            self._follow_evaluated_again(call)
        has_number = any(isinstance(one, int | float | complex) for one in call.args)
        if has_number and may_have_node(call):
            # The node of this operator is the last one that was made, unless it is one that has none, such as a comparison.
            node = torch._C._autograd._get_sequence_nr() - 1
            if node not in self._reserved:
                self._reserved[node] = self._blocks.add(0)
                if current_node() != -1:
                    self._evaluated_again.add(node)

    def follow(self, nodes: Iterable[Any]) -> None:
        """Follow the numbers that nodes of a graph keep."""
        for node in nodes:
            # Asking other nodes what they keep could start a checkpoint's evaluation.
            block = self._reserved.get(node._sequence_nr())
            number = None if block is None else getattr(node, "_saved_other", None)
            if block is not None and isinstance(number, Tensor):
                self._blocks.fill(block, number)

    def bytes_of(self, call: Call) -> int:
        """Bytes of the number among the arguments that the node of an operator keeps, or the node for which backward runs it."""
        if call.func not in _KEEP_NUMBERS or not (may_have_node(call) or self._is_kept(current_node())):
            return 0
        return torch.complex128.itemsize if any(isinstance(one, complex) for one in call.args) else torch.float64.itemsize

    def _is_kept(self, node: int) -> bool:
        """Return whether a node keeps a number as a tensor."""
        return node in self._reserved and self._blocks.bytes_of_event[self._reserved[node]] > 0

    def _follow_evaluated_again(self, call: Call) -> None:
        """Follow the numbers of nodes that backward made, once an operator takes what they returned."""
        nodes: dict[int, Any] = {}
        for one in call.tensors:
            with suppress(RuntimeError):  # torch refuses to say what made some views
                nodes |= {} if one.grad_fn is None else {one.grad_fn._sequence_nr(): one.grad_fn}
        found = self._evaluated_again & nodes.keys()
        self._evaluated_again -= found
        self.follow(nodes[number] for number in found)


def may_have_node(call: Call) -> bool:
    """Return whether autograd may have made a node for an operator."""
    return torch.is_grad_enabled() and bool(call.tensors) and call.tensors[0].requires_grad
