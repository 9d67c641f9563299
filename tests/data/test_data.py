"""The sample that ships, real sets in their own formats, stand-ins, and preprocessing."""

import gzip
import hashlib
import pickle
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision.datasets import MNIST, FashionMNIST

from capsbench.cases.foreign import imported
from capsbench.catalog import SPECS, spec_of
from capsbench.cli.list import offers
from capsbench.data import datasets, preprocess
from capsbench.data.datasets import (
    FILES,
    SAMPLE_SIZE,
    SAMPLE_TEST,
    SYSTEM_FASHION_MNIST,
    conform,
    data_directory,
    load_images,
    load_parts,
    read_idx,
)
from capsbench.data.preprocess import CONSTANTS, draw_offsets, normalise, prepare, random_crop, training_batch
from capsbench.errors import ConfigurationError
from helpers.comparing import assert_close
from helpers.sets import write_idx, write_mnist

COUNT = 10


@pytest.fixture
def no_system_sets(monkeypatch, tmp_path):
    """Pretend a machine without Debian's package."""
    monkeypatch.setattr(datasets, "SYSTEM_FASHION_MNIST", tmp_path / "nowhere")


# The sample


def test_the_sample_ships_with_its_licence():
    folder = resources.files("capsbench.data") / "sample"
    assert 0 < len((folder / datasets.SAMPLE_FILE).read_bytes()) < 1_000_000
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert "MIT" in licence
    assert "Zalando" in licence


def test_the_sample_is_images_of_all_classes():
    sample = load_images("sample")
    assert sample.source == "sample"
    assert sample.images.shape == (SAMPLE_SIZE, 1, 28, 28) == (1024, 1, 28, 28)
    assert (sample.images.dtype, sample.labels.dtype) == (torch.uint8, torch.int64)
    assert sample.labels.unique().tolist() == list(range(10))
    assert (sample.images.amax(dim=(1, 2, 3)) > 100).all()
    assert len(sample.images.unique(dim=0)) > 1000


@pytest.mark.skipif(not SYSTEM_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_sample_is_the_beginning_of_the_real_set(tmp_path):
    assert Path("/usr/share/datasets/fashion-mnist") == SYSTEM_FASHION_MNIST
    real, sample = load_images("fashion-mnist", tmp_path), load_images("sample")
    assert real.source == "real"
    assert real.images.shape == (60_000, 1, 28, 28)
    assert torch.equal(real.images[:SAMPLE_SIZE], sample.images)
    assert torch.equal(real.labels[:SAMPLE_SIZE], sample.labels)


# Real sets, in the formats in which their makers publish them


def write_svhn(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Images `[H, W, C, N]`; the digit 0 is labelled 10."""
    one_to_ten = np.where(labels == 0, 10, labels).astype(np.uint8)
    for part in ("train", "test"):
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": one_to_ten[:, None]})


def write_cifar(folder: Path, files: dict[str, slice], label_key: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir()
    for name, part in files.items():
        batch = {"data": images[part].reshape(-1, 3072), label_key: labels[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))


def write_cifar10(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    files = {f"data_batch_{part + 1}": slice(2 * part, 2 * part + 2) for part in range(5)} | {"test_batch": slice(0, 1)}
    write_cifar(root / "cifar-10-batches-py", files, "labels", images, labels)
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_cifar100(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    files = {"train": slice(None), "test": slice(0, 1)}
    write_cifar(root / "cifar-100-python", files, "fine_labels", images, labels)
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(name) for name in range(100)]}))


WRITERS = {
    "mnist": lambda root, *arrays: write_mnist(root / "MNIST" / "raw", *arrays),
    "fashion-mnist": lambda root, *arrays: write_mnist(root / "FashionMNIST" / "raw", *arrays),
    "svhn": write_svhn,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
}


def made_up(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images in which no two rows, columns or channels are alike, and a label 0 among the labels."""
    spec = spec_of(name)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, *spec.shape), dtype=np.uint8)
    return images, np.linspace(0, spec.classes - 1, COUNT).astype(np.int64)


