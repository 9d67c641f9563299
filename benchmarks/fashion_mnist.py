"""Fashion-MNIST in full, MoCapsNet and ResCapsNet on the same seeds: the report in `reports/fashion-mnist`.

    python -m benchmarks.fashion_mnist [--runs runs/fashion-mnist] [--data-dir FOLDER] [--threads N] [--only mocapsnet-seed0,…]
    python -m benchmarks.fashion_mnist --draw

Networks of 2 blocks, routing by agreement, Adam, the paper's settings, trained on all 60,000 images (nothing is held out, so
nothing is chosen: the last epoch's weights are tested on the 10,000). Each stage is `capsbench train --validation 0 --epochs N
--resume` in its run's folder: finished stages are not repeated, and after a cut the same command resumes. Takes about an hour and
a half on two cores, best as two processes with a thread each (`--only`); the test set is read once for each number in the table.
"""

import json
import statistics
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.command_line import parser_of
from capsbench.figures.depth import save
from capsbench.figures.styles import MODEL_STYLES, STYLE
from capsbench.measure.environment import default_threads
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.system.durable import replace_file
from capsbench.training import TrainingSettings, train
from capsbench.training.log import TrainingStep, read_metrics
from capsbench.training.loop import CHECKPOINT
from capsbench.training.result import EpochFigures, Result
from capsbench.training.settings import differences
from capsbench.training.trainer import MAY_DIFFER
from capsbench.words.labels import model_title

COMMAND = "python -m benchmarks.fashion_mnist"
REPORT = Path(__file__).parent.parent / "reports" / "fashion-mnist"
BLOCKS = 2
WINDOW = 25
"""Number of steps of which a point of the curves is the mean."""


class Stage(NamedTuple):
    """A network trained so far, and tested."""

    model: str
    seed: int
    epochs: int

    def network(self) -> str:
        """A name for the run that continues from stage to stage."""
        return f"{self.model}-seed{self.seed}"


STAGES = [
    *(Stage(model, seed, 1) for seed in range(3) for model in ("mocapsnet", "rescapsnet")),
    Stage("mocapsnet", 0, 2),
    Stage("mocapsnet", 0, 5),
]


class _Progress:
    """Print the progress of a stage."""

    def stepped(self, figures: TrainingStep) -> None:
        if figures.step % 50 == 0:
            print(f"  epoch {figures.epoch}, step {figures.step}/{figures.steps}: loss {figures.loss:.4f}", flush=True)

    def finished(self, figures: EpochFigures) -> None:
        print(
            f"  epoch {figures.epoch}: accuracy {figures.train_accuracy:.4f} while training, {figures.seconds:.0f} s", flush=True
        )

    def notify(self, text: str) -> None:
        print(f"  {text}")


def training_settings(stage: Stage, threads: int) -> TrainingSettings:
    """Settings of the paper, on this CPU."""
    sweep = Sweep((stage.model,), (BLOCKS,), "cpu", dataset=("fashion-mnist",), batch_size=128, threads=threads)
    (cell,) = expand(sweep)
    return TrainingSettings(network=cell.configuration, epochs=stage.epochs, seed=stage.seed, validation=0)


def result_file(stage: Stage) -> Path:
    """Path in the report of the result of a stage."""
    return REPORT / f"{stage.network()}-epochs{stage.epochs}.json"


def steps_file(stage: Stage) -> Path:
    """Path in the report of the loss and accuracy of each step."""
    return REPORT / f"{stage.network()}-steps.csv"


def run_stage(stage: Stage, runs: Path, data_directory: Path | None, threads: int) -> Result:
    """Train the rest of a stage, and keep its result in the report at once."""
    asked = training_settings(stage, threads)
    known = read_results().get(stage)
    if known is not None and differences(asked, known.settings).keys() <= MAY_DIFFER:
        return known
    folder = runs / stage.network()
    going_on = (folder / CHECKPOINT).exists()
    result = train(asked, folder, data_directory=data_directory, resume=going_on, observers=[_Progress()], command=COMMAND)
    REPORT.mkdir(parents=True, exist_ok=True)
    steps = [line for line in read_metrics(folder) if line["kind"] == "step"]
    columns = ["epoch", "step", "images", "loss", "accuracy", "gradient_norm", "learning_rate"]
    # The result is written last and whole: another process may read it, and it marks the stage as done.
    replace_file(steps_file(stage), pd.DataFrame(steps)[columns].to_csv(index=False, float_format="%.6g"))
    replace_file(result_file(stage), result.model_dump_json(indent=1) + "\n")
    return result


def read_results() -> dict[Stage, Result]:
    """The results that the report holds so far."""
    found = {stage: result_file(stage) for stage in STAGES}
    return {stage: Result.model_validate_json(path.read_bytes()) for stage, path in found.items() if path.exists()}


