"""Predictions of others' networks, compared with what their steps take on this CPU, and with PyTorch's own estimator of memory.

    python -m benchmarks.predictions [--only gpt2,lstm] [--write]

prints a table, and with `--write` puts it into `benchmarks/predictions.md`. Every network is predicted and run, each in
processes of its own: the cases of `tests/helpers/networks_of_others.py`, and the classifiers of `benchmarks/networks.py`.
*MemTracker* is `torch.distributed._tools.mem_tracker.MemTracker` of the same release of torch, over the same step on fake
tensors. Times are modelled (`capsbench/prediction/seconds.py`) and measured, medians of several steps; they are taken after all
bytes, with a heap that keeps its memory (`QUIET_MALLOC`), and nothing else should run meanwhile. Takes five minutes on two cores.
Bytes are kept in `runs/predictions` as they come, so that a command that was cut off resumes where it stopped.
"""

import os
import pickle
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.command_line import parser_of, print_page
from benchmarks.gpu.results import PartResults
from benchmarks.networks import NETWORKS
from capsbench.cases.fingerprint import package_digest
from capsbench.cases.foreign import imported
from capsbench.devices import DEFAULT_GPU
from capsbench.errors import error_line
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.measure.variables import variables_of
from capsbench.options import Configuration
from capsbench.prediction.apart import call, close
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.prediction.seconds import calibrated_speed, modelled_seconds
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.system.durable import replacing
from capsbench.tracing.surroundings import replaced
from capsbench.tracing.work import Work
from capsbench.words.units import bytes_text, seconds_text
from capsbench.workload import Workload

TARGET = Path(__file__).with_suffix(".md")
CASES = "tests/helpers/networks_of_others.py"
BATCH, BLOCKS = 8, 2
"""Sizes of the classifiers; the cases have their own."""
SAMPLED_SECONDS, MOST_SAMPLES = 0.7, 15
KEPT = Path("runs/predictions")
"""Folder of the bytes of each network, as far as they are known for this source and release of torch."""
GPU_RESULTS = Path(__file__).parent / "gpu" / "results"


class Row(NamedTuple):
    """The figures of one network: bytes and seconds, predicted and measured."""

    name: str
    predicted: dict[str, int]
    measured: dict[str, int]
    tracked: dict[str, int]
    """The bytes that MemTracker reports; empty where it cannot follow the network."""
    reserved: int
    """Bytes that CUDA's allocator would reserve, predicted."""
    certainty: str
    """Certainty of the predicted retained bytes."""
    work: dict[str, list[Work]]
    """The work of the operators of each phase on a CPU."""
    modelled: float = 0.0
    seconds: float = 0.0


def configurations() -> dict[str, Configuration]:
    """The configuration of every network, by its name in the table."""
    found, threads = {}, torch.get_num_threads()
    for name in imported(CASES, f"{CASES}:NETWORKS"):
        (cell,) = expand(Sweep((f"{CASES}:{name}",), (BLOCKS,), "cpu", depths_chosen=False, threads=threads))
        found[name] = cell.configuration
    for name, precision in NETWORKS.items():
        model = f"benchmarks.networks:{name}"
        (cell,) = expand(Sweep((model,), (BLOCKS,), "cpu", batch_size=BATCH, precision=precision, threads=threads))
        found[f"{name} (classifier)"] = cell.configuration
    return found


def bytes_of(name: str, configuration: Configuration) -> Row:
    """The bytes of one network; this process must not have run a step before."""
    torch.set_num_threads(configuration.threads or 1)
    measured = memory_figures(probed_step(configuration))
    traced = trace_for(configuration)
    predicted = predict_memory(configuration, traced).memory
    on_gpu = configuration.model_copy(update={"device": "cuda:predicted", "gpu": DEFAULT_GPU, "threads": None})
    reserved = predict_memory(on_gpu, trace_for(on_gpu)).memory.peak_reserved_bytes
    fields = {"retained": "retained_bytes", "peak": "peak_allocated_bytes"}
    return Row(
        name,
        {words: getattr(predicted, field) for words, field in fields.items()},
        {words: getattr(measured, field) for words, field in fields.items()},
        tracked_bytes(configuration),
        reserved or 0,
        (predicted.certainty or {})["retained_bytes"],
        {phase: list(work) for phase, work in traced.work.items()},
    )


