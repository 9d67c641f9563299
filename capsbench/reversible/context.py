"""The arguments of a stack's functions other than x, with the tensors in them taken out and put back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Context:
    """The shape of the arguments: everything but the tensors.

    An autograd function sees only tensors that it is given directly, and not those in a list or a dictionary.
    """

    leaves: tuple[Any, ...]
    """All values, with None in place of tensors."""
    indices: tuple[int, ...]
    """Indices of the tensors among the values."""
    wanted: tuple[bool, ...]
    """True for each tensor that requires a gradient."""
    spec: TreeSpec | None


class Arguments(NamedTuple):
    """A context together with the tensors in it."""

    context: Context
    tensors: tuple[Tensor, ...]

    @classmethod
    def take(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """Take arguments apart."""
        if not args and not kwargs:
            return cls(Context((), (), (), None), ())
        leaves, spec = tree_flatten((args, kwargs))
        indices = tuple(index for index, one in enumerate(leaves) if isinstance(one, Tensor))
        tensors = tuple(leaves[index] for index in indices)
        rest = tuple(None if isinstance(one, Tensor) else one for one in leaves)
        return cls(Context(rest, indices, tuple(one.requires_grad for one in tensors), spec), tensors)

    @property
    def empty(self) -> bool:
        """Return whether a function is given x alone."""
        return self.context.spec is None

    def rebuild(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the arguments together again."""
        if self.context.spec is None:
            return (), {}
        leaves = list(self.context.leaves)
        for index, tensor in zip(self.context.indices, self.tensors, strict=True):
            leaves[index] = tensor
        args, kwargs = tree_unflatten(leaves, self.context.spec)
        return args, kwargs

    def differentiable(self) -> tuple[Tensor, ...]:
        """The tensors that require a gradient."""
        if not self.tensors:
            return ()
        return tuple(one for one, wanted in zip(self.tensors, self.context.wanted, strict=True) if wanted)

    def replaced(self, others: Sequence[Tensor]) -> Self:
        """The arguments with `others` in place of the tensors that require a gradient."""
        if not others:
            return self
        following = iter(others)
        tensors = (next(following) if wanted else one for one, wanted in zip(self.tensors, self.context.wanted, strict=True))
        return self._replace(tensors=tuple(tensors))
