"""A momentum stack: residual functions with one velocity through all of them, reversible as a whole.

Knows no capsules: any modules whose output has the shape of their input will do.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.reversible.momentum import check_gamma, previous_velocity, step
from capsbench.reversible.replay import Autocast, Buffers, Modes, RandomState
from capsbench.reversible.strategies import Step, check_strategy, run_steps

INVERSES = ("auto", "float")
"""How a reversible stack inverts itself; `auto` is `float`."""


class MomentumStack(nn.Module):
    """Applies `v ← γv + (1−γ)f(x); x ← x + v` for each function in turn, v starting at 0, and returns the last x.

    Source: Momentum Capsule Networks, algorithm 1 (forward) and 2 (backward); Sander et al. 2021.

    Args:
        functions: modules with `f(x).shape == x.shape`.
        gamma: the momentum term γ.
        memory: `reversible` keeps the last (x, v) and rebuilds the others in backward; `stored`, `checkpoint` and
            `offload` run under plain autograd. In `eval()` and without gradients all four are a plain loop.
        inverse: how `reversible` inverts: `float`, or `auto`. A float inverse drifts as γ^-depth and with the size of
            the weights; at γ = 0.9 and weights N(0, 0.01²) the relative error of gradients is 1e-7 at 80 functions, 8e-5 at 160.
        segment: with `checkpoint`, how many functions are evaluated again together.

    Raises:
        ConfigurationError: γ out of range or 0 with `reversible`, or an unknown strategy or inverse.
    """

    def __init__(
        self,
        functions: Iterable[nn.Module],
        gamma: float = 0.9,
        memory: str = "reversible",
        inverse: str = "auto",
        *,
        segment: int = 1,
    ) -> None:
        super().__init__()
        check_strategy(memory)
        check_gamma(gamma, invertible=memory == "reversible")
        if segment < 1:
            raise ConfigurationError(f"segment {segment} is out of range", "a segment has at least 1 function")
        if inverse not in INVERSES:
            raise ConfigurationError(f"inverse '{inverse}' is not known", f"choose one of {', '.join(INVERSES)}")
        self.functions = nn.ModuleList(functions)
        self.gamma = gamma
        self.memory = memory
        self.inverse = inverse
        self.segment = segment

    def extra_repr(self) -> str:
        """Shown by `print(stack)`."""
        return f"gamma={self.gamma}, memory={self.memory!r}, inverse={self.inverse!r}"

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape → the same shape; x and v stay in float32 or wider.

        Raises:
            ShapeError: a function changed the shape.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.functions:
            return x
        plain = not (self.training and torch.is_grad_enabled())
        if self.memory == "reversible" and not plain:
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            output: Tensor = _Reversible.apply(self, x, *parameters)
            return output
        memory = "stored" if plain or self.memory == "reversible" else self.memory
        steps = [self._step(function) for function in self.functions]
        return run_steps(steps, (x, torch.zeros_like(x)), memory, segment=self.segment)[0]

    def _step(self, function: nn.Module) -> Step:
        def advance(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return step(x, v, _checked(function(x), x), self.gamma)

        return advance


class _Reversible(torch.autograd.Function):
    """Algorithm 1 without a graph, and algorithm 2. Parameters come as inputs, so that their gradients can be returned."""

    @staticmethod
    def forward(ctx: Any, stack: MomentumStack, x: Tensor, *parameters: Tensor) -> Tensor:
        # Gradients find their parameter by identity, which hooks on saved tensors do not keep.
        ctx.stack, ctx.parameters = stack, parameters
        ctx.autocast, ctx.modes = Autocast.capture(x.device), Modes.capture(stack)
        ctx.random_states, ctx.buffers, ctx.owned = [], [], {id(parameter) for parameter in stack.parameters()}
        v = torch.zeros_like(x)
        before = RandomState.capture(x.device)
        with ctx.autocast.restore():
            for function in stack.functions:
                buffers = Buffers.capture(function)
                x, v = step(x, v, _checked(function(x), x), stack.gamma)
                ctx.buffers.append(buffers if buffers.changed(function) else None)
                after = RandomState.capture(x.device)
                # A state takes 5 KiB on a CPU: kept only by functions that draw.
                ctx.random_states.append(None if after.same_as(before) else before)
                before = after
        # Parameters, frozen ones too, so that torch refuses a backward after they were changed in place.
        ctx.save_for_backward(x, v, *stack.parameters())
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        stack: MomentumStack = ctx.stack
        x, v, *_ = ctx.saved_tensors
        if {id(parameter) for parameter in stack.parameters()} != ctx.owned:
            # torch.func.functional_call puts its own parameters in place for the call alone.
            raise RuntimeError(
                "the parameters of a reversible MomentumStack were replaced between forward and backward; "
                "use memory='stored' there"
            )
        place = {id(parameter): index for index, parameter in enumerate(ctx.parameters)}
        grads: list[Tensor | None] = [None] * len(place)
        grad_v = torch.zeros_like(grad_x)
        outside = RandomState.capture(x.device)
        try:
            with ctx.modes.restore():
                layers = zip(stack.functions, ctx.random_states, ctx.buffers, strict=True)
                for function, random_state, buffers in reversed(list(layers)):
                    x = x - v
                    if random_state is not None:
                        random_state.restore()
                    used = [parameter for parameter in function.parameters() if id(parameter) in place]
                    grad_v = grad_v + grad_x
                    replay = partial((buffers or Buffers.capture(function)).replay, function)
                    value, grad_input, grad_used = _value_and_vjp(replay, x, used, (1 - stack.gamma) * grad_v, ctx.autocast)
                    v = previous_velocity(v, value, stack.gamma)
                    if grad_input is not None:
                        grad_x = grad_x + grad_input
                    grad_v = stack.gamma * grad_v
                    for parameter, grad in zip(used, grad_used, strict=True):
                        index = place[id(parameter)]
                        known = grads[index]
                        grads[index] = grad if known is None or grad is None else known + grad
        finally:
            outside.restore()
        return None, grad_x if ctx.needs_input_grad[1] else None, *grads


def _value_and_vjp(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], grad: Tensor, autocast: Autocast
) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
    """f(x) without a graph, and the gradients of `(f(x) * grad).sum()` for x and the parameters; one evaluation of f."""
    # The evaluation alone runs as in forward: backward products choose their own precision, as always in torch.
    with torch.enable_grad(), autocast.restore():
        leaf = x.detach().requires_grad_()
        value = function(leaf)
    if not value.requires_grad:
        return value, None, (None,) * len(parameters)
    grad_input, *grad_parameters = torch.autograd.grad(value, [leaf, *parameters], grad.to(value.dtype), allow_unused=True)
    return value.detach(), grad_input, tuple(grad_parameters)


def _checked(value: Tensor, x: Tensor) -> Tensor:
    if value.shape != x.shape:
        raise ShapeError(
            f"a residual function turned {list(x.shape)} into {list(value.shape)}", "its output must have its input's shape"
        )
    return value
