"""Following a training step without computing it, on shapes alone and without a device."""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from capsbench.cases.case import Case
from capsbench.cases.configured import build_case, classifier_case
from capsbench.cases.factories import BUILT_IN, ModelFactory, build_model
from capsbench.cases.foreign import make_lazy_parameters, step_error
from capsbench.catalog import OWN_INPUTS
from capsbench.data.preprocess import Batch
from capsbench.devices import gpu_of
from capsbench.errors import CapsbenchError, ConfigurationError, error_line
from capsbench.records import LOWER_BOUND, Configuration, StepFigures
from capsbench.system.garbage import old_objects_left_alone
from capsbench.tracing.attribution import Calls, Origin, Spans, module_classes, nodes_of
from capsbench.tracing.cuda_allocator import CachingAllocator
from capsbench.tracing.eager import COMPILED, eagerly, note_scripted
from capsbench.tracing.fake_group import fake_group
from capsbench.tracing.fakes import Memory, give_values, made_fake, shared_like, twin_like, unknown_bytes
from capsbench.tracing.follow import Follow, following
from capsbench.tracing.known import Values
from capsbench.tracing.observed_inference import INFERENCE_NOT_KNOWN, run_inference, unneeded_bytes
from capsbench.tracing.observed_step import GradientObserver
from capsbench.tracing.operator_calls import tensors_in
from capsbench.tracing.shared_state import shared_state_replaced
from capsbench.tracing.storages import gradients_of, optimizer_state, own_parts, state_of, storage_bytes
from capsbench.tracing.surroundings import lazy_parameters
from capsbench.tracing.trace import Trace
from capsbench.tracing.twins import Twins, untouched
from capsbench.tracing.work import Work
from capsbench.workload import Workload, seed_everything

Build = Callable[[], nn.Module]
T = TypeVar("T")

MANY_BLOCKS = 64
"""Largest depth that is traced during a measurement: a deeper trace would take longer than the measurement."""

_LONGEST_REASON = 200

_VALUES = ("fake", "data-dependent", "data pointer", "meta tensor", "for 'meta'", "numpy", "storage", "subclass")
"""Words of errors that a step has because its tensors have no values."""

_NOTHING_TWICE = {"kernel": "reference", "memory": "stored", "front": "plain", "inverse": None, "optimizer_step": None}
"""Settings of a capsule network that evaluates nothing twice."""


@dataclass(frozen=True)
class TracedInference:
    """One inference step, followed without being computed."""

    trace: Trace | None
    """The memory of the training step and then of this one; None if it cannot be followed."""
    notes: tuple[str, ...]
    """The reason that it cannot, or assumptions that decide what it computes, other than those of the training step."""
    unsure: tuple[str, ...]
    """Assumptions about the bytes that operators keep and take, other than those of the training step."""
    unneeded_bytes: int
    """Bytes of the optimizer's state, which is alive though no inference needs it."""


@dataclass(frozen=True)
class TracedStep:
    """One training step, followed without being computed."""

    trace: Trace
    state_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    flops: int
    """Floating-point operations of forward and backward as they are computed."""
    retained_by_module: dict[str, int]
    origin: Callable[[int], Origin]
    """The origin of a block."""
    largest_parameter_bytes: int
    scratch: tuple[str, ...]
    notes: tuple[str, ...]
    """Assumptions that decide what the step computes."""
    unsure: tuple[str, ...] = ()
    """Assumptions about the bytes that operators keep and take."""
    inference: "TracedInference | None" = None
    """An inference step after it; None if it was not followed."""
    work: Mapping[str, Sequence[Work]] = field(default_factory=dict)
    """The work of the operators of each phase."""
    remarks: tuple[str, ...] = ()
    """Remarks on its phases."""
    module_classes: Mapping[str, str] = field(default_factory=dict)
    """Class of each module by its name."""
    freed_gradient_bytes: int = 0
    """Bytes of the gradients of the step before that forward freed."""

    @property
    def lower_bound(self) -> bool:
        """True if a note says that the step takes at least these bytes, and may take more."""
        return any(LOWER_BOUND in note for note in self.notes)

    @property
    def retained_bytes(self) -> int:
        """Bytes alive after forward, minus those before without the gradients that forward freed."""
        return _retained(self.trace) + self.freed_gradient_bytes


