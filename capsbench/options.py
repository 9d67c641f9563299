"""The options of a cell, one row each, from which everything else about options is made.

A row is a field of `Configuration`: its type, its `Option`, and the sentence beneath it. From the rows come the flags of the
command line and their help, the cells of a sweep and the checks before it, the arguments of a network's constructor, labels, the
reference of a slope's ratio, the filters, columns and commands of the page, `capsbench list`, and the documentation of records.
CONTRIBUTING.md adds an option as an example. Nothing here needs torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from capsbench.catalog import OWN_INPUTS, SPECS, DatasetSpec, parse_shape, spec_of
from capsbench.errors import ConfigurationError
from capsbench.option_type import CAPSULE_NETWORKS, MOMENTUM_NETWORKS, NETWORKS_WITH_BLOCKS, NETWORKS_WITH_LAYERS, Option
from capsbench.typed_values import Setting, as_typed, is_number

# Fields may be called "model", a prefix that pydantic otherwise reserves.
WRITTEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
"""Configuration of every class that is written to disk: frozen, without unknown fields, without infinities."""

PREDICTED = ":predicted"
"""Suffix of the name of a device that nothing runs on."""

PREDICTED_DEVICES = (f"cuda{PREDICTED}", f"cpu{PREDICTED}")
"""Devices for which a step can be traced without them."""

LISTED = "'capsbench list' has them"
"""End of the help of an option whose names are many."""

DEEPEST = 100_000
"""Largest number of blocks that can be asked for, and at which a search for the deepest network ends."""


def _pairs(given: Any) -> Any:
    """The settings of a dictionary, or pairs, in the order of their names."""
    return tuple(sorted(given.items() if isinstance(given, Mapping) else map(tuple, given)))


def _by_name(pairs: Iterable[tuple[str, Setting]]) -> dict[str, Setting]:
    """Settings as an object of JSON; older releases of pydantic need a function with a signature, which `dict` has none of."""
    return dict(pairs)


Settings = Annotated[
    tuple[tuple[str, Setting], ...], BeforeValidator(_pairs), PlainSerializer(_by_name, return_type=dict[str, Setting])
]
"""Settings by name; in JSON an object."""


class Configuration(BaseModel):
    """Everything that decides what a step computes. Options of capsule networks are None for a user's own model."""

    model_config = WRITTEN

    model: Annotated[str, Option(flag="--models", title="Model", help="Models, or package.module:name of your own.")]
    """Name of the network: built-in, an entry point, or `package.module:name`."""

    blocks: Annotated[
        int,
        Option(
            flag="--depth",
            title="Blocks",
            help="Numbers of blocks: 3, 1-8, 1,2,4 or 1-4,8. By default 1-8, or the network's own if --vary names another.",
            unit="block",
            more_memory=True,
        ),
    ] = Field(ge=0)
    """Depth in blocks."""

    dataset: Annotated[
        str,
        Option(
            flag="--dataset",
            title="Data set",
            help="Data sets; the packaged sample is used in place of one that is not on disk.",
            choices={name: spec.title for name, spec in SPECS.items()},
            default="sample",
        ),
    ]
    """Data set of images and classes; `own` for a case, which brings its inputs."""

    batch_size: Annotated[
        int | None,
        Option(
            flag="--batch-size",
            title="Batch size",
            noun="batch",
            help="Images per step.",
            default=128,
            least=1,
            unit="sample",
            more_memory=True,
        ),
    ] = Field(default=None, ge=1)
    """Images per step; None for a case that takes no `batch_size`."""

    kernel: Annotated[
        str | None,
        Option(
            flag="--kernel",
            title="Kernel",
            help="Kernel that computes routing; auto takes the fastest for the device.",
            choices={
                "auto": "the fastest for the device",
                "reference": "the equations in plain autograd; the specification",
                "published": "the memory pattern of the published code",
                "recompute": "keeps no votes; any device",
                "compiled": "keeps no votes, in C; CPU",
                "triton": "keeps no votes, on the GPU's own memory; CUDA",
            },
            default="auto",
            networks=CAPSULE_NETWORKS,
        ),
    ] = None
    """Kernel that computes the routing; never `auto`."""

    routing: Annotated[
        str | None,
        Option(
            flag="--routing",
            title="Routing",
            help="Routing algorithms.",
            choices={
                "rba": "routing by agreement",
                "sda": "scaled-distance agreement",
                "sda-published": "scaled-distance agreement, temperature as published",
                "em": "expectation maximisation",
            },
            default="rba",
            networks=CAPSULE_NETWORKS,
        ),
    ] = None
    """Routing algorithm."""

    iterations: Annotated[
        int | None,
        Option(
            flag="--iterations",
            title="Iterations",
            help="Rounds of routing.",
            default=3,
            least=1,
            unit="round",
            more_memory=True,
            networks=CAPSULE_NETWORKS,
        ),
    ] = None
    """Rounds of routing."""

    capsules: Annotated[
        int | None,
        Option(
            flag="--capsules",
            title="Capsules",
            help="Capsules per hidden layer.",
            default=32,
            least=1,
            unit="capsule",
            more_memory=True,
            networks=NETWORKS_WITH_BLOCKS,
        ),
    ] = None
    """Capsules per hidden layer."""

    front: Annotated[
        str | None,
        Option(
            flag="--front",
            title="Front",
            help="Way to compute the two convolutions before the capsules.",
            choices={
                "auto": "chunked if a batch is large enough for it to cost nothing",
                "plain": "the two convolutions one after the other",
                "chunked": "a part of the batch at a time; backward keeps the images alone",
            },
            default="auto",
            networks=CAPSULE_NETWORKS,
            before="plain",
            words={"plain": "plain front", "chunked": "chunked front"},
        ),
    ] = None
    """Way to compute the two convolutions; never `auto`. None in version 1: `plain`."""

    memory: Annotated[
        str | None,
        Option(
            flag="--memory",
            title="Memory strategy",
            help="Memory strategies: what blocks keep for backward; by default each model's own. Networks of your own take "
            "stored, checkpoint or offload, for their longest list of layers, or for lists that are named after a colon: "
            "checkpoint:encoder+decoder.",
            choices={
                "stored": "every activation is kept",
                "checkpoint": "the input of each block is kept, and the block evaluated again",
                "checkpoint-sqrt": "as checkpoint, with √n blocks per checkpoint, which keeps the least memory",
                "offload": "saved tensors go to the host's memory; no effect on a CPU",
                "reversible": "MoCapsNet: only the end of the stack is kept",
                "reversible-kept": (
                    "as reversible, with the summed outputs of each layer that spare its routing in backward (not of em)"
                ),
            },
            named=("checkpoint", "offload"),
            networks=NETWORKS_WITH_LAYERS,
            of_model=True,
        ),
    ] = None
    """Memory strategy of the stack, or of a user's own lists, as in `checkpoint:encoder`."""

    inverse: Annotated[
        str | None,
        Option(
            flag="--inverse",
            title="Inverse",
            help="Way back through a reversible stack.",
            choices={
                "auto": "float while it is accurate at that depth, else whichever of the others keeps less",
                "float": "keeps nothing; drifts with depth",
                "exact": "fixed point; keeps the bits that a product with γ drops, and drifts at no depth",
                "segmented": "float, with the state kept every k layers, against which it is checked",
            },
            default="auto",
            networks=MOMENTUM_NETWORKS,
            of_model=True,
        ),
    ] = None
    """Inverse of a reversible stack; never `auto`."""

    rule: Annotated[
        str | None,
        Option(
            flag="--rule",
            title="Rule",
            help="MoCapsNet's momentum rule: that of the paper, or of its published code.",
            choices={
                "paper": "one velocity through the whole stack of capsule layers: Algorithm 1",
                "published": "the velocity restarts in every block, which keeps its own shortcut: the published code",
            },
            default="paper",
            networks=MOMENTUM_NETWORKS,
            of_model=True,
            words={"paper": "the paper's rule", "published": "published rule"},
        ),
    ] = None
    """MoCapsNet's rule."""

    gamma: Annotated[
        float | None,
        Option(
            flag="--gamma",
            title="Gamma",
            help="MoCapsNet's momentum term.",
            default=0.9,
            least=0,
            most=1,
            networks=MOMENTUM_NETWORKS,
            of_model=True,
        ),
    ] = None
    """MoCapsNet's momentum term."""

    optimizer_step: Annotated[
        str | None,
        Option(
            flag="--optimizer-step",
            title="Optimizer step",
            help="Moment of the optimizer's step: after backward, or inside it.",
            choices={
                "after": "after backward, with all gradients alive",
                "backward": "for each parameter as its gradient arrives, which is then freed",
            },
            default="after",
            unwritten="after",
            words={"after": "step after backward", "backward": "step in backward"},
            none="after backward",
        ),
    ] = None
    """Time of the optimizer's step: in `backward`, or None for after it."""

    optimizer: Annotated[
        str | None,
        Option(
            flag="--optimizer",
            title="Optimizer",
            help="Optimizer of a step.",
            choices={
                "own": "that of a case; Adam for any other network",
                "adam": "Adam at 1e-3, fused",
                "adamw": "AdamW at 1e-3, fused, with torch's weight decay",
                "sgd": "SGD at 1e-3 without momentum, as torch has it",
                "none": "no optimizer: gradients are computed and freed",
            },
            default="own",
            unwritten="own",
            words={"own": "own optimizer", "none": "no optimizer"},
        ),
    ] = None
    """Optimizer of a step, or None for that of a case, and Adam of any other network."""

    accumulate: Annotated[
        int | None,
        Option(
            flag="--accumulate",
            title="Accumulation",
            noun="accumulation",
            help="Forward and backward passes before each step of the optimizer, each of a whole batch; by default the case's "
            "own number, or 1.",
            least=1,
            unit="pass",
            none="as the network has it",
        ),
    ] = None
    """Forward and backward passes before each step of the optimizer; None for a case's own, or 1."""

    compile: Annotated[
        str | None,
        Option(
            flag="--compile",
            title="Compilation",
            noun="torch.compile",
            help="Compilation of the network by torch.compile; --compile alone means default.",
            choices={"none": "as the network is", "default": "by torch.compile as it is by default"},
            default="none",
            unwritten="none",
            words={"none": "no torch.compile", "default": "torch.compile"},
            none="no torch.compile",
            alone="default",
        ),
    ] = None
    """Compilation of the network by torch.compile: `default`, or None for none."""

    precision: Annotated[
        str,
        Option(
            flag="--precision",
            title="Precision",
            help="Precision that autocast casts to.",
            choices={"fp32": "no autocast", "bf16": "autocast to bfloat16", "fp16": "autocast to float16, the loss scaled"},
            default="fp32",
        ),
    ] = "fp32"
    """Precision: `fp32`, or autocast to `bf16` or `fp16`."""

    device: Annotated[
        str,
        Option(
            flag="--device",
            title="Device",
            help="Device: auto, cpu, cuda or cuda:N to measure; cpu:predicted or cuda:predicted to predict.",
            default="auto",
        ),
    ]
    """Device: `cpu`, `cuda:1`; `cpu:predicted` and `cuda:predicted` if the step is traced, not run."""

    gpu: Annotated[
        str | None,
        Option(
            flag="--gpu",
            title="GPU predicted for",
            help=f"The GPU that cuda:predicted is for (h100); {LISTED}.",
        ),
    ] = None
    """The GPU that a prediction for CUDA is for; None elsewhere."""

    threads: Annotated[
        int | None,
        Option(
            flag="--threads",
            title="Threads",
            help="Threads of a CPU run; by default torch's own number.",
            least=1,
            most=1024,
            unit="thread",
        ),
    ] = None
    """Threads of a CPU run; None elsewhere."""

    capacity: Annotated[
        int | None,
        Option(
            flag="--capacity",
            title="Capacity",
            help="Limit on the device's memory, such as 24GiB.",
            is_bytes=True,
            none="no limit",
        ),
    ] = None
    """A limit on the memory of the device in bytes, or None."""

    image_shape: Annotated[
        str | None,
        Option(
            flag="--shape",
            title="Image size",
            noun="image size",
            help="Channels, height and width of random images in place of the data set's, such as 3x227x227.",
            none="the data set's",
            unit="pixel",
            more_memory=True,
        ),
    ] = Field(default=None, pattern=r"^\d+x\d+x\d+$")
    """Channels, height and width of random images, as `3x227x227`; None for the images of the data set."""

    classes: Annotated[
        int | None,
        Option(
            flag="--classes",
            title="Classes",
            help="Number of classes of random images, in place of the data set's.",
            least=1,
            unit="class",
            more_memory=True,
            none="the data set's",
        ),
    ] = None
    """Number of classes of random images; None for the data set's."""

    parallel: Annotated[
        str | None,
        Option(
            flag="--parallel",
            title="Parallel training",
            help="Way in which several processes train the network together, each with a whole batch; needs --world-size.",
            choices={
                "none": "one process",
                "ddp": "a copy in each process: DistributedDataParallel, as it is by default",
                "fsdp": "parameters, gradients and optimizer state in parts: fully_shard of each layer of the longest list, "
                "and of the rest",
            },
            default="none",
            unwritten="none",
            words={"none": "one process"},
            none="one process",
        ),
    ] = None
    """Way in which several processes train together: `ddp`, `fsdp`, or None."""

    world_size: Annotated[
        int | None,
        Option(
            flag="--world-size",
            title="World size",
            help="Number of processes that train together: 2, 1,2,4 or 1-8; a range of more than 64, such as 1-1024, is doubled "
            "from its first value.",
            least=1,
            unit="rank",
            several=True,
            doubling_beyond=64,
            none="one process",
        ),
    ] = None
    """Processes that train together; None for one that trains alone."""

    settings: Settings | None = None
    """Settings of a case, other than `blocks` and `batch_size`."""

    def is_predicted(self) -> bool:
        """Return whether the step is traced without its device, not run."""
        return self.device.endswith(PREDICTED)

    def device_kind(self) -> str:
        """Kind of the device: `cpu` or `cuda`."""
        return self.device.partition(":")[0]

    def without(self, *axes: str) -> "Configuration":
        """Return what all cells of one series along axes share: the configuration with 0 blocks, or without the axes' values.

        Args:
            axes: names of axes, as in `Plan.axes`.
        """
        found = self
        for axis in axes:
            if found._is_setting(axis):
                value: object = tuple(pair for pair in found.settings or () if pair[0] != axis)
                found = found.model_copy(update={"settings": value})
            elif axis == "image_shape":
                found = found.model_copy(update={axis: channels_of(found.dataset, found.image_shape)})
            else:
                found = found.model_copy(update={axis: 0 if axis == "blocks" else None})
        return found

    def series(self, axis: str = "blocks") -> str:
        """A key of everything but an axis, which all cells of one series along it share.

        Args:
            axis: name of an axis, as in `Plan.axes`.
        """
        return self.without(axis).model_dump_json()

    def position(self, axis: str) -> float | None:
        """Return where a cell lies on an axis: its number of blocks, samples, pixels, or a setting's number.

        Args:
            axis: name of an axis, as in `Plan.axes`.

        Returns:
            The position; None if the network does not have the axis.
        """
        if self._is_setting(axis):
            value: object = dict(self.settings or ()).get(axis)
        elif axis == "blocks":
            value = self.blocks or None
        elif axis in ("image_shape", "classes") and self.dataset == OWN_INPUTS:
            value = None
        elif axis == "image_shape":
            _, height, width = self.spec().shape
            value = height * width
        else:
            value = self.spec().classes if axis == "classes" else getattr(self, axis)
            if value is None and OPTIONS[axis].networks.have(self.model):
                value = OPTIONS[axis].unwritten
        return float(value) if is_number(value) else None

    def _is_setting(self, axis: str) -> bool:
        """Return whether an axis is a setting of this case, or else a field or a part of the images."""
        return axis in dict(self.settings or ()) or axis not in AXES_OF_FIELDS

    def spec(self) -> DatasetSpec:
        """The data set, with the shape and the classes of this cell.

        Raises:
            ConfigurationError: there is no such data set.
        """
        spec = spec_of(self.dataset)
        shape = spec.shape if self.image_shape is None else parse_shape(self.image_shape)
        return replace(spec, shape=shape, classes=self.classes or spec.classes)

    def images_are_square(self) -> bool:
        """Return whether the network is given images that are as wide as they are high."""
        if self.dataset not in SPECS:
            return False
        _, height, width = self.spec().shape
        return height == width

    def images_are_random(self) -> bool:
        """Return whether the images have another shape or other classes than the data set's, and are made for it."""
        return self.image_shape is not None or self.classes is not None

    def images(self) -> int:
        """Images per step of a classifier."""
        if self.batch_size is None:
            raise ConfigurationError(f"model '{self.model}' needs a number of images", "give `batch_size`, 1 or more")
        return self.batch_size

    def options(self) -> dict[str, Any]:
        """Return all values by name, the settings of a case as one text, `length=128, width=64`; None without any."""
        known = self.model_dump()
        known["settings"] = settings_text(self.settings or ()) or None
        return known

    def with_known_values(self) -> "Configuration":
        """Return the configuration with the values of options that are newer than its record, where these are known."""
        known = {
            name: option.before
            for name, option in OPTIONS.items()
            if option.before is not None and option.networks.have(self.model)
        }
        lacking = {name: value for name, value in known.items() if getattr(self, name) is None}
        return self.model_copy(update=lacking) if lacking else self

    def arguments(self) -> dict[str, Any]:
        """Return the options for a network's constructor, by name."""
        return {name: value for name in NETWORK_OPTIONS if (value := getattr(self, name)) is not None}


