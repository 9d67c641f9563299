"""The inside of one training step: the memory alive after every allocation, and the origin of the peak.

A measured step runs unwatched, as in `step_memory`. A further one is watched (`close_look`), which gives the origins.
"""

from pathlib import Path

import torch

from capsbench.errors import ConfigurationError
from capsbench.measure.close_look import CloseLook, Origins
from capsbench.measure.memory import MemoryProbe
from capsbench.measure.step_memory import probed_step
from capsbench.prediction.timelines import classes_named, step_fields
from capsbench.records import Configuration
from capsbench.timeline import Timeline
from capsbench.tracing.attribution import module_classes
from capsbench.workload import Workload


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
    origins = Origins(trace, looks[0], step.retained_bytes() or 0)
    fields, by_module = step_fields(trace, step.probe.phases(), origins.of), origins.retained_by_module()
    return Timeline(
        kind="measured",
        configuration=configuration,
        probe=step.probe.name,
        data_source=step.workload.data_source,
        **fields,
        retained_by_module=by_module,
        module_classes=classes_named(module_classes(step.workload.model), [*by_module, fields["peak"].module]),
        notes=[*origins.notes, *step.workload.remarks()],
    )