def trace_step(
    configuration: Configuration,
    *,
    build: Build | None = None,
    factory: ModelFactory | None = None,
    live: Case | None = None,
    workspace_bytes: int = 0,
    inside: bool = True,
    try_scratch: bool = False,
    inference: bool = False,
    by_module: bool = True,
) -> TracedStep:
    """Follow a step of a configuration, after a first one that makes gradients and the optimizer's state.

    Args:
        configuration: the step to trace; only the kind of its device matters.
        build: makes the network of a classifier, in place of the configuration's own factory.
        factory: makes the case, in place of the function of the configuration's name.
        live: case of a live network in place of the configuration's own, which stays as it is.
        workspace_bytes: bytes that the first matrix product takes for its library.
        inside: follow the temporaries of operators that are written in torch, which the peak alone needs.
        try_scratch: run each kind of convolution once, if the step is for a CPU, to see the memory that its library takes.
        inference: follow an inference step after it.
        by_module: find the module that saved each block, for `retained_by_module`, which takes another forward pass.

    Raises:
        ConfigurationError: the configuration makes no network, or one that cannot be followed without values.
    """
    wanted = {"inference": inference, "by_module": by_module}
    options = {"workspace_bytes": workspace_bytes, "inside": inside, "try_scratch": try_scratch}
    if live is None:
        with fake_group(configuration), _following(configuration, **options) as follow:
            return _traced(follow, _started(follow, configuration, build, factory), **wanted)
    with untouched(live.module, live.tensors()), _following(configuration, **options) as follow, ExitStack() as stack:
        return _traced(follow, _started_live(follow, configuration, live, stack), **wanted)


@contextmanager
def _following(configuration: Configuration, **options: Any) -> Iterator[Follow]:
    """Follow a step on the kind of device that a configuration names, in plain PyTorch."""
    capability = gpu_of(configuration.gpu).capability if configuration.gpu else None
    with (
        old_objects_left_alone(),
        following(configuration.device_kind(), capability=capability, **options) as follow,
        eagerly(follow.notes),
        follow.rebuilding_buckets() if configuration.parallel == "ddp" else nullcontext(),
    ):
        try:
            yield follow
        except CapsbenchError:
            raise
        except (Exception, SystemExit) as error:  # a model may do anything that shapes alone cannot serve
            raise untraceable(configuration.model, error, zeros_seen=follow.zeros_seen) from error


def untraceable(model: str, error: BaseException, *, zeros_seen: bool = False) -> ConfigurationError:
    """The error for a model that needs values.

    Args:
        model: name of the model.
        error: what it raised.
        zeros_seen: True if derivatives in forward mode have made tensors of zeros that take no memory.
    """
    reason = error_line(error, _LONGEST_REASON)
    # Torch's own C++ loses the device of such zeros, or leaves gradients undefined, where tensors have no values.
    if zeros_seen and ("devices, meta" in reason or "INTERNAL ASSERT" in reason):
        return ConfigurationError(
            f"model '{model}' cannot be traced: torch has no derivatives in forward mode of its gradients without values",
            "compute them in reverse mode, such as jacrev(jacrev(f)) in place of hessian(f), or measure it",
        )
    if "SparseTensorImpl" in reason:
        return unknown_bytes("a sparse kind")
    if "found two different devices" in reason or "same device" in reason:
        return ConfigurationError(
            f"model '{model}' has tensors on two devices: {reason}",
            "make tensors on the device of the input, or register them as buffers, which move with the network",
        )
    if "mixed torch.Tensor and DTensor" in str(error):
        return ConfigurationError(
            f"model '{model}' computes with a parameter of a layer that it does not call, which fully_shard leaves in parts",
            "call the layer itself, as in layer(x), or choose `parallel` ddp",
        )
    if any(word in f"{type(error).__module__} {error}".lower() for word in _VALUES):
        return ConfigurationError(
            f"model '{model}' cannot be traced without values: {reason}",
            "a trace has shapes alone: keep raw memory, files and values of tensors out of construction and step, or measure it",
        )
    return step_error(model, error, otherwise=", or measure it, if it needs values, which a trace has not", most=_LONGEST_REASON)


