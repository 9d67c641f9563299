"""One inference step after a training step, counted by a probe or followed in a trace."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from capsbench.tracing.storages import gradients_of, handed_out_bytes, optimizer_state
from capsbench.tracing.trace import INFERENCE
from capsbench.workload import Workload

INFERENCE_NOT_KNOWN = "the memory of an inference step is not known"
"""Beginning of the note on an inference step that cannot be run."""


def run_inference(workload: Workload, phase: Callable[[str], AbstractContextManager[object]]) -> None:
    """Run an inference step of a workload, whose output lives to the end of its phase.

    A first inference step is not observed: libraries and networks may make what they keep for all later ones.

    Args:
        workload: workload whose training step has been observed.
        phase: makes the context in which the step runs from the phase's name.
    """
    with workload.evaluating():
        workload.inference()
        with phase(INFERENCE):
            output = workload.inference()
        del output


def unneeded_bytes(workload: Workload, device_kind: str) -> int:
    """Bytes that a training step leaves alive and no inference needs: the optimizer's state, and gradients not freed."""
    return handed_out_bytes([*optimizer_state(workload.optimizers), *gradients_of(workload.model)], device_kind)
