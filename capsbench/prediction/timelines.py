"""The timeline of a traced step: the memory alive after every allocation, and the origin of the peak."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from capsbench.prediction.predict import Prediction, predict_memory, trace_for
from capsbench.records import Configuration
from capsbench.timeline import StepPeak, StepPhase, Timeline
from capsbench.tracing.attribution import Origin
from capsbench.tracing.cuda_allocator import CachingAllocator
from capsbench.tracing.step_trace import TracedStep
from capsbench.tracing.trace import PHASES, Phase, Trace


def predicted_timeline(configuration: Configuration) -> Timeline:
    """The timeline of a step that is traced without its device.

    Raises:
        ConfigurationError: the configuration makes no network, or one that cannot be followed without values.
    """
    step = trace_for(configuration)
    return timeline_of(configuration, step, predict_memory(configuration, step))


def timeline_of(configuration: Configuration, step: TracedStep, predicted: Prediction) -> Timeline:
    """The timeline of a traced step.

    Args:
        configuration: configuration of the step.
        step: the step.
        predicted: its figures on the device of the configuration.
    """
    on_cuda = configuration.device_kind() == "cuda"
    trace = step.trace.replay(CachingAllocator()) if on_cuda else step.trace
    notes = [*step.notes, *step.unsure, *step.remarks]
    notes += [f"would not fit: {predicted.reason}"] if not predicted.fits else []
    notes += [f"not in the peaks: what libraries take as scratch for {', '.join(step.scratch)}"] if step.scratch else []
    notes += ["bytes by module are as asked for, all others as the allocator rounds them"] if on_cuda else []
    fields = step_fields(trace, trace.phases(), step.origin)
    return Timeline(
        kind="predicted",
        configuration=configuration,
        probe=predicted.memory.probe,
        **fields,
        retained_by_module=step.retained_by_module,
        module_classes=classes_named(step.module_classes, [*step.retained_by_module, fields["peak"].module]),
        notes=notes,
    )


def classes_named(classes: Mapping[str, str], names: Iterable[str | None]) -> dict[str, str]:
    """Return the classes of the modules that a timeline names, other than the network itself."""
    return {name: classes[name] for name in dict.fromkeys(names) if name and name in classes}


def step_fields(trace: Trace, phases: Mapping[str, Phase], origin: Callable[[int], Origin]) -> dict[str, Any]:
    """Return the fields of a `Timeline` that follow from a trace, without events outside the step and those that change nothing.

    Args:
        trace: trace of the step.
        phases: bytes of each phase, by the counters.
        origin: returns the origin of a block.
    """
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
