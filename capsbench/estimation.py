"""The memory of a training step of a live network, asked before it is run: nothing is computed, and nothing is changed.

found = capsbench.estimate(model, inputs, loss=lambda out: out.loss, gpu="h100")
found.retained_bytes, found.peak_bytes, found.fits("24GiB"), found.largest("batch_size")
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capsbench.cases.case import Case, OptimizerFactory, adam, check_loss, described
from capsbench.catalog import OWN_INPUTS
from capsbench.colours import PURPOSES
from capsbench.devices import DEFAULT_GPU, gpu_of
from capsbench.errors import ConfigurationError, unknown_name
from capsbench.options import OPTIONS
from capsbench.prediction.predict import Prediction, predict_memory, trace_for
from capsbench.prediction.search import neighbours
from capsbench.prediction.seconds import modelled_seconds
from capsbench.prediction.timelines import timeline_of
from capsbench.records import Certainty, Configuration, MemoryFigures
from capsbench.timeline import Timeline
from capsbench.tracing.known import MOST_ELEMENTS
from capsbench.tracing.step_trace import TracedStep
from capsbench.tracing.twins import Twins
from capsbench.words.labels import model_title
from capsbench.words.modules import OUTSIDE, ModuleChange, module_changes
from capsbench.words.units import bytes_text, parse_bytes

_MOST_SAMPLES = 2**20
"""Largest batch that is looked at."""
_MOST_MODULES = 8
_FIGURES = {
    "retained": "retained_bytes",
    "peak": "peak_bytes",
    "reserved": "reserved_bytes",
    "process": "process_bytes",
    "weights and buffers": "state_bytes",
    "gradients": "gradient_bytes",
    "optimizer": "optimizer_bytes",
}
"""Figures in the order in which they are shown."""
_FIELDS = {"peak_bytes": "peak_allocated_bytes", "reserved_bytes": "peak_reserved_bytes"}
"""Fields of `MemoryFigures` that have another name here."""


@dataclass(frozen=True, eq=False, repr=False)
class MemoryEstimate:
    """The memory of one training step of a live network, once gradients and the optimizer's state have been made."""

    configuration: Configuration
    """Device and precision of the step."""
    memory: MemoryFigures
    """All figures, as a prediction has them in its record."""
    by_module: Mapping[str, int]
    """Retained bytes by the module that keeps them; under the empty name those of the network itself, and of its loss."""
    notes: tuple[str, ...]
    """Assumptions; without any the certainty of each figure is the usual one."""
    _case: Case
    _step: TracedStep

    @property
    def retained_bytes(self) -> int:
        """Bytes that are alive because backward will need them: after forward, minus before."""
        return self._step.retained_bytes

    @property
    def peak_bytes(self) -> int:
        """Most bytes in tensors at one moment of the step."""
        return self.memory.peak_allocated_bytes or 0

    @property
    def reserved_bytes(self) -> int | None:
        """Most bytes that CUDA's caching allocator holds; None on a CPU."""
        return self.memory.peak_reserved_bytes

    @property
    def process_bytes(self) -> int | None:
        """Bytes of the device that the process takes, CUDA's context included; None on a CPU."""
        return self.memory.process_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return self.memory.state_bytes

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the parameters' gradients that are alive after backward."""
        return self.memory.gradient_bytes

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        return self.memory.optimizer_bytes

    @property
    def certainty(self) -> dict[str, Certainty]:
        """The certainty of each figure: `exact`, `modelled` by the allocator's rules, or `guessed`."""
        known = self.memory.certainty or {}
        fields = {name: _FIELDS.get(name, name) for name in _FIGURES.values()}
        return {name: known[field] for name, field in fields.items() if field in known}

    @property
    def modelled_train_step_seconds(self) -> float:
        """Seconds of the step by a model of its operators (`capsbench.prediction.seconds`), which nobody has measured."""
        return sum(modelled_seconds(self.configuration, self._step.work).values())

    def fits(self, capacity: str | int | None = None) -> bool:
        """Return whether the step fits a device.

        Args:
            capacity: memory of the whole device, such as "24GiB", or in bytes; by default that of the GPU.

        Raises:
            ConfigurationError: it is no amount of memory, or there is none by default, as on a CPU.
        """
        return self._predicted(self._step, self._room(capacity)).fits

    def largest(self, name: str = "batch_size", capacity: str | int | None = None) -> int:
        """Return the largest batch that fits: it was predicted to fit, and the next larger one was predicted not to.

        The batch is the first dimension of all tensors that the network and its loss are given, which must have the same length
        there. A tensor that the loss function encloses is taken along if it has that length too.

        Args:
            name: `batch_size`, the one size that all inputs have in common.
            capacity: memory of the whole device, such as "24GiB", or in bytes; by default that of the GPU.

        Returns:
            The number of samples; 0 if not even one fits.

        Raises:
            ConfigurationError: the inputs have no common first dimension, or those of another batch cannot be traced.
        """
        if name != "batch_size":
            raise ConfigurationError(f"`largest` cannot search for '{name}'", "choose batch_size, which all inputs have")
        samples, room, known = _samples(self._case), self._room(capacity), dict[int, Prediction]()

        def at(count: int) -> Prediction:
            if count not in known:
                step = (
                    self._step
                    if count == samples
                    else trace_for(self.configuration, live=_resized(self._case, samples, count), by_module=False)
                )
                known[count] = self._predicted(step, room)
            return known[count]

        return neighbours(at, _MOST_SAMPLES, first=samples, share=0)[0]

    def timeline(self) -> Timeline:
        """Return the memory alive after every allocation of the step, which `capsbench.figures.one_step.draw_timeline` draws."""
        return timeline_of(self.configuration, self._step, predict_memory(self.configuration, self._step))

    def _room(self, capacity: str | int | None) -> int | None:
        given = self.configuration.capacity if capacity is None else capacity
        if given is None and self.configuration.gpu is None:
            raise ConfigurationError("a CPU has no memory of its own to fit", "give `capacity`, such as '24GiB'")
        return None if given is None else parse_bytes("`capacity`", str(given))

    def _predicted(self, step: TracedStep, room: int | None) -> Prediction:
        return predict_memory(self.configuration.model_copy(update={"capacity": room}), step)

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, bytes and certainty of each figure that is known."""
        values = {title: getattr(self, name) for title, name in _FIGURES.items()}
        return [
            (title, bytes_text(value), self.certainty.get(_FIGURES[title], ""))
            for title, value in values.items()
            if value is not None
        ]

    def _modules(self) -> list[ModuleChange]:
        return module_changes({}, self.by_module)[:_MOST_MODULES]

    def _title(self) -> str:
        it = self.configuration
        where = "a CPU" if it.gpu is None else it.gpu
        return f"one training step of {model_title(it.model)} on {where}, predicted"

    def _verdict(self) -> list[str]:
        """One line on whether the step fits, where the size of the device is known."""
        room = self.configuration.capacity or (
            None if self.configuration.gpu is None else gpu_of(self.configuration.gpu).memory_bytes
        )
        if room is None:
            return []
        fits = self.fits()
        bound = "; the bytes are a lower bound, so that a run may not fit" if fits and self._step.lower_bound else ""
        return [f"{'fits' if fits else 'does not fit'} {bytes_text(room)}{bound}"]

    def __repr__(self) -> str:
        lines = [self._title(), *(f"  {title:<20} {nbytes:>12}  {sure}".rstrip() for title, nbytes, sure in self._rows())]
        lines += [f"  {line}" for line in self._verdict()]
        lines += ["retained by"] if self._modules() else []
        lines += [f"  {bytes_text(one.nbytes * one.count):>12}  {_module_text(one)}" for one in self._modules()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """A table of the figures, and a bar for each of the modules that retain most."""
        left, right = "style='text-align:left'", "style='text-align:right'"
        rows = [
            f"<tr><td {left}>{title}</td><td {right}>{nbytes}</td><td {left}>{sure}</td></tr>"
            for title, nbytes, sure in self._rows()
        ]
        most = max((abs(one.nbytes * one.count) for one in self._modules()), default=1)
        rows += [
            f"<tr><td {left}>{escape(_module_text(one))}</td><td {right}>{bytes_text(one.nbytes * one.count)}</td>"
            f"<td {left}><div style='background:{PURPOSES['retained']};height:0.7em;"
            f"width:{120 * abs(one.nbytes * one.count) / most:.0f}px'></div></td></tr>"
            for one in self._modules()
        ]
        more = "".join(f"<p>{escape(line)}</p>" for line in [*self._verdict(), *(f"note: {note}" for note in self.notes)])
        return f"<table><caption>{escape(self._title())}</caption><tbody>{''.join(rows)}</tbody></table>{more}"


def estimate(
    model: nn.Module | Case,
    inputs: Any = None,
    loss: Callable[..., Tensor] | None = None,
    optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer] | OptimizerFactory | None = None,
    gpu: str | None = None,
    *,
    targets: Any = None,
    device: Literal["cuda", "cpu"] = "cuda",
    precision: str = "fp32",
    optimizer_step: Literal["after", "backward"] = "after",
    capacity: str | int | None = None,
) -> MemoryEstimate:
    """Estimate the memory of a training step of a live network: nothing is computed, and nothing of the network is changed.

    The step is followed on twins of the network's tensors that have no values. The network may be on any device, the device
    `meta` included, and the estimate is for the one that is named here.

    Args:
        model: the network, or a `Case`, which brings its inputs, loss and optimizer.
        inputs: inputs of the network: a tensor, a tuple or list of arguments, or a dictionary of arguments by name.
        loss: function from the network's output, and `targets` if there are any, to a loss of one element; by default the output
            itself if it has one element, or else its `loss`.
        optimizer: an optimizer of this network, a class or a function that makes one of parameters; by default Adam, fused.
        gpu: the GPU to estimate for, by default an H100.
        targets: second argument of `loss`, such as labels.
        device: the kind of device to estimate for.
        precision: precision that autocast casts to: `fp32`, `bf16` or `fp16`.
        optimizer_step: time of the optimizer's step: `after` backward, or for each parameter inside `backward`.
        capacity: memory of the whole device, such as "24GiB", or in bytes; by default that of the GPU.

    Raises:
        ConfigurationError: arguments exclude each other, the inputs do not fit, or the network cannot be followed without values.
    """
    if device not in ("cuda", "cpu"):
        raise ConfigurationError(f"`device` {device!r} is not a kind of device", "choose cuda or cpu")
    if device == "cpu" and gpu is not None:
        raise ConfigurationError(f"`gpu` {gpu} cannot be combined with `device` cpu", "leave one of them out")
    if precision not in OPTIONS["precision"].choices:
        raise unknown_name("`precision`", precision, OPTIONS["precision"].choices)
    if optimizer_step not in OPTIONS["optimizer_step"].choices:
        raise unknown_name("`optimizer_step`", optimizer_step, OPTIONS["optimizer_step"].choices)
    case = _case_of(model, inputs, loss, optimizer, targets)
    check_loss(case)
    configuration = Configuration(
        model=type(getattr(case.module, "_orig_mod", case.module)).__name__,
        blocks=0,
        dataset=OWN_INPUTS,
        batch_size=None,
        precision=precision,
        optimizer_step="backward" if optimizer_step == "backward" else None,
        device=f"{device}:predicted",
        gpu=gpu_of(gpu or DEFAULT_GPU).name if device == "cuda" else None,
        capacity=None if capacity is None else parse_bytes("`capacity`", str(capacity)),
    )
    step = trace_for(configuration, live=case)
    memory = predict_memory(configuration, step).memory
    return MemoryEstimate(configuration, memory, step.retained_by_module, (*step.notes, *step.unsure), case, step)


def _case_of(model: Any, inputs: Any, loss: Any, optimizer: Any, targets: Any) -> Case:
    """The case of a live network."""
    if isinstance(model, Case):
        if any(given is not None for given in (inputs, loss, optimizer, targets)):
            raise ConfigurationError(
                "a case has its own inputs, loss, optimizer and targets", "give the case alone, or its module and the rest"
            )
        return model
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"`model` is {described(model)}, not a network", "give a torch.nn.Module, or a capsbench.Case")
    if inputs is None:
        raise ConfigurationError("`inputs` is missing", "give what the network is called with, such as a tensor or a dictionary")
    for name, given in (("loss", loss), ("optimizer", optimizer)):
        if given is not None and not callable(given) and not isinstance(given, torch.optim.Optimizer):
            raise ConfigurationError(
                f"`{name}` is {described(given)}, which cannot be called", f"give a function, or leave `{name}` out"
            )
    made = _as_factory(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer or adam
    return Case(model, inputs, loss=loss, optimizer=made, targets=targets)


def _as_factory(optimizer: torch.optim.Optimizer) -> OptimizerFactory:
    """A function that returns a live optimizer, whose twin returns the optimizer's twin."""
    return lambda _: optimizer


