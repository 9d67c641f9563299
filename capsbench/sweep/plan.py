"""From what was asked to a list of cells."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from capsbench.catalog import spec_of
from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.models import FRONTS, RULES, resolve_front
from capsbench.prediction.apart import call_for
from capsbench.records import Cell, Configuration
from capsbench.reversible import INVERSES, PLAIN_STRATEGIES, REVERSIBLE_STRATEGIES, STRATEGIES, check_gamma, resolve_inverse
from capsbench.routing import algorithms, check_routing, compiled, kernels, resolve_kernel
from capsbench.workload import BUILT_IN, OPTIMIZER_STEPS, PRECISIONS, WITHOUT_BLOCKS, check_optimizer_step, fingerprint_of

DEPTH_FORMS = "give a depth (3), a range (1-8), or a list of both (1-4,8)"
DEEPEST = 100_000
_FIELDS = {
    "kernel": "kernels",
    "routing": "routings",
    "front": "fronts",
    "memory": "memories",
    "inverse": "inverses",
    "rule": "rules",
}
_DEVICE_OF = {"triton": "cuda", "compiled": "cpu"}
"""Kernels that run on one kind of device alone."""


OWN_OPTIONS = ("kernel", "routing", "iterations", "capsules", "front", "memory", "inverse", "rule", "gamma")
"""Options of capsbench's own capsule networks, as the command line spells them: no other network is given them."""

_IN_BLOCKS = ("capsules", "memory")
"""Those that only networks with blocks have."""


