"""Classifying images with trained networks, in Python and as a command; what it refuses; and the pictures of a decoder."""

import json
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import capsbench as package
from capsbench.catalog import SPECS
from capsbench.data.classes import CLASSES
from capsbench.data.images import read_images, to_picture
from capsbench.data.preprocess import CONSTANTS, normalise
from capsbench.errors import ConfigurationError, ShapeError, StoreError
from capsbench.figures.pictures import perturbations_figure, reconstructions_figure
from capsbench.inference import STEPS, Classifier, classify, perturb
from capsbench.models import Ensemble
from capsbench.training import TrainingSettings, save_checkpoint
from capsbench.training.checkpoint import build_network
from helpers.comparing import assert_close
from helpers.made import make_configuration
from helpers.trained import sample, save_lively, trained


class Runs(NamedTuple):
    """Three checkpoints, the first of them in a run's folder, and their networks."""

    paths: list[Path]
    networks: list[nn.Module]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "first").mkdir()
    paths = [folder / "first" / "best.pt", folder / "second.pt", folder / "third.pt"]
    return Runs(paths, [save_lively(path, trained(), seed) for seed, path in enumerate(paths)])


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """The images as png files."""
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"image{place}.png" for place in range(6)]
    for path, image in zip(paths, sample(), strict=True):
        to_picture(image.float() / 255).save(path)
    return paths


def two_lines(result) -> list[str]:
    """The error of a refused command: two lines, and nothing on standard output."""
    assert result.status == 2, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    return lines


# In Python


def test_classes_lengths_and_reconstructions(runs):
    found = package.classify(runs.paths[0], sample())
    with torch.inference_mode():
        out = runs.networks[0](normalise(sample().float() / 255))
    assert [one.label for one in found] == out.lengths.argmax(dim=1).tolist()
    assert len({one.label for one in found}) > 1  # what is always the same proves nothing
    for place, one in enumerate(found):
        assert one.name == CLASSES["sample"][one.label]
        assert one.length == max(one.lengths) == one.lengths[one.label]
        assert_close(torch.tensor(one.lengths), out.lengths[place], relative=1e-5)
        assert_close(one.reconstruction, out.reconstruction[place], relative=1e-5)


def test_all_forms_of_an_image_are_alike(runs, pictures):
    images = sample()
    from_files = classify(runs.paths[0].parent, pictures)  # the folder of a run
    forms = [
        classify(str(runs.paths[0]), [str(path) for path in pictures]),
        classify(runs.paths[0], images),
        classify(runs.paths[0], images.double() / 255),
        classify(runs.paths[0], [images[0], pictures[1], images[2:4], images[4] / 255, pictures[5]]),
    ]
    for form in forms:
        assert [one.label for one in form] == [one.label for one in from_files]
        for mine, theirs in zip(form, from_files, strict=True):
            assert_close(torch.tensor(mine.lengths), torch.tensor(theirs.lengths), relative=1e-5)
    (single,) = classify(runs.paths[0], pictures[2])
    assert single.label == from_files[2].label


def test_more_images_than_a_batch(runs):
    images = sample(140)
    every, last = (classify(runs.paths[0], some) for some in (images, images[130:]))
    assert [one.label for one in every[130:]] == [one.label for one in last]


def test_an_ensemble_averages_lengths(runs):
    images = sample()
    together, apart = classify(runs.paths, images), [classify(path, images) for path in runs.paths]
    for place, one in enumerate(together):
        mean = np.mean([of_one[place].lengths for of_one in apart], axis=0)
        assert one.lengths == pytest.approx(mean.tolist(), rel=1e-5)
        assert one.label == int(mean.argmax())
    with torch.inference_mode():
        expected = Ensemble(runs.networks)(normalise(images.float() / 255)).reconstruction
    assert_close(together[0].reconstruction, expected[0], relative=1e-5)


def test_images_are_prepared_as_the_settings_say(tmp_path):
    network = save_lively(tmp_path / "x.pt", trained(preprocess="published"))
    (mean,), (deviation,) = CONSTANTS["sample"]
    with torch.inference_mode():
        expected = network((sample().float() / 255 - mean) / deviation).lengths
    found = classify(tmp_path / "x.pt", sample())
    assert_close(torch.tensor([one.lengths for one in found]), expected, relative=1e-5)


def test_sabours_network_in_colour(tmp_path):
    save_lively(tmp_path / "x.pt", trained("capsnet-2conv", 0, dataset="cifar10"))
    (found,) = classify(tmp_path / "x.pt", torch.rand(3, 32, 32))
    assert found.name in CLASSES["cifar10"]
    assert found.reconstruction.shape == (3, 32, 32)


