"""A momentum stack: residual functions with one velocity through all of them, reversible as a whole.

It knows no capsules: any modules fit whose output has the shape of their input.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler (1 s) for it
from torch.nn.parameter import is_lazy

from capsbench.errors import ConfigurationError
from capsbench.exporting import is_exporting
from capsbench.reversible.context import Arguments
from capsbench.reversible.drift import LIPSCHITZ, has_values
from capsbench.reversible.evaluate import Caller, parameters_of
from capsbench.reversible.momentum import Gamma, check_gamma, check_learnable, sigmoid, spread, step
from capsbench.reversible.pair import check_inverse, resolve_inverse
from capsbench.reversible.reversal import run_reversible
from capsbench.reversible.strategies import PLAIN_STRATEGIES, REVERSIBLE_STRATEGIES, State, Step, check_strategy, run_steps

_T = TypeVar("_T")


class MomentumStack(nn.Module):
    """A module that applies `v ← γv + (1−γ)f(x); x ← x + v` for each function in turn, from v = 0, and returns the last x.

    Source: Momentum Capsule Networks, algorithm 1 (forward) and 2 (backward); Sander et al. 2021.

    Args:
        functions: modules with `f(x).shape == x.shape`.
        gamma: the momentum term γ, or one for each block of `segment` functions.
        memory: `reversible` keeps the last (x, v) and rebuilds the others in backward; `reversible-kept` also what functions
            offer (`evaluate`); `stored`, `checkpoint`, `checkpoint-sqrt` and `offload` run under plain autograd.
            Without gradients, inside `torch.func` transforms and in `torch.export` all are a plain loop; `eval()` does not
            change this.
        inverse: inverse of a reversible stack (`pair`): `float`, which drifts with depth; `segmented`, which keeps (x, v) now
            and then; `exact`, in fixed point; or `auto`, which is `float` as long as that is safe, then `exact`, and `segmented`
            from the first step in which a value leaves the range of `exact` (which is logged once). A drift past
            `DRIFT_BOUND` gives a `DriftWarning`: `segmented` compares rebuilt values with kept ones, the others compare the v
            at the start with 0, which shows only a large drift. If γ differs, the smallest sets the safe depth.
        segment: number of functions in a block (the last may have fewer), which share a γ; `checkpoint` evaluates a block
            again together, `checkpoint-sqrt` ⌈√n⌉ blocks.
        lipschitz: constant that the functions are assumed to have, by which `segmented` and `auto` limit a float inverse.
        learn_gamma: make each block's γ a parameter: the sigmoid of `gamma_logits` `[blocks]`, which starts at `gamma`. A
            reversible stack finds its gradient on the way back. Not possible with `exact`, whose γ is a ratio of small integers.

    Attributes:
        gamma: the given values, from which a learnt γ starts. `gammas()` returns the present ones.

    Raises:
        ConfigurationError: γ is out of range, 0 with a reversible strategy, not one for each block, or cannot be learnt; or an
            unknown strategy or inverse.
    """

    gamma_logits: nn.Parameter | None

    def __init__(
        self,
        functions: Iterable[nn.Module],
        gamma: Gamma = 0.9,
        memory: str = "reversible",
        inverse: str = "auto",
        *,
        segment: int = 1,
        lipschitz: float = LIPSCHITZ,
        learn_gamma: bool = False,
    ) -> None:
        super().__init__()
        check_strategy(memory)
        check_gamma(gamma, invertible=memory in REVERSIBLE_STRATEGIES)
        if segment < 1:
            raise ConfigurationError(f"`segment` {segment} is out of range", "a segment has at least 1 function")
        if not lipschitz >= 0:
            raise ConfigurationError(f"`lipschitz` {lipschitz} is out of range", "a Lipschitz constant is 0 or more")
        check_inverse(inverse, gamma, learnt=learn_gamma)
        self.functions = nn.ModuleList(functions)
        self.gamma = tuple(gamma) if isinstance(gamma, Sequence) else gamma
        self.memory = memory
        self.inverse = inverse
        self.segment = segment
        self.lipschitz = lipschitz
        of_blocks = self._fixed_gammas()
        self.draws_elsewhere = False
        """True once a function was seen to draw from generators other than torch's own, whose states are then kept."""
        self.left_range = False
        """True once a value was too large for the exact inverse, which `auto` then stands for no longer."""
        self.register_parameter("gamma_logits", _logits(of_blocks) if learn_gamma and of_blocks else None)

    def resolved_inverse(self, dtype: torch.dtype = torch.float32) -> str:
        """Resolve `auto` for an x of that dtype (`resolve_inverse`)."""
        gammas, learnt = self.gammas(), self.gamma_logits is not None
        found = resolve_inverse(self.inverse, len(gammas), gammas, lipschitz=self.lipschitz, dtype=dtype, learnt=learnt)
        return "segmented" if found == "exact" and self.inverse == "auto" and self.left_range else found

    def gammas(self) -> list[float]:
        """Present γ of each function.

        Raises:
            ConfigurationError: a learnt γ has become NaN, or 0 although the rule has to be inverted.
        """
        # A step that is traced on shapes alone has no values.
        if self.gamma_logits is None or not has_values(self.gamma_logits):
            return self._of_functions(self._fixed_gammas())
        learnt: list[float] = sigmoid(self.gamma_logits.detach()).tolist()
        check_gamma(learnt, invertible=self.memory in REVERSIBLE_STRATEGIES)
        return self._of_functions(learnt)

    def extra_repr(self) -> str:
        """Text that `print(stack)` shows."""
        learnt = "" if self.gamma_logits is None else ", learn_gamma=True"
        return f"gamma={self.gamma}, memory={self.memory!r}, inverse={self.inverse!r}{learnt}"

    def forward(self, x: Tensor, *context: Any, **named: Any) -> "Tensor | StackOutput":
        """Return the last x, or a `StackOutput` if a function returns more than its value.

        Args:
            x: any shape. x and v stay in float32 or wider; a function whose parameters are all of one half precision gets x
                in that precision.
            context: arguments of every function after x, as the named ones. Gradients of tensors in them are returned; others
                that reach a function must not require one.
            named: arguments by name.

        Returns:
            The shape of x, in at least float32.

        Raises:
            ShapeError: a function changed the shape.
            ConfigurationError: a function changed its input in place, or did not return tensors. With a reversible strategy
                also if x is complex, a parameter has no values yet, or a tensor with a gradient reaches or leaves a function
                by another way.
        """
        if not torch.compiler.is_compiling() and x.is_inference():
            # Tensors of inference mode have no version counter, which shows that a function changes its input.
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(x.clone(), *context, **named)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.functions:
            return x
        arguments = Arguments.take(context, named)
        # Transforms of torch.func accept neither such a function nor hooks on saved tensors. Exported programs hold operators.
        plain = torch._C._are_functorch_transforms_active() or is_exporting() or not torch.is_grad_enabled()
        if self.memory not in REVERSIBLE_STRATEGIES or plain:
            memory = self.memory if not plain and self.memory in PLAIN_STRATEGIES else "stored"
            return self._run_plain(memory, x, arguments)
        return _run_reversible(self, x, arguments)

    def _run_plain(self, memory: str, x: Tensor, arguments: Arguments) -> "Tensor | StackOutput":
        logits = self.gamma_logits
        gammas: Sequence[float | Tensor] = self.gammas() if logits is None else self._of_functions(sigmoid(logits).unbind())
        counts = [0] * len(self.functions)

        def step_of(caller: Caller, gamma: float | Tensor) -> Step:
            def advance(x: Tensor, v: Tensor, *extras: Tensor) -> State:
                value, more = caller(x, arguments)
                counts[caller.index] = len(more)
                return *step(x, v, value, gamma), *extras, *more

            return advance

        steps = [step_of(caller, gamma) for caller, gamma in zip(self.callers(), gammas, strict=True)]
        state = (x, torch.zeros_like(x))
        x, _, *extras = run_steps(steps, state, memory, segment=self.segment, modules=list(self.functions))
        return _collected(x, extras, counts)

    def callers(self) -> list[Caller]:
        """The functions, each with its index."""
        return [Caller(function, index) for index, function in enumerate(self.functions)]

    def _fixed_gammas(self) -> tuple[float, ...]:
        """Values of γ of each block as given; functions may have been added since."""
        return spread(self.gamma, math.ceil(len(self.functions) / self.segment), "block")

    def _of_functions(self, of_blocks: Sequence[_T]) -> list[_T]:
        """Expand values of blocks to one for each of their functions."""
        return [one for one in of_blocks for _ in range(self.segment)][: len(self.functions)]


