"""The memory of one training step and one inference step: the run under a probe, and its figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from capsbench.errors import error_line
from capsbench.measure.compiling import run_until_compiled
from capsbench.measure.memory import MemoryProbe, probe_for
from capsbench.records import Configuration, MemoryFigures
from capsbench.tracing.collectives import communicated
from capsbench.tracing.cuda_allocator import SMALLEST
from capsbench.tracing.observed_inference import INFERENCE_NOT_KNOWN, run_inference, unneeded_bytes
from capsbench.tracing.observed_step import GradientObserver
from capsbench.tracing.storages import gradients_of, optimizer_state, state_of, storage_bytes
from capsbench.tracing.trace import INFERENCE, PHASES, Phase
from capsbench.workload import Workload

Afterwards = Callable[[MemoryProbe, Workload], None]
"""A function that is called after a step, while its probe still counts."""


@dataclass(frozen=True)
class ProbedStep:
    """A step that was run, with the probe that counted it."""

    workload: Workload
    probe: MemoryProbe
    """The probe, which has been left; its phases are `forward`, `backward`, `optimizer` and, if it was counted, `inference`."""
    gradient_bytes: int
    """Bytes of the gradients that were alive after backward."""
    freed_gradients: Sequence[int]
    """Bytes of each gradient of the step before that forward freed."""

    def retained_bytes(self) -> int | None:
        """Bytes alive after forward minus those before, without gradients that forward freed; None if they were not counted."""
        freed = self.freed_gradients
        if self.workload.device.type == "cuda":
            freed = [-(-nbytes // SMALLEST) * SMALLEST for nbytes in freed]
        return _retained(self.probe.phases() if self.probe.counts() else None, freed)


def count_inference(probe: MemoryProbe, workload: Workload) -> None:
    """Run an inference step under a probe; one that fails leaves a note, since the training step has been counted."""
    try:
        run_inference(workload, probe.phase)
    except Exception as error:
        workload.note(f"{INFERENCE_NOT_KNOWN}: {error_line(error)}")


def probed_step(
    configuration: Configuration, data_directory: Path | None = None, afterwards: Afterwards = count_inference
) -> ProbedStep:
    """Run a step under a probe, after one that makes gradients, optimizer state and the libraries' own buffers.

    Args:
        configuration: the step.
        data_directory: folder of the real data sets.
        afterwards: called after the step.
    """
    probe = probe_for(torch.device(configuration.device))
    with probe:
        workload = Workload(configuration, data_directory)
        communicating = communicated(lambda tensors: probe.tag("communication", tensors))
        with communicating if configuration.parallel is not None else nullcontext():
            run_until_compiled(workload.train_step)
            for _ in range(workload.first_steps - 1):
                workload.train_step()
            probe.tag("batch", workload.given)
            probe.tag("state", state_of(workload.model))
            probe.tag("optimizer", optimizer_state(workload.optimizers))
            probe.tag("gradient", gradients_of(workload.model))
            seen = _Probing(probe, workload.model)
            workload.train_step(seen)
        afterwards(probe, workload)
    return ProbedStep(workload, probe, seen.gradient_bytes, seen.freed_gradients)


class _Probing(GradientObserver):
    """A probe that counts phase by phase."""

    def __init__(self, probe: MemoryProbe, model: nn.Module) -> None:
        super().__init__(model)
        self._probe = probe

    def phase(self, name: str) -> AbstractContextManager[object]:
        return self._probe.phase(name)

    def see_gradients(self, gradients: Iterable[Tensor]) -> None:
        self._probe.tag("gradient", gradients)


def memory_figures(step: ProbedStep) -> MemoryFigures:
    """The bytes of a step that was run; on a CUDA device this runs several more."""
    workload, probe = step.workload, step.probe
    phases, requested, trace = probe.phases() if probe.counts() else None, probe.requested(), probe.trace()
    later = probe.later_steps(workload.train_step)
    inference = phases.get(INFERENCE) if phases else None
    unneeded = unneeded_bytes(workload, workload.device.type)
    return MemoryFigures(
        probe=probe.name,
        state_bytes=storage_bytes(state_of(workload.model)),
        gradient_bytes=step.gradient_bytes,
        optimizer_bytes=storage_bytes(optimizer_state(workload.optimizers)),
        retained_bytes=step.retained_bytes(),
        peak_forward_bytes=phases["forward"].peak if phases else None,
        peak_backward_bytes=phases["backward"].peak if phases else None,
        peak_allocated_bytes=_peak(phases),
        retained_requested_bytes=_retained(requested, step.freed_gradients),
        peak_requested_bytes=_peak(requested),
        peak_reserved_bytes=probe.peak_reserved(),
        step_reserved_bytes=later.reserved,
        process_bytes=probe.process_bytes(),
        context_bytes=probe.context_bytes(),
        warm_peak_allocated_bytes=later.warm_peak,
        at_peak=trace.at_peak() if trace else None,
        inference_peak_bytes=inference.peak - unneeded if inference else None,
        inference_kept_bytes=inference.end - inference.start if inference else None,
    )


def _retained(phases: Mapping[str, Phase] | None, freed: Iterable[int]) -> int | None:
    return phases["forward"].end - phases["forward"].start + sum(freed) if phases else None


def _peak(phases: Mapping[str, Phase] | None) -> int | None:
    return max(phase.peak for name, phase in phases.items() if name in PHASES) if phases else None