def test_a_model_of_ones_own_has_scores(tmp_path):
    asked = TrainingSettings(network=make_configuration("helpers.tiny:make"))
    save_checkpoint(tmp_path / "x.pt", asked, build_network(asked).state_dict())
    found = classify(tmp_path / "x.pt", sample(2))
    assert found[0].reconstruction is None
    assert found[0].length == max(found[0].lengths)
    with pytest.raises(ConfigurationError, match="whose scores are no lengths"):
        classify([tmp_path / "x.pt"] * 2, sample(2))


def test_every_class_has_a_name():
    for name, spec in SPECS.items():
        assert len(set(CLASSES[name])) == spec.classes
    assert list(CLASSES["cifar100"]) == sorted(CLASSES["cifar100"])
    assert list(CLASSES["cifar10"]) == sorted(CLASSES["cifar10"])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(shape=st.lists(st.integers(1, 30), max_size=5), kind=st.sampled_from([torch.uint8, torch.float32, torch.int64]))
def test_any_shape_is_read_or_refused(shape, kind):
    image = torch.zeros(shape, dtype=kind)
    right = len(shape) in (3, 4) and tuple(shape[-3:]) == (1, 28, 28)
    if right and kind != torch.int64:
        assert read_images(image, SPECS["mnist"]).shape[1:] == (1, 28, 28)
        return
    with pytest.raises(ConfigurationError if right else ShapeError) as refused:
        read_images(image, SPECS["mnist"])
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "there are no images"),
        (torch.full((1, 28, 28), 2.0), "values from 2 to 2"),
        (torch.full((1, 28, 28), float("nan")), "values from nan to nan"),
        (torch.zeros(1, 28, 28, dtype=torch.int64), "dtype torch.int64"),
        ([torch.zeros(1, 28, 28), torch.zeros(3, 28, 28)], r"image 2 has shape \[3, 28, 28\]"),
    ],
)
def test_tensors_that_are_no_images(images, words):
    with pytest.raises((ConfigurationError, ShapeError), match=words) as refused:
        read_images(images, SPECS["sample"])
    assert len(str(refused.value).splitlines()) == 2


def test_checkpoints_that_do_not_fit_together(runs, tmp_path):
    save_lively(tmp_path / "mnist.pt", trained(dataset="mnist"))
    save_lively(tmp_path / "published.pt", trained(preprocess="published"))
    for other, words in (("mnist.pt", "dataset 'mnist'"), ("published.pt", "preprocess 'published'")):
        with pytest.raises(ConfigurationError, match=words) as refused:
            classify([runs.paths[0], tmp_path / other], sample())
        assert other in str(refused.value)
        assert len(str(refused.value).splitlines()) == 2
    with pytest.raises(ConfigurationError, match="there is no checkpoint"):
        classify([], sample())


def test_weights_that_are_not_finite(tmp_path):
    asked = trained()
    network = build_network(asked)
    with torch.no_grad():
        network.classes.weight.fill_(float("nan"))
    save_checkpoint(tmp_path / "x.pt", asked, network.state_dict())
    with pytest.raises(StoreError, match="not finite"):
        classify(tmp_path / "x.pt", sample(1))


# As a command


def test_as_a_process(capsbench, runs, pictures, tmp_path):
    done = capsbench("classify", runs.paths[0].parent, *pictures, "--reconstructions", "seen", "--device", "cpu")
    assert done.status == 0, done
    found = classify(runs.paths[0], sample())
    lines = done.stdout.splitlines()
    assert lines == [
        f"{path}: {one.label} ({one.name}), length {one.length:.3f}" for path, one in zip(pictures, found, strict=True)
    ]
    for path, one in zip(pictures, found, strict=True):
        with Image.open(tmp_path / "seen" / f"{path.stem}-reconstruction.png") as picture:
            assert picture.mode == "L"
            written = torch.from_numpy(np.array(picture)).float() / 255
        assert (written - one.reconstruction[0]).abs().max() <= 0.5001 / 255


def test_as_json(command, runs, pictures, tmp_path):
    done = command("classify", runs.paths[0], *pictures[:2], "--json", "--reconstructions", tmp_path / "seen", "--device", "cpu")
    assert (done.status, done.stderr) == (0, "")
    first, second = json.loads(done.stdout)
    assert first["image"] == str(pictures[0])
    assert len(first["lengths"]) == 10
    assert first["length"] == first["lengths"][first["class"]]
    assert Path(second["reconstruction"]).is_file()


def test_an_ensemble_as_a_command(command, runs, pictures):
    more = [word for path in runs.paths[1:] for word in ("--with", path)]
    done = command("classify", runs.paths[0], pictures[0], *more, "--json", "--device", "cpu")
    assert json.loads(done.stdout)[0]["lengths"] == pytest.approx(list(classify(runs.paths, sample(1))[0].lengths), rel=1e-4)


