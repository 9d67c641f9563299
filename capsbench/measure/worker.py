"""The child's side of a measurement: `python -m capsbench.measure.worker` runs one pass of one cell, and ends.

Reads a request (one line of JSON) from standard input and writes a reply (JSON) to standard output; whatever a model
prints goes to standard error. Ends at once when standard input closes: the parent is gone.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path

import torch

from capsbench.cases.foreign import keeping_threads, step_error
from capsbench.errors import CapsbenchError, ConfigurationError, error_line, error_place, one_line
from capsbench.measure.group import joined_group, reply_of_group
from capsbench.measure.limits import is_out_of_memory, limit_cpu, limits_all_memory
from capsbench.measure.messages import Reply, Request
from capsbench.measure.processes import other_processes, refuse_others, unknown_others
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.records import Configuration, MemoryFigures, StepFigures
from capsbench.system.families import FAMILY, end_family
from capsbench.system.paths import starting_here
from capsbench.tf32 import allows_tf32, forbid_tf32
from capsbench.tracing import counting
from capsbench.tracing.step_trace import traced_figures
from capsbench.workload import Workload, without_effect

LONGEST_MESSAGE = 500

_AUTOTUNED = [
    "cuDNN tries several algorithms in the first step, as the network asks (`torch.backends.cudnn.benchmark`): their scratch "
    "memory is in peak_reserved_bytes, and not in step_reserved_bytes"
]

READY = b"1"
"""A byte that a worker sends once its workload is built, and its parent when it may be timed."""


def memory_pass(configuration: Configuration, data_directory: Path | None = None, *, rank: int | None = None) -> Reply:
    """The bytes of one step, and the name of the probe that counted them.

    Args:
        configuration: the step.
        data_directory: folder of the real data sets.
        rank: number of this process among those that train together; None for one that is alone.
    """
    with joined_group(configuration):
        step = probed_step(configuration, data_directory)
        figures = memory_figures(step)
        source, of_step = step.workload.data_source, [*step.probe.notes(), *step.workload.notes()]
        del step  # what it holds of the group must be gone before the group is
    why = _who_counted(figures.probe)
    traced, notes = None, list[str]()
    if not rank:  # a trace is of the first process
        with keeping_threads(configuration.model):  # it is made again
            traced, notes = traced_figures(configuration)
    if traced is not None:
        counted, of_trace = _compared(figures, traced)
        traced = traced.model_copy(update={"agrees": None if counted is None else counted == of_trace})
        if traced.agrees is False:
            notes += [
                f"{counted} bytes retained were counted, and the trace of the step retains {of_trace}: the count is used, "
                "and what the trace says of modules and operations is not used"
            ]
    return Reply(status="ok", data_source=source, memory=figures, step=traced, notes=[*why, *of_step, *notes])


def _compared(figures: MemoryFigures, traced: StepFigures) -> tuple[int | None, int | None]:
    """Retained bytes as they were counted and as the trace has them: those requested, where they are known."""
    if figures.retained_requested_bytes is not None:
        return figures.retained_requested_bytes, sum(traced.retained_by_module.values())
    return figures.retained_bytes, traced.retained_bytes


def timeline_pass(request: Request) -> Reply:
    """The timeline of one step, allocation by allocation."""
    from capsbench.measure.step_timeline import measured_timeline

    timeline = measured_timeline(request.configuration, request.data_directory, request.snapshot)
    return Reply(status="ok", timeline=timeline, notes=_who_counted(timeline.probe))


def time_pass(request: Request) -> Reply:
    """Raw samples of a step's times."""
    # Imported here alone, because its statistics must not be in the memory pass's resident set.
    from capsbench.measure import timing

    workload = Workload(request.configuration, request.data_directory)
    if request.turn is not None:
        with socket.socket(fileno=request.turn) as parent:
            parent.send(READY)
            parent.recv(len(READY))
    figures = timing.measure_time(workload, request.samples, request.budget_seconds)
    return Reply(status="ok", data_source=workload.data_source, time=figures, notes=workload.notes())


def run_request(request: Request) -> Reply:
    """Run one pass; any failure becomes a reply."""
    notes: list[str] = []
    try:
        if request.what == "time":
            # Before memory is limited, since not every library can be loaded without any.
            import_module("capsbench.measure.timing")
        prepare_process(request.configuration)
        device = torch.device(request.configuration.device)
        found = other_processes(device)
        unknown = [] if found else unknown_others(device)
        notes = [*found, *unknown, *without_effect(request.configuration)]
        if request.strict:
            refuse_others(found, unknown)
        if request.configuration.parallel is not None and request.rank is None:
            reply = reply_of_group(request)
        elif request.timeline:
            reply = timeline_pass(request)
        elif request.what == "memory":
            reply = memory_pass(request.configuration, request.data_directory, rank=request.rank)
        else:
            reply = time_pass(request)
        check_threads(request.configuration)
    except CapsbenchError as error:
        reply = Reply(status="error", message=one_line(error))
    except BaseException as error:  # a user's model may raise anything; its traceback is the parent's error
        traceback.print_exc()
        full = is_out_of_memory(error, limited=limits_all_memory(request.configuration))
        if full:
            reply = Reply(status="oom", message=f"{error_line(error, LONGEST_MESSAGE)} ({error_place(error)})")
        else:
            reply = Reply(status="error", message=one_line(step_error(request.configuration.model, error, most=LONGEST_MESSAGE)))
    tf32 = None
    if request.configuration.device_kind() == "cuda":
        tf32 = allows_tf32()
        notes += _AUTOTUNED if torch.backends.cudnn.benchmark else []
    return reply.model_copy(update={"tf32": tf32, "notes": [*notes, *reply.notes]})


def _who_counted(probe: str) -> list[str]:
    return [f"torch's profiler counted bytes: {counting.reason_not_installed()}"] if probe == "profiler" else []


def prepare_process(configuration: Configuration) -> None:
    """Prepare the whole process: products in float32, threads, subnormal numbers, a limit on memory."""
    torch.set_flush_denormal(True)
    forbid_tf32()
    if configuration.threads is not None:
        torch.set_num_threads(configuration.threads)
    device = torch.device(configuration.device)
    if device.type == "cuda":
        index = device.index or 0  # torch needs a device's number here
        torch.cuda.set_device(index)
        if configuration.capacity is not None:
            total = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, configuration.capacity / total), index)
    elif configuration.capacity is not None:
        limit_cpu(configuration.capacity)


def check_threads(configuration: Configuration) -> None:
    """Refuse a step that ran with another number of threads than its record reports."""
    asked, found = configuration.threads, torch.get_num_threads()
    if asked is not None and found != asked:
        raise ConfigurationError(
            f"model '{configuration.model}' sets torch's threads to {found} while it runs, but its record would report {asked}",
            f"leave their number to `threads`, or give `threads` {found}",
        )


def end_with_parent() -> None:
    """End this process, and all that it started, once standard input is closed."""
    sys.stdin.read()
    # Processes that a network started end too, in whatever session they are.
    end_family(os.environ.get(FAMILY, ""))
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Read the request, reply, end."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = Request.model_validate_json(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    with starting_here():  # a network may go to another folder
        reply = run_request(request)
    with answer, contextlib.suppress(BrokenPipeError):
        answer.write(reply.model_dump_json())
    sys.stderr.flush()
    # This skips the interpreter's own ending: the measured process has nothing that needs an orderly shutdown.
    os._exit(0)


if __name__ == "__main__":
    main()
