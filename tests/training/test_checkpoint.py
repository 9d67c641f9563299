"""Checkpoints: what is read is what was written, the one before survives, and a stranger's file runs nothing."""

import errno
import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capsbench.errors import ConfigurationError, LostWorkError, StoreError
from capsbench.training import TrainingSettings, load_checkpoint, load_network, save_checkpoint
from capsbench.training import checkpoint as checkpoints
from capsbench.training.checkpoint import build_network, check_same
from capsbench.training.settings import differences
from helpers import tiny
from helpers.made import make_configuration

TINY = TrainingSettings(network=make_configuration("helpers.tiny:make"))
CAPSULES = TrainingSettings(network=make_configuration("mocapsnet", capsules=4))


@pytest.fixture
def path(tmp_path):
    """A checkpoint of the tiny network."""
    save_checkpoint(tmp_path / "checkpoint.pt", TINY, build_network(TINY).state_dict(), {"step": 3, "order": torch.arange(3)})
    return tmp_path / "checkpoint.pt"


def refused(path, *words):
    """Two lines that name the file; returns them."""
    with pytest.raises(StoreError) as caught:
        load_checkpoint(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert str(path) in lines[0]
    for word in words:
        assert word in lines[0]


def test_what_was_written_is_read(path):
    read = load_checkpoint(str(path))
    assert read.settings == TINY
    assert read.state["step"] == 3
    assert torch.equal(read.state["order"], torch.arange(3))
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_network_comes_back_as_it_was(tmp_path):
    torch.manual_seed(1)
    network = build_network(CAPSULES).eval()
    save_checkpoint(tmp_path / "x.pt", CAPSULES, network.state_dict())
    again, settings = load_network(tmp_path / "x.pt")
    assert settings == CAPSULES
    assert not again.training
    images = torch.rand(2, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(again(images).lengths, network(images).lengths)


def test_on_another_kind_of_device_routing_finds_a_kernel_of_its_own():
    made = build_network(CAPSULES, "cuda:0")
    assert made.classes.kernel == "auto"
    assert build_network(CAPSULES, "cpu").classes.kernel == CAPSULES.network.kernel


class Malice:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("whole", [True, False])
def test_code_is_refused_and_not_run(whole, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    content = Malice() if whole else {"format": checkpoints.FORMAT, "weights": Malice()}
    torch.save(content, path)
    refused(path, "refused", "code")
    path.write_bytes(pickle.dumps(content))
    refused(path)
    assert not (path.parent / "hacked").exists()


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9999))
def test_a_file_that_was_cut_off(path, share):
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path)
    finally:
        path.write_bytes(whole)


def test_bytes_that_were_overwritten(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" * 100])
def test_a_file_of_another_kind(path, content):
    path.write_bytes(content)
    refused(path, "not a checkpoint")


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "absent.pt", "does not exist")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1, 2], "not written by capsbench"),
        ({"weights": torch.zeros(1)}, "not written by capsbench"),
        ({"format": checkpoints.FORMAT, "version": 99}, "newer"),
        ({"format": checkpoints.FORMAT, "version": 1}, "damaged"),
        ({"format": checkpoints.FORMAT, "version": 1, "settings": "{}", "weights": {}, "state": {}}, "damaged"),
        (
            {"format": checkpoints.FORMAT, "version": 1, "settings": TINY.model_dump_json(), "weights": {"a": 1}, "state": {}},
            "damaged",
        ),
    ],
)
def test_content_that_is_no_checkpoint(path, content, word):
    torch.save(content, path)
    refused(path, word)


def test_weights_of_another_architecture(path):
    other = TINY.model_copy(update={"network": make_configuration("mocapsnet", capsules=4)})
    save_checkpoint(path, other, tiny.make((1, 28, 28), 10, 1).state_dict())
    with pytest.raises(StoreError, match=r"another architecture: 'conv\.weight' is missing there, and \[256, 1, 9, 9\]"):
        load_network(path)


def test_a_model_that_is_not_here(path):
    save_checkpoint(path, TINY.model_copy(update={"network": make_configuration("nowhere:make")}), {})
    with pytest.raises(ConfigurationError, match=r"nowhere:make.*\n"):
        load_network(path)


def test_settings_that_differ_are_named():
    other = CAPSULES.model_copy(
        update={"seed": 5, "network": CAPSULES.network.model_copy(update={"blocks": 4, "device": "cuda:0"})}
    )
    assert differences(CAPSULES, other) == {"network.blocks": (1, 4), "network.device": ("cpu", "cuda:0"), "seed": (0, 5)}
    with pytest.raises(ConfigurationError, match=r"blocks is 4, not 1; seed is 5, not 0\n"):
        check_same(CAPSULES, other, "the run", free=frozenset({"network.device"}))
    check_same(CAPSULES, other, "the run", free=frozenset(differences(CAPSULES, other)))


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_full_disk_keeps_the_one_before(path, failing, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr("capsbench.system.durable.sync_folder", full)
        monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(LostWorkError, match=r"No space left on device; the one before it is kept\nmake room.*`resume`") as caught:
        save_checkpoint(path, TINY, {}, {})
    assert caught.value.exit_status == 1
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(LostWorkError, match=r"there is no earlier one\n"):
        save_checkpoint(tmp_path / "absent" / "x.pt", TINY, {}, {})


def test_an_argument_that_the_model_does_not_take():
    with pytest.raises(ConfigurationError, match=r"'mocapsnet' takes no convolutions\n"):
        build_network(CAPSULES.model_copy(update={"convolutions": 2}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"blocks": 9, "inverse": "exact"}, "auto"),
        ({"blocks": 9, "inverse": "segmented"}, "segmented"),
        ({"blocks": 2, "inverse": "exact"}, "exact"),
    ],
)
def test_a_training_goes_on_where_the_exact_inverse_cannot(fields, expected):
    """`exact` where `auto` stands for it is built as `auto`, which takes another one when activations leave its range."""
    network = make_configuration("mocapsnet", capsules=4, **fields)
    assert build_network(CAPSULES.model_copy(update={"network": network})).blocks.inverse == expected


def test_gamma_is_learnt_at_any_depth():
    network = make_configuration("mocapsnet", 9, capsules=4, inverse="exact")
    built = build_network(CAPSULES.model_copy(update={"network": network, "learn_gamma": True}))
    assert built.blocks.resolved_inverse() == "segmented"