def kept_bytes(name: str, configuration: Configuration) -> Row:
    """The row of `bytes_of` for one network, from the folder if it is there."""
    path, key = KEPT / f"{name}.pickle", (package_digest(), torch.__version__, configuration.model_dump_json())
    if path.is_file():
        known, row = pickle.loads(path.read_bytes())
        if known == key:
            return cast("Row", row)
    row = call(bytes_of, name, configuration)
    KEPT.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(pickle.dumps((key, row)))
    return row


def seconds_of(row: Row, configuration: Configuration) -> Row:
    """The row with its seconds, modelled and measured by one process after the other bytes of all networks are known."""
    torch.set_num_threads(configuration.threads or 1)
    modelled = sum(modelled_seconds(configuration, row.work).values())
    return row._replace(modelled=modelled, seconds=step_seconds(Workload(configuration)))


def step_seconds(workload: Workload) -> float:
    """The median seconds of a training step, after two that warm up."""
    taken: list[float] = []
    for _ in range(2):
        workload.train_step()
    while sum(taken) < SAMPLED_SECONDS and len(taken) < MOST_SAMPLES:
        began = time.perf_counter()
        workload.train_step()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def tracked_bytes(configuration: Configuration) -> dict[str, int]:
    """The bytes that MemTracker reports of a step on fake tensors; empty where it cannot follow the network."""
    try:
        # Fake parameters cannot be moved, and are there already.
        with FakeTensorMode(allow_non_fake_inputs=True), replaced(nn.Module, "to", lambda module, *_: module):
            workload = Workload(configuration)
            workload.train_step()
            tracker = MemTracker()
            tracker.track_external(workload.model, *([] if workload.optimizer is None else [workload.optimizer]), *workload.given)
            with tracker:
                before = _total(tracker, "current")
                loss = workload.forward()
                retained = _total(tracker, "current") - before
                workload.backward(loss)
                del loss
                workload.optimize()
            return {"retained": retained, "peak": _total(tracker, "peak")}
    except Exception as failed:  # the tracker may fail in any way
        print(f"MemTracker, {configuration.model}: {error_line(failed, 150)}", file=sys.stderr)
        return {}


def _total(tracker: MemTracker, when: Any) -> int:
    return sum(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot(when).values())


def error(found: float, measured: float) -> float:
    """The relative error of a figure in percent."""
    return 100 * (found - measured) / measured if measured else 0.0 if found == measured else float("inf")


def error_text(errors: Sequence[float]) -> str:
    """The median and the largest of some errors' sizes, and the number of those that are 0."""
    sizes = sorted(map(abs, errors))
    none = sum(size == 0 for size in sizes)
    return f"median {statistics.median(sizes):.2g} %, largest {sizes[-1]:.2g} %, no error in {none} of {len(sizes)}"


def measured_reserved() -> dict[str, int]:
    """Reserved bytes that a day with a GPU measured, by the name of a classifier."""
    items = PartResults(GPU_RESULTS, "predicted").items()
    return {
        f"{name} (classifier)": found["peak reserved"]["measured"]
        for name in NETWORKS
        for key, found in items.items()
        if f"benchmarks.networks:{name} " in key and "peak reserved" in found
    }


