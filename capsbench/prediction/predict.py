"""The figures of a step without its device: traced on shapes alone, replayed through a model of CUDA's allocator."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from capsbench.cases.case import Case
from capsbench.devices import Gpu, gpu_of
from capsbench.errors import CapsbenchError, ConfigurationError, one_line
from capsbench.prediction.apart import call_for
from capsbench.prediction.seconds import calibrated_speed, modelled_seconds
from capsbench.records import Cell, Certainty, Configuration, MemoryFigures, Record
from capsbench.sizes import mebibytes_text
from capsbench.tracing.cuda_allocator import CachingAllocator, OutOfMemory
from capsbench.tracing.step_trace import TracedInference, TracedStep, step_figures, trace_step
from capsbench.tracing.trace import INFERENCE, Trace
from capsbench.workload import without_effect

_EXACT = (
    "state_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "retained_bytes",
    "retained_requested_bytes",
    "inference_kept_bytes",
)
_MODELLED = (
    "peak_forward_bytes", "peak_backward_bytes", "peak_allocated_bytes", "peak_requested_bytes", "peak_reserved_bytes",
    "step_reserved_bytes", "at_peak", "inference_peak_bytes",
)  # fmt: skip
_GUESSED = ("context_bytes", "process_bytes")


class Prediction(NamedTuple):
    """A traced step on a device."""

    memory: MemoryFigures
    fits: bool
    """True if the device has room for it."""
    reason: str
    """The reason that it does not fit; empty if it does."""
    room_bytes: int | None
    """Total memory of the device, its context included; None if nothing limits it."""
    communication_bytes: int = 0
    """Most bytes that gathered parameters and buffers of communication take at one moment."""
    lower_bound: bool = False
    """True if the step takes at least these bytes, and may take more."""


def predict_cell(cell: Cell) -> Record:
    """A record of kind `predicted`, which holds any failure. A user's own network is traced in a process apart."""
    if cell.configuration.device_kind() == "cpu":
        calibrated_speed(cell.configuration.threads)  # here, so that the processes of all cells take the same speeds
    try:
        return call_for(cell.configuration.model, predicted_here, cell)
    except CapsbenchError as error:
        return Record(kind="predicted", cell=cell, status="error", message=one_line(error))


def predicted_here(cell: Cell) -> Record:
    """The record of `predict_cell`, made by this process."""
    started, began = datetime.now(UTC), time.monotonic()
    configuration = cell.configuration
    record = Record(kind="predicted", cell=cell, status="error", started_at=started.isoformat(timespec="seconds"))
    try:
        with _on_threads(configuration.threads):  # which the scratch memory of a CPU's libraries depends on
            step = trace_for(configuration, inference=True)
        found = predict_memory(configuration, step)
        seconds = modelled_seconds(configuration, step.work)
        figures = step_figures(configuration, step).model_copy(
            update={
                "modelled_train_step_seconds": float(f"{sum(seconds.values()):.4g}"),
                "modelled_forward_seconds": float(f"{seconds['forward']:.4g}"),
            }
        )
    except CapsbenchError as error:
        return record.model_copy(update={"message": one_line(error)})
    filled = {
        "status": "ok" if found.fits else "oom",
        "message": found.reason or None,
        "memory": found.memory if found.fits else None,
        "step": figures,
        "duration_seconds": round(time.monotonic() - began, 3),
        "notes": [*without_effect(configuration), *_of_several(configuration), *step.remarks, *_assumed(step.inference)],
    }
    return record.model_copy(update=filled)


def _of_several(configuration: Configuration) -> list[str]:
    """Notes on the prediction of a step of several processes."""
    if configuration.parallel is None:
        return []
    own = "" if configuration.device_kind() == "cpu" else ", and what NCCL takes for itself is not in its bytes"
    return [
        f"bytes are those of the first of {configuration.world_size} processes, each with a whole batch{own}",
        "modelled seconds are without communication",
    ]


