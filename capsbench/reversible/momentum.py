"""The momentum rule and its inverse (Sander et al. 2021; Momentum Capsule Networks, algorithms 1 and 2).

    forward   v ← γ·v + (1 − γ)·f(x)        x ← x + v
    inverse   x ← x − v                     v ← (v − (1 − γ)·f(x)) / γ
    of γ      ∂L/∂γ = ⟨∂L/∂v, v − f(x)⟩, with the v that entered the step and the gradient of the v that left it

γ = 0 is the plain residual network, which has no inverse; γ → 1 tends to RevNet, as f is scaled down; γ = 1 never moves v.
Each function may have a γ of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError
from capsbench.reversible import passes

Gamma = float | Sequence[float]
"""One momentum term for all functions, or one for each."""


def step(x: Tensor, v: Tensor, value: Tensor, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Take one step forward with `value` = f(x), all of one shape; return the next (x, v) in the dtype of `x`."""
    v = torch.lerp(value.to(x.dtype), v, gamma.to(x.dtype) if isinstance(gamma, Tensor) else gamma)
    return x + v, v


def previous_velocity(v: Tensor, value: Tensor, gamma: float) -> Tensor:
    """The velocity before the step, from the one after it and `value` = f(x) at the x before it."""
    # f(x) + (v − f(x))/γ is equal, and takes one walk over memory.
    return torch.lerp(value.to(v.dtype), v, 1 / gamma)


def sigmoid(logits: Tensor) -> Tensor:
    """Values of γ of each block, in at least float32, and equal under every strategy."""
    return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def gradients_before(
    of_x: Tensor, of_v: Tensor, of_input: Tensor | None, gamma: float, earlier: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients on the way back past a function, and that of the value of the function before it.

    Args:
        of_x: gradient of the x that left the function.
        of_v: gradient of the v that left it, with the part that reached v by way of x.
        of_input: gradient of its input, through its value alone; None if it has none.
        gamma: γ of the function.
        earlier: γ of the function before it.

    Returns:
        The gradients of the x and of the v that entered the function, as `of_x` and `of_v`, and (1 − `earlier`) times the latter.
    """
    if of_input is not None:
        if passes.takes_gradients(of_x, of_v, of_input):
            return passes.gradients_before(of_x, of_v, of_input, gamma, earlier)
        of_x = of_x + of_input
    of_v = torch.add(of_x, of_v, alpha=gamma)
    return of_x, of_v, of_v * (1 - earlier)


def gradient_of_gamma(grad_v: Tensor, v: Tensor, value: Tensor) -> Tensor:
    """∂L/∂γ of one step, a scalar, from the gradient of the v that left it, the v that entered it and `value` = f(x)."""
    return (grad_v * (v - value.to(v.dtype))).sum()


def each(gamma: Gamma) -> Sequence[float]:
    """Every γ that may differ between functions, or the only one."""
    return gamma if isinstance(gamma, Sequence) else (gamma,)


def check_gamma(gamma: Gamma, *, invertible: bool) -> None:
    """Refuse a γ outside [0, 1], and γ = 0 where the rule has to be inverted.

    Raises:
        ConfigurationError: γ is out of range.
    """
    for one in each(gamma):
        if not 0 <= one <= 1:
            raise ConfigurationError(f"`gamma` {one} is out of range", "the momentum term lies between 0 and 1 (paper: 0.9)")
        if invertible and one == 0:
            raise ConfigurationError(
                "`gamma` 0 cannot be reversible: the rule's inverse divides by it",
                "choose `gamma` above 0, or a memory strategy that is not reversible",
            )


def check_learnable(gamma: Gamma) -> None:
    """Refuse a γ that a sigmoid does not reach.

    Raises:
        ConfigurationError: γ is 0 or 1.
    """
    for one in each(gamma):
        if not 0 < one < 1:
            raise ConfigurationError(
                f"`gamma` {one} cannot be learnt: a sigmoid reaches neither 0 nor 1",
                "start from a `gamma` between them, such as 0.9",
            )


def spread(gamma: Gamma, count: int, of: str = "function") -> tuple[float, ...]:
    """Expand γ to one value for each of `count` functions or blocks.

    Raises:
        ConfigurationError: there are more or fewer values.
    """
    if not isinstance(gamma, Sequence):
        return (gamma,) * count
    if len(gamma) != count:
        raise ConfigurationError(
            f"`gamma` has {len(gamma)} values for {count} {of}s", f"give one number for all, or one for each {of}"
        )
    return tuple(gamma)