def test_images_of_one_name_keep_their_reconstructions(command, runs, pictures, tmp_path):
    (tmp_path / "more").mkdir()
    again = tmp_path / "more" / pictures[0].name
    again.write_bytes(pictures[1].read_bytes())
    before = {path: path.read_bytes() for path in pictures}
    # Into the images' own folder: nothing there is written over.
    done = command("classify", runs.paths[0], pictures[0], again, "--reconstructions", pictures[0].parent, "--device", "cpu")
    assert done.status == 0
    assert {path.name for path in pictures[0].parent.iterdir()} - {path.name for path in pictures} == {
        "image0-reconstruction.png",
        "image0-reconstruction-2.png",
    }
    assert all(path.read_bytes() == content for path, content in before.items())


def test_jpg_is_read(command, runs, tmp_path):
    to_picture(sample(1)[0].float() / 255).save(tmp_path / "boot.jpg", quality=95)
    assert command("classify", runs.paths[0], "boot.jpg", "--device", "cpu").status == 0


def damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no images, and what is said of each."""
    grey = Image.new("L", (28, 28))

    def saved(name: str, picture: Image.Image, **options) -> Path:
        picture.save(folder / name, **options)
        return folder / name

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28), np.uint8))
    whole = saved("whole.png", noise).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not an image", encoding="utf-8")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    return {
        "missing": (folder / "missing.png", "does not exist"),
        "text": (folder / "text.png", "is not a png or jpg"),
        "empty": (folder / "empty.png", "is not a png or jpg"),
        "bitmap": (saved("image.bmp", grey), "is not a png or jpg"),
        "cut off": (folder / "cut.png", "cannot be read"),
        "a folder": (folder / "folder.png", "cannot be read"),
        "large": (saved("large.png", Image.new("L", (32, 28))), "has 32 × 28 pixels"),
        "huge": (saved("huge.png", Image.new("1", (13_000, 8_000))), "has 13000 × 8000 pixels"),
        "colour": (saved("colour.png", Image.new("RGB", (28, 28))), "has mode RGB"),
        "transparent": (saved("transparent.png", Image.new("LA", (28, 28))), "has mode LA"),
        "palette": (saved("palette.png", Image.new("P", (28, 28))), "has mode P"),
        "16 bits": (saved("deep.png", Image.new("I;16", (28, 28))), "has mode I;16"),
    }


CASES = ("missing", "text", "empty", "bitmap", "cut off", "a folder", "large", "huge")
MODES = ("colour", "transparent", "palette", "16 bits")


@pytest.mark.parametrize("case", [*CASES, *MODES])
def test_images_that_are_refused(command, runs, pictures, tmp_path, case):
    path, words = damaged(tmp_path)[case]
    first, second = two_lines(
        command("classify", runs.paths[0], pictures[0], path, "--reconstructions", tmp_path / "seen", "--device", "cpu")
    )
    assert str(path) in first
    assert words in first
    assert "png or jpg" in second or "28 × 28 pixels in mode L (greyscale)" in second
    assert not (tmp_path / "seen").exists()  # nothing is done before all images are read


class Malicious:
    """An object that runs a command if it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def bad_checkpoints(folder: Path, whole: bytes) -> dict[str, tuple[Path, str]]:
    """Files that are no checkpoints, and what is said of each."""
    torch.save({"format": "capsbench checkpoint", "weights": Malicious(folder / "ran")}, folder / "malicious.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Malicious(folder / "ran")))
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(3)}, folder / "foreign.pt")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "empty").mkdir()
    return {
        "missing": (folder / "missing.pt", "does not exist"),
        "malicious": (folder / "malicious.pt", "may be code"),
        "pickle": (folder / "pickle.pt", "not a checkpoint"),
        "cut off": (folder / "cut.pt", "checkpoint"),
        "foreign": (folder / "foreign.pt", "was not written by capsbench"),
        "an image": (folder / "image.png", "not a checkpoint"),
        "no run": (folder / "empty", "does not exist"),
    }


@pytest.mark.parametrize("asked", ["classify", "figure"])
@pytest.mark.parametrize("case", ["missing", "malicious", "pickle", "cut off", "foreign", "an image", "no run"])
def test_checkpoints_that_are_refused(command, runs, pictures, tmp_path, case, asked):
    path, words = bad_checkpoints(tmp_path, runs.paths[0].read_bytes())[case]
    words_of = {"classify": ["classify", path, pictures[0]], "figure": ["figure", "reconstructions", path]}[asked]
    first, _ = two_lines(command(*words_of, "--device", "cpu"))
    assert str(path) in first
    assert words in first
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:9999", "cpu:predicted"])
def test_devices_that_are_refused(command, runs, pictures, device):
    assert f"--device {device}".replace("'", "") in two_lines(
        command("classify", runs.paths[0], pictures[0], "--device", device)
    )[0].replace("'", "")


