"""Figures that are expected of a card, each with its range and its source, to be compared with what was found."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.results import Found

LAUNCHES = Path(__file__).parent.parent / "launches.md"
MIB = 2**20

Parts = Mapping[str, Mapping[str, Found]]
"""Items of every part, by the part's name."""


class Expectation(NamedTuple):
    """One figure and the range in which it is expected."""

    words: str
    unit: str
    low: float
    high: float
    source: str
    find: Callable[[Parts], float | None]
    """Function that takes the figure from a card's results; None if it was not measured."""

    def came_true(self, value: float) -> bool:
        """Return whether a value lies in the range."""
        return self.low <= value <= self.high

    def range(self) -> str:
        """The range in words."""
        return f"{self.low:,.4g}" if self.low == self.high else f"{self.low:,.4g} to {self.high:,.4g}"


def within(value: float, share: float) -> tuple[float, float]:
    """The range around a value."""
    return value * (1 - share), value * (1 + share)


def figure(parts: Parts, part: str, item: str, name: str) -> Any:
    """A figure of an item; None if it is not there."""
    return parts.get(part, {}).get(item, {}).get(name)


def per_block(parts: Parts, part: str, item: str, name: str, low: int, high: int) -> float | None:
    """The growth of a figure with a block between two items, whose name has the depth in place of {}."""
    few, many = (figure(parts, part, item.format(blocks), name) for blocks in (low, high))
    return None if few is None or many is None else (many - few) / (high - low)


def ratio(one: float | None, other: float | None) -> float | None:
    """One value over another; None where one is missing."""
    return None if one is None or not other else one / other


def all_expectations() -> list[Expectation]:
    """Every expectation, in the order of the parts."""
    return [*_tests(), *_fronts(), *_table4(), *_times(), *_predictions(), *_launches(), *_inverses(), *_rest()]


def _tests() -> Iterator[Expectation]:
    yield Expectation("tests marked `cuda` that fail", "", 0, 0, "", lambda parts: figure(parts, "tests", "tests", "failed"))


def _fronts() -> Iterator[Expectation]:
    def find(parts: Parts) -> float | None:
        return ratio(
            *(figure(parts, "smoke", f"rescapsnet, 1 block, {front} front", "step_ms") for front in ("chunked", "plain"))
        )

    source = "a chunk of 64 images gives 36 tiles of 128² for 132 multiprocessors"
    yield Expectation("training step, chunked front over plain, 1 block", "", 1.5, 2.5, source, find)


PEAKS = {
    ("mnist", "rescapsnet"): ((2914, 3042), (2928, 3276)),
    ("mnist", "mocapsnet"): ((2913, 3046), (2929, 3064)),
    ("cifar10", "rescapsnet"): ((5130, 5366), (5146, 5644)),
    ("cifar10", "mocapsnet"): ((5130, 5376), (5146, 5394)),
}
"""MiB allocated and reserved at the highest point of the published code's step at batch 128, with 1 and with 8 blocks.

Predicted from a trace of it on shapes, by the rules of PyTorch's allocator.
"""

RETAINED = {
    ("rescapsnet", "published"): (73.8, 0.02, "the published code, counted on a CPU"),
    ("mocapsnet", "published"): (0.88, 0.05, "the published code, counted on a CPU"),
    ("rescapsnet", "triton"): (0.75, 0.0, "two maps of 128 × 32 × 8 and their sums, counted on a CPU"),
    ("mocapsnet", "triton"): (0.0, 0.0, "a reversible stack keeps its end alone"),
}
"""MiB that a block retains on MNIST at batch 128, with the share by which it may differ."""


def _table4() -> Iterator[Expectation]:
    source = "a trace of the published code, replayed through a model of the allocator"
    for (dataset, model), ends in PEAKS.items():
        for blocks, values in zip((1, 8), ends, strict=True):
            for value, name in zip(values, ("peak_allocated_bytes", "peak_reserved_bytes"), strict=True):
                words = name.removesuffix("_bytes").replace("_", " ")
                item = f"{model} {blocks}, {dataset}, published"

                def find(parts: Parts, item: str = item, name: str = name) -> float | None:
                    found = figure(parts, "table4", item, name)
                    return None if found is None else found / MIB

                yield Expectation(f"{item}: {words}", "MiB", *within(value, 0.05), source, find)
    for (model, kernel), (value, share, where) in RETAINED.items():

        def grown(parts: Parts, item: str = f"{model} {{}}, mnist, {kernel}") -> float | None:
            found = per_block(parts, "table4", item, "retained_bytes", 1, 8)
            return None if found is None else found / MIB

        yield Expectation(f"{model}, {kernel}: retained per block", "MiB", *within(value, share), where, grown)


