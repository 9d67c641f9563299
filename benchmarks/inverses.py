"""The inverses of a reversible stack compared: bound of the drift, error of the gradients, and retained bits.

    python -m benchmarks.inverses [--write] [--std 0.1]

prints the table, and with `--write` puts it into `benchmarks/inverses.md`. Takes about two minutes on a CPU. An error is the
largest relative error of a gradient (of the input and of each layer's weight) against the same stack in float64 with all
activations stored. What is kept is counted as autograd saves it, weights left out, in bits per element of x.
"""

import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.command_line import parser_of, print_page
from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import DRIFT_BOUND, LIPSCHITZ, DriftWarning, MomentumStack, drift_bound, segment_length

GAMMAS = (0.5, 0.9, 0.99)
DEPTHS = (80, 160, 320, 640, 2000)
OF_PAIR = {"stored": 0, "float": 64, "segmented": 64, "exact": 128}
"""Bits per element of the last x and v."""
SHAPE = (4, 6, 8)
TARGET = Path(__file__).with_suffix(".md")


class Outcome(NamedTuple):
    """One training step."""

    gradients: list[Tensor]
    bits: float
    """Bits that are kept per element."""
    warned: bool


def layers(depth: int, std: float) -> list[nn.Module]:
    """Capsule layers with weights N(0, std²)."""
    torch.manual_seed(0)
    found = [CapsuleLayer(*SHAPE[1:], *SHAPE[1:]) for _ in range(depth)]
    for layer in found:
        nn.init.normal_(layer.weight, std=std)
    return found


def train_step(depth: int, gamma: float, std: float, way: str, dtype: torch.dtype = torch.float32) -> Outcome:
    """Gradients for a fixed input and gradient of the output."""
    options = {"memory": "stored"} if way == "stored" else {"inverse": way}
    stack = MomentumStack(layers(depth, std), gamma, **options).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(2))
    weights = {parameter.data_ptr() for parameter in stack.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = stack(x.requires_grad_())
    bits = 8 * sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / x.numel()
    saved.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DriftWarning)
        output.backward(grad)
    warned = any(warning.category is DriftWarning for warning in caught)
    return Outcome([x.grad.double(), *(parameter.grad.double() for parameter in stack.parameters())], bits, warned)


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of a gradient; infinite if one is not finite."""
    pairs = zip(actual, expected, strict=True)
    found = max(((mine - theirs).abs().max() / theirs.abs().max()).nan_to_num(math.inf).item() for mine, theirs in pairs)
    return found if found < 1e30 else math.inf


def bound(way: str, depth: int, gamma: float) -> str:
    """Bound of the drift if the functions are as assumed."""
    if way in ("stored", "exact"):
        return "0"
    length = segment_length(gamma) or depth
    return f"{drift_bound(depth if way == 'float' else min(length, depth), gamma):.1g}"


def rows(std: float) -> Iterator[str]:
    """The table, line by line."""
    yield "| γ | layers | inverse | drift at most | gradient error | over stored | drift reported | bits kept | per layer |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for gamma in GAMMAS:
        for depth in DEPTHS:
            truth = train_step(depth, gamma, std, "stored", torch.float64).gradients
            plain = math.nan
            for way in OF_PAIR:
                outcome = train_step(depth, gamma, std, way)
                found = error(outcome.gradients, truth)
                plain = found if way == "stored" else plain
                name = f"{way} ({segment_length(gamma)})" if way == "segmented" else way
                yield (
                    f"| {gamma} | {depth} | {name} | {bound(way, depth, gamma)} | {found:.1e} | {found / plain:.2g} | "
                    f"{'yes' if outcome.warned else 'no'} | {outcome.bits:.4g} | {(outcome.bits - OF_PAIR[way]) / depth:.3f} |"
                )


def head(std: float) -> str:
    """The text of the table's page."""
    return f"""# Inverses of a reversible stack

Made by `python -m benchmarks.inverses --write --std {std:g}`; its docstring says what is measured. Capsule layers of
{SHAPE[1]} capsules of dimension {SHAPE[2]}, RBA, weights N(0, {std:g}²), batch {SHAPE[0]}, float32.

*Drift at most* is a bound for functions of Lipschitz constant {LIPSCHITZ:g}, relative to the largest |x|
(`capsbench/reversible/drift.py` derives it); a drift past {DRIFT_BOUND:g} gives a `DriftWarning`. *stored* is no
inverse: its error is the one that float32 has anyway. The number in brackets is that of the layers between two pairs (x, v)
that `segmented` keeps. `exact` computes with the ratio of small integers nearest to γ; its x and v have units of 2⁻⁵⁰ and
magnitudes below 2048. *Bits kept* are counted per element of x; *per layer* leaves out the last x and v. A product with γ
drops log2(1/γ) bits.
"""


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--std", type=float, default=0.1, help="standard deviation of the weights (0.1)")
    options = parser.parse_args()
    print_page(itertools.chain([head(options.std)], rows(options.std)), TARGET, write=options.write)


if __name__ == "__main__":
    main()