class StackOutput(NamedTuple):
    """The output of a stack whose functions return more than their value."""

    x: Tensor
    """The last x."""
    extras: tuple[tuple[Tensor, ...], ...]
    """Tensors that each function returned in addition to its value."""


def _collected(x: Tensor, extras: Sequence[Tensor], counts: Sequence[int]) -> Tensor | StackOutput:
    """The output of a stack, from all extras in a row and the number of them for each function."""
    if not extras:
        return x
    following = iter(extras)
    return StackOutput(x, tuple(tuple(islice(following, count)) for count in counts))


# The compiler fuses a function differently with and without a graph, so that backward would not have forward's bits.
@_disable_dynamo
def _run_reversible(stack: MomentumStack, x: Tensor, arguments: Arguments) -> Tensor | StackOutput:
    if x.is_complex():
        raise ConfigurationError(f"x is {x.dtype}, which a reversible stack cannot invert", "use `memory` stored there")
    every = parameters_of(stack)
    if any(map(is_lazy, every)):
        empty = next(name for name, one in stack.named_parameters() if is_lazy(one))
        raise ConfigurationError(
            f"the parameter {empty} of a reversible stack has no values yet: its module is lazy",
            "call the stack once under torch.no_grad() first",
        )
    return _collected(*run_reversible(stack, x, arguments, tuple(every)))


def _logits(gammas: Sequence[float]) -> nn.Parameter:
    """Arguments with which a sigmoid gives these values, rounded once."""
    check_learnable(gammas)
    return nn.Parameter(torch.tensor(gammas, dtype=torch.float64).logit().to(torch.get_default_dtype()))
