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
from capsbench.routing.equations import sda_temperature
from capsbench.routing.rounds import Passes, Rounds, State
from capsbench.system.native import NativeLibrary, built

_LANES = 8
_SAMPLES = 4
"""Number of samples that are computed together, as in native/votes.c."""
_BLOCK = 32
"""Number of samples that share one reading of the weights: their sums fit a core's second cache."""
MOST_OUTPUTS = 16_384
"""Largest number of output capsules, for each of which a thread's stack holds a few numbers."""
_KEPT_BYTES = 2**19
"""Bytes of votes that a thread keeps between rounds, in a core's second cache."""
_NAMES = {torch.float32: "float", torch.float64: "double"}


@cache
def library() -> NativeLibrary:
    """The compiled kernels, or the reason that there are none."""
    return built(Path(__file__).parent / "native" / "votes.c", "rounds_double")


def available() -> bool:
    """Return whether there is a compiler, or its earlier output."""
    return library().library is not None


class CompiledPasses(Passes):
    """Passes sample by sample, or in backward capsule by capsule, each on one thread: results do not depend on their number."""

    def __init__(self, inputs: Tensor, weight: Tensor, *, limited: bool) -> None:
        if inputs.device.type not in ("cpu", "meta"):
            raise ConfigurationError(
                f"`kernel` compiled cannot run on {inputs.device}", "choose `kernel` recompute, triton or auto there"
            )
        if weight.shape[2] > MOST_OUTPUTS:
            raise ConfigurationError(
                f"`kernel` compiled cannot route to {weight.shape[2]} capsules", f"choose `kernel` recompute above {MOST_OUTPUTS}"
            )
        self._inputs, self._weight, self._limited = inputs.contiguous(), weight.contiguous(), limited

    def state(self, rounds: Rounds, bias: list[Tensor], iterations: int) -> State:
        """The state before the last of this many rounds; RBA's rounds are one call."""
        if self._limited or iterations == 1:
            return super().state(rounds, bias, iterations)
        agreed: Tensor = torch.ops.capsbench.votes_rounds(self._inputs, self._weight, iterations - 1)
        outputs = self._weight.shape[2]
        # A view would keep the padding alive too.
        return (agreed.mT if agreed.shape[2] == outputs else agreed[..., :outputs].mT.contiguous(),)

    def outputs(self, state: State, bias: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs of a round, and s; `[B, J, D]`."""
        found: tuple[Tensor, Tensor] = torch.ops.capsbench.votes_round(*self._given(state), _padded_bias(bias))
        return found

    def temperature(self, outputs: Tensor, *, published: bool) -> Tensor:
        """The temperature after a round with these outputs, a scalar."""
        sums: Tensor = torch.ops.capsbench.votes_distance(self._inputs, self._weight, _padded(outputs))
        mean = sums.sum() / (outputs.shape[0] * self._inputs.shape[1] * outputs.shape[1])
        return sda_temperature(mean, outputs.shape[1], published=published)

    def vjp(
        self, state: State, s: Tensor, grad: Tensor, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of s, inputs and weight; all are computed, since one pass computes them."""
        grad_s, *found = torch.ops.capsbench.votes_vjp(*self._given(state), s, grad)
        return self._cut(grad_s), *found

    def value_and_vjp(self, state: State, bias: list[Tensor], grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs, and the gradients of s, inputs and weight, in one call."""
        outputs, grad_s, *found = torch.ops.capsbench.votes_value_and_vjp(*self._given(state), _padded_bias(bias), grad)
        return outputs, self._cut(grad_s), *found

    def rounds_and_vjp(
        self, rounds: Rounds, bias: list[Tensor], iterations: int, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """`value_and_vjp` after all rounds; RBA's are one call, which computes the votes once if they fit a cache."""
        if self._limited or iterations == 1:
            return super().rounds_and_vjp(rounds, bias, iterations, grad)
        found = torch.ops.capsbench.votes_rounds_and_vjp(self._inputs, self._weight, iterations, grad)
        outputs, grad_s, grad_inputs, grad_weight = found
        return outputs, self._cut(grad_s), grad_inputs, grad_weight

    def _given(self, state: State) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
        outputs, *t = state or (None,)
        return self._inputs, self._weight, None if outputs is None else _padded(outputs), t[0] if t else None, self._limited

    def _cut(self, sums: Tensor) -> Tensor:
        """View `[B, D, P]` as `[B, J, D]`, for a result that is used up at once."""
        return sums[..., : self._weight.shape[2]].mT


def _padded(outputs: Tensor) -> Tensor:
    """Copy `[B, J, D]` to `[B, D, P]`, with J padded to P."""
    last = outputs.mT
    missing = -last.shape[-1] % _LANES
    return torch.nn.functional.pad(last, (0, missing)) if missing else last.contiguous()


def _padded_bias(bias: list[Tensor]) -> Tensor | None:
    return _padded(bias[0]) if bias else None


def _round(
    inputs: Tensor, weight: Tensor, state: Tensor | None, t: Tensor | None, limited: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    outputs, s = _round_shapes(inputs, weight)
    total = _sums(inputs, weight)
    _over_samples("round", inputs, weight, state, t, int(limited), None, bias, s, outputs, total)
    return outputs, s


def _round_shapes(inputs: Tensor, weight: Tensor, *_: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    shape = (inputs.shape[0], *weight.shape[2:])
    return inputs.new_empty(shape), inputs.new_empty(shape)


def _sums(inputs: Tensor, weight: Tensor, *_: int) -> Tensor:
    """Memory for `[B, D, P]`."""
    sizes = _sizes(inputs, weight)
    return inputs.new_empty(sizes[0], *sizes[-2:])


def _rounds(inputs: Tensor, weight: Tensor, rounds: int) -> Tensor:
    state = _sums(inputs, weight)
    _over_samples("rounds", inputs, weight, rounds, state, torch.empty_like(state))
    return state


def _distance(inputs: Tensor, weight: Tensor, v: Tensor) -> Tensor:
    sums = _distance_shape(inputs)
    _over_samples("distances", inputs, weight, v, sums)
    return sums


def _distance_shape(inputs: Tensor, *_: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape[0])


def _vjp(
    inputs: Tensor, weight: Tensor, state: Tensor | None, t: Tensor | None, limited: bool, s: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    found = _vjp_shapes(inputs, weight)
    sizes = _sizes(inputs, weight)
    _, count, in_dim, _, dim, padded = sizes
    threads = min(torch.get_num_threads(), count)
    scratch = inputs.new_empty(threads, 2 * in_dim + 1 + _SAMPLES, dim, padded)
    _call("gradients", inputs, weight, state, t, int(limited), None, s, grad, *found, scratch, *sizes, threads)
    return found


def _vjp_shapes(inputs: Tensor, weight: Tensor, *_: Tensor | bool | None) -> tuple[Tensor, Tensor, Tensor]:
    # The layout is contiguous, whatever that of the arguments.
    return _sums(inputs, weight), inputs.new_empty(inputs.shape), weight.new_empty(weight.shape)


def _value_and_vjp(
    inputs: Tensor, weight: Tensor, state: Tensor | None, t: Tensor | None, limited: bool, bias: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = _value_and_vjp_shapes(inputs, weight)
    sizes = _sizes(inputs, weight)
    threads = torch.get_num_threads()
    room = _room(inputs, weight, threads)
    given = (inputs, weight, state, t, int(limited), bias, grad)
    _call("round_and_gradients", *given, *found, room, *sizes, _block(sizes[0], threads), threads)
    return found


def _value_and_vjp_meta(inputs: Tensor, weight: Tensor, *_: Tensor | bool | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The scratch memory lives as long as in a run, for a trace of the peak, without the part that each thread needs.
    meanwhile = _room(inputs, weight, threads=0)
    found = _value_and_vjp_shapes(inputs, weight)
    del meanwhile
    return found


def _value_and_vjp_shapes(inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return inputs.new_empty(inputs.shape[0], *weight.shape[2:]), *_vjp_shapes(inputs, weight)


def _rounds_and_vjp(inputs: Tensor, weight: Tensor, rounds: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = _value_and_vjp_shapes(inputs, weight)
    sizes = _sizes(inputs, weight)
    threads = torch.get_num_threads()
    kept = _kept_samples(inputs, weight, threads)
    room = _room_of_rounds(inputs, weight, threads, kept)
    _call("rounds_and_gradients", inputs, weight, rounds, grad, *found, room, *sizes, _block(sizes[0], threads), kept, threads)
    return found


def _rounds_and_vjp_meta(inputs: Tensor, weight: Tensor, *_: Tensor | int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # As in _value_and_vjp_meta.
    meanwhile = _room_of_rounds(inputs, weight, threads=0, kept=0)
    found = _value_and_vjp_shapes(inputs, weight)
    del meanwhile
    return found


def _kept_samples(inputs: Tensor, weight: Tensor, threads: int) -> int:
    """Number of samples whose votes a thread keeps together; 0 if those of one sample are too many."""
    batch, count, _, _, dim, padded = _sizes(inputs, weight)
    return min(_KEPT_BYTES // (inputs.element_size() * count * dim * padded), _block(batch, threads))


def _room_of_rounds(inputs: Tensor, weight: Tensor, threads: int, kept: int) -> Tensor:
    """Memory for all that `rounds_and_gradients` needs."""
    batch, count, _, _, dim, padded = _sizes(inputs, weight)
    return inputs.new_empty(_room(inputs, weight, threads).numel() + (threads * kept * count + batch) * dim * padded)


def _room(inputs: Tensor, weight: Tensor, threads: int) -> Tensor:
    """Memory for all that `round_and_gradients` needs, in one allocation, as each takes as long as a small sum."""
    batch, count, in_dim, outputs, dim, padded = _sizes(inputs, weight)
    of_threads = threads * (2 * in_dim + 1 + _SAMPLES) * dim * padded
    return inputs.new_empty(of_threads + batch * (dim * padded + count * padded + outputs * dim))


def _over_samples(name: str, inputs: Tensor, weight: Tensor, *arguments: Tensor | int | None) -> None:
    """Run a pass whose threads share the batch, with scratch memory for each."""
    sizes = _sizes(inputs, weight)
    batch, _, in_dim, _, dim, padded = sizes
    threads = torch.get_num_threads()
    scratch = inputs.new_empty(threads, in_dim + 2, dim, padded)
    _call(name, inputs, weight, *arguments, scratch, *sizes, _block(batch, threads), threads)


def _block(batch: int, threads: int) -> int:
    """Number of samples that read the weights together."""
    return max(1, min(_BLOCK, -(-batch // threads)))


def _sizes(inputs: Tensor, weight: Tensor) -> tuple[int, int, int, int, int, int]:
    """The sizes B, I, K, J, D, P."""
    outputs = weight.shape[2]
    return *inputs.shape, outputs, weight.shape[3], outputs + -outputs % _LANES


def _call(name: str, *arguments: Tensor | int | None) -> None:
    found = library()
    if found.library is None:
        raise ConfigurationError(f"`kernel` compiled is not available: {found.reason}", "choose `kernel` recompute or auto")
    dtype = next(one.dtype for one in arguments if isinstance(one, Tensor))
    # Tensors that are made here are contiguous; arguments may not be, and are held until the call returns.
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
        "votes_round(Tensor inputs, Tensor weight, Tensor? state, Tensor? t, bool limited, Tensor? bias) -> (Tensor, Tensor)",
        _round,
        _round_shapes,
    ),
    ("votes_rounds(Tensor inputs, Tensor weight, int rounds) -> Tensor", _rounds, _sums),
    ("votes_distance(Tensor inputs, Tensor weight, Tensor v) -> Tensor", _distance, _distance_shape),
    (
        "votes_vjp(Tensor inputs, Tensor weight, Tensor? state, Tensor? t, bool limited, Tensor s, Tensor grad)"
        " -> (Tensor, Tensor, Tensor)",
        _vjp,
        _vjp_shapes,
    ),
    (
        "votes_value_and_vjp(Tensor inputs, Tensor weight, Tensor? state, Tensor? t, bool limited, Tensor? bias, Tensor grad)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _value_and_vjp,
        _value_and_vjp_meta,
    ),
    (
        "votes_rounds_and_vjp(Tensor inputs, Tensor weight, int rounds, Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)",
        _rounds_and_vjp,
        _rounds_and_vjp_meta,
    ),
):
    _name = _OPERATORS.define(_schema)
    _OPERATORS.impl(_name, _cpu, "CPU")
    _OPERATORS.impl(_name, _meta, "Meta")
