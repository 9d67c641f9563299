"""The time pass: samples of a step's parts until their median is known, with a yardstick of the machine's speed."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from capsbench.measure.clock import Clock, clock_for
from capsbench.measure.compiling import run_until_compiled
from capsbench.measure.device_time import device_seconds
from capsbench.measure.edges import Edges
from capsbench.measure.noise import is_settled, noise_of
from capsbench.measure.watch import Watch
from capsbench.phases import StepObserver
from capsbench.records import TimeFigures
from capsbench.workload import Workload

WARMUP_STEPS = 2
WARMUP_SECONDS = 0.5
"""Least time in seconds of further steps on a GPU before the first sample: the clock of an idle one takes as long to rise."""
MAX_SAMPLES = 1000
SECONDS_WORTH_SAMPLING = 1.0
"""Least time in seconds that samples of quick steps fill: five samples of a millisecond mean little."""

_SIDES = {"cpu": 1024, "cuda": 4096}
_YARDSTICK_SHARE = 0.1
LAUNCHES = 100
"""Kernels that a GPU's second yardstick launches."""


class Yardstick:
    """The product of a float32 matrix with itself, the same work on every machine and in every version.

    It measures the device. On a GPU a hundred launches of the smallest kernel measure the host, which may be what limits a step.

    A time alone cannot be compared with one of another day: clocks, neighbours and heat have changed. Divided by the
    yardstick's time at the same moment it can, if both are slowed alike. The matrices live for the measurement
    alone, so that they add nothing to what a step needs, and are used rarely enough to leave most samples' caches alone.

    Args:
        device: device of the matrices.
        clock: clock of that device.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device, self._clock = device, clock
        self._side = _SIDES.get(device.type, _SIDES["cpu"])
        self._next = -math.inf
        self.flops = 2 * self._side**3
        self.seconds: list[float] = []
        self.launch_seconds: list[float] = []
        """Samples of the launches; none on a CPU."""

    def is_due(self) -> bool:
        """Return whether it may be measured again without taking more than a tenth of the time."""
        return time.monotonic() >= self._next

    def warm_up(self) -> None:
        """Run the first product, which starts threads and libraries and is no sample."""
        self._product()
        self._launches()

    def measure(self) -> None:
        """Take a sample; none where there is no room for it."""
        laps = self._product()
        self.seconds += laps
        launches = self._launches()
        self.launch_seconds += launches
        self._next = time.monotonic() + sum([*laps, *launches]) / _YARDSTICK_SHARE

    def _product(self) -> list[float]:
        def prepared() -> Callable[[], object]:
            # No random numbers, so that the model's stay as they were.
            values = torch.linspace(0, 1, self._side**2, dtype=torch.float32, device=self._device)
            matrix, product = values.view(self._side, self._side), torch.zeros_like(values).view(self._side, self._side)
            return lambda: torch.mm(matrix, matrix, out=product)

        return self._timed(prepared)

    def _launches(self) -> list[float]:
        def prepared() -> Callable[[], object]:
            number = torch.zeros(1, device=self._device)
            return lambda: [number.add_(1) for _ in range(LAUNCHES)]

        return self._timed(prepared) if self._device.type == "cuda" else []

    def _timed(self, prepare: Callable[[], Callable[[], object]]) -> list[float]:
        """Time a piece of work once; no sample where there is no room for what it needs."""
        try:
            work = prepare()
            self._clock.mark()
            work()
            self._clock.mark()
        except RuntimeError:  # out of memory: a CPU has no error of its own for that
            self._clock.laps()
            return []
        return self._clock.laps()


class Laps(StepObserver):
    """A clock that is read where each phase of a step begins and ends.

    Args:
        clock: clock of the step's device.
        edges: edges of the modules that grow, if they are timed too.
    """

    def __init__(self, clock: Clock, edges: Edges | None = None) -> None:
        self._clock, self._edges = clock, edges

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Read the clock at both ends of forward, and at the ends of the phases after it."""
        first = name == "forward"
        with self._edges.forward(training=True) if first and self._edges else nullcontext():
            if first:
                self._clock.mark()
            yield
            self._clock.mark()


def measure_time(workload: Workload, samples: int, budget_seconds: float) -> TimeFigures:
    """Raw samples of training step, forward and inference, interleaved, after warming up.

    Args:
        workload: workload to measure.
        samples: least number of samples of each.
        budget_seconds: time to continue sampling while the 95 % interval of the median training step is not yet within
            2 % of it.
    """
    clock = clock_for(workload.device)
    laps, yardstick = Laps(clock), Yardstick(workload.device, clock)
    warmup_steps = warm_up(workload.train_step, workload.device)
    with workload.evaluating():
        run_until_compiled(workload.inference)
    yardstick.warm_up()
    train: list[float] = []
    forward: list[float] = []
    inference: list[float] = []
    watch, began = Watch(workload.device), time.monotonic()
    while not _enough(train, samples, time.monotonic() - began, budget_seconds):
        if yardstick.is_due():
            yardstick.measure()
            watch.look()
        workload.train_step(laps)
        parts = clock.laps()
        forward.append(parts[0])
        train.append(sum(parts))
        with workload.evaluating():
            clock.mark()
            workload.inference()
            clock.mark()
        inference += clock.laps()
    machine = watch.seen()
    of_train = device_seconds(workload.train_step, workload.device)
    with workload.evaluating():
        of_inference = device_seconds(workload.inference, workload.device)
    return TimeFigures(
        clock=clock.name,
        warmup_steps=warmup_steps,
        train_step_seconds=train,
        forward_seconds=forward,
        inference_seconds=inference,
        yardstick_seconds=yardstick.seconds,
        yardstick_flops=yardstick.flops if yardstick.seconds else None,
        launch_yardstick_seconds=yardstick.launch_seconds,
        device_train_step_seconds=of_train,
        device_inference_seconds=of_inference,
        noise=noise_of(train, inference, machine, of_device=(of_train, of_inference)),
    )


def warm_up(step: Callable[[], None], device: torch.device, *, fewest: int = WARMUP_STEPS) -> int:
    """Run steps until libraries, and a GPU's clock, have settled; the first ones may compile kernels while the GPU idles.

    Args:
        step: a step.
        device: its device.
        fewest: least number of steps.

    Returns:
        The number of steps.
    """
    count, began = 0, 0.0
    while count < fewest or (device.type == "cuda" and time.monotonic() - began < WARMUP_SECONDS):
        # A compiled network is compiled again for inference, or where a guard fails.
        count += run_until_compiled(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # or the host would run ahead, and count time that the device has not worked
        if not began and count >= fewest:
            began = time.monotonic()
    return count


def _enough(train: Sequence[float], fewest: int, seconds: float, budget_seconds: float) -> bool:
    """Return whether sampling can end after this many seconds."""
    if len(train) < fewest:
        return False
    if len(train) >= MAX_SAMPLES or seconds >= budget_seconds:
        return True
    return seconds >= SECONDS_WORTH_SAMPLING and is_settled(train)
