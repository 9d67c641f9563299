"""The memory of one training step: the run under a probe, and its figures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from capsbench.measure.memory import MemoryProbe, probe_for
from capsbench.records import Configuration, MemoryFigures
from capsbench.tracing.storages import gradients_of, optimizer_state, state_of, storage_bytes
from capsbench.workload import Workload

Afterwards = Callable[[MemoryProbe, Workload], None]
"""A function that is called after a step, while its probe still counts."""


@dataclass(frozen=True)
class ProbedStep:
    """A step that was run, with the probe that counted it."""

    workload: Workload
    probe: MemoryProbe
    """The probe, which has been left; its phases are `forward`, `backward` and `optimizer`."""
    gradient_bytes: int
    """Bytes of the gradients that were alive after backward."""


def probed_step(
    configuration: Configuration, data_directory: Path | None = None, afterwards: Afterwards | None = None
) -> ProbedStep:
    """Run a step under a probe, after one that makes gradients, optimizer state and the libraries' own buffers."""
    probe = probe_for(torch.device(configuration.device))
    with probe:
        workload = Workload(configuration, data_directory)
        workload.train_step()
        probe.tag("batch", workload.batch)
        probe.tag("state", state_of(workload.model))
        probe.tag("optimizer", optimizer_state(workload.optimizer))
        with probe.phase("forward"):
            loss = workload.forward()
        with probe.phase("backward"):
            workload.backward(loss)
        gradients = gradients_of(workload.model)
        probe.tag("gradient", gradients)
        gradient_bytes = storage_bytes(gradients)
        with probe.phase("optimizer"):
            del loss, gradients
            workload.optimize()
        if afterwards is not None:
            afterwards(probe, workload)
    return ProbedStep(workload, probe, gradient_bytes)


def memory_figures(step: ProbedStep) -> MemoryFigures:
    """The bytes of a step that was run; on a CUDA device this runs several more."""
    workload, probe, phases = step.workload, step.probe, step.probe.phases()
    trace = probe.trace()
    return MemoryFigures(
        probe=probe.name,
        state_bytes=storage_bytes(state_of(workload.model)),
        gradient_bytes=step.gradient_bytes,
        optimizer_bytes=storage_bytes(optimizer_state(workload.optimizer)),
        retained_bytes=phases["forward"].end - phases["forward"].start,
        peak_forward_bytes=phases["forward"].peak,
        peak_backward_bytes=phases["backward"].peak,
        peak_allocated_bytes=max(phase.peak for phase in phases.values()),
        peak_reserved_bytes=probe.peak_reserved(),
        process_bytes=probe.process_bytes(),
        context_bytes=probe.context_bytes(),
        warm_peak_allocated_bytes=probe.warm_peak(workload.train_step),
        at_peak=trace.at_peak() if trace else None,
    )