_WITHOUT_SIZE = "x0x0"
"""End of the shape of images whose channels alone are known."""


def channels_of(dataset: str, image_shape: str | None) -> str | None:
    """The shape of images without their size, `3x0x0`; None for the channels of the data set."""
    if image_shape is None or dataset not in SPECS:
        return None
    channels = int(image_shape.partition("x")[0])
    return None if channels == SPECS[dataset].shape[0] else f"{channels}{_WITHOUT_SIZE}"


def settings_text(settings: Iterable[tuple[str, Setting]]) -> str:
    """Settings of a case as one text, `length=128, width=64`."""
    return ", ".join(f"{name}={as_typed(value)}" for name, value in settings)


def _rows() -> dict[str, Option]:
    hints = get_type_hints(Configuration, include_extras=True)
    found = {name: [one for one in get_args(hints[name]) if isinstance(one, Option)] for name in Configuration.model_fields}
    return {name: options[0] for name, options in found.items() if options}


OPTIONS: Mapping[str, Option] = MappingProxyType(_rows())
"""Every option by the name of its field, in the order in which records hold them."""

NETWORK_OPTIONS = tuple(name for name, option in OPTIONS.items() if option.networks.names is not None)
"""Options that capsbench's own networks take, and of any other network that which `Networks.others` says."""