COLUMNS = (
    "- *network*: the cases of `tests/helpers/networks_of_others.py`, and the classifiers of `benchmarks/networks.py`.",
    "- *retained*: bytes that are alive after forward because backward will need them. *Peak allocated*: the most bytes in",
    "  tensors at one moment of the step, weights, gradients and optimizer included. Both are counted on this CPU.",
    "- *error*: the difference of the predicted bytes from the measured ones, as a share of these. ≈ marks a network whose step",
    "  depends on values, so that nothing that is predicted of it is called exact.",
    "- *MemTracker's*: the same error of PyTorch's own estimator of memory. — is a network that it cannot follow.",
    f"- *reserved on an {DEFAULT_GPU}*: bytes that CUDA's caching allocator will hold, predicted without the card, and measured",
    "  on one where a day with it has been recorded (`benchmarks/gpu.md`).",
    "- *step, measured*: the median seconds of a training step here. *Modelled, over measured*: the seconds that the roofline",
    "  model ([docs/predicting.md](../docs/predicting.md#seconds)) has for it, as a multiple of these: at 0.50 a step takes",
    "  twice as long as modelled.",
)
"""The meaning of each column of the table."""


def page(only: Sequence[str]) -> Iterator[str]:
    """The lines of the page."""
    asked = {name: one for name, one in configurations().items() if not only or name in only}
    rows = [kept_bytes(name, configuration) for name, configuration in asked.items()]
    print("all bytes are known; seconds are measured from here on", file=sys.stderr, flush=True)
    close()  # the next process has a heap that keeps its memory, as every timing process of `capsbench run`
    os.environ.update(variables_of("time"))
    calibrated_speed()  # once for all of them
    rows = [call(seconds_of, row, asked[row.name]) for row in rows]
    yield "# How good the predictions are"
    yield ""
    yield f"Made by `python -m benchmarks.predictions --write`, {torch.get_num_threads()} CPU threads, torch {torch.__version__}."
    yield "Each network is predicted and then measured, in processes of its own."
    yield ""
    yield "The sizes of the errors over all networks:"
    yield ""
    yield from _summary(rows)
    yield ""
    yield "The columns of the table:"
    yield ""
    yield from COLUMNS
    yield ""
    yield (
        "| network | retained, measured | error | MemTracker's | peak allocated, measured | error | MemTracker's | "
        f"reserved on an {DEFAULT_GPU}, predicted | measured | step, measured | *modelled*, over measured |"
    )
    yield "| --- |" + " ---: |" * 10
    of_gpu = measured_reserved()
    for row in rows:
        yield _line(row, of_gpu)


def _line(row: Row, of_gpu: dict[str, int]) -> str:
    mark = "" if row.certainty == "exact" else "≈ "
    cells = [row.name]
    for words in ("retained", "peak"):
        cells += [
            bytes_text(row.measured[words]),
            f"{mark}{error(row.predicted[words], row.measured[words]):+.2f} %",
            f"{error(row.tracked[words], row.measured[words]):+.2f} %" if row.tracked else "—",
        ]
    on_card = of_gpu.get(row.name)
    cells += [bytes_text(row.reserved), "no GPU yet" if on_card is None else bytes_text(on_card)]
    cells += [seconds_text(row.seconds), f"{row.modelled / row.seconds:.2f}"]
    return "| " + " | ".join(cells) + " |"


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    """The lines beneath the table: medians and largest errors."""
    followed = [row for row in rows if row.tracked]
    for words, title in (("retained", "retained"), ("peak", "peak allocated")):
        yield f"- {title}: {error_text([error(row.predicted[words], row.measured[words]) for row in rows])}"
        if followed:
            theirs = error_text([error(row.tracked[words], row.measured[words]) for row in followed])
            yield f"- {title}, MemTracker, which follows {len(followed)} of {len(rows)}: {theirs}"
    factors = sorted(max(row.modelled / row.seconds, row.seconds / row.modelled) for row in rows)
    if factors:
        yield (
            f"- modelled seconds of a step on this CPU, calibrated: within a factor of {statistics.median(factors):.2f} for half "
            f"of the networks, and of {factors[-1]:.2f} for all"
        )


def main() -> None:
    """Run the command line."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--only", default="", help="names of networks, with commas between them")
    given = parser.parse_args()
    # By the name that other processes import them under.
    from benchmarks import predictions

    only = [name for name in given.only.split(",") if name]
    print_page(predictions.page(only), TARGET, write=given.write and not only)


if __name__ == "__main__":
    main()