@dataclass(frozen=True)
class Sweep:
    """What was asked for; every field that is a tuple multiplies the sweep."""

    models: tuple[str, ...]
    """Built-in names, entry points, or `package.module:name`."""
    depths: tuple[int, ...]
    """Blocks, ascending."""
    device: str
    """A device that exists, or one that a prediction is for."""
    gpu: str | None = None
    """The GPU that a prediction for CUDA is for."""
    datasets: tuple[str, ...] = ("sample",)
    """Names of `data.catalog.SPECS`."""
    batch_size: int = 128
    """Images per step."""
    kernels: tuple[str, ...] = ("auto",)
    """Kernels; `auto` is resolved here, and one that a routing algorithm does not have is left out there."""
    routings: tuple[str, ...] = ("rba",)
    """Routing algorithms."""
    iterations: int = 3
    """Rounds of routing."""
    capsules: int = 32
    """Capsules per hidden layer."""
    fronts: tuple[str, ...] = ("auto",)
    """How the two convolutions are computed; `auto` is resolved here."""
    memories: tuple[str, ...] = ()
    """Memory strategies; empty means each model's own."""
    inverses: tuple[str, ...] = ("auto",)
    """How reversible stacks invert; `auto` is resolved here, for the deepest network: the depths of a line are alike."""
    rules: tuple[str, ...] = ("paper",)
    """MoCapsNet's rules."""
    gamma: float = 0.9
    """MoCapsNet's momentum term."""
    optimizer_steps: tuple[str, ...] = ("after",)
    """When the optimizer steps: `after` backward, or inside `backward`."""
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

    A model that has no blocks is measured once, whatever the depths.

    Raises:
        ConfigurationError: a name is unknown, a value out of range, or a combination cannot be.
    """
    sources = _check(sweep)
    lines = [line for model in sweep.models for line in _lines(sweep, model)]
    configurations = dict.fromkeys(
        line if line.model in WITHOUT_BLOCKS else line.model_copy(update={"blocks": blocks})
        for blocks in sweep.depths
        for line in dict.fromkeys(lines)
    )
    return [
        Cell(configuration=configuration, replicate=replicate, source=sources[configuration.model])
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
            optimizer_step=None if step == "after" else step,
            device=sweep.device,
            gpu=sweep.gpu,
            threads=sweep.threads if _kind(sweep) == "cpu" else None,
            capacity=sweep.capacity,
            **option,
        )
        for dataset, precision, step, option in product(sweep.datasets, sweep.precisions, sweep.optimizer_steps, options)
    ]


def _options(sweep: Sweep, model: str) -> list[dict[str, Any]]:
    """The options of capsule networks that apply to this model."""
    fronts = [resolve_front(front, sweep.batch_size, _kind(sweep)) for front in sweep.fronts]
    found = []
    for (routing, kernel), front, memory in product(_routings(sweep), fronts, _memories(sweep, model)):
        common: dict[str, Any] = {
            "routing": routing,
            "kernel": kernel,
            "iterations": sweep.iterations,
            "capsules": sweep.capsules,
            "front": front,
            "memory": memory,
        }
        if model in WITHOUT_BLOCKS:
            found.append({name: value for name, value in common.items() if name not in ("capsules", "memory")})
            continue
        if model != "mocapsnet":
            found.append(common)
            continue
        for rule in sweep.rules:
            inverses = _inverses(sweep, rule) if memory in REVERSIBLE_STRATEGIES else [None]
            found += [{**common, "rule": rule, "gamma": sweep.gamma, "inverse": inverse} for inverse in inverses]
    return found


def _routings(sweep: Sweep) -> list[tuple[str, str]]:
    """Each routing algorithm with each kernel that it has."""
    found = []
    for routing in sweep.routings:
        offered = ("auto", *kernels(routing))
        fitting = [kernel for kernel in sweep.kernels if kernel in offered]
        if not fitting:
            raise ConfigurationError(
                f"--kernel {','.join(sweep.kernels)} leaves nothing for routing {routing}",
                f"add one of {', '.join(offered)}, or leave {routing} out of --routing",
            )
        found += [(routing, resolve_kernel(kernel, routing, _kind(sweep))) for kernel in fitting]
    return found


def _memories(sweep: Sweep, model: str) -> tuple[str, ...]:
    momentum = model == "mocapsnet"
    if not sweep.memories or model in WITHOUT_BLOCKS:
        return ("reversible",) if momentum else ("stored",)
    allowed = STRATEGIES if momentum else PLAIN_STRATEGIES
    fitting = tuple(memory for memory in sweep.memories if memory in allowed)
    if not fitting:
        raise ConfigurationError(
            f"--memory {','.join(sweep.memories)} leaves nothing for {model}",
            f"give one of {', '.join(allowed)}, or another model",
        )
    return fitting


def _inverses(sweep: Sweep, rule: str) -> list[str]:
    # The published rule restarts in every block, so that no stack is longer than one.
    functions = 2 * (1 if rule == "published" else max(sweep.depths))
    with naming("--inverse"):
        return [resolve_inverse(inverse, functions, sweep.gamma) for inverse in sweep.inverses]


def _kind(sweep: Sweep) -> str:
    """`cpu` or `cuda`."""
    return sweep.device.partition(":")[0]


def _check(sweep: Sweep) -> dict[str, str | None]:
    """Refuses what makes no sense; the digest of the source of each model."""
    with naming("--models"):
        sources = {model: _source_of(model) for model in sweep.models}
    with naming("--dataset"):
        for dataset in sweep.datasets:
            spec_of(dataset)
    _check_names("--routing", sweep.routings, algorithms())
    _check_names("--kernel", sweep.kernels, ("auto", *dict.fromkeys(name for one in algorithms() for name in kernels(one))))
    _check_names("--front", sweep.fronts, FRONTS)
    _check_names("--memory", sweep.memories, STRATEGIES)
    _check_names("--inverse", sweep.inverses, INVERSES)
    _check_names("--rule", sweep.rules, RULES)
    _check_names("--optimizer-step", sweep.optimizer_steps, OPTIMIZER_STEPS)
    _check_names("--precision", sweep.precisions, tuple(PRECISIONS))
    _check_effect(sweep)
    _check_values(sweep)
    return sources


def _source_of(name: str) -> str | None:
    """The digest of a model's source, as in `Cell`; a module of the user's own is imported in a process apart.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        found = call_for(name, fingerprint_of, name)
    except ConfigurationError:
        raise
    except CapsbenchError as error:
        raise ConfigurationError(f"model '{name}' cannot be imported: {error.what}", error.hint) from None
    return found.digest if found else None


