"""Fashion-MNIST, a few epochs of both networks with the settings of `benchmarks.fashion_mnist`, whose accuracies are known."""

from functools import partial

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.results import Found
from benchmarks.gpu.whole_steps import configuration_of
from capsbench.errors import ConfigurationError
from capsbench.training import TrainingSettings, train
from capsbench.training.log import TrainingStep
from capsbench.training.loop import CHECKPOINT
from capsbench.training.result import EpochFigures

BLOCKS = 2


class Printed:
    """An observer that prints an epoch, for whoever reads the log."""

    def stepped(self, figures: TrainingStep) -> None:
        """Leave a step unsaid."""

    def finished(self, figures: EpochFigures) -> None:
        """Print an epoch."""
        print(f"    epoch {figures.epoch}: accuracy {figures.train_accuracy:.4f}, {figures.seconds:.1f} s", flush=True)

    def notify(self, text: str) -> None:
        """Print a message."""
        print(f"    {text}", flush=True)


def items(bench: Bench) -> Items:
    """Both networks; a run that was cut off resumes after its last epoch."""
    return {model: partial(_trained, bench, model) for model in ("mocapsnet", "rescapsnet")}


def _trained(bench: Bench, model: str) -> Found:
    if bench.device == "cpu":
        return _trained_on(bench, model, "sample")
    try:
        return _trained_on(bench, model, "fashion-mnist")
    except ConfigurationError as error:
        print(f"    {error}")
    return _trained_on(bench, model, "sample")


def _trained_on(bench: Bench, model: str, dataset: str) -> Found:
    network = configuration_of(bench, model, BLOCKS, dataset=dataset)
    settings = TrainingSettings(network=network, epochs=bench.sizes.epochs, validation=0, scale=bench.sizes.share)
    folder = bench.folder / "runs" / f"{model}-{dataset}"
    resume = (folder / CHECKPOINT).exists()
    result = train(settings, folder, data_directory=bench.data, resume=resume, observers=[Printed()], command="benchmarks.gpu")
    return {
        "images": dataset,
        "epochs": len(result.epochs),
        "test accuracy, %": 100 * result.test_accuracy,
        "test loss": result.test_loss,
        "epoch, s": result.epochs[-1].seconds,
        "images per s": result.epochs[-1].images_per_second,
    }
