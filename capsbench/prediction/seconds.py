"""Modelled seconds of a step that is not run: for each operator the larger of its arithmetic and its traffic, and its launch.

This is the roofline model (Williams, Waterman, Patterson, CACM 52, 2009), operator by operator. It assumes that each operator
reaches the peak of the device and reads each of its tensors from memory once, and that none runs while another does.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from capsbench.devices import DEFAULT_GPU, Gpu, gpu_of
from capsbench.records import Configuration
from capsbench.tracing.operator_calls import Call, Operators
from capsbench.tracing.work import Work, work_of

LAUNCH_SECONDS = 5e-6
"""Seconds between two kernels that a host launches one after the other: an assumption, since it depends on the host."""

_SIDE = 512
"""Rows of the square matrices that are multiplied to calibrate a CPU."""
_COPIED_BYTES = 32 * 2**20
"""Bytes that are copied: more than the caches of most CPUs hold."""
_LAYERS = 4
"""Layers of a transformer so small that nothing but the overhead of its operators counts."""
_REPEATS = 5
_SPEEDS = "CAPSBENCH_CPU_SPEEDS"
"""Variable of the environment that hands the speeds of a CPU, by number of threads, to other processes."""


@dataclass(frozen=True)
class DeviceSpeed:
    """Speeds of a device."""

    flops: float
    """Floating-point operations per second."""
    half_flops: float
    """Floating-point operations per second in half precision."""
    bandwidth: float
    """Bytes per second that are read or written."""
    launch_seconds: float
    """Seconds that an operator takes in addition to its work."""

    def seconds(self, work: Sequence[Work]) -> float:
        """Return the modelled seconds of operators that run one after the other."""
        return sum(
            max(one.flops / (self.half_flops if one.half else self.flops), one.nbytes / self.bandwidth) + self.launch_seconds
            for one in work
        )


def speed_of(gpu: Gpu) -> DeviceSpeed:
    """The speeds of a GPU, by its data sheet."""
    return DeviceSpeed(gpu.flops, gpu.half_flops, gpu.bandwidth, LAUNCH_SECONDS)


def calibrated_speed(threads: int | None = None) -> DeviceSpeed:
    """The speeds of this CPU, measured in a tenth of a second: products of matrices, a copy, and a step of a tiny network.

    They are measured once for each number of threads. Processes that this one starts later take them from here, so that all
    cells of a sweep have the same ones.

    Args:
        threads: number of threads; by default torch's own.
    """
    before = torch.get_num_threads()
    count = threads or before
    key, known = f"{platform.node()}, {count} threads", json.loads(os.environ.get(_SPEEDS, "{}"))
    if key not in known:
        torch.set_num_threads(count)
        try:
            known[key] = asdict(_measured_speed())
        finally:
            torch.set_num_threads(before)
        os.environ[_SPEEDS] = json.dumps(known)
    return DeviceSpeed(**known[key])


def _measured_speed() -> DeviceSpeed:
    with _disable_current_modes(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        one, half = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE).bfloat16()
        source, tokens = torch.zeros(_COPIED_BYTES // 4), torch.zeros(1, 2, 8)
        target, product = torch.empty_like(source), 2 * _SIDE**3
        tiny = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(_LAYERS)))

        def step() -> None:
            tiny(tokens).sum().backward()

        with _Counting() as counting:
            step()
        return DeviceSpeed(
            product / _fastest(lambda: one @ one),
            product / _fastest(lambda: half @ half),
            2 * _COPIED_BYTES / _fastest(lambda: target.copy_(source)),
            _fastest(step) / counting.operators,
        )


class _Counting(Operators):
    """Counts the operators that have work."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def run(self, call: Call) -> Any:
        """Run an operator, and count it."""
        out = call.run()
        self.operators += work_of(call, out) is not None
        return out


def _fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    function()
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found)


def modelled_seconds(configuration: Configuration, work: Mapping[str, Sequence[Work]]) -> dict[str, float]:
    """The modelled seconds of each phase of a step, on the device of a configuration.

    Args:
        configuration: configuration of the step; a CPU is taken for this one, with the threads that it names.
        work: the work of each phase.
    """
    on_gpu = configuration.device_kind() == "cuda"
    speed = speed_of(gpu_of(configuration.gpu or DEFAULT_GPU)) if on_gpu else calibrated_speed(configuration.threads)
    return {phase: speed.seconds(of_phase) for phase, of_phase in work.items()}
