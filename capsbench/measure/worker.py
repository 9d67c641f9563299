"""The child's side of a measurement: `python -m capsbench.measure.worker`, one pass of one cell, then gone.

Reads a request (one line of JSON) from standard input and writes a reply (JSON) to standard output; whatever a model
prints goes to standard error. Ends at once when standard input closes: the parent is gone.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TextIO

import torch
from pydantic import BaseModel, ConfigDict

from capsbench.errors import CapsbenchError
from capsbench.measure.clock import clock_for
from capsbench.measure.memory import data_bytes, gradient_bytes, optimizer_bytes, probe_for, state_bytes
from capsbench.records import Configuration, MemoryFigures, Pass, Status, TimeFigures
from capsbench.workload import Workload

WARMUP_STEPS = 2
MAX_SAMPLES = 50
LONGEST_MESSAGE = 500
SECONDS_WORTH_SAMPLING = 1.0
"""Quick steps are sampled until they have filled this time: five samples of a millisecond say little."""


class Request(BaseModel):
    """What the parent asks for."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    configuration: Configuration
    what: Pass
    samples: int
    data_directory: Path | None = None


class Reply(BaseModel):
    """What the child found."""

    model_config = ConfigDict(extra="forbid")

    status: Status
    message: str | None = None
    data_source: str | None = None
    memory: MemoryFigures | None = None
    time: TimeFigures | None = None


def measure_memory(configuration: Configuration, data_directory: Path | None = None) -> Reply:
    """The bytes of one step, after one step that makes gradients, optimizer state and the libraries' own buffers."""
    probe = probe_for(torch.device(configuration.device))
    with probe:
        workload = Workload(configuration, data_directory)
        workload.train_step()
        with probe.phase("forward"):
            loss = workload.forward()
        with probe.phase("backward"):
            workload.backward(loss)
        gradients = gradient_bytes(workload.model)
        with probe.phase("optimizer"):
            del loss
            workload.optimize()
    phases = probe.phases()
    figures = MemoryFigures(
        probe=probe.name,
        state_bytes=state_bytes(workload.model),
        gradient_bytes=gradients,
        optimizer_bytes=optimizer_bytes(workload.optimizer),
        retained_bytes=phases["forward"].end - phases["forward"].start,
        peak_forward_bytes=phases["forward"].peak,
        peak_backward_bytes=phases["backward"].peak,
        peak_allocated_bytes=max(phase.peak for phase in phases.values()),
        peak_reserved_bytes=probe.peak_reserved(),
        process_bytes=probe.process_bytes(),
    )
    return Reply(status="ok", data_source=workload.data_source, memory=figures)


def measure_time(configuration: Configuration, samples: int, data_directory: Path | None = None) -> Reply:
    """Raw samples of training step, forward and inference, interleaved, after warming up."""
    workload = Workload(configuration, data_directory)
    clock = clock_for(workload.device)
    for _ in range(WARMUP_STEPS):
        workload.train_step()
    with workload.evaluating():
        workload.inference()
    train: list[float] = []
    forward: list[float] = []
    inference: list[float] = []
    began = time.monotonic()
    while len(train) < samples or (len(train) < MAX_SAMPLES and time.monotonic() - began < SECONDS_WORTH_SAMPLING):
        clock.mark()
        loss = workload.forward()
        clock.mark()
        workload.backward(loss)
        workload.optimize()
        clock.mark()
        del loss
        to_loss, from_loss = clock.laps()
        forward.append(to_loss)
        train.append(to_loss + from_loss)
        with workload.evaluating():
            clock.mark()
            workload.inference()
            clock.mark()
        inference += clock.laps()
    figures = TimeFigures(
        clock=clock.name,
        warmup_steps=WARMUP_STEPS,
        train_step_seconds=train,
        forward_seconds=forward,
        inference_seconds=inference,
    )
    return Reply(status="ok", data_source=workload.data_source, time=figures)


def run(request: Request) -> Reply:
    """One pass; whatever goes wrong becomes a reply."""
    try:
        _prepare(request.configuration)
        if request.what == "memory":
            return measure_memory(request.configuration, request.data_directory)
        return measure_time(request.configuration, request.samples, request.data_directory)
    except CapsbenchError as error:
        return Reply(status="error", message=" - ".join(str(error).splitlines()))
    except BaseException as error:  # a user's model may raise anything; its traceback is the parent's error
        traceback.print_exc()
        full = is_out_of_memory(error, limited=request.configuration.capacity is not None)
        return Reply(status="oom" if full else "error", message=_describe(error))


def _describe(error: BaseException) -> str:
    """An error on one line, and where it was raised."""
    reason = (str(error).strip().splitlines() or ["no message"])[0][:LONGEST_MESSAGE]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {reason}{place}"


def is_out_of_memory(error: BaseException, *, limited: bool = False) -> bool:
    """Whether an error says that there was no room; a CPU's comes as a plain RuntimeError.

    Args:
        error: what was raised.
        limited: whether the process runs under a limit. Then oneDNN's failure to make a primitive, and an error that
            found no room for itself, mean the same.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    texts = ["can't allocate memory", "not enough memory"]
    # CUDA's libraries allocate beside the caching allocator, and say so in their own words.
    texts += ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"]
    if limited:
        texts += ["could not create a primitive", "could not create a memory", "without exception set"]
    return isinstance(error, RuntimeError | SystemError) and any(text in str(error) for text in texts)


def _prepare(configuration: Configuration) -> None:
    """What holds for the whole process: threads, subnormal numbers, a limit on memory."""
    torch.set_flush_denormal(True)
    # What is called fp32 is fp32: convolutions would otherwise take TF32 on a GPU that has it.
    torch.backends.cudnn.allow_tf32 = False
    if configuration.threads is not None:
        torch.set_num_threads(configuration.threads)
    device = torch.device(configuration.device)
    if device.type == "cuda":
        index = device.index or 0  # torch takes no device without a number here
        torch.cuda.set_device(index)
        if configuration.capacity is not None:
            total = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, configuration.capacity / total), index)
    elif configuration.capacity is not None:
        _limit_data(configuration.capacity)


def _limit_data(capacity: int) -> None:
    """Lets this process take so many bytes more than libraries and threads have: as on a GPU, where the context is extra."""
    import resource

    # What starts lazily must have started: threads, and the profiler's own imports.
    torch.ones(2**20).add_(1)
    with torch.profiler.profile(profile_memory=True):
        pass
    limit = data_bytes() + capacity
    # Data, not address space: the libraries alone map many GiB that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _end_with_parent(source: TextIO) -> None:
    def wait() -> None:
        source.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Reads the request, replies, ends."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = Request.model_validate_json(sys.stdin.readline())
    _end_with_parent(sys.stdin)
    reply = run(request)
    with answer, contextlib.suppress(BrokenPipeError):
        answer.write(reply.model_dump_json())
    sys.stderr.flush()
    # Past the interpreter's own ending: nothing of the measured process is worth an orderly shutdown of its threads.
    os._exit(0)


if __name__ == "__main__":
    main()
