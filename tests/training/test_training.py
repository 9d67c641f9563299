"""Training: the loop against a loop of one's own, what goes on where it was cut off, and what cannot go on."""

import csv
import json
import math
import random
import signal
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from capsbench.data.datasets import Parts, load_parts
from capsbench.data.feed import Feed, Share, split
from capsbench.data.preprocess import crop, normalise
from capsbench.errors import CapsbenchError, ConfigurationError, Interrupted, LostWorkError, StoreError, TrainingError
from capsbench.models import CapsuleLoss, MoCapsNet
from capsbench.training import TrainingSettings, load_checkpoint, load_network, loop, train
from capsbench.training import trainer as trainers
from capsbench.training.distributed import Processes
from capsbench.training.log import read_metrics
from capsbench.training.step import Stepper
from capsbench.training.trainer import read_result, read_settings
from capsbench.workload import seed_everything
from helpers import tiny
from helpers.comparing import assert_all_close, assert_close, relative_error
from helpers.made import make_configuration

CPU = torch.device("cpu")


def tiny_settings(*, batch_size=64, **fields):
    """Some epochs of the tiny network: 11 steps each."""
    usual = {
        "epochs": 3,
        "learning_rate": 0.01,
        "network": make_configuration("helpers.tiny:make", batch_size=batch_size, threads=1),
    }
    return TrainingSettings(**(usual | fields))


def capsule_settings(model="mocapsnet", *, network=None, **fields):
    """A few steps of a capsule network on 16 images."""
    configuration = make_configuration(model, **({"batch_size": 4, "capsules": 8, "threads": 1} | (network or {})))
    return TrainingSettings(**({"epochs": 1, "network": configuration, "scale": 16 / 768, "validation": 0} | fields))


def curve(folder):
    """Loss, accuracy, gradient and learning rate of every step."""
    names = ("epoch", "step", "images", "loss", "accuracy", "gradient_norm", "learning_rate")
    return [tuple(line[name] for name in names) for line in read_metrics(folder) if line["kind"] == "step"]


def weights(folder, name="best.pt"):
    return list(load_checkpoint(folder / name).weights.values())


@pytest.fixture
def few_tests(monkeypatch):
    """A test set of 4 images: what is tested is not what is looked at."""
    real = trainers.load_parts

    def load(*arguments, **options):
        train_set, test = real(*arguments, **options)
        return Parts(train_set, replace(test, images=test.images[:4], labels=test.labels[:4]))

    monkeypatch.setattr(trainers, "load_parts", load)


class Recorder:
    """Counts what it is told, and stops a run at a step."""

    def __init__(self, stop_at=None, do=None):
        self.steps, self.epochs, self.texts = [], [], []
        self._stop_at, self._do = stop_at, do

    def stepped(self, figures):
        self.steps.append(figures)
        if self._stop_at == (figures.epoch, figures.step):
            self._do()

    def finished(self, figures):
        self.epochs.append(figures)
        if self._stop_at == figures.epoch:
            self._do()

    def notify(self, text):
        self.texts.append(text)


class Cut(Exception):
    pass


def cut():
    raise Cut


# The loop


