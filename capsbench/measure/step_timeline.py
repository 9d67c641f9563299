"""The inside of one training step: the memory alive after every allocation, and the origin of the peak.

A measured step runs unwatched, as in `step_memory`. A further one is watched (`close_look`), which gives the origins.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capsbench.errors import ConfigurationError
from capsbench.measure.close_look import CloseLook, Origins
from capsbench.measure.memory import MemoryProbe
from capsbench.measure.step_memory import probed_step
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import Configuration, StepPeak, StepPhase, Timeline
from capsbench.tracing.attribution import Origin
from capsbench.tracing.cuda_allocator import CachingAllocator
from capsbench.tracing.trace import PHASES, Phase, Trace
from capsbench.workload import Workload


def predicted_timeline(configuration: Configuration) -> Timeline:
    """The timeline of a step that is traced without its device.

    Raises:
        ConfigurationError: the configuration makes no network, or one that cannot be followed without values.
    """
    step = trace_for(configuration)
    predicted = predict_memory(configuration, step)
    on_cuda = configuration.device_kind() == "cuda"
    trace = step.trace.replay(CachingAllocator()) if on_cuda else step.trace
    notes = [*step.notes, *step.unsure]
    notes += [f"would not fit: {predicted.reason}"] if not predicted.fits else []
    notes += [f"not in the peaks: what libraries take as scratch for {', '.join(step.scratch)}"] if step.scratch else []
    notes += ["bytes by module are as asked for, all others as the allocator rounds them"] if on_cuda else []
    return Timeline(
        kind="predicted",
        configuration=configuration,
        probe=predicted.memory.probe,
        **_figures(trace, trace.phases(), step.origin),
        retained_by_module=step.retained_by_module,
        notes=notes,
    )


def measured_timeline(configuration: Configuration, data_directory: Path | None = None, snapshot: Path | None = None) -> Timeline:
    """Run a step and return its timeline.

    Args:
        configuration: step to run.
        data_directory: folder of the real data sets.
        snapshot: file for the CUDA allocator's own account, for pytorch.org/memory_viz.

    Raises:
        ConfigurationError: the configuration makes no network, or its device's allocator keeps no history.
    """
    looks: list[CloseLook] = []

    def look(probe: MemoryProbe, workload: Workload) -> None:
        if snapshot is not None and workload.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(snapshot))
        looks.append(CloseLook(probe, workload))
        looks[0].watch()

    step = probed_step(configuration, data_directory, look)
    trace = step.probe.trace()
    if trace is None:
        raise ConfigurationError(
            f"the allocator of device '{configuration.device}' keeps no history, from which a timeline is made",
            "leave PYTORCH_CUDA_ALLOC_CONF to torch's own allocator, or trace the step with `device` cuda:predicted",
        )
    origins = Origins(trace, looks[0])
    return Timeline(
        kind="measured",
        configuration=configuration,
        probe=step.probe.name,
        data_source=step.workload.data_source,
        **_figures(trace, step.probe.phases(), origins.of),
        retained_by_module=origins.retained_by_module(),
        notes=origins.notes,
    )


def _figures(trace: Trace, phases: Mapping[str, Phase], origin: Callable[[int], Origin]) -> dict[str, Any]:
    """The figures of the step alone; events outside it, and those that change nothing, leave no trace."""
    first, last = trace.spans[PHASES[0]][0], trace.spans[PHASES[-1]][1]
    kept = np.flatnonzero(trace.nbytes[first:last]) + 1
    shown = np.concatenate(([0], kept)) + first
    number = {at: int(np.searchsorted(shown, at, side="right")) - 1 for span in trace.spans.values() for at in span}
    phase, at = trace.peak()
    contents = trace.at_peak()
    allocated = max(one.peak for one in phases.values())
    # The highest point comes right after an allocation, unless the step makes none.
    made = origin(int(trace.blocks[at - 1])) if at > trace.spans[phase][0] else Origin("", "")
    return {
        "phases": {
            name: StepPhase(
                first_event=number[trace.spans[name][0]],
                last_event=number[trace.spans[name][1]],
                start_bytes=phases[name].start,
                end_bytes=phases[name].end,
                peak_bytes=phases[name].peak,
            )
            for name in PHASES
        },
        "bytes_by_category": {name: nbytes[shown].tolist() for name, nbytes in trace.stacked().items()},
        "peak": StepPeak(
            event=int(np.searchsorted(shown, at, side="right")) - 1,
            allocated_bytes=allocated,
            operator=made.operator or None,
            module=made.module if made.operator else None,
            contents=contents,
            left_over_bytes=allocated - contents.total(),
        ),
    }