def step_figures(configuration: Configuration, step: TracedStep, *, build: Build | None = None) -> StepFigures:
    """The figures of a traced step for its record; its floor takes another, short trace.

    Raises:
        ConfigurationError: the network cannot be made, or followed without values.
    """
    # The floor is forward, and the gradients that its operators need in backward, with nothing evaluated twice.
    others = {"memory": "stored" if configuration.memory == "stored" else None}
    changed = _NOTHING_TWICE if configuration.model in BUILT_IN else others
    once = configuration.model_copy(update=changed | {"parallel": None, "world_size": None})
    with _following(once, inside=False) as follow:
        workload = _started(follow, once, build)
        if workload.case.train is None:
            workload.forward()
        else:
            workload.train_step()
    gradients = step.gradient_bytes or step.largest_parameter_bytes
    return StepFigures(
        retained_by_module=step.retained_by_module,
        # CUDA's allocator rounds each block up.
        retained_bytes=_retained(step.trace.replay(CachingAllocator()) if configuration.device_kind() == "cuda" else step.trace)
        + step.freed_gradient_bytes,
        flops=step.flops,
        floor_flops=workload.accumulate * follow.needed_flops,
        floor_bytes=step.state_bytes + gradients + step.optimizer_bytes + step.batch_bytes,
        notes=[*step.notes, *step.unsure],
    )


def _retained(trace: Trace) -> int:
    forward = trace.phases()["forward"]
    return forward.end - forward.start


def traced_figures(configuration: Configuration) -> tuple[StepFigures | None, list[str]]:
    """`step_figures` of a measured step, and notes; a model that cannot be traced can still be measured."""
    if configuration.blocks > MANY_BLOCKS:
        return None, [f"not traced: deeper than {MANY_BLOCKS} blocks"]
    try:
        return step_figures(configuration, trace_step(configuration, inside=False)), []
    except CapsbenchError as error:
        return None, [error.what]


def _started(follow: Follow, configuration: Configuration, build: Build | None, factory: ModelFactory | None = None) -> Workload:
    """The network and its optimizer, on shapes."""
    device = follow.blocks.device
    if build is None and configuration.dataset == OWN_INPUTS:
        seed_everything()
        case = _built(
            configuration.model,
            lambda: build_case(configuration, device, factory),
            with_values=lambda: build_case(configuration, torch.device("cpu"), factory),
        )
        memory: Memory = {}

        def moved(tensor: Tensor) -> Tensor:
            # An input that is on the device already stays the same tensor, which the loss may hold, too.
            if isinstance(tensor, FakeTensor) and follow.blocks.is_followed(tensor):
                return tensor
            return _input_like(tensor, device, follow.values, memory)

        case = case.map_tensors(moved)
        follow.blocks.tag("batch", case.tensors())
        case = replace(case, module=made_fake(case.module, device, follow.values))
    else:
        count = configuration.images()
        size = (count, *configuration.spec().shape)
        # A network's module may change the default dtype; that of images is fixed.
        images, pixels = (torch.empty(size, dtype=torch.float32, device=device) for _ in range(2))
        batch = Batch(images, torch.empty(count, dtype=torch.int64, device=device), pixels)
        follow.blocks.tag("batch", batch)
        seed_everything()
        model = _built(
            configuration.model,
            build or (lambda: build_model(configuration)),
        )
        case = classifier_case(configuration, made_fake(model, device, follow.values), batch)
    note_scripted(case.module, follow.kind, follow.notes)
    if configuration.compile is not None:
        follow.notes[COMPILED] = None
    return Workload(configuration.model_copy(update={"compile": None}), case=case)