def table_of(results: dict[Stage, Result]) -> str:
    """Markdown: a line for each network and number of epochs."""
    lines = [
        "| network | epochs | test accuracy, % | of seeds | test loss | training accuracy of the last epoch, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model, epochs in dict.fromkeys((stage.model, stage.epochs) for stage in STAGES):
        of = {stage.seed: one for stage, one in results.items() if (stage.model, stage.epochs) == (model, epochs)}
        if not of:
            continue
        percents = [100 * one.test_accuracy for one in of.values()]
        spread = f" ± {statistics.stdev(percents):.2f}" if len(percents) > 1 else ""
        each = ", ".join(f"{seed}: {100 * one.test_accuracy:.2f}" for seed, one in of.items())
        loss = statistics.mean(one.test_loss for one in of.values())
        trained = 100 * statistics.mean(one.epochs[-1].train_accuracy for one in of.values())
        mean = f"{statistics.mean(percents):.2f}{spread}"
        lines.append(f"| {model_title(model)}, {BLOCKS} blocks | {epochs} | {mean} | {each} | {loss:.4f} | {trained:.2f} |")
    return "\n".join(lines)


def differences_of(results: dict[Stage, Result]) -> str:
    """The differences of the networks on the same seeds."""
    pairs = [
        100 * (results[Stage("mocapsnet", seed, 1)].test_accuracy - results[Stage("rescapsnet", seed, 1)].test_accuracy)
        for seed in range(3)
        if {Stage("mocapsnet", seed, 1), Stage("rescapsnet", seed, 1)} <= results.keys()
    ]
    if not pairs:
        return ""
    each = ", ".join(f"{one:+.2f}" for one in pairs)
    mean = statistics.mean(pairs)
    return f"MoCapsNet less ResCapsNet after one epoch, seed by seed, in percentage points: {each}; mean {mean:+.2f}."


def figure_of(results: dict[Stage, Result]) -> Figure:
    """Accuracy while training, and the tests."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        ax = figure.subplots()
        for model in ("rescapsnet", "mocapsnet"):
            colour, marker, _ = MODEL_STYLES[model]
            title = model_title(model)
            for seed in range(3):
                path = steps_file(Stage(model, seed, 1))
                if path.exists():
                    steps = pd.read_csv(path)
                    done = np.arange(1, len(steps) + 1) / (steps["epoch"] == 1).sum()
                    mean = 100 * steps["accuracy"].rolling(WINDOW).mean()
                    ax.plot(done, mean, color=colour, lw=0.7, alpha=0.7, label=f"{title}, while training" if seed == 0 else None)
            tests = [(stage.epochs, 100 * one.test_accuracy) for stage, one in results.items() if stage.model == model]
            if tests:
                ax.plot(
                    *zip(*tests, strict=True),
                    marker,
                    color=colour,
                    mfc="white",
                    ms=6,
                    ls="none",
                    label=f"{title}, test",
                    zorder=3,
                )
        ax.set(xlabel="epochs", ylabel="accuracy, %", ylim=(60, 100), xlim=(0, None))
        ax.set_title(f"Fashion-MNIST, {BLOCKS} blocks, RBA, Adam, batch 128; three seeds", loc="left")
        ax.legend(loc="lower right")
    return figure


def begun_anew_of(results: dict[Stage, Result]) -> str:
    """The agreement of a network whose stages each began anew, on another processor, instead of continuing each other."""
    found = []
    for later, result in results.items():
        shorter = [stage for stage in results if stage.network() == later.network() and stage.epochs < later.epochs]
        if not shorter:
            continue
        before = results[max(shorter, key=lambda stage: stage.epochs)]
        pairs = [(one.train_loss, other.train_loss) for one, other in zip(before.epochs, result.epochs, strict=False)]
        if apart := max(abs(b / a - 1) for a, b in pairs):
            found.append(
                f"{model_title(later.model)}, seed {later.seed}, was trained anew for {later.epochs} epochs, on another "
                "processor, which rounds otherwise:\nthe mean loss of each of the "
                f"first {len(pairs)} epochs is that of the run before within "
                f"{ceil(10_000 * apart) / 100:.2f} %."
            )
    return "".join(f"\n{text}" for text in found)


def write(results: dict[Stage, Result]) -> Sequence[Path]:
    """Draw the report anew from its results."""
    first = next(iter(results.values()))
    cpus = dict.fromkeys(result.environment["cpu"]["model"] for result in results.values())
    text = f"""# Fashion-MNIST, trained in full on a CPU

Made by `{COMMAND}`. {first.train_images:,} images to train on, none held out; tested on {first.test_images:,}, with the weights
of the last epoch. Adam 1e-3, ×0.96 per epoch, batch 128, margin loss and 5e-4 of the squared error, random crops of images padded
by 2, float32. {first.parameters:,} parameters. {" and ".join(cpus)}, threads: {first.settings.network.threads}; torch
{first.environment["packages"]["torch"]}. ± is one standard deviation over seeds.

{table_of(results)}

{differences_of(results)}{begun_anew_of(results)}

![Accuracy over epochs](accuracy.png)

Beside this file: the result of each stage with its settings and environment (`*.json`), and loss, accuracy and gradient of
every step (`*-steps.csv`). Times in them are of a machine that did other work besides.
"""
    target = REPORT / "README.md"
    target.write_text(text, encoding="utf-8")
    return [target, *save(figure_of(results), REPORT, "accuracy", ("svg", "png"))]


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion-mnist"), help="folder of checkpoints and metrics")
    parser.add_argument("--data-dir", type=Path, help="as of capsbench train")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--only", default="", help="a comma list of networks, such as mocapsnet-seed0")
    parser.add_argument("--draw", action="store_true", help="train nothing: table and figure again, from what the report holds")
    given = parser.parse_args()
    networks = list(dict.fromkeys(stage.network() for stage in STAGES))
    only = given.only.split(",") if given.only else networks
    if unknown := set(only) - set(networks):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(networks)}")
    if not given.draw:
        for stage in STAGES:
            if stage.network() not in only:
                continue
            result = run_stage(stage, given.runs, given.data_dir, given.threads)
            print(json.dumps({**stage._asdict(), "test_accuracy": result.test_accuracy}), flush=True)
    results = read_results()
    if not results:
        parser.error(f"--draw: there are no results in {REPORT.name}; leave it out to train")
    for path in write(results):
        print(path)


if __name__ == "__main__":
    main()
