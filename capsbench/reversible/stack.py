"""A momentum stack: residual functions with one velocity through all of them, reversible as a whole.

Knows no capsules: any modules whose output has the shape of their input will do.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler (1 s) for it

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.reversible.drift import LIPSCHITZ, has_values
from capsbench.reversible.evaluate import evaluate, value_and_vjp
from capsbench.reversible.momentum import Gamma, check_gamma, check_learnable, gradient_of_gamma, spread, step
from capsbench.reversible.pair import Pair, check_inverse, resolve_inverse, start_pair
from capsbench.reversible.replay import Autocast, Buffers, Modes, RandomState
from capsbench.reversible.strategies import REVERSIBLE_STRATEGIES, Step, check_strategy, run_steps

_T = TypeVar("_T")


class MomentumStack(nn.Module):
    """Applies `v ← γv + (1−γ)f(x); x ← x + v` for each function in turn, v starting at 0, and returns the last x.

    Source: Momentum Capsule Networks, algorithm 1 (forward) and 2 (backward); Sander et al. 2021.

    Args:
        functions: modules with `f(x).shape == x.shape`.
        gamma: the momentum term γ, or one for each block of `segment` functions.
        memory: `reversible` keeps the last (x, v) and rebuilds the others in backward; `reversible-kept` also what functions
            offer to keep (`evaluate`); `stored`, `checkpoint`, `checkpoint-sqrt` and `offload` run under plain autograd. In
            `eval()`, without gradients and inside `torch.func` transforms all are a plain loop.
        inverse: how a reversible stack inverts (`pair`): `float`, which drifts with depth; `segmented`, which keeps (x, v) now
            and then; `exact`, in fixed point; or `auto`, which is `float` as long as that is safe. A drift past
            `DRIFT_BOUND` gives a `DriftWarning`: `segmented` compares all that it rebuilds with what it kept, the others the v
            that they come back to with 0, which sees a large drift alone. Where γ differs, the smallest says how far is safe.
        segment: how many functions make a block (the last may have fewer): they share a γ; `checkpoint` evaluates a block
            again together, `checkpoint-sqrt` ⌈√n⌉ blocks.
        lipschitz: assumed of the functions, where `segmented` and `auto` judge how far a float inverse may go.
        learn_gamma: makes each block's γ a parameter: the sigmoid of `gamma_logits` `[blocks]`, which starts at `gamma`. A
            reversible stack finds its gradient on the way back. Not with `exact`, whose γ is a ratio of small integers.

    Attributes:
        gamma: as given: where γ is learnt, what it started from. `gammas()` says what it is.

    Raises:
        ConfigurationError: γ out of range or 0 with a reversible strategy, not one for each block, or not to be learnt; or an
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
            raise ConfigurationError(f"segment {segment} is out of range", "a segment has at least 1 function")
        if not lipschitz >= 0:
            raise ConfigurationError(f"lipschitz {lipschitz} is out of range", "a Lipschitz constant is 0 or more")
        check_inverse(inverse, gamma, learnt=learn_gamma)
        self.functions = nn.ModuleList(functions)
        self.gamma = tuple(gamma) if isinstance(gamma, Sequence) else gamma
        self.memory = memory
        self.inverse = inverse
        self.segment = segment
        self.lipschitz = lipschitz
        of_blocks = self._fixed_gammas()
        self.register_parameter("gamma_logits", _logits(of_blocks) if learn_gamma and of_blocks else None)

    def resolved_inverse(self, dtype: torch.dtype = torch.float32) -> str:
        """What `auto` is here for an x of that dtype; see `resolve_inverse`."""
        return self._resolve(self.gammas(), dtype)

    def gammas(self) -> list[float]:
        """γ of each function as it is now.

        Raises:
            ConfigurationError: a learnt γ is no number any more, or 0 where the rule has to be inverted.
        """
        # A step may be traced on shapes alone.
        if self.gamma_logits is None or not has_values(self.gamma_logits):
            return self._of_functions(self._fixed_gammas())
        learnt: list[float] = _sigmoid(self.gamma_logits.detach()).tolist()
        check_gamma(learnt, invertible=self.memory in REVERSIBLE_STRATEGIES)
        return self._of_functions(learnt)

    def extra_repr(self) -> str:
        """Shown by `print(stack)`."""
        learnt = "" if self.gamma_logits is None else ", learn_gamma=True"
        return f"gamma={self.gamma}, memory={self.memory!r}, inverse={self.inverse!r}{learnt}"

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape → the same shape; x and v stay in float32 or wider.

        Raises:
            ShapeError: a function changed the shape.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.functions:
            return x
        # Transforms of torch.func take neither such a function nor hooks on saved tensors.
        transformed = torch._C._are_functorch_transforms_active()
        plain = transformed or not (self.training and torch.is_grad_enabled())
        reversible = self.memory in REVERSIBLE_STRATEGIES
        if reversible and not plain:
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return _run_reversible(self, x, parameters)
        memory = "stored" if plain or reversible else self.memory
        logits = self.gamma_logits
        gammas: Sequence[float | Tensor] = self.gammas() if logits is None else self._of_functions(_sigmoid(logits).unbind())
        steps = [self._step(function, gamma) for function, gamma in zip(self.functions, gammas, strict=True)]
        return run_steps(steps, (x, torch.zeros_like(x)), memory, segment=self.segment, modules=list(self.functions))[0]

    def _step(self, function: nn.Module, gamma: float | Tensor) -> Step:
        def advance(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return step(x, v, _checked(function(x), x), gamma)

        return advance

    def _resolve(self, gammas: Sequence[float], dtype: torch.dtype) -> str:
        learnt = self.gamma_logits is not None
        return resolve_inverse(self.inverse, len(gammas), gammas, lipschitz=self.lipschitz, dtype=dtype, learnt=learnt)

    def _fixed_gammas(self) -> tuple[float, ...]:
        """γ of each block, as given; functions may have come since."""
        return spread(self.gamma, math.ceil(len(self.functions) / self.segment), "block")

    def _of_functions(self, of_blocks: Sequence[_T]) -> list[_T]:
        """What each block has, for each of its functions."""
        return [one for one in of_blocks for _ in range(self.segment)][: len(self.functions)]


# The compiler fuses a function differently with and without a graph, and backward would not meet forward's bits again.
@_disable_dynamo
def _run_reversible(stack: MomentumStack, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    output: Tensor = _Reversible.apply(stack, x, *parameters)
    return output


class _Layer(NamedTuple):
    """What backward must know of one function's evaluation, besides saved tensors."""

    function: nn.Module
    gamma: float
    random_state: RandomState | None
    """Before it, where it drew. A state takes 5 KiB on a CPU."""
    buffers: Buffers | None
    """Before it, where it wrote into them."""
    kept: int
    """How many tensors it keeps."""


class _Reversible(torch.autograd.Function):
    """Algorithm 1 without a graph, and algorithm 2. Parameters come as inputs, so that their gradients can be returned."""

    @staticmethod
    def forward(ctx: Any, stack: MomentumStack, x: Tensor, *parameters: Tensor) -> Tensor:
        # Gradients find their parameter by identity, which hooks on saved tensors do not keep.
        ctx.stack, ctx.parameters = stack, parameters
        ctx.autocast, ctx.modes = Autocast.capture(x.device), Modes.capture(stack)
        every = tuple(stack.parameters())
        ctx.owned = {id(parameter) for parameter in every}
        gammas = stack.gammas()
        pair, gammas = start_pair(stack._resolve(gammas, x.dtype), x, gammas, stack.lipschitz)
        keeping = stack.memory == "reversible-kept"
        with ctx.autocast.restore():
            ctx.layers, kept = _advance(pair, stack.functions, gammas, keeping)
        output = pair.x
        tensors, ctx.rebuild = pair.saved()
        ctx.of_pair = len(tensors)
        # Parameters, frozen ones too, so that torch refuses a backward after they were changed in place.
        ctx.save_for_backward(*tensors, *kept, *every)
        return output

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Later it would be too late: gradients without a graph drop out of a larger sum in silence.
            raise RuntimeError(
                "a reversible MomentumStack cannot be differentiated twice (create_graph=True); use memory='stored' there"
            )
        stack: MomentumStack = ctx.stack
        saved = ctx.saved_tensors
        pair, kept = ctx.rebuild(saved[: ctx.of_pair]), list(saved[ctx.of_pair : len(saved) - len(ctx.owned)])
        del saved
        if {id(parameter) for parameter in stack.parameters()} != ctx.owned:
            # torch.func.functional_call puts its own parameters in place for the call alone.
            raise RuntimeError(
                "the parameters of a reversible MomentumStack were replaced between forward and backward; "
                "use memory='stored' there"
            )
        grads = _Gradients(ctx.parameters)
        logits = stack.gamma_logits
        of_gammas: list[Tensor] | None = None if logits is None or not logits.requires_grad else []
        outside = RandomState.capture(grad_x.device)
        try:
            with ctx.modes.restore():
                grad_x = _retreat(pair, ctx.layers, kept, grad_x, grads, of_gammas, ctx.autocast)
        finally:
            outside.restore()
        pair.finish()
        if logits is not None and of_gammas is not None:
            grads.add([logits], [_gradient_of_logits(logits, of_gammas, stack.segment)])
        return None, grad_x if ctx.needs_input_grad[1] else None, *grads.found


class _Gradients:
    """Sums of the gradients of parameters, some of which several functions share."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._place = {id(parameter): index for index, parameter in enumerate(parameters)}
        self.found: list[Tensor | None] = [None] * len(parameters)

    def add(self, parameters: Iterable[Tensor], grads: Iterable[Tensor | None]) -> None:
        """Adds the gradients of one function."""
        for parameter, grad in zip(parameters, grads, strict=True):
            index = self._place.get(id(parameter))
            if index is None or grad is None:
                continue
            known = self.found[index]
            self.found[index] = grad if known is None else known + grad


def _logits(gammas: Sequence[float]) -> nn.Parameter:
    """What a sigmoid takes to these, rounded once."""
    check_learnable(gammas)
    return nn.Parameter(torch.tensor(gammas, dtype=torch.float64).logit().to(torch.get_default_dtype()))


def _sigmoid(logits: Tensor) -> Tensor:
    """γ of each block, in at least float32: one and the same under every strategy."""
    return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _gradient_of_logits(logits: Tensor, of_gammas: Sequence[Tensor], segment: int) -> Tensor:
    """The gradient of `gamma_logits`, from those of each function's γ, the last function first."""
    gammas = _sigmoid(logits.detach())
    of_functions = torch.stack(list(reversed(of_gammas)))
    of_blocks = torch.stack([part.sum() for part in of_functions.split(segment)])
    return (of_blocks * gammas * (1 - gammas)).to(logits.dtype)


def _advance(
    pair: Pair, functions: Iterable[nn.Module], gammas: Iterable[float], keeping: bool
) -> tuple[list[_Layer], list[Tensor]]:
    """Takes the pair through all functions; what is needed to come back, and the tensors that functions keep."""
    layers: list[_Layer] = []
    kept: list[Tensor] = []
    x = pair.x
    before = RandomState.capture(x.device)
    for function, gamma in zip(functions, gammas, strict=True):
        buffers = Buffers.capture(function)
        value, of_function = evaluate(function, x, keeping=keeping)
        pair.advance(_checked(value, x), gamma)
        x = pair.x
        after = RandomState.capture(x.device)
        drew, wrote = not after.same_as(before), buffers.changed()
        layers.append(_Layer(function, gamma, before if drew else None, buffers if wrote else None, len(of_function)))
        kept += of_function
        before = after
    return layers, kept


def _retreat(
    pair: Pair,
    layers: Sequence[_Layer],
    kept: list[Tensor],
    grad_x: Tensor,
    grads: _Gradients,
    of_gammas: list[Tensor] | None,
    autocast: Autocast,
) -> Tensor:
    """Takes the pair back through all functions (algorithm 2); the gradient of the first x.

    `kept` is used up; `of_gammas`, where it is asked for, takes the gradient of each γ, the last function's first.
    """
    grad_v, later_gamma = torch.zeros_like(grad_x), 0.0
    for function, gamma, random_state, buffers, count in reversed(layers):
        pair.retreat_x()
        if random_state is not None:
            random_state.restore()
        grad_v, later_gamma = torch.add(grad_x, grad_v, alpha=later_gamma), gamma
        of_function = tuple(kept[len(kept) - count :])
        del kept[len(kept) - count :]
        value, grad_input, of_parameters = value_and_vjp(
            function, pair.x, (1 - gamma) * grad_v, kept=of_function, autocast=autocast, buffers=buffers
        )
        pair.retreat_v(value, gamma)
        if of_gammas is not None:
            of_gammas.append(gradient_of_gamma(grad_v, pair.v, value))
        if grad_input is not None:
            grad_x = grad_x + grad_input
        grads.add(function.parameters(), of_parameters)
    return grad_x


def _checked(value: Tensor, x: Tensor) -> Tensor:
    if value.shape != x.shape:
        raise ShapeError(
            f"a residual function turned {list(x.shape)} into {list(value.shape)}", "its output must have its input's shape"
        )
    return value