def _started_live(follow: Follow, configuration: Configuration, live: Case, stack: ExitStack) -> Workload:
    """The twin of a live network and of its optimizer, on shapes.

    Args:
        follow: follows its tensors.
        configuration: the step.
        live: case of the network.
        stack: puts the state back that the network shares with other objects.
    """
    device, values = follow.blocks.device, follow.values
    live = live.map_tensors(lambda tensor: tensor)  # its inputs are plain dictionaries from here on
    memory: Memory = {}
    state = state_of(live.module)
    in_place = {id(tensor) for tensor in state}
    real = any(not tensor.is_meta for tensor in state)

    def twin(tensor: Tensor, registered: bool) -> Tensor:
        # If weights are in memory, a module on `meta` that is not part of the network stays there: only its shapes are used.
        stays = registered and real and tensor.is_meta and id(tensor) not in in_place
        return twin_like(tensor, tensor.device if stays else device, values, memory, registered=registered)

    twins = Twins(twin, with_globals=False)
    module = twins.of(live.module)
    for tensor in live.tensors():
        twins.give(tensor, _input_like(tensor, device, values, memory))
    for sizes in live.batch_sizes():
        follow.blocks.follow(sizes)
    given = {name: twins.of(getattr(live, name)) for name in ("inputs", "loss", "targets", "inference", "optimizer", "train")}
    stack.enter_context(shared_state_replaced(twins))
    for script in twins.scripts:
        made_fake(script, device, values)
    examples = [shared_like(one, device, memory) for one in _examples_in(twins.scripts) if one.device.type == follow.kind]
    stack.callback(examples.clear)  # which are alive until the step has ended
    case = replace(live, module=module, **given)
    follow.blocks.tag("batch", case.tensors())
    with lazy_parameters(module, device):
        make_lazy_parameters(configuration.model, module, lambda: case.output(training=True))
    note_scripted(module, follow.kind, follow.notes)
    return Workload(configuration, case=case)


def _examples_in(scripts: Iterable[torch.jit.ScriptModule]) -> list[Tensor]:
    """The inputs that networks of TorchScript were traced with, of which they keep copies."""
    by_method = (script._c._retrieve_traced_inputs() for script in scripts)
    return tensors_in([list(given) for inputs in by_method for _, given in inputs.items()])


def _input_like(tensor: Tensor, device: torch.device, values: Values, memory: Memory) -> Tensor:
    """A tensor without values in place of an input of a case, which shares memory and needs a gradient as that does."""
    moved = shared_like(tensor, device, memory)
    give_values(moved, tensor, values)
    return moved.requires_grad_(tensor.requires_grad)


def _built(model: str, build: Callable[[], T], *, with_values: Callable[[], T] | None = None) -> T:
    """The network, or case, on shapes; a constructor that needs values gets them, and only the shapes are kept.

    Args:
        model: name of the model, for errors.
        build: makes it.
        with_values: makes it where tensors have values, which no device but a CPU may hold; by default `build`.
    """
    try:
        return build()
    except CapsbenchError:
        raise
    except (Exception, SystemExit):
        try:
            with _disable_current_modes():
                return (with_values or build)()
        except CapsbenchError:
            raise
        except (Exception, SystemExit) as error:
            raise step_error(model, error, most=_LONGEST_REASON) from error


def _traced(follow: Follow, workload: Workload, *, inference: bool, by_module: bool) -> TracedStep:
    model, blocks = workload.model, follow.blocks
    for _ in range(workload.first_steps):
        workload.train_step()
    gc.collect()
    blocks.tag("state", state_of(model))
    blocks.tag("optimizer", optimizer_state(workload.optimizers))
    blocks.tag("gradient", gradients_of(model))
    calls = Calls(model, blocks)
    seen = _Following(follow, calls, model)
    with calls.watched():
        workload.train_step(seen)
    if workload.case.train is not None:
        seen.count_flops()  # it may compute more once an optimizer has stepped
    trace, freed = blocks.trace(), sum(seen.freed_gradients)
    notes, unsure = tuple(follow.notes), tuple(follow.unsure)
    of_inference = _traced_inference(follow, workload) if inference else None
    retained = _retained(trace) + freed
    return TracedStep(
        trace=trace,
        state_bytes=storage_bytes(state_of(model)),
        gradient_bytes=seen.gradient_bytes,
        optimizer_bytes=storage_bytes(optimizer_state(workload.optimizers)),
        batch_bytes=storage_bytes(workload.given),
        flops=seen.flops,
        retained_by_module=seen.retained_by_module(_saved(calls, workload, seen.made), retained) if by_module else {},
        origin=partial(_origin, blocks.made_in, blocks.made_by, calls.spans),
        largest_parameter_bytes=max(parameter.nbytes for parameter in own_parts(model.parameters())),
        scratch=tuple(follow.scratch),
        notes=notes,
        unsure=unsure,
        inference=of_inference,
        work=seen.work,
        remarks=tuple(workload.remarks()),
        module_classes=module_classes(model) if by_module else {},
        freed_gradient_bytes=freed,
    )


