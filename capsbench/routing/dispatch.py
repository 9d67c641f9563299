"""The function `route`: it checks its arguments, picks the kernel, and keeps routing in at least float32."""

import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError, ShapeError, unknown_name
from capsbench.routing import compiled, published, recompute_em, reference
from capsbench.routing.autograd import full_precision
from capsbench.routing.compiled import CompiledPasses
from capsbench.routing.kernel import FunctionKernel, Kept, Kernel
from capsbench.routing.recompute import TilePasses
from capsbench.routing.rounds import Rounds, Staged
from capsbench.routing.triton import fused
from capsbench.routing.triton.fused import FusedPasses


class RouteOptions(TypedDict, total=False):
    """The other arguments of `route`, with its defaults."""

    beta_u: Tensor | None
    beta_a: Tensor | None
    algorithm: str
    iterations: int
    kernel: str


@dataclass(frozen=True)
class Algorithm:
    """A routing algorithm."""

    extras: tuple[str, ...]
    """Names of its parameters other than the weight."""
    kernels: dict[str, Kernel]
    """Kernels that compute it."""
    mixes_batch: bool = False
    """True if a sample's routing depends on the rest of its batch: SDA's temperature is a mean over all of it."""


def _sda(*, slip: bool) -> dict[str, Kernel]:
    rounds = Rounds(limited=True, published=slip)
    return {
        "reference": FunctionKernel(partial(reference.sda, published=slip)),
        "published": FunctionKernel(partial(published.sda, published=slip)),
        "recompute": Staged(TilePasses, rounds),
        "compiled": Staged(CompiledPasses, rounds),
        "triton": Staged(FusedPasses, rounds),
    }


ALGORITHMS: dict[str, Algorithm] = {
    "rba": Algorithm(
        (),
        {
            "reference": FunctionKernel(reference.rba),
            "published": FunctionKernel(published.rba),
            "recompute": Staged(TilePasses, Rounds()),
            "compiled": Staged(CompiledPasses, Rounds()),
            "triton": Staged(FusedPasses, Rounds()),
        },
    ),
    "sda": Algorithm(("bias",), _sda(slip=False), mixes_batch=True),
    "sda-published": Algorithm(("bias",), _sda(slip=True), mixes_batch=True),
    "em": Algorithm(
        ("bias", "beta_u", "beta_a"),
        {
            "reference": FunctionKernel(reference.em),
            "recompute": FunctionKernel(recompute_em.em),
            "triton": FunctionKernel(fused.em),
        },
    ),
}
"""All routing algorithms, each with the kernels that compute it."""


def algorithms() -> tuple[str, ...]:
    """The names that `algorithm=` takes."""
    return tuple(ALGORITHMS)


