"""Routing on a CPU in C: a vote lives in registers and a core's first cache, and never in memory.

Read `rounds` first; the kernels are in `native/`. They are compiled on first use (seconds, once per machine); where there is no
compiler, `recompute` serves. Registered as operators of torch, so that fake and meta tensors and `torch.compile` see shapes.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError
from capsbench.native import Built, built
from capsbench.routing.rounds import Couplings, Passes, Rounds, State, uniform_sum

_LANES = 8
_SAMPLES = 4
"""As in native/votes.c."""
_BLOCK = 32
"""Samples that share one reading of the weights: their sums fit a core's second cache."""
_MOST_OUTPUTS = 16_384
"""A thread's stack holds a few numbers for each output capsule."""
_NAMES = {torch.float32: "float", torch.float64: "double"}


@cache
def library() -> Built:
    """The compiled kernels, or why there are none."""
    return built(Path(__file__).parent / "native" / "votes.c", "rounds_double")


def available() -> bool:
    """Whether there is a compiler, or what it made before."""
    return library().library is not None


class CompiledPasses(Passes):
    """Walks sample by sample, or in backward capsule by capsule, each on one thread: results do not depend on their number."""

    def __init__(self, inputs: Tensor, weight: Tensor, *, limited: bool) -> None:
        if inputs.device.type not in ("cpu", "meta"):
            raise ConfigurationError(f"kernel 'compiled' cannot run on {inputs.device}", "choose recompute, triton or auto there")
        if weight.shape[2] > _MOST_OUTPUTS:
            raise ConfigurationError(
                f"kernel 'compiled' cannot route to {weight.shape[2]} capsules", f"choose recompute above {_MOST_OUTPUTS}"
            )
        self._inputs, self._weight, self._limited = inputs.contiguous(), weight.contiguous(), limited

    def state(self, rounds: Rounds, bias: list[Tensor], iterations: int) -> State:
        """What the last of so many rounds starts from; RBA's rounds are one call."""
        if self._limited or iterations == 1:
            return super().state(rounds, bias, iterations)
        agreed: Tensor = torch.ops.capsbench.votes_rounds(self._inputs, self._weight, iterations - 1)
        outputs = self._weight.shape[2]
        # A view would keep the padding too.
        return (agreed.mT if agreed.shape[2] == outputs else agreed[..., :outputs].mT.contiguous(),)

    def weighted_sum(self, state: State, couplings: Couplings | None) -> Tensor:
        """Σ_i c_i û_i `[B, J, D]`."""
        if not state and not self._limited:
            return uniform_sum(self._inputs, self._weight)
        total, coupling = torch.ops.capsbench.votes_sum(
            self._inputs, self._weight, *_padded_state(state), self._limited, couplings is not None
        )
        if couplings is not None:
            couplings.append(coupling)
        return total[..., : self._weight.shape[2]].mT.contiguous()

    def mean_distance(self, outputs: Tensor) -> Tensor:
        """The mean of ‖v − û‖, a scalar."""
        sums: Tensor = torch.ops.capsbench.votes_distance(self._inputs, self._weight, _padded(outputs))
        return sums.sum() / (outputs.shape[0] * self._inputs.shape[1] * outputs.shape[1])

    def gradients(
        self, state: State, grad: Tensor, couplings: Couplings, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Those of inputs and weight; both are made, as one walk makes them."""
        known = couplings[0] if couplings else None
        grad_inputs, grad_weight = torch.ops.capsbench.votes_vjp(
            self._inputs, self._weight, *_padded_state(state), self._limited, known, _padded(grad)
        )
        return grad_inputs if need_inputs else None, grad_weight if need_weight else None


def _padded(outputs: Tensor) -> Tensor:
    """`[B, J, D]` as `[B, D, P]`, with J padded to P."""
    last = outputs.mT
    missing = -last.shape[-1] % _LANES
    return torch.nn.functional.pad(last, (0, missing)) if missing else last.contiguous()


def _padded_state(state: State) -> tuple[Tensor | None, Tensor | None]:
    """A state's outputs, padded, and its t; None for what it does not have."""
    if not state:
        return None, None
    outputs, *t = state
    return _padded(outputs), t[0] if t else None


def _sum(
    inputs: Tensor, weight: Tensor, state: Tensor | None, t: Tensor | None, limited: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    total, couplings = _sum_shapes(inputs, weight, state, t, limited, keep)
    _over_samples("weighted_sum", inputs, weight, state, t, int(limited), couplings if keep else None, total)
    return total, couplings


def _sum_shapes(inputs: Tensor, weight: Tensor, *rest: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    batch, count, _, _, dim, padded = _sizes(inputs, weight)
    return inputs.new_empty(batch, dim, padded), inputs.new_empty((batch, count, padded) if rest[-1] else (0,))


def _rounds(inputs: Tensor, weight: Tensor, rounds: int) -> Tensor:
    state = _rounds_shape(inputs, weight)
    _over_samples("rounds", inputs, weight, rounds, state, torch.empty_like(state))
    return state


def _rounds_shape(inputs: Tensor, weight: Tensor, *_rounds: int) -> Tensor:
    batch, _, _, _, dim, padded = _sizes(inputs, weight)
    return inputs.new_empty(batch, dim, padded)


def _distance(inputs: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    sums = _distance_shape(inputs)
    _over_samples("distances", inputs, weight, v, sums)
    return sums


def _distance_shape(inputs: Tensor, *_: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape[0])


def _vjp(
    inputs: Tensor,
    weight: Tensor,
    state: Tensor | None,
    t: Tensor | None,
    limited: bool,
    couplings: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    grad_inputs, grad_weight = _vjp_shapes(inputs, weight)
    sizes = _sizes(inputs, weight)
    threads = min(torch.get_num_threads(), sizes[1])
    scratch = inputs.new_empty(threads, 2 * weight.shape[1] + 1 + _SAMPLES, *grad.shape[1:])
    results = (grad_inputs, grad_weight, scratch)
    _call("gradients", inputs, weight, state, t, int(limited), couplings, grad, *results, *sizes, threads)
    return grad_inputs, grad_weight


def _vjp_shapes(inputs: Tensor, weight: Tensor, *_: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs), torch.empty_like(weight)


def _over_samples(name: str, inputs: Tensor, weight: Tensor, *arguments: Tensor | int | None) -> None:
    """A pass whose threads share the batch, with the scratch of each."""
    sizes = _sizes(inputs, weight)
    batch, _, in_dim, _, dim, padded = sizes
    threads = torch.get_num_threads()
    block = max(1, min(_BLOCK, -(-batch // threads)))
    scratch = inputs.new_empty(threads, in_dim + 1, dim, padded)
    _call(name, inputs, weight, *arguments, scratch, *sizes, block, threads)


def _sizes(inputs: Tensor, weight: Tensor) -> tuple[int, int, int, int, int, int]:
    """B, I, K, J, D, P."""
    outputs = weight.shape[2]
    return *inputs.shape, outputs, weight.shape[3], outputs + -outputs % _LANES


def _call(name: str, *arguments: Tensor | int | None) -> None:
    found = library()
    if found.library is None:
        raise ConfigurationError(f"kernel 'compiled' is not available: {found.reason}", "choose recompute, or auto")
    dtype = next(one.dtype for one in arguments if isinstance(one, Tensor))
    # What is made here is contiguous already; what is given may be anything, and is held until the call returns.
    held: list[Tensor] = []
    passed: list[int | None] = []
    for one in arguments:
        if not isinstance(one, Tensor):
            passed.append(one)
            continue
        if one.dtype != dtype or dtype not in _NAMES or not one.is_cpu:
            raise TypeError("the compiled kernels take float32 or float64 tensors on a CPU, all of one kind")
        held.append(one.contiguous())
        passed.append(held[-1].data_ptr())
    function = getattr(found.library, f"{name}_{_NAMES[dtype]}")
    if function.argtypes is None:
        function.argtypes = [ctypes.c_long if isinstance(one, int) else ctypes.c_void_p for one in arguments]
    function(*passed)


_OPERATORS = torch.library.Library("capsbench", "FRAGMENT")
for _schema, _cpu, _meta in (
    (
        "votes_sum(Tensor inputs, Tensor weight, Tensor? state, Tensor? t, bool limited, bool keep) -> (Tensor, Tensor)",
        _sum,
        _sum_shapes,
    ),
    ("votes_rounds(Tensor inputs, Tensor weight, int rounds) -> Tensor", _rounds, _rounds_shape),
    ("votes_distance(Tensor inputs, Tensor weight, Tensor v) -> Tensor", _distance, _distance_shape),
    (
        "votes_vjp(Tensor inputs, Tensor weight, Tensor? state, Tensor? t, bool limited, Tensor? couplings, Tensor grad)"
        " -> (Tensor, Tensor)",
        _vjp,
        _vjp_shapes,
    ),
):
    _name = _OPERATORS.define(_schema)
    _OPERATORS.impl(_name, _cpu, "CPU")
    _OPERATORS.impl(_name, _meta, "Meta")