def _traced_inference(follow: Follow, workload: Workload) -> TracedInference:
    """Follow an inference step after a training step, which stands even if inference needs values."""
    known, trace, reasons = {*follow.notes, *follow.unsure}, None, list[str]()
    try:
        run_inference(workload, follow.blocks.phase)
        trace = follow.blocks.trace()
    except Exception as error:  # a model may do anything that shapes alone cannot serve
        reasons.append(f"{INFERENCE_NOT_KNOWN}: {error_line(error, _LONGEST_REASON)}")
    notes, unsure = (tuple(one for one in found if one not in known) for found in (follow.notes, follow.unsure))
    return TracedInference(trace, (*reasons, *notes), unsure, unneeded_bytes(workload, follow.kind))


class _Following(GradientObserver):
    """A trace that is followed phase by phase, with the blocks alive between forward and backward."""

    def __init__(self, follow: Follow, calls: Calls, model: nn.Module) -> None:
        super().__init__(model)
        self._follow, self._calls = follow, calls
        self._flops_before, self._started = follow.flops, follow.blocks.events()
        gradients = set(follow.blocks.blocks_of(gradients_of(model)))
        self._left_over = {block: nbytes for block, nbytes in follow.blocks.alive_since(0).items() if block not in gradients}
        self._kept = {block: name for name, tensors in calls.attributes() for block in follow.blocks.blocks_of(tensors)}
        """The module that had each block from the step before."""
        self._alive: dict[int, int] = {}
        """Bytes of the blocks that forward made and left alive."""
        self._holders: dict[int, str] = {}
        """The module that holds each of them."""
        self._freed: dict[int, int] = {}
        """Bytes of the blocks that forward freed: a module that remembers tensors frees those of the step before."""
        self.made: list[int] = []
        """The blocks that forward made, in their order."""
        self.flops = 0
        """Floating-point operations of forward and backward."""
        self.work: dict[str, list[Work]] = {}
        """The work of the operators of each phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        done = len(self._follow.work)
        with self._follow.blocks.phase(name):
            yield
        self.work[name] = self._follow.work[done:]

    def before_backward(self, roots: Sequence[Tensor]) -> None:
        self._follow.numbers.follow(nodes_of(roots))

    def after_forward(self, roots: Sequence[Tensor]) -> None:
        super().after_forward(roots)
        blocks, started = self._follow.blocks, self._started
        self._alive, self._holders = blocks.alive_since(started), self._calls.holders(roots, started)
        self.made = blocks.made_since(started)
        still = blocks.alive_since(0)
        self._freed = {block: nbytes for block, nbytes in self._left_over.items() if block not in still}

    def see_gradients(self, gradients: Iterable[Tensor]) -> None:
        self.count_flops()
        self._follow.blocks.tag("gradient", gradients)

    def count_flops(self) -> None:
        """Count the floating-point operations so far."""
        self.flops = self._follow.flops - self._flops_before

    def retained_by_module(self, saved: dict[int, str], retained: int) -> dict[str, int]:
        """Bytes that forward left alive by the module that saved or holds them, less those that it freed by former holder.

        Args:
            saved: the module that saved each block first.
            retained: all bytes; those of the numbers of a graph that waits for a later backward are not known by module.
        """
        found: Counter[str] = Counter()
        for block, nbytes in self._freed.items():
            found[self._kept.get(block, "")] -= nbytes
        for block, nbytes in self._alive.items():
            found[saved.get(block, self._holders[block])] += nbytes
        found[""] += retained - found.total()
        return {name: nbytes for name, nbytes in found.items() if nbytes}


def _origin(made_in: dict[int, str], made_by: dict[int, tuple[str, int]], spans: Spans, block: int) -> Origin:
    operator, node = made_by[block]
    return Origin(operator, made_in[block] or spans.module_of(node))


def _saved(calls: Calls, workload: Workload, made: list[int]) -> dict[int, str]:
    """The module that saved each block first, among the blocks that the traced forward pass made."""
    # The blocks that forward makes are the first ones of a step.
    forward = workload.forward if workload.case.train is None else workload.train_step
    try:
        return {made[place]: name for place, name in calls.savers(forward).items() if place < len(made)}
    except RuntimeError as error:
        # Transforms of torch.func do not allow hooks, and tensors that a network keeps from inference no graph.
        if not any(words in str(error) for words in ("saved tensor hooks", "Inference tensors")):
            raise
        return {}