@pytest.mark.slow
def test_the_loop_is_the_papers(tmp_path, few_tests):
    """Against Adam, the decay and the summed loss written out."""
    settings = capsule_settings(epochs=2, seed=3, decay=0.5)
    result = train(settings, tmp_path)
    data, _ = split(load_parts("sample").train, 0, 16 / 768)
    seed_everything(3)
    network = MoCapsNet((1, 28, 28), 10, 1, capsules=8, kernel="recompute", inverse="float", front="plain")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(3)
    losses, expected = [], []
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5**epoch
        order = torch.randperm(16, generator=generator)
        offsets = torch.randint(5, (2, 16), generator=generator)
        for start in range(0, 16, 4):
            chosen = order[start : start + 4]
            pixels = crop(data.images[chosen], offsets[:, start : start + 4]).float() / 255
            loss = CapsuleLoss()(network(normalise(pixels), data.labels[chosen]), data.labels[chosen], pixels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() / 4)
            expected.append((epoch + 1, start // 4 + 1, 4, 1e-3 * 0.5**epoch))
    assert [(epoch, step, images, rate) for epoch, step, images, _, _, _, rate in curve(tmp_path)] == expected
    assert_close(np.array([line[3] for line in curve(tmp_path)]), np.array(losses), relative=1e-5)
    assert_all_close(weights(tmp_path), [one.detach() for one in network.state_dict().values()], relative=1e-4)
    assert result.parameters == sum(one.numel() for one in network.parameters())


def test_a_run_and_what_it_leaves(tmp_path):
    recorder = Recorder()
    settings = tiny_settings()
    result = train(settings, tmp_path / "run", observers=[recorder], command="capsbench train")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} - {".lock", "tensorboard"} == {
        "settings.json", "checkpoint.pt", "best.pt", "metrics.jsonl", "metrics.csv", "result.json",
    }  # fmt: skip
    assert (result.train_images, result.validation_images, result.test_images) == (691, 77, 256)
    assert read_result(folder) == result
    assert (result.settings, result.data_source, result.command) == (settings, "sample", "capsbench train")
    assert torch.__version__.startswith(result.environment["packages"]["torch"])
    # Every image once an epoch, the last batch a smaller one.
    assert [one.images for one in recorder.steps] == [*[64] * 10, 51] * 3
    assert recorder.epochs == result.epochs
    for epoch in result.epochs:
        steps = [one for one in recorder.steps if one.epoch == epoch.epoch]
        assert epoch.train_loss == pytest.approx(sum(one.loss * one.images for one in steps) / 691)
        assert epoch.train_accuracy == pytest.approx(sum(one.accuracy * one.images for one in steps) / 691)
        assert epoch.images_per_second == pytest.approx(691 / epoch.seconds)
        assert epoch.memory_bytes > 2**20
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [float(row["train_loss"]) for row in rows] == [one.train_loss for one in result.epochs]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [*["step"] * 11, "epoch"] * 3
    best = max(result.epochs, key=lambda one: one.validation_accuracy)
    assert result.best_epoch == best.epoch


def test_the_test_set_is_read_once_and_with_the_best_weights(tmp_path, monkeypatch):
    seen = []
    real = Feed.evaluation
    monkeypatch.setattr(Feed, "evaluation", lambda self: seen.append(len(self)) or real(self))
    result = train(tiny_settings(epochs=4, learning_rate=0.05), tmp_path)
    assert seen == [77, 77, 77, 77, 256]
    network, settings = load_network(tmp_path / "best.pt")
    test = load_parts("sample").test
    stepper = Stepper(network, settings, Processes(CPU), 1)
    outcome = stepper.evaluate(Feed(test, CPU, 100, "paper").evaluation())
    assert result.test_accuracy == outcome.correct / 256
    assert result.test_loss == pytest.approx(outcome.loss / 256)


def test_without_held_out_images_the_last_epoch_is_taken(tmp_path):
    result = train(tiny_settings(validation=0, scale=0.25), tmp_path)
    assert (result.train_images, result.validation_images, result.best_epoch) == (192, 0, 3)
    assert result.epochs[0].validation_accuracy is None
    assert_all_close(weights(tmp_path), weights(tmp_path, "checkpoint.pt"), relative=0)


def test_the_seed_decides(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random.random(), np.random.random(), torch.rand(1)
        train(tiny_settings(seed=seed), tmp_path / name)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [3, 20])
def test_parts_of_a_batch_give_the_same_curve(accumulate, tmp_path, few_tests):
    train(capsule_settings(), tmp_path / "whole")
    train(capsule_settings(accumulate=accumulate), tmp_path / "parts")
    losses = [np.array([line[3] for line in curve(tmp_path / name)]) for name in ("parts", "whole")]
    assert_close(*losses, relative=1e-5)
    norms = [np.array([line[5] for line in curve(tmp_path / name)]) for name in ("parts", "whole")]
    assert_close(*norms, relative=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "right", "tolerance"),
    [({"kernel": "recompute"}, {"kernel": "reference"}, 1e-4), ({"memory": "reversible"}, {"memory": "stored"}, 1e-4)],
    ids=["recompute and reference", "reversible and stored"],
)
def test_the_curve_does_not_depend_on_how_it_is_computed(left, right, tolerance, tmp_path, few_tests):
    """Losses of 12 steps on real images, relative to the largest: rounding alone distinguishes them."""
    for name, options in (("left", left), ("right", right)):
        options |= {"inverse": "float" if options.get("memory", "reversible") == "reversible" else None}
        train(capsule_settings(network={"blocks": 2, **options}, epochs=3, learning_rate=1e-2), tmp_path / name)
    losses = [np.array([line[3] for line in curve(tmp_path / name)]) for name in ("left", "right")]
    assert len(losses[0]) == 12
    assert losses[1].max() - losses[1].min() > 0.05  # it learns: a flat curve would follow any other
    assert_close(*losses, relative=tolerance)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(precision, tmp_path):
    settings = tiny_settings()
    half = settings.model_copy(update={"network": settings.network.model_copy(update={"precision": precision})})
    full, mixed = train(settings, tmp_path / "full"), train(half, tmp_path / "mixed")
    assert mixed.epochs[-1].train_loss < 0.8 * mixed.epochs[0].train_loss
    assert mixed.epochs[-1].train_loss == pytest.approx(full.epochs[-1].train_loss, rel=0.2)  # fp16 skips steps
    assert curve(tmp_path / "full") != curve(tmp_path / "mixed")