def _module_text(module: ModuleChange) -> str:
    """A module's name, or that of several that retain the same."""
    each = f" ({module.count} × {bytes_text(module.nbytes)})" if module.count > 1 else ""
    return f"{module.name or OUTSIDE}{each}"


def _samples(case: Case) -> int:
    """The length that the first dimensions of all inputs have in common."""
    if case.batch_sizes():
        raise ConfigurationError(
            "the inputs have packed sequences, whose lengths do not determine those of other batch sizes",
            "give `largest` padded inputs, which forward packs",
        )
    lengths = sorted({len(tensor) for tensor in replace(case, inference=None).tensors() if tensor.dim()})
    if len(lengths) != 1 or lengths[0] < 1:
        found = f"have first dimensions of {', '.join(map(str, lengths))}" if lengths else "have no first dimension"
        raise ConfigurationError(
            f"the inputs {found}, so that the size of the batch is not known",
            "give tensors that all begin with the batch, as in [batch, …]",
        )
    return lengths[0]


def _resized(case: Case, samples: int, count: int) -> Case:
    """The case with another number of samples, of which only small tensors keep values."""

    def resized(tensor: Tensor, registered: bool) -> Tensor:
        if registered or isinstance(tensor, nn.Parameter) or not tensor.dim() or len(tensor) != samples:
            return tensor
        return _of_length(tensor, count)

    copies = Twins(resized)
    copies.give(case.module, case.module)
    for tensor in case.tensors():
        copies.give(tensor, resized(tensor, registered=False))
    return replace(case.map_tensors(copies.of), loss=copies.of(case.loss), train=copies.of(case.train))


def _of_length(tensor: Tensor, count: int) -> Tensor:
    """A tensor with another first dimension; a small one repeats the values of the given one."""
    size, last_first = (count, *tensor.shape[1:]), tensor.stride(0) >= max(tensor.stride(), default=0)
    stride = tensor.stride() if last_first and len(tensor) > 1 else torch.empty(size, device="meta").stride()
    small = count * (tensor.numel() // len(tensor)) <= MOST_ELEMENTS and tensor.device.type != "meta"
    made = torch.empty_strided(size, stride, dtype=tensor.dtype, device="cpu" if small else "meta")
    if small:
        made.copy_(tensor.detach().cpu()[torch.arange(count) % len(tensor)])
    return made.requires_grad_(tensor.requires_grad)
