"""The momentum rule and its inverse (Sander et al. 2021; Momentum Capsule Networks, algorithms 1 and 2).

    forward   v ← γ·v + (1 − γ)·f(x)        x ← x + v
    inverse   x ← x − v                     v ← (v − (1 − γ)·f(x)) / γ

γ = 0 is the plain residual network, which has no inverse; γ = 1 never moves v.
"""

from torch import Tensor

from capsbench.errors import ConfigurationError


def step(x: Tensor, v: Tensor, value: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """One step forward, with `value` = f(x); all of one shape. Returns the next (x, v), in the dtype of `x`."""
    v = gamma * v + (1 - gamma) * value.to(x.dtype)
    return x + v, v


def previous_velocity(v: Tensor, value: Tensor, gamma: float) -> Tensor:
    """The velocity before the step, from the one after it and `value` = f(x) at the x before it."""
    return (v - (1 - gamma) * value.to(v.dtype)) / gamma


def check_gamma(gamma: float, *, invertible: bool) -> None:
    """Refuses a γ outside [0, 1], and γ = 0 where the rule has to be inverted.

    Raises:
        ConfigurationError: γ is out of range.
    """
    if not 0 <= gamma <= 1:
        raise ConfigurationError(f"gamma {gamma} is out of range", "the momentum term lies between 0 and 1 (paper: 0.9)")
    if invertible and gamma == 0:
        raise ConfigurationError(
            "gamma 0 cannot be reversible: the rule's inverse divides by gamma",
            "choose gamma above 0, or a memory strategy that is not reversible",
        )