def algorithm_of(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        ConfigurationError: there is no such algorithm.
    """
    if name not in ALGORITHMS:
        raise unknown_name("`routing`", name, ALGORITHMS)
    return ALGORITHMS[name]


def kernels(algorithm: str = "rba") -> tuple[str, ...]:
    """The names that `kernel=` takes for this algorithm, other than `auto`.

    Raises:
        ConfigurationError: there is no such algorithm.
    """
    return tuple(algorithm_of(algorithm).kernels)


def resolve_kernel(kernel: str, algorithm: str = "rba", device: torch.device | str = "cpu", out_capsules: int = 1) -> str:
    """The kernel that `kernel` names, with `auto` resolved for a device.

    Args:
        kernel: a name.
        algorithm: routing algorithm.
        device: device of the tensors.
        out_capsules: J, for which `compiled` has a limit.

    Raises:
        ConfigurationError: there is no such algorithm or kernel.
    """
    known = kernels(algorithm)
    if kernel == "auto":
        kind = torch.device(device).type
        if kind == "cuda" and importlib.util.find_spec("triton") is not None:
            return "triton"
        compilable = kind == "cpu" and "compiled" in known and out_capsules <= compiled.MOST_OUTPUTS
        return "compiled" if compilable and compiled.available() else "recompute"
    if kernel not in known:
        raise unknown_name(f"for `routing` {algorithm} the `kernel`", kernel, ("auto", *known))
    return kernel


def check_routing(
    algorithm: str, kernel: str, iterations: int, device: torch.device | str = "cpu", out_capsules: int = 1
) -> Kernel:
    """Refuse names and counts that `route` could not serve; return the kernel that would serve.

    Raises:
        ConfigurationError: an unknown algorithm or kernel, or fewer than one iteration.
    """
    resolved = resolve_kernel(kernel, algorithm, device, out_capsules)
    if not isinstance(iterations, int) or iterations < 1:
        raise ConfigurationError(f"`iterations` {iterations} is out of range", "give a whole number of rounds, 1 or more")
    return ALGORITHMS[algorithm].kernels[resolved]


def route(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    beta_u: Tensor | None = None,
    beta_a: Tensor | None = None,
    algorithm: str = "rba",
    iterations: int = 3,
    kernel: str = "auto",
) -> Tensor:
    """Route input capsules to output capsules.

    With `sda` one temperature serves the whole batch, so a sample's outputs depend on the batch it is in; with the
    others it does not.

    Args:
        inputs: capsules `[B, I, K]`.
        weight: transformations `[I, K, J, D]`.
        bias: `[J, D]`, for `sda` (added to the sum) and `em` (added to the votes); 0 by default. `rba` has none.
        beta_u: `[J]`, for `em` alone: cost of describing a dimension.
        beta_a: `[J]`, for `em` alone: cost that an active capsule may have.
        algorithm: `rba`, routing by agreement (Sabour et al. 2017, procedure 1); `sda`, scaled-distance agreement (Peer et
            al. 2018); `sda-published`, with the published code's slip in its temperature; `em`, for vectors (Hinton et al. 2018).
        iterations: rounds of routing.
        kernel: way to compute it: `reference`, `published`, `recompute`, `compiled` (CPU, with a C compiler), `triton`
            (CUDA), or `auto`: the fastest that keeps no votes and can run here.

    Returns:
        Output capsules `[B, J, D]`; float32 if the inputs are half precision, and under autocast.

    Raises:
        ShapeError: inputs, weight and the other parameters do not fit together.
        ConfigurationError: an unknown name, a parameter that the algorithm lacks or does not have, fewer than one iteration,
            several devices, or complex numbers.
    """
    found, given, _ = _prepare(
        inputs, weight, bias, beta_u=beta_u, beta_a=beta_a, algorithm=algorithm, iterations=iterations, kernel=kernel
    )
    inputs, weight, *extras = _in_one_dtype(given)
    with full_precision(inputs.device):
        return found.route(inputs, weight, extras, iterations)


def route_keeping(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Unpack[RouteOptions]
) -> tuple[Tensor, Kept]:
    """Compute `route` without a graph, and the tensors that spare `route_and_vjp` the rounds (none if a kernel keeps nothing)."""
    found, given, iterations = _prepare(inputs, weight, bias, **options)
    inputs, weight, *extras = _in_one_dtype(given)
    with torch.no_grad(), full_precision(inputs.device):
        return found.keeping(inputs, weight, extras, iterations)


def route_and_vjp(
    inputs: Tensor, weight: Tensor, grad: Tensor, bias: Tensor | None = None, *, kept: Kept = (), **options: Unpack[RouteOptions]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute `route` and its vector-Jacobian product by one evaluation, without a graph.

    Args:
        inputs: as in `route`.
        weight: as in `route`.
        grad: gradient of the outputs, `[B, J, D]`.
        bias: as in `route`.
        kept: tensors that `route_keeping` returned for the same inputs.
        options: the other arguments of `route`.

    Returns:
        The outputs, bit for bit those of `route`; and the gradients of `(outputs * grad).sum()` for inputs, weight and
        the algorithm's other parameters, in the order bias, beta_u, beta_a and in the dtypes of these parameters.

    Raises:
        ShapeError: as in `route`.
        ConfigurationError: as in `route`.
    """
    found, given, iterations = _prepare(inputs, weight, bias, **options)
    inputs, weight, *extras = _in_one_dtype(given)
    with torch.no_grad(), full_precision(inputs.device):
        outputs, gradients = found.and_vjp(inputs, weight, extras, iterations, grad=grad.to(inputs.dtype), kept=kept)
    return outputs, tuple(
        one if one.dtype is mine.dtype else one.to(mine.dtype) for one, mine in zip(gradients, given, strict=True)
    )


def _prepare(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *, beta_u: Tensor | None = None, beta_a: Tensor | None = None,
    algorithm: str = "rba", iterations: int = 3, kernel: str = "auto",
) -> tuple[Kernel, list[Tensor], int]:  # fmt: skip
    """The kernel, its tensors and the number of iterations, after a check that they fit together."""
    _check_shapes(inputs, weight)
    found = check_routing(algorithm, kernel, iterations, inputs.device, weight.shape[2])
    tensors = [inputs, weight, *_extras(weight, (bias, beta_u, beta_a), algorithm)]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ConfigurationError(
            f"tensors on {' and '.join(sorted(map(str, devices)))} cannot be routed together", "move all to one device"
        )
    for tensor in tensors:
        if tensor.is_complex():
            raise ConfigurationError(f"{tensor.dtype} cannot be routed", "give real numbers")
    return found, tensors, iterations


def _in_one_dtype(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors in the widest dtype among them, at least float32."""
    if all(tensor.dtype is torch.float32 for tensor in tensors):
        return tensors
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _extras(weight: Tensor, given: tuple[Tensor | None, ...], algorithm: str) -> list[Tensor]:
    """The algorithm's parameters other than its weight."""
    wanted = ALGORITHMS[algorithm].extras
    found = []
    for name, tensor in zip(("bias", "beta_u", "beta_a"), given, strict=True):
        shape = weight.shape[2:] if name == "bias" else weight.shape[2:3]
        if name not in wanted:
            if tensor is not None:
                raise ConfigurationError(
                    f"{name} {list(tensor.shape)} given to `routing` {algorithm}", f"{algorithm} has no {name}; leave it out"
                )
        elif tensor is None:
            if name != "bias":
                raise ConfigurationError(f"{name} is missing", f"`routing` {algorithm} needs {name} of shape {list(shape)}")
            found.append(weight.new_zeros(shape))
        elif tensor.shape != shape:
            raise ShapeError(f"{name} {list(tensor.shape)} does not fit weight {list(weight.shape)}", f"give {list(shape)}")
        else:
            found.append(tensor)
    return found


def _check_shapes(inputs: Tensor, weight: Tensor) -> None:
    if inputs.dim() != 3 or weight.dim() != 4:
        needed = "inputs are [B, I, K], weight is [I, K, J, D]"
    elif inputs.shape[1:] != weight.shape[:2]:
        needed = "I and K must agree: inputs [B, I, K], weight [I, K, J, D]"
    elif 0 in weight.shape:
        needed = "I, K, J and D must be at least 1"
    else:
        return
    raise ShapeError(f"route cannot take inputs {list(inputs.shape)} with weight {list(weight.shape)}", needed)