SETTINGS_FLAG = "--set"
"""Flag of the settings of cases, once for each."""

SWEPT_OPTIONS = tuple(name for name in OPTIONS if name not in ("model", "blocks"))
"""All options except the two that each sweep names: networks and depths."""

REPEATED_FLAGS = MappingProxyType(
    {
        "model": "--model",
        "replicate": "--repeats",
        "passes": "--only",
        "samples": "--samples",
        "budget_seconds": "--time-budget",
        "timeout": "--timeout",
        "out": "--out",
        "resume": "--resume",
    }
)
"""Flags of a command that measures a cell again, other than those of options; `--model` names one network."""

FLAGS = MappingProxyType(
    {name: option.flag for name, option in OPTIONS.items()}
    # A network's own name for the shape of its images.
    | {"in_shape": OPTIONS["image_shape"].flag}
    | dict(REPEATED_FLAGS)
)
"""Flags of the fields that the message of a record may name."""


def type_of(name: str) -> type:
    """The type of an option's values: `str`, `int` or `float`."""
    annotation = Configuration.model_fields[name].annotation
    return next(one for one in (get_args(annotation) or (annotation,)) if isinstance(one, type) and one is not type(None))


AXES_OF_FIELDS = tuple(
    name for name, option in OPTIONS.items() if name == "image_shape" or (type_of(name) is not str and not option.is_bytes)
)
"""Axes that are options of a cell: its numbers, except a limit, and the shape of its images. Any other is a setting of a case."""


def noun_of(name: str) -> str:
    """Noun of an option in a label: `batch`, `optimizer step`; any other column by its name."""
    own = OPTIONS[name].noun if name in OPTIONS else ""
    return own or name.replace("_", " ")


def value_as_typed(name: str, value: object) -> str:
    """Value of an option as it is typed: of a cell that leaves it out, the value that stands for; `none` if it has none."""
    known = OPTIONS[name].unwritten if value is None and name in OPTIONS else value
    return "none" if known is None else str(known)


def value_in_words(name: str, value: object) -> str:
    """Words of a label for an option's value: `batch 32`, `sda`, `step in backward`."""
    if not isinstance(value, str):
        return f"{noun_of(name)} {value}"
    if name == "image_shape" and value.endswith(_WITHOUT_SIZE):
        return f"{value.removesuffix(_WITHOUT_SIZE)} channels"
    return OPTIONS[name].words.get(value, value) if name in OPTIONS else value