def _check_effect(sweep: Sweep) -> None:
    """Refuses options that are set and that a network of the user's own, or every network of the sweep, does not have.

    Raises:
        ConfigurationError: there is one.
    """
    own = next((model for model in sweep.models if model not in BUILT_IN), None)
    unset = Sweep(sweep.models, sweep.depths, sweep.device)
    for option in OWN_OPTIONS:
        field = _FIELDS.get(option, option)
        value = getattr(sweep, field)
        if value == getattr(unset, field):
            continue
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
        if own is not None:
            raise no_effect(f"--{option} {shown}", own)
        if option in _IN_BLOCKS and set(sweep.models) <= WITHOUT_BLOCKS.keys():
            raise ConfigurationError(
                f"--{option} {shown} has no effect on {', '.join(sweep.models)}: there are no blocks", f"leave --{option} out"
            )


def no_effect(option: str, model: str) -> ConfigurationError:
    """The error of an option that was given for a network of the user's own."""
    return ConfigurationError(
        f"{option} has no effect on model '{model}': it is an option of capsbench's own capsule networks",
        f"leave it out, and set it where '{model}' is made; networks that have it can be added to the same report with --resume",
    )


def _check_values(sweep: Sweep) -> None:
    """What names alone do not say."""
    _check_kernels(sweep)
    with naming("--iterations"):
        for routing in sweep.routings:
            check_routing(routing, "auto", sweep.iterations)
    with naming("--optimizer-step"):
        for step, precision in product(sweep.optimizer_steps, sweep.precisions):
            check_optimizer_step(step, precision)
    with naming("--gamma"):
        reversible = not sweep.memories or not set(REVERSIBLE_STRATEGIES).isdisjoint(sweep.memories)
        check_gamma(sweep.gamma, invertible="mocapsnet" in sweep.models and reversible)
    if "mocapsnet" not in sweep.models:
        _check_momentum(sweep)
    if set(sweep.inverses) != {"auto"} and not ("mocapsnet" in sweep.models and reversible):
        raise ConfigurationError(
            f"--inverse {','.join(sweep.inverses)} has nothing to invert: nothing here is reversible",
            "add mocapsnet with --memory reversible, or leave --inverse out",
        )


def _check_momentum(sweep: Sweep) -> None:
    """MoCapsNet's own options where no network has them."""
    given = {"--rule": (",".join(sweep.rules), RULES[0]), "--gamma": (f"{sweep.gamma:g}", f"{Sweep.gamma:g}")}
    for option, (value, usual) in given.items():
        if value != usual:
            raise ConfigurationError(
                f"{option} {value} says nothing: it is MoCapsNet's alone", f"name the model mocapsnet, or leave {option} out"
            )


def _check_kernels(sweep: Sweep) -> None:
    """Kernels that this device or machine cannot run, whatever the routing."""
    kind = _kind(sweep)
    for kernel in sweep.kernels:
        needed = _DEVICE_OF.get(kernel, kind)
        if needed != kind:
            raise ConfigurationError(
                f"--kernel {kernel} needs a device of kind {needed}, and --device is '{sweep.device}'",
                f"choose --device {needed} where there is one, or --kernel auto, which takes what is fastest on a device",
            )
        if kernel == "compiled" and not compiled.available():
            raise ConfigurationError(
                f"--kernel compiled cannot be had on this machine: {compiled.library().reason}",
                "choose --kernel recompute or auto",
            )


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Puts the option before what the package says of its value."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error.what}", error.hint) from None


def _check_names(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigurationError(f"{option} '{name}' is not known", f"choose among {', '.join(known)}")