@pytest.fixture
def any_checksum(monkeypatch):
    """torchvision knows the checksums of the real files; ours only have to be there."""
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.parametrize("name", WRITERS)
def test_a_real_set_is_read(name, tmp_path, any_checksum, monkeypatch):
    images, labels = made_up(name)
    WRITERS[name](tmp_path, images, labels)
    read = load_images(name, tmp_path)
    assert (read.source, read.spec) == ("real", spec_of(name))
    assert (read.images.dtype, read.labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(read.images, torch.from_numpy(images))
    assert torch.equal(read.labels, torch.from_numpy(labels))
    assert read.images.is_contiguous()
    monkeypatch.setenv("CAPSBENCH_DATA", str(tmp_path))
    assert load_images(name).source == "real"


@pytest.mark.parametrize("name", ["svhn", "cifar10", "cifar100"])
def test_a_file_with_another_checksum_is_not_that_set(name, tmp_path):
    WRITERS[name](tmp_path, *made_up(name))
    assert load_images(name, tmp_path).source == "stand-in"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_gzipped_or_not(suffix, tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / f"x{suffix}", array)
    assert torch.equal(read_idx(tmp_path / f"x{suffix}"), torch.from_numpy(array))


def test_fashion_mnist_of_the_system(tmp_path, monkeypatch):
    images, labels = made_up("fashion-mnist")
    monkeypatch.setattr(datasets, "SYSTEM_FASHION_MNIST", tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images[:, 0])
    assert load_images("fashion-mnist", tmp_path).source == "stand-in"  # half of it is not enough
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    read = load_images("fashion-mnist", tmp_path / "empty")
    assert read.source == "real"
    assert torch.equal(read.images, torch.from_numpy(images))
    assert torch.equal(read.labels, torch.from_numpy(labels))


# Both parts, for training: nothing stands in


def refused(name, root, *words, **options):
    """Two lines, with these words in them."""
    with pytest.raises(ConfigurationError) as caught:
        load_parts(name, root, **options)
    assert len(str(caught.value).splitlines()) == 2, caught.value
    for word in (name, *words):
        assert word in str(caught.value)


def test_the_sample_is_cut_in_two():
    whole, (train, test) = load_images("sample"), load_parts("sample")
    assert (len(train.images), len(test.images)) == (SAMPLE_SIZE - SAMPLE_TEST, SAMPLE_TEST)
    assert torch.equal(torch.cat([train.images, test.images]), whole.images)
    assert torch.equal(torch.cat([train.labels, test.labels]), whole.labels)
    assert test.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("name", WRITERS)
def test_both_parts_of_a_real_set_are_read(name, tmp_path, any_checksum, no_system_sets):
    images, labels = made_up(name)
    WRITERS[name](tmp_path, images, labels)
    assert all((tmp_path / file).is_file() for file in FILES[name])
    train, test = load_parts(name, tmp_path)
    assert (train.source, test.source, train.spec) == ("real", "real", spec_of(name))
    for part in (train, test):
        count = len(part.images)
        assert torch.equal(part.images, torch.from_numpy(images)[:count])
        assert torch.equal(part.labels, torch.from_numpy(labels)[:count])
    assert (len(train.images), len(test.images)) == (COUNT, 1 if name.startswith("cifar") else COUNT)


@pytest.mark.skipif(not SYSTEM_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_both_parts_of_the_systems_fashion_mnist(tmp_path):
    train, test = load_parts("fashion-mnist", tmp_path)
    assert (len(train.images), len(test.images)) == (60_000, 10_000)
    assert test.labels.bincount().tolist() == [1000] * 10


@pytest.mark.parametrize("name", WRITERS)
def test_an_absent_set_says_which_files_go_where(name, tmp_path, no_system_sets):
    refused(name, tmp_path, str(tmp_path), *(Path(file).name for file in FILES[name]), "`download`", "`data_directory`")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("number", [0, -1])
def test_a_missing_file_is_named(name, number, tmp_path, any_checksum, no_system_sets):
    WRITERS[name](tmp_path, *made_up(name))
    (tmp_path / FILES[name][number]).unlink()
    refused(name, tmp_path, f"no {FILES[name][number]}")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_a_file_that_was_cut_off_is_told(name, number, kept, tmp_path, any_checksum, no_system_sets):
    WRITERS[name](tmp_path, *made_up(name))
    file = tmp_path / FILES[name][number]
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    refused(name, tmp_path, "cannot be read", "restore")


@pytest.mark.parametrize("name", ["svhn", "cifar10", "cifar100"])
def test_another_checksum_is_told(name, tmp_path):
    WRITERS[name](tmp_path, *made_up(name))
    refused(name, tmp_path, "checksum", "`download`")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("damage", ["", "archive", "file"])
def test_archives_beside_the_files(name, damage, tmp_path, monkeypatch, no_system_sets):
    WRITERS[name](tmp_path, *made_up(name))
    plain = tmp_path / FILES[name][0]
    archive = plain.with_name(plain.name + ".gz")
    archive.write_bytes(gzip.compress(plain.read_bytes()))
    reader = {"mnist": MNIST, "fashion-mnist": FashionMNIST}[name]
    monkeypatch.setattr(reader, "resources", [(archive.name, hashlib.md5(archive.read_bytes()).hexdigest())])
    if damage == "file":
        damaged = bytearray(plain.read_bytes())
        damaged[-1] ^= 1  # of one pixel: header and size are right
        plain.write_bytes(damaged)
    elif damage == "archive":
        archive.write_bytes(archive.read_bytes() + b"0")
    if not damage:
        assert len(load_parts(name, tmp_path).train.images) == COUNT
        return
    with pytest.raises(ConfigurationError, match="checksum" if damage == "archive" else "is not what .*gz next to it contains"):
        load_parts(name, tmp_path)


def test_images_and_labels_that_do_not_fit(tmp_path, no_system_sets):
    images, labels = made_up("mnist")
    for number, (more, less, words) in enumerate(
        [
            (images[:, :, 2:], labels, "shape (1, 26, 28)"),
            (images, labels[1:], "9 labels"),
            (images, labels + 1, "labels 1 to 10"),
        ]
    ):
        write_mnist(tmp_path / str(number) / "MNIST" / "raw", more, less)
        refused("mnist", tmp_path / str(number), words)


def test_a_folder_without_permission(tmp_path, monkeypatch, no_system_sets):
    write_mnist(tmp_path / "MNIST" / "raw", *made_up("mnist"))

    # Whoever runs the tests may be allowed everything.
    def forbidden(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    refused("mnist", tmp_path, "permission denied", "`data_directory`")


def test_the_systems_files_may_be_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SYSTEM_FASHION_MNIST", tmp_path)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(b"\0" * 1000)[:20])
    refused("fashion-mnist", tmp_path / "empty", "cannot be read", str(tmp_path))


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
@pytest.mark.parametrize("name", WRITERS)
def test_a_download_that_fails(name, error, tmp_path, monkeypatch, no_system_sets, capsys):
    asked = []

    def fetch(*arguments, **options):
        asked.append(arguments)
        sys.stdout.write("downloading")
        raise error

    # Each reader knows these by a name of its own.
    for module, function in (
        ("mnist", "download_and_extract_archive"),
        ("cifar", "download_and_extract_archive"),
        ("svhn", "download_url"),
    ):
        monkeypatch.setattr(f"torchvision.datasets.{module}.{function}", fetch)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    refused(name, tmp_path, "network", download=True)
    assert asked
    assert capsys.readouterr().out == ""  # it is told on standard error


# Stand-ins


@pytest.mark.parametrize("name", [name for name in SPECS if name != "sample"])
def test_an_absent_set_has_a_stand_in(name, tmp_path, no_system_sets):
    stand_in, spec = load_images(name, tmp_path), SPECS[name]
    assert (stand_in.source, stand_in.spec) == ("stand-in", spec)
    assert stand_in.images.shape == (SAMPLE_SIZE, *spec.shape)
    assert (stand_in.images.dtype, stand_in.labels.dtype) == (torch.uint8, torch.int64)
    assert stand_in.labels.min() >= 0
    assert stand_in.labels.max() < spec.classes
    assert stand_in.images.float().std() > 50  # pictures, not a grey field


def test_where_sets_are_looked_for(monkeypatch):
    monkeypatch.setenv("CAPSBENCH_DATA", "some/where")
    assert data_directory() == Path("some/where")
    for unset in (lambda: monkeypatch.setenv("CAPSBENCH_DATA", ""), lambda: monkeypatch.delenv("CAPSBENCH_DATA")):
        unset()
        assert data_directory().name == "capsbench"


def test_a_torchvision_of_another_torch_is_said_so_and_leaves_the_rest_of_the_list(tmp_path, monkeypatch, no_system_sets):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ConfigurationError) as caught:
        load_images("mnist", tmp_path)
    assert caught.value.what == (
        f"torchvision cannot be imported with torch {torch.__version__}: RuntimeError: operator torchvision::nms does not exist"
    )
    assert "built for this torch" in caught.value.hint
    offered = offers(tmp_path)
    sets = next(entries for head, entries in offered.items() if head.startswith("datasets"))
    assert "ships with capsbench" in sets["sample"]
    assert "torchvision cannot be imported" in sets["mnist"]
    with pytest.raises(ConfigurationError, match="cannot be imported: RuntimeError") as caught:
        imported("torchvision.models:resnet18", "torchvision.models:resnet18")
    assert caught.value.hint == "the module itself fails: python -c 'import torchvision.models' shows where"


def test_an_unknown_set(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'imagenet'.*\n.*cifar10"):
        load_images("imagenet", tmp_path)


def test_conform_resizes_and_repeats():
    images = load_images("sample").images[:4]
    assert torch.equal(conform(images, (1, 28, 28)), images)
    larger = conform(images, (3, 32, 32))
    assert larger.shape == (4, 3, 32, 32)
    assert larger.dtype == torch.uint8
    assert torch.equal(larger[:, 0], larger[:, 1])
    assert torch.equal(larger[:, 0], larger[:, 2])
    # The same picture: as bright as before, and back again much as it was.
    assert_close(larger.float().mean(dim=(1, 2, 3)), images.float().mean(dim=(1, 2, 3)), relative=0.05)
    back = conform(larger[:, :1], (1, 28, 28)).float()
    assert (back - images).abs().mean() < 10


@pytest.mark.parametrize("grey", [0, 1, 127, 255])
def test_conform_keeps_an_even_image_even(grey):
    images = torch.full((1, 1, 28, 28), grey, dtype=torch.uint8)
    assert torch.equal(conform(images, (2, 40, 20)), torch.full((1, 2, 40, 20), grey, dtype=torch.uint8))


# Preprocessing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("padding", [1, 2])
def test_every_crop_is_a_window_of_the_padded_image(padding):
    count, height, width = 200, 4, 6
    images = torch.arange(1, 1 + count * 2 * height * width).reshape(count, 2, height, width)
    crops = random_crop(images, generator(), padding)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    offsets = []
    for image, crop in zip(padded, crops, strict=True):
        windows = {
            (y, x): image[:, y : y + height, x : x + width] for y in range(2 * padding + 1) for x in range(2 * padding + 1)
        }
        # All values differ, so that only one window can be the crop; both channels move together.
        (found,) = [place for place, window in windows.items() if torch.equal(window, crop)]
        offsets.append(found)
    assert set(offsets) == set(windows)  # every place is taken by someone
    assert offsets[0] != offsets[1] or offsets[1] != offsets[2]


def test_crops_follow_their_generator():
    images = load_images("sample").images[:64]
    first = random_crop(images, generator())
    assert first.dtype == torch.uint8
    before = torch.get_rng_state()
    assert torch.equal(random_crop(images, generator()), first)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's generator is touched
    assert not torch.equal(random_crop(images, generator(1)), first)
    assert not torch.equal(random_crop(images), random_crop(images))


def test_normalise_each_image():
    pixels = torch.rand(5, 3, 8, 9, generator=generator()) * torch.tensor([1e-2, 0.1, 0.5, 1, 10]).view(5, 1, 1, 1)
    images = normalise(pixels)
    assert images.shape == pixels.shape
    assert images.mean(dim=(1, 2, 3)).abs().max() < 1e-5
    assert_close(images.var(dim=(1, 2, 3), correction=0), torch.ones(5), relative=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, 100 / 255, 1.0])
def test_an_even_image_becomes_zero(value):
    images = normalise(torch.stack([torch.full((3, 32, 32), value), torch.rand(3, 32, 32, generator=generator())]))
    assert torch.isfinite(images).all()
    assert images[0].abs().max() < 0.01  # the mean of equal numbers is rounded
    assert images[1].std() > 0.99


def test_one_grey_level_in_one_pixel_is_not_blown_up():
    pixels = torch.zeros(1, 1, 28, 28)
    pixels[0, 0, 3, 3] = 1 / 255
    assert normalise(pixels).abs().max() < 28.1  # at most √numel


def test_training_batch():
    sample = load_images("sample")
    images, labels = sample.images[:8], sample.labels[:8]
    batch = training_batch(images, labels, generator())
    assert batch.images.dtype == batch.pixels.dtype == torch.float32
    assert torch.equal(batch.pixels, random_crop(images, generator()).float() / 255)
    assert torch.equal(batch.images, normalise(batch.pixels))
    assert torch.equal(batch.labels, labels)
    assert batch.pixels.min() == 0
    assert 0.5 < batch.pixels.max() <= 1


def test_a_set_whose_files_were_cut_off_is_no_stand_in(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{part}-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(ConfigurationError, match=r"'mnist'.*cannot be read"):
        load_images("mnist", tmp_path)


def test_crops_at_given_places():
    images = load_images("sample").images[:8]
    offsets = draw_offsets(8, generator())
    assert offsets.shape == (2, 8)
    assert torch.equal(preprocess.crop(images, offsets), random_crop(images, generator()))
    assert torch.equal(preprocess.crop(images, torch.full((2, 8), 2)), images)  # the centre


def test_prepared_as_in_the_paper_and_as_published():
    sample = load_images("sample")
    images, labels, offsets = sample.images[:8], sample.labels[:8], draw_offsets(8, generator())
    paper = prepare(images, labels, "paper", "sample", offsets)
    assert all(map(torch.equal, paper, training_batch(images, labels, generator())))
    published = prepare(images, labels, "published", "mnist", offsets)
    assert_close(published.images, (preprocess.crop(images, offsets).float() / 255 - 0.1307) / 0.3081, relative=1e-6)
    assert published.pixels is published.images
    colour = conform(images, (3, 32, 32))
    assert_close(prepare(colour, labels, "published", "cifar10").images, colour.float() / 127.5 - 1, relative=1e-5)
    assert {name: len(mean) for name, (mean, _) in CONSTANTS.items()} == {name: spec.shape[0] for name, spec in SPECS.items()}
