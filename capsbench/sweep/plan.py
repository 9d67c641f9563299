"""From what was asked to a list of cells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from capsbench.catalog import spec_of
from capsbench.errors import ConfigurationError
from capsbench.models import RULES
from capsbench.records import Cell, Configuration
from capsbench.reversible import INVERSES, PLAIN_STRATEGIES, STRATEGIES, check_gamma
from capsbench.routing import check_routing, resolve_kernel
from capsbench.workload import BUILT_IN, PRECISIONS, resolve_model

DEPTH_FORMS = "give a depth (3), a range (1-8), or a list of both (1-4,8)"
DEEPEST = 100_000


@dataclass(frozen=True)
class Sweep:
    """What was asked for; every field that is a tuple multiplies the sweep."""

    models: tuple[str, ...]
    """Built-in names, entry points, or `package.module:name`."""
    depths: tuple[int, ...]
    """Blocks, ascending."""
    device: str
    """A device that exists."""
    datasets: tuple[str, ...] = ("sample",)
    """Names of `data.catalog.SPECS`."""
    batch_size: int = 128
    """Images per step."""
    kernels: tuple[str, ...] = ("auto",)
    """Kernels; `auto` is resolved here."""
    routings: tuple[str, ...] = ("rba",)
    """Routing algorithms."""
    iterations: int = 3
    """Rounds of routing."""
    capsules: int = 32
    """Capsules per hidden layer."""
    memories: tuple[str, ...] = ()
    """Memory strategies; empty means each model's own."""
    inverses: tuple[str, ...] = ("auto",)
    """How reversible stacks invert; `auto` is resolved here."""
    rules: tuple[str, ...] = ("paper",)
    """MoCapsNet's rules."""
    gamma: float = 0.9
    """MoCapsNet's momentum term."""
    precisions: tuple[str, ...] = ("fp32",)
    """Precisions."""
    threads: int | None = None
    """Threads of a CPU run."""
    capacity: int | None = None
    """Limit on the device's memory in bytes."""
    repeats: int = 1
    """Replicates."""


def parse_depths(text: str) -> tuple[int, ...]:
    """`3`, `1-8`, `1,2,4`, `1-4,8` → ascending depths, each once.

    Raises:
        ConfigurationError: it is none of these, or names a depth below 1.
    """
    depths: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ConfigurationError(f"--depth '{text}' is not a depth", DEPTH_FORMS)
        if len(max(first, last, key=len)) > len(str(DEEPEST)):
            raise ConfigurationError(f"--depth '{text[:40]}' goes beyond {DEEPEST} blocks", "choose depths that can be measured")
        low, high = int(first), int(last) if dash else int(first)
        if low < 1:
            raise ConfigurationError(f"--depth '{text}' begins below 1", "the smallest network has 1 block")
        if high < low:
            raise ConfigurationError(f"--depth '{text}' runs backwards", f"write {high}-{low}")
        if high > DEEPEST:
            raise ConfigurationError(f"--depth '{text}' goes beyond {DEEPEST} blocks", "choose depths that can be measured")
        depths.update(range(low, high + 1))
    return tuple(sorted(depths))


def expand(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, replicate by replicate and depth by depth, so that models interleave.

    Raises:
        ConfigurationError: a name is unknown, a value out of range, or a combination cannot be.
    """
    _check(sweep)
    lines = [line for model in sweep.models for line in _lines(sweep, model)]
    configurations = dict.fromkeys(
        line.model_copy(update={"blocks": blocks}) for blocks in sweep.depths for line in dict.fromkeys(lines)
    )
    return [
        Cell(configuration=configuration, replicate=replicate)
        for replicate in range(sweep.repeats)
        for configuration in configurations
    ]


def _lines(sweep: Sweep, model: str) -> list[Configuration]:
    """One configuration for each line that this model has in the sweep."""
    options = _options(sweep, model) if model in BUILT_IN else [{}]
    return [
        Configuration(
            model=model,
            blocks=0,
            dataset=dataset,
            batch_size=sweep.batch_size,
            precision=precision,
            device=sweep.device,
            threads=sweep.threads if sweep.device == "cpu" else None,
            capacity=sweep.capacity,
            **option,
        )
        for dataset, precision, option in product(sweep.datasets, sweep.precisions, options)
    ]


def _options(sweep: Sweep, model: str) -> list[dict[str, Any]]:
    """The options of capsule networks that apply to this model."""
    momentum = model == "mocapsnet"
    found = []
    for routing, kernel, memory in product(sweep.routings, sweep.kernels, _memories(sweep, model)):
        common: dict[str, Any] = {
            "routing": routing,
            "kernel": resolve_kernel(kernel, routing),
            "iterations": sweep.iterations,
            "capsules": sweep.capsules,
            "memory": memory,
        }
        if not momentum:
            found.append(common)
            continue
        inverses = [_resolve_inverse(inverse) for inverse in sweep.inverses] if memory == "reversible" else [None]
        for rule, inverse in product(sweep.rules, inverses):
            found.append({**common, "rule": rule, "gamma": sweep.gamma, "inverse": inverse})
    return found


def _memories(sweep: Sweep, model: str) -> tuple[str, ...]:
    momentum = model == "mocapsnet"
    if not sweep.memories:
        return ("reversible",) if momentum else ("stored",)
    allowed = STRATEGIES if momentum else PLAIN_STRATEGIES
    fitting = tuple(memory for memory in sweep.memories if memory in allowed)
    if not fitting:
        raise ConfigurationError(
            f"--memory {','.join(sweep.memories)} leaves nothing for {model}",
            f"add one of {', '.join(allowed)}, or leave {model} out of --models",
        )
    return fitting


def _resolve_inverse(inverse: str) -> str:
    return "float" if inverse == "auto" else inverse


def _check(sweep: Sweep) -> None:
    with _naming("--models"):
        for model in sweep.models:
            resolve_model(model)
    with _naming("--dataset"):
        for dataset in sweep.datasets:
            spec_of(dataset)
    with _naming("--kernel"):
        for routing, kernel in product(sweep.routings, sweep.kernels):
            check_routing(routing, kernel, sweep.iterations)
    _check_names("--memory", sweep.memories, STRATEGIES)
    _check_names("--inverse", sweep.inverses, INVERSES)
    _check_names("--rule", sweep.rules, RULES)
    _check_names("--precision", sweep.precisions, tuple(PRECISIONS))
    with _naming("--gamma"):
        reversible = "mocapsnet" in sweep.models and (not sweep.memories or "reversible" in sweep.memories)
        check_gamma(sweep.gamma, invertible=reversible)


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Puts the option before what the package says of its value."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error.what}", error.hint) from None


def _check_names(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigurationError(f"{option} '{name}' is not known", f"choose among {', '.join(known)}")
