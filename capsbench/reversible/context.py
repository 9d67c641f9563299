"""What the functions of a stack are given besides x: any arguments, with the tensors in them taken out and put back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Context:
    """The shape of the arguments: everything but the tensors, which are handed from one to the other as a flat sequence.

    An autograd function sees those tensors alone that it is given directly, and not those in a list or a dictionary.
    """

    leaves: tuple[Any, ...]
    """All values, with None where a tensor is."""
    indices: tuple[int, ...]
    """Where the tensors are among the values."""
    wanted: tuple[bool, ...]
    """For each tensor, whether it requires a gradient."""
    spec: TreeSpec | None

    @classmethod
    def take(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Self, tuple[Tensor, ...]]:
        """Take arguments apart: the context, and the tensors in it."""
        if not args and not kwargs:
            return cls((), (), (), None), ()
        leaves, spec = tree_flatten((args, kwargs))
        indices = tuple(index for index, one in enumerate(leaves) if isinstance(one, Tensor))
        tensors = tuple(leaves[index] for index in indices)
        rest = tuple(None if isinstance(one, Tensor) else one for one in leaves)
        return cls(rest, indices, tuple(one.requires_grad for one in tensors), spec), tensors

    def __bool__(self) -> bool:
        return self.spec is not None

    def rebuild(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the arguments together again, with these tensors."""
        if self.spec is None:
            return (), {}
        leaves = list(self.leaves)
        for index, tensor in zip(self.indices, tensors, strict=True):
            leaves[index] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs

    def differentiable(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that require a gradient."""
        return tuple(one for one, wanted in zip(tensors, self.wanted, strict=True) if wanted)

    def replaced(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors, with `others` in place of those that require a gradient."""
        following = iter(others)
        return tuple(next(following) if wanted else one for one, wanted in zip(tensors, self.wanted, strict=True))