@contextmanager
def _on_threads(threads: int | None) -> Iterator[None]:
    """Run on this number of threads; None for torch's own."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def trace_for(
    configuration: Configuration, *, live: Case | None = None, inference: bool = False, by_module: bool = True
) -> TracedStep:
    """The step of a configuration for the device that it names.

    Args:
        configuration: configuration of the step.
        live: case of a live network in place of the configuration's own, which stays as it is.
        inference: follow an inference step after it.
        by_module: find the module that saved each block, which the bytes of the whole step do without.

    Raises:
        ConfigurationError: the network cannot be made, or followed without values.
    """
    gpu = _gpu(configuration)
    workspace = gpu.workspace_bytes if gpu else 0
    return trace_step(
        configuration, live=live, workspace_bytes=workspace, try_scratch=gpu is None, inference=inference, by_module=by_module
    )


def predict_memory(configuration: Configuration, step: TracedStep) -> Prediction:
    """The memory figures of a traced step on the device of a configuration."""
    gpu, exchanged = _gpu(configuration), step.trace.most_communicated()
    if gpu is None:
        peak, room = max(phase.peak for phase in step.trace.phases().values()), configuration.capacity
        fits = room is None or peak <= room
        reason = ""
        if room is not None and not fits:
            reason = f"the highest point of the step takes {mebibytes_text(peak - room)} more than {mebibytes_text(room)}"
        figures = _figures(configuration, step, step.trace, None, None)
        return Prediction(figures, fits, reason, room, exchanged, step.lower_bound)
    room = configuration.capacity or gpu.memory_bytes
    # The device's allocator frees its cache before it gives up; the figure is then the one that it would take with room to spare.
    limited, endless = CachingAllocator(room - gpu.context_bytes), CachingAllocator()
    try:
        figures = _figures(configuration, step, step.trace.replay(limited), limited.reserved_peak, gpu)
        return Prediction(figures, True, "", room, exchanged, step.lower_bound)
    except OutOfMemory as error:
        figures = _figures(configuration, step, step.trace.replay(endless), endless.reserved_peak, gpu)
        context = f"; the driver's context takes the other {mebibytes_text(gpu.context_bytes)} of {mebibytes_text(room)}"
        return Prediction(figures, False, error.what + context, room, exchanged, step.lower_bound)


def _gpu(configuration: Configuration) -> Gpu | None:
    if configuration.device_kind() == "cpu":
        return None
    if configuration.gpu is None:
        raise ConfigurationError("a prediction for CUDA needs to know the GPU", "name one with `gpu`")
    return gpu_of(configuration.gpu)


def _figures(
    configuration: Configuration, step: TracedStep, counted: Trace, reserved: int | None, gpu: Gpu | None
) -> MemoryFigures:
    phases, inference = counted.phases(), _inference(step, gpu)
    context, of_step = gpu.context_bytes if gpu else None, CachingAllocator()
    if gpu:
        step.trace.replay(of_step, empty_first=True)
    figures = MemoryFigures(
        probe="trace",
        state_bytes=step.state_bytes,
        gradient_bytes=step.gradient_bytes,
        optimizer_bytes=step.optimizer_bytes,
        retained_bytes=step.retained_bytes,
        peak_forward_bytes=phases["forward"].peak,
        peak_backward_bytes=phases["backward"].peak,
        peak_allocated_bytes=max(phase.peak for phase in phases.values()),
        retained_requested_bytes=step.retained_bytes if gpu else None,
        peak_requested_bytes=max(phase.peak for phase in step.trace.phases().values()) if gpu else None,
        peak_reserved_bytes=reserved,
        step_reserved_bytes=of_step.reserved_peak if gpu else None,
        process_bytes=reserved + context if reserved is not None and context is not None else None,
        context_bytes=context,
        at_peak=counted.at_peak(),
        inference_peak_bytes=inference[0],
        inference_kept_bytes=inference[1],
        scratch=list(step.scratch),
    )
    kinds: tuple[tuple[Certainty, tuple[str, ...]], ...] = (("exact", _EXACT), ("modelled", _MODELLED), ("guessed", _GUESSED))
    certainty = {name: kind for kind, names in kinds for name in names if getattr(figures, name) is not None}
    of_inference = {"inference_peak_bytes", "inference_kept_bytes"} & certainty.keys()
    if _assumed(step.inference):
        certainty |= dict.fromkeys(of_inference, "guessed")
    if configuration.parallel == "fsdp":
        # Buffers of its own streams have segments of their own, which the model of the allocator does not have.
        certainty |= dict.fromkeys({"peak_reserved_bytes", "step_reserved_bytes"} & certainty.keys(), "guessed")
    if step.notes:
        # An assumption decides what the step computes.
        certainty = dict.fromkeys(certainty, "guessed")
    elif step.unsure:
        unsure = {"retained_bytes", "retained_requested_bytes", *_MODELLED} & certainty.keys()
        certainty |= dict.fromkeys(unsure | of_inference, "guessed")
    return figures.model_copy(update={"certainty": certainty})


def _inference(step: TracedStep, gpu: Gpu | None) -> tuple[int | None, int | None]:
    """The highest bytes of a traced inference step, and those that it keeps; None where it was not followed."""
    if step.inference is None or step.inference.trace is None:
        return None, None
    requested = step.inference.trace
    counted = requested.replay(CachingAllocator()) if gpu else requested
    kept = requested.phases()[INFERENCE]
    return counted.phases()[INFERENCE].peak - step.inference.unneeded_bytes, kept.end - kept.start


def _assumed(inference: TracedInference | None) -> list[str]:
    """The assumptions of a traced inference step, or the reason that it was not followed."""
    return [] if inference is None else [*inference.notes, *inference.unsure]
