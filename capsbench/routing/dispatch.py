"""`route`: checks what it is given, picks the kernel, keeps routing in at least float32."""

from collections.abc import Callable

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.routing import published, recompute, reference

Router = Callable[[Tensor, Tensor, int], Tensor]

KERNELS: dict[str, dict[str, Router]] = {
    "rba": {"reference": reference.rba, "published": published.rba, "recompute": recompute.rba},
}
"""Every routing algorithm, and for each the kernels that compute it."""


def algorithms() -> tuple[str, ...]:
    """The names that `algorithm=` takes."""
    return tuple(KERNELS)


def kernels(algorithm: str = "rba") -> tuple[str, ...]:
    """The names that `kernel=` takes for this algorithm, besides `auto`.

    Raises:
        ConfigurationError: there is no such algorithm.
    """
    if algorithm not in KERNELS:
        raise ConfigurationError(f"routing '{algorithm}' is not known", f"choose one of {', '.join(KERNELS)}")
    return tuple(KERNELS[algorithm])


def resolve_kernel(kernel: str, algorithm: str = "rba") -> str:
    """The kernel that `kernel` names, with `auto` replaced by the one it stands for.

    Raises:
        ConfigurationError: there is no such algorithm or kernel.
    """
    known = kernels(algorithm)
    if kernel == "auto":
        return "recompute"
    if kernel not in known:
        raise ConfigurationError(
            f"kernel '{kernel}' is not known for routing '{algorithm}'", f"choose one of auto, {', '.join(known)}"
        )
    return kernel


def check_routing(algorithm: str, kernel: str, iterations: int) -> None:
    """Refuses names and counts that `route` could not serve.

    Raises:
        ConfigurationError: an unknown algorithm or kernel, or fewer than one iteration.
    """
    resolve_kernel(kernel, algorithm)
    if iterations < 1:
        raise ConfigurationError(f"iterations {iterations} is out of range", "routing needs at least 1 iteration")


def route(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    algorithm: str = "rba",
    iterations: int = 3,
    kernel: str = "auto",
) -> Tensor:
    """Routes input capsules to output capsules.

    Args:
        inputs: capsules `[B, I, K]`.
        weight: transformations `[I, K, J, D]`.
        bias: for algorithms that have one; `rba` has none.
        algorithm: `rba`, routing by agreement (Sabour et al. 2017, procedure 1).
        iterations: rounds of routing.
        kernel: how it is computed: `reference`, `published`, `recompute`, or `auto`.

    Returns:
        Output capsules `[B, J, D]`; float32 where the inputs are half precision, and under autocast.

    Raises:
        ShapeError: inputs and weight do not fit together.
        ConfigurationError: an unknown name, or fewer than one iteration.
    """
    check_routing(algorithm, kernel, iterations)
    _check_shapes(inputs, weight, bias, algorithm)
    router = KERNELS[algorithm][resolve_kernel(kernel, algorithm)]
    dtype = torch.promote_types(torch.promote_types(inputs.dtype, weight.dtype), torch.float32)
    # Agreement over many tiny votes: half precision would lose them, whatever autocast prefers for products.
    with torch.autocast(inputs.device.type, enabled=False):
        return router(inputs.to(dtype), weight.to(dtype), iterations)


def _check_shapes(inputs: Tensor, weight: Tensor, bias: Tensor | None, algorithm: str) -> None:
    shapes = f"inputs {list(inputs.shape)} with weight {list(weight.shape)}"
    if inputs.dim() != 3 or weight.dim() != 4:
        raise ShapeError(f"route cannot take {shapes}", "inputs are [B, I, K], weight is [I, K, J, D]")
    if inputs.shape[1:] != weight.shape[:2]:
        raise ShapeError(f"route cannot take {shapes}", "I and K must agree: inputs [B, I, K], weight [I, K, J, D]")
    if 0 in weight.shape:
        raise ShapeError(f"route cannot take {shapes}", "I, K, J and D must be at least 1")
    if bias is not None and algorithm == "rba":
        raise ConfigurationError(f"bias {list(bias.shape)} given to routing 'rba'", "rba has no bias; leave it out")
