"""The cost of real data in a training step: `python -m benchmarks.training [--model mocapsnet --depth 2 --batch-size 128]`.

Three loops in one process, a step of each in turn, so that a disturbance of the machine affects all alike:

    benchmark   `Workload.train_step` on one batch that is there already, as `capsbench run` times it
    training    `Stepper.step` on the next batch, with its checks and metrics, as in `capsbench train`
    waiting     the part of it before the step had its batch

The exit status is 1 if a training step takes more than 5 % longer than the benchmark's, or waits for more than 2 % of its time.
"""

import statistics
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.command_line import parser_of
from capsbench.data.datasets import load_parts
from capsbench.data.feed import Feed
from capsbench.data.preprocess import Batch
from capsbench.records import Configuration
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.training import TrainingSettings
from capsbench.training.checkpoint import build_network
from capsbench.training.distributed import Processes
from capsbench.training.step import Stepper
from capsbench.workload import Workload, seed_everything

AT_MOST_MORE = 0.05
AT_MOST_WAITING = 0.02
WARMUP = 2


def main() -> int:
    """Measure, print both ratios, and report whether they hold."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="mocapsnet")
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dataset", default="sample")
    given = parser.parse_args()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    sweep = Sweep((given.model,), (given.depth,), device, dataset=(given.dataset,), batch_size=given.batch_size)
    (cell,) = expand(sweep)
    ratios, waits = measure(cell.configuration, given.steps)
    more, waiting = statistics.median(ratios) - 1, statistics.median(waits)
    print(f"{given.model} {given.depth}, {given.dataset}, batches of {given.batch_size} on {device}, {given.steps} steps of each")
    low, _, high = (f"{quartile - 1:+.2%}" for quartile in statistics.quantiles(ratios, n=4))
    print(f"a training step takes {more:+.2%} of the benchmark's (quartiles {low} to {high}; at most +5 %)")
    print(f"it waits for its batch {waiting:.3%} of its time (at most 2 %)")
    return int(more > AT_MOST_MORE or waiting > AT_MOST_WAITING)


def measure(configuration: Configuration, steps: int) -> tuple[list[float], list[float]]:
    """Ratios for each step: its time to that of the benchmark's step next to it, and the share of it spent on the batch."""
    workload = Workload(configuration)
    settings = TrainingSettings(network=configuration)
    processes = Processes(workload.device)
    feed = Feed(load_parts(configuration.dataset).train, workload.device, configuration.batch_size, settings.preprocess)
    seed_everything()
    stepper = Stepper(build_network(settings), settings, processes, feed.steps())
    batches = endless(feed)
    ratios, waits = [], []
    for number in range(WARMUP + steps):
        began = now(workload.device)
        workload.train_step()
        middle = now(workload.device)
        batch = next(batches)
        ready = now(workload.device)
        stepper.step(batch, len(batch.labels))
        done = now(workload.device)
        if number >= WARMUP:
            ratios.append((done - middle) / (middle - began))
            waits.append((ready - middle) / (done - middle))
    return ratios, waits


def endless(feed: Feed) -> Iterator[Batch]:
    """Whole batches, epoch after epoch, as the benchmark's are whole too."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from (batch for batch in feed.training(generator) if len(batch.labels) == feed.batch_size)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