@pytest.mark.slow
def test_published_preprocessing_trains(tmp_path, few_tests):
    result = train(capsule_settings(preprocess="published"), tmp_path)
    assert math.isfinite(result.test_loss)
    train(capsule_settings(), tmp_path / "paper")
    assert curve(tmp_path) != curve(tmp_path / "paper")


def test_ranger21_warms_up_and_down_over_all_epochs(tmp_path):
    pytest.importorskip("pytorch_optimizer")
    result = train(tiny_settings(optimizer="ranger21", epochs=6), tmp_path)
    rates = [line[6] for line in curve(tmp_path)]
    peak = rates.index(max(rates))
    assert len(rates) == 66
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[0] < 0.5 * max(rates)
    assert rates[-1] < 0.1 * max(rates)
    assert 0.5 < rates.index(next(one for one in rates[peak:] if one < max(rates))) / 66 < 0.9
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss


def test_ranger21_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ConfigurationError, match=r"ranger21.*not installed\n.*capsbench\[train\]"):
        train(tiny_settings(optimizer="ranger21"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    written, begun = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            begun.append(purge_step)
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    result = train(tiny_settings(epochs=2), tmp_path)
    assert written[-1] == "closed"
    assert ("epoch/train_loss", result.epochs[1].train_loss, 2) in written
    losses = [(step, value) for name, value, step in written[:-1] if name == "step/loss"]
    assert [step for step, _ in losses] == list(range(1, 23))
    assert [value for _, value in losses] == [line[3] for line in curve(tmp_path)]
    # What comes again after a run was cut off is to be forgotten first.
    train(tiny_settings(epochs=3), tmp_path, resume=True)
    assert begun == [1, 23]


def test_tensorboard_forgets_the_steps_that_come_again(tmp_path, monkeypatch):
    begun = []

    class Writer:
        def __init__(self, folder, purge_step):
            begun.append(purge_step)

        def add_scalar(self, *_):
            pass

        def close(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    # Killed without another checkpoint than the first, and with one after the fourth step of the second epoch.
    for place, minutes in (((1, 2), 10.0), ((2, 4), 1e-9)):
        recorder = Recorder(place, cut)
        with pytest.raises(Cut):
            train(tiny_settings(), tmp_path, observers=[recorder], checkpoint_minutes=minutes, resume=bool(begun))
    train(tiny_settings(), tmp_path, resume=True)
    assert begun == [1, 1, 15]


def test_what_tensorboard_reads_of_a_run_that_was_cut_off(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Cut):
        train(tiny_settings(), tmp_path, observers=[Recorder((2, 4), cut)])
    result = train(tiny_settings(), tmp_path, resume=True)
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("step/loss")] == [
        (number, pytest.approx(line[3])) for number, line in enumerate(curve(tmp_path), start=1)
    ]
    assert [point.value for point in read.Scalars("epoch/train_loss")] == pytest.approx([one.train_loss for one in result.epochs])


def test_a_tensorboard_that_cannot_be_written(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    with pytest.raises(LostWorkError, match=r"tensorboard cannot be written: .*\n"):
        train(tiny_settings(), tmp_path / "run")


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tiny_settings(epochs=1), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


# Cut off, and gone on with


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uncut")
    train(tiny_settings(), folder)
    return folder


@pytest.mark.parametrize("at", [(1, 1), (1, 11), 1, (2, 5), 2, (3, 11), 3], ids=str)
@pytest.mark.parametrize("minutes", [1e-9, 1e9], ids=["a checkpoint each step", "a checkpoint each epoch"])
def test_what_was_cut_off_goes_on_to_the_last_bit(at, minutes, uncut, tmp_path):
    settings = tiny_settings()
    with pytest.raises(Cut):
        train(settings, tmp_path, observers=[Recorder(at, cut)], checkpoint_minutes=minutes)
    random.random(), np.random.random(), torch.rand(1)
    result = train(settings, tmp_path, resume=True)
    assert curve(tmp_path) == curve(uncut)
    assert_all_close(weights(tmp_path), weights(uncut), relative=0)
    kinds = [(line["kind"], line["epoch"]) for line in read_metrics(tmp_path)]
    assert kinds == [(line["kind"], line["epoch"]) for line in read_metrics(uncut)]
    expected = read_result(uncut)
    assert (result.test_loss, result.test_accuracy, result.best_epoch) == (
        expected.test_loss, expected.test_accuracy, expected.best_epoch,
    )  # fmt: skip
    assert [one.train_loss for one in result.epochs] == [one.train_loss for one in expected.epochs]
    # Done is done.
    assert train(settings, tmp_path, resume=True) == result


def assert_resumes_alike(settings, folder, place):
    """A run that is cut off at an epoch's step and gone on with gives the bits of one that was not."""
    train(settings, folder / "uncut")
    with pytest.raises(Cut):
        train(settings, folder / "cut", observers=[Recorder(place, cut)], checkpoint_minutes=1e-9)
    train(settings, folder / "cut", resume=True)
    assert curve(folder / "cut") == curve(folder / "uncut")
    assert_all_close(weights(folder / "cut"), weights(folder / "uncut"), relative=0)


@pytest.mark.parametrize("options", [{"optimizer": "ranger21"}, {"precision": "fp16"}, {"precision": "bf16"}], ids=str)
def test_so_do_other_optimizers_and_precisions(options, tmp_path):
    if "optimizer" in options:
        pytest.importorskip("pytorch_optimizer")
    settings = tiny_settings(optimizer=options.get("optimizer", "adam"))
    network = settings.network.model_copy(update={"precision": options.get("precision", "fp32")})
    settings = settings.model_copy(update={"network": network})
    assert_resumes_alike(settings, tmp_path, (2, 5))


@pytest.mark.slow
def test_so_does_a_capsule_network(tmp_path, few_tests):
    settings = capsule_settings(network={"kernel": "recompute"}, epochs=2)
    assert_resumes_alike(settings, tmp_path, (2, 2))


def test_more_epochs_go_on_from_fewer(tmp_path, uncut):
    train(tiny_settings(epochs=1), tmp_path)
    train(tiny_settings(epochs=3), tmp_path, resume=True)
    assert curve(tmp_path) == curve(uncut)
    assert read_settings(tmp_path) == read_result(tmp_path).settings == tiny_settings(epochs=3)


def test_an_end_between_the_checkpoint_and_the_best_weights(tmp_path, uncut):
    with pytest.raises(Cut):
        train(tiny_settings(), tmp_path, observers=[Recorder(2, cut)])
    (tmp_path / "best.pt").unlink()
    train(tiny_settings(), tmp_path, resume=True)
    assert_all_close(weights(tmp_path), weights(uncut), relative=0)


def test_ctrl_c_keeps_a_checkpoint_of_that_very_step(tmp_path, uncut):
    recorder = Recorder((2, 5), lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"epoch 2 after step 5.*\n.*`resume`"):
        train(tiny_settings(), tmp_path, observers=[recorder])
    assert signal.getsignal(signal.SIGINT) is before
    assert recorder.texts
    again = Recorder()
    train(tiny_settings(), tmp_path, resume=True, observers=[again])
    assert (again.steps[0].epoch, again.steps[0].step) == (2, 6)
    assert curve(tmp_path) == curve(uncut)


def test_settings_of_another_run(tmp_path):
    train(tiny_settings(epochs=1), tmp_path)
    with pytest.raises(ConfigurationError, match=r"seed is 0, not 1; batch_size is 64, not 32\n|batch_size is 64, not 32; seed"):
        train(tiny_settings(epochs=1, seed=1, batch_size=32), tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match=r"already holds a run\n.*`resume`"):
        train(tiny_settings(epochs=1), tmp_path)
    with pytest.raises(ConfigurationError, match=r"nothing to resume in.*\n"):
        train(tiny_settings(epochs=1), tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_a_damaged_checkpoint(tmp_path):
    train(tiny_settings(epochs=1), tmp_path)
    (tmp_path / "result.json").unlink()
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[:-100])
    with pytest.raises(StoreError, match=r"checkpoint.pt.*\n"):
        train(tiny_settings(epochs=1), tmp_path, resume=True)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(whole)
    content = torch.load(checkpoint, weights_only=True)
    del content["state"]["optimizer"]
    torch.save(content, checkpoint)
    with pytest.raises(StoreError, match=r"cannot be resumed from.*optimizer.*\n"):
        train(tiny_settings(epochs=1), tmp_path, resume=True)


def test_a_disk_that_fills_keeps_the_checkpoint_before(tmp_path, uncut, monkeypatch):
    real, calls = loop.save_checkpoint, []

    def filling(path, settings, network, state=None):
        calls.append(path)
        if len(calls) > 4:
            raise LostWorkError("full", "make room")
        real(path, settings, network, state)

    monkeypatch.setattr(loop, "save_checkpoint", filling)
    with pytest.raises(LostWorkError):
        train(tiny_settings(), tmp_path)
    monkeypatch.undo()
    train(tiny_settings(), tmp_path, resume=True)
    assert curve(tmp_path) == curve(uncut)


# What cannot go on


@pytest.mark.parametrize("where", ["output", "gradient", "weights"])
def test_where_it_began_is_said(where, tmp_path, monkeypatch):
    real = tiny.make

    def make(*arguments):
        network = real(*arguments)
        state = {"step": 0}
        layer = network[3]

        def spoil(_, __, output):
            state["step"] += layer.training
            if state["step"] < 14:
                return output
            if where == "output":
                return output * math.nan
            if where == "gradient" and output.requires_grad:
                output.register_hook(lambda gradient: gradient * math.inf)
            if where == "weights":
                layer.weight.data.fill_(math.nan)
            return output

        layer.register_forward_hook(spoil)
        return network

    monkeypatch.setattr(tiny, "make", make)
    told = {"output": "layer '3': its output", "gradient": "layer '3': the gradient", "weights": "the weights: '3.weight'"}
    # The loss of a step is that of the weights before it.
    step = 4 if where == "weights" else 3
    with pytest.raises(TrainingError, match=rf"epoch 2, step {step}: .*began in") as caught:
        train(tiny_settings(scale=1, validation=0, batch_size=70), tmp_path)
    assert told[where] in caught.value.what
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_status == 1
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.isfinite(one).all() for one in kept.weights.values())
    assert len(kept.state["epochs"]) == 1


@pytest.mark.parametrize("validation", [0, 0.1])
def test_an_epoch_that_ends_in_no_number_keeps_the_checkpoint_before(validation, tmp_path):
    """The update after the last loss of an epoch is seen by no step of it."""

    def spoil(recorder):
        network = recorder.run.network
        network[3].weight.data.fill_(math.nan)

    settings = tiny_settings(scale=1, validation=validation, batch_size=70)
    steps = -(-round(768 * (1 - validation)) // 70)
    recorder = Recorder(stop_at=(2, steps), do=lambda: spoil(recorder))
    real = loop.Run.to_the_end

    def to_the_end(self, *arguments):
        recorder.run = self
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "to_the_end", to_the_end)
        with pytest.raises(
            TrainingError, match=r"(not finite after|not trained on is nan after) epoch 2.*\n.*checkpoint is kept"
        ):
            train(settings, tmp_path, observers=[recorder])
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert len(kept.state["epochs"]) == 1
    assert all(torch.isfinite(one).all() for one in kept.weights.values())


def test_skipped_steps_are_counted_one_after_the_other(tmp_path):
    settings = tiny_settings(network=make_configuration("helpers.tiny:make", batch_size=64, threads=1, precision="fp16"))
    network = tiny.make((1, 28, 28), 10, 1)
    stepper = Stepper(network, settings, Processes(CPU), 11)
    for _ in range(3):
        assert all(stepper._is_finite_or_skipped(math.inf) for _ in range(50))
        assert stepper._is_finite_or_skipped(1.0)
        assert stepper.skipped == 0
    assert all(stepper._is_finite_or_skipped(math.inf) for _ in range(50))
    assert not stepper._is_finite_or_skipped(math.inf)


def test_the_gradient_norm_of_fp16_is_not_that_of_the_scaled_loss(tmp_path):
    norms = {}
    for precision in ("fp32", "fp16"):
        network = make_configuration("helpers.tiny:make_plain", batch_size=64, threads=1, precision=precision)
        recorder = Recorder()
        train(tiny_settings(network=network, epochs=1), tmp_path / precision, observers=[recorder])
        # fp16 skips steps until its scale fits: the first that counts is still of the first weights, on other images.
        norms[precision] = next(one.gradient_norm for one in recorder.steps if math.isfinite(one.gradient_norm))
    assert 1 / 3 < norms["fp16"] / norms["fp32"] < 3


def test_ctrl_c_while_an_epoch_is_judged_is_heard(tmp_path, monkeypatch):
    """The stop holds after the last step too: the test is not run."""
    real = Stepper.evaluate

    def evaluate(self, batches):
        signal.raise_signal(signal.SIGINT)
        return real(self, batches)

    monkeypatch.setattr(Stepper, "evaluate", evaluate)
    with pytest.raises(Interrupted, match="after epoch 1"):
        train(tiny_settings(epochs=1), tmp_path)
    monkeypatch.undo()
    assert train(tiny_settings(epochs=1), tmp_path, resume=True).epochs[0].epoch == 1


@pytest.mark.parametrize("given", [{}, {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}])
def test_half_of_torchrun_s_environment(given, tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | {"WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"WORLD_SIZE is 2.*MASTER_PORT.*\n.*torchrun"):
        train(tiny_settings(), tmp_path)


def test_a_loss_that_diverges(tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+: the loss.*\n.*`learning_rate`"):
        train(tiny_settings(learning_rate=1e6, epochs=20), tmp_path)


def test_numbers_that_overflow(tmp_path):
    settings = tiny_settings()
    settings = settings.model_copy(
        update={"network": settings.network.model_copy(update={"model": "helpers.tiny:make_explosive"})}
    )
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss is (nan|inf).*layer '2': its output is not finite\n"):
        train(settings, tmp_path)


def test_no_memory(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "step", full)
    with pytest.raises(TrainingError, match=r"not enough memory on cpu for batches of 64 images\n.*`accumulate`"):
        train(tiny_settings(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"validation": 768}, "`validation` 768 holds all 768 images out"),
        ({"validation": 1000}, "`validation` 1000 holds all"),
        ({"batch_size": 700}, "691 of the 768 images of 'sample' are trained on, since `validation` holds 77 out"),
        ({"batch_size": 900}, "691 of the 768 images of 'sample' are trained on, since `validation` holds 77 out"),
        ({"batch_size": 900, "validation": 0}, "`batch_size` 900 is larger than the data: 'sample' has 768 images here"),
        (
            {"scale": 0.05},
            "34 of the 768 images of 'sample' are trained on, since `scale` 0.05 takes 38 and `validation` holds",
        ),
        ({"scale": 0.05, "validation": 0}, "`batch_size` 64 is larger than the data: 38 of the 768 images"),
    ],
    ids=str,
)
def test_data_that_makes_no_run(fields, what, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        train(tiny_settings(**fields), tmp_path / "run")
    assert what in caught.value.what
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["learning_rate", "decay", "scale", "epochs", "accumulate"])
@pytest.mark.parametrize("value", [0, math.nan, math.inf, -1])
def test_settings_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=field):
        tiny_settings(**{field: value})


def test_a_model_that_fails(tmp_path, own_model):
    for source, reason in (
        ("raise ValueError('seven')", "ValueError: seven"),
        ("from torch import nn; return nn.Linear(3, 3)", "RuntimeError"),
        ("from torch import nn; return nn.Flatten()", "no parameters to train"),
        ("return 5", "returned int"),
    ):
        settings = tiny_settings()
        name = own_model(f"def make(in_shape, num_classes, blocks):\n    {source}\n")
        settings = settings.model_copy(update={"network": settings.network.model_copy(update={"model": name})})
        with pytest.raises(CapsbenchError) as caught:
            train(settings, tmp_path / name.replace(":", "-"))
        assert reason in caught.value.what
        assert len(str(caught.value).splitlines()) == 2


# Batches


def test_every_image_once_and_shares_make_the_whole():
    data = load_parts("sample").test
    whole = list(Feed(data, CPU, 100, "paper").training(torch.Generator().manual_seed(1)))
    assert [len(one.labels) for one in whole] == [100, 100, 56]
    shares = [list(Feed(data, CPU, 100, "paper", Share(rank, 3)).training(torch.Generator().manual_seed(1))) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    later = list(Feed(data, CPU, 100, "paper").training(torch.Generator().manual_seed(1), first=2))
    assert torch.equal(later[0].images, whole[2].images)
    assert len(later) == 1


def test_evaluation_crops_at_the_centre_and_as_published_at_random():
    data = load_parts("sample").test
    (paper,) = Feed(data, CPU, 256, "paper").evaluation()
    assert torch.equal(paper.pixels, data.images.float() / 255)
    assert torch.equal(paper.images, normalise(paper.pixels))
    (published,) = Feed(data, CPU, 256, "published").evaluation()
    (again,) = Feed(data, CPU, 256, "published").evaluation()
    assert torch.equal(published.images, again.images)
    assert published.pixels is published.images
    as_it_is = (data.images.float() / 255 - 0.286) / 0.353
    same = (published.images - as_it_is).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 0 < same.sum() < 40  # one in 25 is cut out at the centre


def test_what_is_held_out_depends_on_no_seed_and_on_nothing_twice():
    data = load_parts("sample").train
    kept, held = split(data, 0.1, 1.0)
    assert (len(kept.images), len(held.images)) == (691, 77)
    again = split(data, 77, 1.0)[1]
    assert torch.equal(held.images, again.images)
    both = torch.cat([kept.images, held.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(data.images.flatten(1).unique(dim=0))
    assert split(data, 0, 1.0) == (data, None)
    assert len(split(data, 0, 0.5)[0].images) == 384


def test_relative_error_sees_one_bit():
    assert relative_error(torch.tensor([1.0]), torch.tensor([1.0000001])) > 0