def _times() -> Iterator[Expectation]:
    for way, low, high, source in (
        ("published", 1.6, 2.0, "the paper's 1.8, by its kernel and rule"),
        ("auto", 1.3, 1.5, "1.41 on a CPU, where nothing is kept"),
    ):

        def find(parts: Parts, way: str = way) -> float | None:
            items = (f"{model} {{}}, {way}" for model in ("mocapsnet", "rescapsnet"))
            return ratio(*(per_block(parts, "peers", item, "step_ms", 1, 8) for item in items))

        yield Expectation(f"time of a block, MoCapsNet over ResCapsNet, {way}", "", low, high, source, find)


def _predictions() -> Iterator[Expectation]:
    def wrong(parts: Parts) -> float | None:
        found = parts.get("predicted", {})
        return sum("marked exact" in str(item.get("error", "")) for item in found.values()) if found else None

    yield Expectation("cells whose figures are marked exact, and are not", "", 0, 0, "the meaning of the mark", wrong)
    for words in ("peak allocated", "peak reserved"):

        def largest(parts: Parts, words: str = words) -> float | None:
            pairs = [item[words] for item in parts.get("predicted", {}).values() if words in item]
            return max((100 * abs(one["predicted"] / one["measured"] - 1) for one in pairs), default=None)

        yield Expectation(f"largest error of a predicted {words}", "%", 0, 5, "cuDNN's scratch is not in it", largest)


def launches_expected() -> dict[str, tuple[int, int]]:
    """Launches forward and backward that a block adds, by the name of its stack: the table of `benchmarks/launches.md`."""
    found = {}
    for line in LAUNCHES.read_text(encoding="utf-8").splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name.startswith(("ResCapsNet", "MoCapsNet")):
            found[name] = int(cells[0].split()[0]), int(cells[1].split()[0])
    return found


def _launches() -> Iterator[Expectation]:
    for name, counts in launches_expected().items():
        for way, count in zip(("forward", "backward"), counts, strict=True):

            def find(parts: Parts, item: str = f"launches, {name}", way: str = way) -> float | None:
                kernels, copies = (figure(parts, "kernels", item, key) for key in (way, f"{way}, copies"))
                return None if kernels is None or copies is None else kernels + copies

            yield Expectation(f"launches of a block {way}, {name}", "", count, count, "benchmarks/launches.md", find)


def _inverses() -> Iterator[Expectation]:
    for way, low, high, kept in (("float", 1.33, 1.40, 0.0), ("segmented", 1.36, 1.42, 32.0), ("exact", 1.39, 1.48, 1.3)):

        def time(parts: Parts, way: str = way) -> float | None:
            return ratio(*(per_block(parts, "inverses", f"{name}, {{}} blocks", "step_ms", 8, 64) for name in (way, "stored")))

        def bytes_kept(parts: Parts, way: str = way) -> float | None:
            found = per_block(parts, "inverses", f"{way}, {{}} blocks", "retained_bytes", 8, 64)
            return None if found is None else found / 1024

        yield Expectation(f"time of a block, {way} over stored", "", low, high, "stacks alone on a CPU", time)
        yield Expectation(f"retained per block, {way}", "KiB", *within(kept, 0.1), "counted on a CPU at batch 128", bytes_kept)


def _rest() -> Iterator[Expectation]:
    for model in ("mocapsnet", "rescapsnet"):

        def accuracy(parts: Parts, model: str = model) -> float | None:
            found = parts.get("training", {}).get(model, {})
            return found.get("test accuracy, %") if found.get("images") == "fashion-mnist" else None

        source = "88.47 by MoCapsNet on a CPU (reports/fashion-mnist)"
        yield Expectation(f"test accuracy of {model} after 5 epochs", "%", 87.5, 89.5, source, accuracy)

    def segments(parts: Parts) -> float | None:
        return ratio(*(figure(parts, "allocator", name, "peak_reserved_bytes") for name in ("expandable segments", "default")))

    yield Expectation("reserved with expandable segments, over the default", "", 0.8, 1, "less fragmentation", segments)

    def counted(parts: Parts) -> float | None:
        found = parts.get("allocator", {}).get("caching off")
        return None if found is None else sum(name.startswith("peak_") for name in found)

    yield Expectation("peaks that are reported with caching off", "", 0, 0, "the allocator counts nothing then", counted)

    def other_bits(parts: Parts) -> float | None:
        found = [item["gradients"] for item in parts.get("graphs", {}).values() if "gradients" in item]
        return sum(text != "the same bits" for text in found) if found else None

    yield Expectation("stacks whose CUDA graph computes other bits", "", 0, 0, "the same kernels in the same order", other_bits)