def test_a_folder_that_cannot_be_written(command, runs, pictures, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    first, _ = two_lines(
        command("classify", runs.paths[0], pictures[0], "--reconstructions", tmp_path / "file" / "x", "--device", "cpu")
    )
    assert "cannot be written" in first


def test_a_full_disk_leaves_no_half_picture(command, runs, pictures, tmp_path, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    first, _ = two_lines(
        command("classify", runs.paths[0], pictures[0], "--reconstructions", tmp_path / "seen", "--device", "cpu")
    )
    assert "No space left" in first
    assert list((tmp_path / "seen").iterdir()) == []


def test_more_images_than_a_figure_holds(command, runs, pictures):
    lines = two_lines(command("figure", "reconstructions", runs.paths[0], *pictures[:1] * 11))
    assert lines == ["error: 11 images are too many for one figure", "give up to 10"]


def test_reconstructions_of_a_network_without_decoder(command, pictures, tmp_path):
    asked = TrainingSettings(network=make_configuration("helpers.tiny:make"))
    save_checkpoint(tmp_path / "x.pt", asked, build_network(asked).state_dict())
    refused = command("classify", "x.pt", pictures[0], "--reconstructions", "seen", "--device", "cpu")
    assert "--reconstructions seen" in two_lines(refused)[0]
    assert "no decoder" in two_lines(command("figure", "reconstructions", "x.pt", "--device", "cpu"))[0]


# Pictures


def test_every_dimension_is_moved(runs):
    classifier = Classifier(runs.paths[0])
    image = classifier.read(sample(1))[0]
    moved = perturb(classifier, image)
    assert moved.shape == (16, len(STEPS), 1, 28, 28)
    assert (STEPS[0], STEPS[5], STEPS[-1]) == (-0.25, 0, 0.25)
    network = runs.networks[0]
    with torch.inference_mode():
        out = network(classifier.inputs(image.unsqueeze(0)))
        label = out.lengths.argmax(dim=1)
        capsules = out.capsules.clone()
        capsules[0, label, 3] += STEPS[1]
        expected = network.decoder(capsules, label)[0]
    assert_close(moved[3, 1], expected, relative=1e-5)
    # In the middle nothing is moved.
    for dimension in range(16):
        assert_close(moved[dimension, 5], out.reconstruction[0], relative=1e-5)
    assert not torch.allclose(moved[3, 0], moved[3, 10])


def test_an_ensemble_has_no_one_capsule(runs):
    with pytest.raises(ConfigurationError, match="an ensemble has no decoder"):
        perturb(Classifier(runs.paths), torch.zeros(1, 28, 28))


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_reconstructions_are_drawn(command, runs, pictures, tmp_path, own):
    """Figures of one's own images in another folder, or of test images next to the checkpoint."""
    more = [*pictures[:3], "--out", "drawn"] if own else []
    done = command("figure", "reconstructions", runs.paths[0].parent, *more, "--device", "cpu", drawn=True)
    assert (done.status, done.stderr) == (0, "")
    folder = tmp_path / "drawn" if own else runs.paths[0].parent
    names = [f"{figure}.{kind}" for figure in ("reconstructions", "perturbations") for kind in ("svg", "png", "pdf")]
    assert [Path(line).name for line in done.stdout.splitlines()] == names
    svg = (folder / "reconstructions.svg").read_text(encoding="utf-8")
    assert "MoCapsNet, 1 block," in svg
    assert svg.count("<image") == 2 * (3 if own else 10)
    assert all((folder / name).stat().st_size > 1000 for name in names)


def test_a_data_set_that_is_not_there(command, tmp_path):
    save_lively(tmp_path / "x.pt", trained(dataset="mnist"))
    first, second = two_lines(command("figure", "reconstructions", "x.pt", "--data-dir", tmp_path / "none", "--device", "cpu"))
    assert "mnist" in first
    assert "images of your own" in second


@pytest.mark.parametrize("channels", [1, 3])
def test_figures_of_any_size(channels):
    generator = np.random.default_rng(0)
    few = generator.random((1, 20, 25, channels), np.float32)
    axes = reconstructions_figure(few, few, ["one"], "net").axes
    assert [len(ax.images) for ax in axes] == [1, 1]
    grid = generator.random((3, 2, 20, 25, channels), np.float32)
    (ax,) = perturbations_figure(grid, (-0.1, 0.1), "net").axes
    shown = np.asarray(ax.images[0].get_array())
    assert np.allclose(shown[:20, :25].reshape(20, 25, channels), grid[0, 0])
    assert np.allclose(shown[-20:, -25:].reshape(20, 25, channels), grid[2, 1])
