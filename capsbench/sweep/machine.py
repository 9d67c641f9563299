"""The machine that a sweep is for: its device, the GPU that is predicted for, and its threads."""

import os
import re
from collections.abc import Container
from typing import Any

import torch

from capsbench.devices import DEFAULT_GPU, gpu_of
from capsbench.errors import ConfigurationError, unknown_name
from capsbench.measure.environment import default_threads
from capsbench.options import PREDICTED_DEVICES


def machine_options(
    device: str, gpu: str | None, threads: int | None, vary: Container[str] = (), *, here: bool = True
) -> dict[str, Any]:
    """The options of a sweep that its machine decides: device, GPU, and threads unless these are varied.

    Args:
        device: device, as it was given.
        gpu: GPU to predict for.
        threads: threads of a CPU run.
        vary: names of the axes.
        here: False if other machines may measure.

    Raises:
        ConfigurationError: there is no such device, or a GPU is named and nothing is predicted for one.
    """
    resolved = resolve_device(device, here=here)
    if gpu is not None and resolved != "cuda:predicted":
        raise ConfigurationError(
            f"`gpu` {gpu} cannot be combined with `device` {device}", "add `device` cuda:predicted, or leave it out"
        )
    name = gpu_of(DEFAULT_GPU if gpu is None else gpu).name if resolved == "cuda:predicted" else None
    own = {} if threads is None and "threads" in vary else {"threads": threads or default_threads()}
    return {"device": resolved, "gpu": name} | own


def resolve_device(name: str, *, here: bool = True) -> str:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N` to the one name of a present device; a predicted device stays as it is.

    Args:
        name: name of the device.
        here: False if workers elsewhere have the device, each with one GPU for itself, which is called `cuda:0` there.

    Raises:
        ConfigurationError: there is no such device.
    """
    if not here and name == "cuda":
        return "cuda:0"
    if not here and re.fullmatch(r"cuda:[0-9]+", name):
        raise ConfigurationError(
            f"`device` {name} names one GPU, and the launcher gives each cell a GPU of its own", "give `device` cuda"
        )
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or name in PREDICTED_DEVICES:
        return name
    numbered = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if numbered:
        index, count = int(numbered[1] or 0), torch.cuda.device_count()
        if index >= count:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            why = "" if visible is None else f", as CUDA_VISIBLE_DEVICES is '{visible}'"
            raise ConfigurationError(
                f"`device` {name} is not here: this machine has {count} CUDA devices{why}", "choose cpu or auto"
            )
        return f"cuda:{index}"
    names = ("auto", "cpu", "cuda", "cuda:N", *PREDICTED_DEVICES)
    if name.lower() in ("gpu", "nvidia"):  # of these letters, cpu would be the nearest
        raise ConfigurationError(f"`device` '{name}' is not known", f"did you mean cuda? If not, choose among {', '.join(names)}")
    raise unknown_name("`device`", name, names)
