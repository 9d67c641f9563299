"""Running of a momentum stack forward without a graph, and backwards from its end: algorithms 1 and 2 as an autograd function."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from capsbench.reversible.context import Arguments, Context
from capsbench.reversible.drift import check_replay, is_capturing
from capsbench.reversible.evaluate import Layer, evaluate, evaluate_sharing, own_dtype, parameters_of, value_and_vjp
from capsbench.reversible.graph import apart
from capsbench.reversible.momentum import gradient_of_gamma, gradients_before, sigmoid
from capsbench.reversible.pair import OutOfRange, Pair, Rebuild, start_pair
from capsbench.reversible.replay import AllDraws, Autocast, Buffers, Modes, OtherDraws, RandomState, undisturbed

if TYPE_CHECKING:
    from capsbench.reversible.stack import MomentumStack

_T = TypeVar("_T")


def run_reversible(
    stack: "MomentumStack", x: Tensor, arguments: Arguments, every: tuple[Tensor, ...]
) -> tuple[Tensor, Sequence[Tensor], Sequence[int]]:
    """Pass x through a stack, keeping only what its inverse needs.

    Args:
        stack: stack with a reversible strategy.
        x: any shape, at least float32.
        arguments: arguments of the functions other than x.
        every: all parameters of the stack.

    Returns:
        The last x, the tensors that functions returned in addition to their values, in a row, and their number for each function.
    """
    parameters = [parameter for parameter in every if parameter.requires_grad]
    counts: list[int] = []
    output, *extras = _Reversible.apply(stack, arguments.context, every, counts, x, *arguments.tensors, *parameters)
    return output, extras, counts


_LOG = logging.getLogger(__name__)
_SEGMENTED_FROM_HERE = (
    "inverse 'auto' was 'exact' until now; this stack computes this step again, and all later ones, with 'segmented', "
    "which keeps more memory"
)


class _Advanced(NamedTuple):
    """Data for the way back from the end of a stack, in addition to the pair."""

    layers: list[Layer]
    kept: list[Tensor]
    extras: list[Tensor]


class _Reversible(torch.autograd.Function):
    """Algorithm 1 without a graph, and algorithm 2.

    Parameters and tensors of the context come as inputs, so that their gradients can be returned.
    """

    @staticmethod
    def forward(
        ctx: Any,
        stack: "MomentumStack",
        context: Context,
        every: tuple[Tensor, ...],
        counts: list[int],
        x: Tensor,
        *given: Tensor,
    ) -> Any:
        arguments, parameters = Arguments(context, given[: len(context.indices)]), given[len(context.indices) :]
        # Gradients find their parameter by identity, which hooks on saved tensors do not preserve.
        ctx.stack, ctx.context, ctx.parameters = stack, context, parameters
        ctx.autocast, ctx.modes = Autocast.capture(x.device), Modes.capture(stack)
        ctx.owned = {id(parameter) for parameter in every}
        with ctx.autocast.restore(), apart():
            output, found, (saved, ctx.rebuild) = _through(stack, x, arguments, parameters, ctx.needs_input_grad[4])
        ctx.layers, ctx.of_pair, ctx.of_kept = found.layers, len(saved), len(found.kept)
        counts.extend(layer.extras for layer in found.layers)
        # Parameters are saved, frozen ones too, so that torch refuses a backward after a change in place.
        ctx.save_for_backward(*saved, *found.kept, *arguments.tensors, *every)
        ctx.set_materialize_grads(False)
        without_gradient = [one for one in found.extras if not (one.is_floating_point() or one.is_complex())]
        ctx.mark_non_differentiable(*without_gradient)
        return output, *found.extras

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, *grads_extras: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Refuse now: gradients without a graph would drop out of a larger sum silently.
            raise RuntimeError(
                "a reversible MomentumStack cannot be differentiated twice (create_graph=True); use memory='stored' there"
            )
        stack: MomentumStack = ctx.stack
        saved = ctx.saved_tensors
        at_kept, at_tensors = ctx.of_pair, ctx.of_pair + ctx.of_kept
        pair, kept = ctx.rebuild(saved[:at_kept]), list(saved[at_kept:at_tensors])
        arguments = Arguments(ctx.context, saved[at_tensors : at_tensors + len(ctx.context.indices)])
        del saved
        if set(map(id, parameters_of(stack))) != ctx.owned:
            # torch.func.functional_call puts its own parameters in place for the call alone.
            raise RuntimeError(
                "the parameters of a reversible MomentumStack were replaced between forward and backward; "
                "use memory='stored' there"
            )
        way = _WayBack(pair, arguments, ctx.autocast, ctx.parameters, stack.gamma_logits)
        # Functions that leave no graph promise to draw nothing.
        may_draw = any(layer.graph is not None for layer in ctx.layers)
        with undisturbed(stack, pair.x.device) if may_draw else nullcontext(), ctx.modes.restore(), apart():
            grad_x = way.retreat(ctx.layers, kept, list(grads_extras), grad_x)
        pair.finish()
        return None, None, None, None, grad_x if ctx.needs_input_grad[4] else None, *way.gradients(stack.segment)


class _Gradients:
    """Sums of the gradients of parameters, some of which several functions share."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._place = {id(parameter): index for index, parameter in enumerate(parameters)}
        self.found: list[Tensor | None] = [None] * len(parameters)

    def add(self, grads: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Add the gradients of one function, as pairs of a parameter and its gradient."""
        for parameter, grad in grads:
            index = self._place.get(id(parameter))
            if index is None:
                raise RuntimeError(
                    f"a function of a reversible MomentumStack found a gradient for a tensor {list(parameter.shape)} "
                    "that was no parameter of the stack in forward; use memory='stored' there"
                )
            known = self.found[index]
            self.found[index] = grad if known is None else known + grad


def _through(
    stack: "MomentumStack", x: Tensor, arguments: Arguments, parameters: Sequence[Tensor], wanted: bool
) -> tuple[Tensor, _Advanced, tuple[tuple[Tensor, ...], Rebuild]]:
    """Pass x through a stack, and start again if it turns out to need another inverse or more states."""
    gammas = stack.gammas()
    inverse = stack.resolved_inverse(x.dtype)
    if inverse == "exact" and stack.inverse == "auto" and is_capturing(x):
        inverse = "segmented"  # whose checks may be left out
    known = {id(parameter): parameter for parameter in parameters}
    precision = _precision(stack, x)
    start = _Start(stack, x.device)
    while True:
        pair, used = start_pair(inverse, x, gammas, stack.lipschitz, precision)
        found = _advance(pair, stack, used, arguments, known, wanted, start)
        try:
            saved = pair.saved()
        except OutOfRange as error:
            if stack.inverse != "auto":
                raise
            inverse = "segmented"
            if error.finite:
                # Activations that grow with training would leave the range again in the next step.
                stack.left_range = True
                # Nothing is wrong with the result, so this is no warning that could end a training where warnings are errors.
                _LOG.warning("%s\n%s", error.what, _SEGMENTED_FROM_HERE)
        else:
            if stack.draws_elsewhere or not start.drew_elsewhere():
                return pair.x, found, saved
            stack.draws_elsewhere = True
        start.restore()
        for layer in reversed(found.layers):
            if layer.buffers is not None:
                layer.buffers.rewind()


@dataclass
class _Start:
    """The random generators before the first function that may draw; one that shares work promises to draw nothing."""

    stack: "MomentumStack"
    device: torch.device
    draws: AllDraws | None = None

    def state(self) -> RandomState:
        """The state of torch's own generators, of which the first call takes note."""
        if self.draws is None:
            self.draws = AllDraws.capture(self.stack, self.device)
        return self.draws.own

    def drew_elsewhere(self) -> bool:
        """Return whether functions have drawn from generators other than torch's own."""
        return self.draws is not None and not self.draws.others.same_as(OtherDraws.capture(self.stack))

    def restore(self) -> None:
        """Put the generators back."""
        if self.draws is not None:
            self.draws.restore()


def _precision(stack: "MomentumStack", x: Tensor) -> torch.dtype:
    """The narrowest floating type that functions compute in."""
    kind = x.device.type
    dtypes = {own_dtype(function) or x.dtype for function in stack.functions}
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtypes.add(torch.get_autocast_dtype(kind))
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _advance(
    pair: Pair,
    stack: "MomentumStack",
    gammas: Iterable[float],
    arguments: Arguments,
    known: dict[int, Tensor],
    wanted: bool,
    start: _Start,
) -> _Advanced:
    """Move the pair through all functions; `wanted` is True if the first x has a gradient."""
    found = _Advanced([], [], [])
    keeping = stack.memory == "reversible-kept"
    learnt = stack.gamma_logits is not None and stack.gamma_logits.requires_grad
    x = pair.x
    before: RandomState | None = None
    for caller, gamma in zip(stack.callers(), gammas, strict=True):
        function = caller.function
        buffers = Buffers.capture(function)
        shared = evaluate_sharing(caller, x, wanted=wanted, keeping=keeping) if arguments.empty else None
        state = draws = None
        if shared is None:
            before = before or start.state()
            others = OtherDraws.capture(function) if stack.draws_elsewhere else None
            value, extras, kept, graph, differentiable = evaluate(caller, x, arguments, known, wanted=wanted)
            after = before.now()
            state = None if after is before else before
            draws = None if others is None or others.same_as(OtherDraws.capture(function)) else others
            before = after
        else:
            value, extras, kept, graph, differentiable = shared
        pair.advance(value, gamma)
        x = pair.x
        wrote = buffers if buffers.changed(waiting=graph is None) else None
        untouched = buffers.untouched() if wrote is None else None
        layer = Layer(caller, gamma, wanted, graph, state, draws, wrote, untouched, len(kept), len(extras))
        found.layers.append(layer)
        wanted = wanted or differentiable or learnt
        found.kept.extend(kept)
        found.extras.extend(extras)
    return found


class _WayBack:
    """Algorithm 2: the way back through all functions, and the gradients found on it."""

    def __init__(
        self, pair: Pair, arguments: Arguments, autocast: Autocast, parameters: Sequence[Tensor], logits: Tensor | None
    ) -> None:
        self._pair, self._arguments, self._autocast = pair, arguments, autocast
        self._of_parameters = _Gradients(parameters)
        self._of_context: list[Tensor | None] = [None for wanted in arguments.context.wanted if wanted]
        self._logits = logits if logits is not None and logits.requires_grad else None
        self._of_gammas: list[Tensor] = []

    def retreat(
        self, layers: Sequence[Layer], kept: list[Tensor], grads_extras: list[Tensor | None], grad_x: Tensor | None
    ) -> Tensor | None:
        """Move the pair back to the start; return the gradient of the first x, if any. `kept` and `grads_extras` are used up.

        As long as no gradient has arrived, functions are evaluated for their values alone.
        """
        pair = self._pair
        gammas = [layer.gamma for layer in layers]
        grad_v = grad_x
        grad_value = None if grad_x is None else grad_x * (1 - gammas[-1])
        for place in reversed(range(len(layers))):
            layer, gamma = layers[place], gammas[place]
            pair.retreat_x()
            if layer.random_state is not None:
                layer.random_state.restore()
            if layer.draws is not None:
                layer.draws.restore()
            of_extras, of_kept = _taken(grads_extras, layer.extras), _taken(kept, layer.kept)
            value, grad_input = self._undo(layer, grad_value, of_extras, of_kept)
            pair.retreat_v(value, gamma)
            if self._logits is not None:
                of_gamma = pair.v.new_zeros(()) if grad_v is None else gradient_of_gamma(grad_v, pair.v, value)
                self._of_gammas.append(of_gamma)
            if place == 0:
                return grad_input if grad_x is None else grad_x if grad_input is None else grad_x + grad_input
            if grad_x is not None and grad_v is not None:
                grad_x, grad_v, grad_value = gradients_before(grad_x, grad_v, grad_input, gamma, gammas[place - 1])
            elif grad_input is not None:
                grad_x = grad_v = grad_input
                grad_value = grad_input * (1 - gammas[place - 1])
        return grad_x

    def _undo(
        self, layer: Layer, grad: Tensor | None, grads_extras: Sequence[Tensor | None], kept: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate a function again and add its gradients; return its value and the gradient of its input."""
        with layer.untouched.restore() if layer.untouched is not None else nullcontext():
            found = value_and_vjp(
                layer, self._pair.x, self._arguments, grad, grads_extras, kept=tuple(kept), autocast=self._autocast
            )
        if layer.graph is not None and found.graph is not None:
            check_replay(layer.caller, layer.graph.same_as(found.graph))
        self._of_parameters.add(found.grads)
        for index, one in enumerate(found.grads_context):
            known = self._of_context[index]
            self._of_context[index] = known if one is None else one if known is None else known + one
        return found.value, found.grad_x

    def gradients(self, segment: int) -> list[Tensor | None]:
        """The gradients of the context's tensors and of the parameters; None for those without."""
        if self._logits is not None:
            gammas = sigmoid(self._logits.detach())
            of_functions = torch.stack(list(reversed(self._of_gammas)))
            of_blocks = torch.stack([part.sum() for part in of_functions.split(segment)])
            of_logits = (of_blocks * gammas * (1 - gammas)).to(self._logits.dtype)
            self._of_parameters.add([(self._logits, of_logits)])
        following = iter(self._of_context)
        of_context = [next(following) if wanted else None for wanted in self._arguments.context.wanted]
        return [*of_context, *self._of_parameters.found]


def _taken(row: list[_T], count: int) -> list[_T]:
    """Remove and return the last `count` items of a row."""
    if not count:
        return []
    taken = row[len(row) - count :]
    del row[len(row) - count :]
    return taken
