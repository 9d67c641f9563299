"""Checkpoints: a network, its settings, and the state of its training.

A checkpoint is written beside the last one and renamed, so that one survives. It is read with `weights_only=True`, so that a file
from a stranger runs no code of theirs.
"""

import errno
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from capsbench.cases.factories import build_model
from capsbench.cases.foreign import keeping_threads
from capsbench.errors import ConfigurationError, LostWorkError, StoreError, error_line
from capsbench.records import Configuration
from capsbench.reversible import resolve_inverse
from capsbench.system.durable import replacing
from capsbench.system.paths import expanded
from capsbench.training.settings import TrainingSettings, differences
from capsbench.training.whole import load_weights

FORMAT = "capsbench checkpoint"
VERSION = 1
"""Version of the format, raised whenever an older capsbench could not resume from a new checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    settings: TrainingSettings
    weights: dict[str, Tensor]
    """The network's `state_dict`."""
    state: dict[str, Any] = field(default_factory=dict)
    """State of the training (`loop`); empty if the file holds a network alone."""


def save_checkpoint(
    path: Path, settings: TrainingSettings, weights: Mapping[str, Tensor], state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint, which is on the disk when this returns.

    Args:
        path: path of the file; an existing file is kept if the new one cannot be written.
        settings: settings of the run.
        weights: the network's `state_dict`.
        state: state of the training: tensors, numbers, text, lists and dictionaries of them.

    Raises:
        LostWorkError: it cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings.model_dump_json(),
        "weights": dict(weights),
        "state": dict(state or {}),
    }
    path = expanded(path)
    try:
        with replacing(path) as file:
            # torch turns a file's error about a full disk into one of its own, so it writes to memory.
            buffer = io.BytesIO()
            torch.save(content, buffer)
            file.write(buffer.getbuffer())
    except OSError as error:
        kept = "the one before it is kept" if path.exists() else "there is no earlier one"
        room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise LostWorkError(
            f"checkpoint {path} cannot be written: {error.strerror}; {kept}",
            f"{'make room' if room else 'check the permissions of its folder'}, then run the same command with `resume`",
        ) from None


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; its tensors lie on the CPU.

    Raises:
        StoreError: there is none, it is damaged, holds something else, or is of a newer version.
    """
    path = expanded(path)
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"checkpoint {path} was not written by capsbench", "give a file that 'capsbench train' has written")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise StoreError(f"checkpoint {path} has version {version}, newer than this capsbench reads", "upgrade capsbench")
    try:
        settings = _read_settings(content["settings"])
        weights, state = content["weights"], content["state"]
        tensors = [value for value in weights.values() if isinstance(value, Tensor)]
        if len(tensors) != len(weights) or not isinstance(state, dict):
            raise ValueError("it holds no weights")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"checkpoint {path} is damaged: {error_line(error)}", _RESTORE) from None
    return Checkpoint(settings, weights, state)


def load_network(path: str | os.PathLike[str], device: str = "cpu") -> tuple[nn.Module, TrainingSettings]:
    """The trained network of a checkpoint, in evaluation mode, and the settings that it was trained with.

    Args:
        path: a checkpoint.
        device: device of the network.

    Raises:
        StoreError: the checkpoint cannot be read, or its weights are those of another architecture.
        ConfigurationError: its model cannot be made here.
    """
    read = load_checkpoint(path)
    try:
        network = build_network(read.settings, device)
    except ConfigurationError as error:
        raise ConfigurationError(f"checkpoint {path}: {error.what}", error.hint) from None
    except Exception as error:  # a user's own model may raise anything
        name = read.settings.network.model
        raise ConfigurationError(
            f"checkpoint {path}: model '{name}' cannot be made: {error_line(error)}", "it must be made as it was for training"
        ) from None
    fill(network, read.weights, f"checkpoint {path}")
    return network.to(device).eval(), read.settings


def build_network(settings: TrainingSettings, device: str | None = None) -> nn.Module:
    """The untrained network of some settings, on the CPU.

    Args:
        settings: settings of the training.
        device: device on which it will run, if not the settings' own; its routing may need another kernel there.

    Raises:
        ConfigurationError: the settings make no network.
    """
    asked = settings.network
    if device is not None and asked.kernel is not None and torch.device(device).type != asked.device_kind():
        asked = asked.model_copy(update={"kernel": "auto", "front": "auto"})
    with keeping_threads(asked.model):
        return build_model(asked, **_lasting_inverse(asked), **settings.options())


def _lasting_inverse(network: Configuration) -> dict[str, str]:
    """The inverse `auto` in place of `exact`, if it stands for that: a training must not end when activations leave its range."""
    if network.inverse != "exact" or network.gamma is None:
        return {}
    functions = 2 * (1 if network.rule == "published" else network.blocks)
    return {"inverse": "auto"} if resolve_inverse("auto", functions, network.gamma) == "exact" else {}


def fill(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Put weights into a network.

    Raises:
        StoreError: they are those of another architecture; names the first tensor that differs.
    """
    own = network.state_dict()
    differing = next((name for name in [*own, *weights] if _shape(own, name) != _shape(weights, name)), None)
    if differing is not None:
        raise StoreError(
            f"{what} is of another architecture: '{differing}' is {_shape(weights, differing)} there, "
            f"and {_shape(own, differing)} in the network of its settings",
            "load it with the version of the model that it was trained with",
        )
    load_weights(network, weights)


def check_same(asked: TrainingSettings, found: TrainingSettings, what: str, *, free: frozenset[str] = frozenset()) -> None:
    """Refuse to resume from a checkpoint of other settings.

    Args:
        asked: settings that the command asks for.
        found: settings of the checkpoint.
        what: name of the checkpoint in the message.
        free: fields that may differ.

    Raises:
        ConfigurationError: a field differs; the message names all that do.
    """
    differing = {name: values for name, values in differences(asked, found).items() if name not in free}
    if differing:
        changes = "; ".join(
            f"{name.removeprefix('network.')} is {there}, not {here}" for name, (here, there) in differing.items()
        )
        raise ConfigurationError(
            f"{what} was trained with other settings: {changes}",
            "give the same options as before, or choose another `out` to begin again",
        )


_RESTORE = "restore it, or resume from another checkpoint"


def _read(path: Path) -> object:
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise StoreError(f"{path} is not a checkpoint, or was cut off", _RESTORE)
            with zipfile.ZipFile(file) as archive:
                # torch writes checksums, and does not check them when it reads.
                damaged = archive.testzip()
        if damaged is not None:
            raise StoreError(f"checkpoint {path} is damaged: '{damaged}' in it has another checksum", _RESTORE)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StoreError(
            f"checkpoint {path} does not exist", "give a file that 'capsbench train' has written, or a run's folder"
        ) from None
    except OSError as error:
        raise StoreError(f"checkpoint {path} cannot be read: {error.strerror or error}", "give a file that may be read") from None
    except pickle.UnpicklingError:
        raise StoreError(
            f"checkpoint {path} is refused: it holds more than tensors and plain values, which may be code",
            "give a file that 'capsbench train' has written",
        ) from None
    except StoreError:
        raise
    except Exception as error:  # zip and torch have many exceptions, and advise reading without care
        raise StoreError(f"checkpoint {path} is damaged ({type(error).__name__})", _RESTORE) from None


def _read_settings(text: str) -> TrainingSettings:
    try:
        return TrainingSettings.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"settings, {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return str(list(weights[name].shape)) if name in weights else "missing"
