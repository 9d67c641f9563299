"""Resources of a GPU that the Triton kernels take, found by compiling them ahead of time, without a GPU.

    python -m benchmarks.compile_kernels            prints the table of the installed Triton
    python -m benchmarks.compile_kernels --write    keeps it in benchmarks/triton.md, with those of other releases

A row is a kernel as `capsbench.routing.triton.operators` launches it. Nothing in it depends on B of at least 8, or, but for
`rounds_at_once`, on I.
"""

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.command_line import parser_of
from capsbench.routing.triton import kernels, operators
from capsbench.routing.triton.launch import LaunchPlan

TABLE = Path(__file__).with_name("triton.md")
ARCHITECTURES = (80, 90)


class Size(NamedTuple):
    """Target for which a kernel is compiled."""

    in_dim: int
    outputs: int
    out_dim: int


SIZES = (
    *itertools.starmap(Size, itertools.product((8,), (10, 32, 100), (8, 16))),
    Size(8, 64, 16),
    Size(16, 32, 16),
    Size(16, 100, 16),
)

COUNTS = (1152, 32)
"""Input capsules of the layers: one too large for a kernel of all rounds, and one that is not."""


_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: str
    plan: LaunchPlan
    arguments: tuple[Tensor | int | None, ...]

    @property
    def title(self) -> str:
        """The kernel, and which of its optional tensors it got."""
        names = getattr(kernels, self.kernel).arg_names
        left_out = [name for name, given in zip(names, self.arguments, strict=False) if given is None]
        return f"{self.kernel} without {', '.join(left_out)}" if left_out else self.kernel


class Figures(NamedTuple):
    """Resources of a thread, or for `shared` of a block of threads."""

    registers: int
    spills: int
    """Bytes stored because they did not fit into registers."""
    shared: int
    """Bytes."""


def launches(size: Size, dtype: torch.dtype = torch.float32) -> list[Launch]:
    """All kernels as they are launched for the first layer of a network for 28×28 pixels and for one of a block, at batch 128."""
    found: list[Launch] = []
    with mock.patch.object(operators, "launch", lambda kernel, plan, *arguments: found.append(Launch(kernel, plan, arguments))):
        for count in COUNTS:
            _launch(count, size, dtype)
    # The rounds of a layer are the same kernels.
    return list({(launch.title, str(launch.plan.sizes)): launch for launch in found}.values())


def _launch(count: int, size: Size, dtype: torch.dtype) -> None:
    batch, precise = 128, torch.promote_types(dtype, torch.float32)
    inputs, weight = torch.empty(batch, count, size.in_dim, dtype=dtype), torch.empty(count, *size, dtype=dtype)
    outputs, of_output = (torch.empty(batch, *shape, dtype=precise) for shape in (size[1:], size[1:2]))
    temperature, bias = (torch.empty(shape, dtype=precise) for shape in ((), size[1:]))
    operators.rba_rounds(inputs, weight, 2)
    for state, limited in (((None, None), False), ((outputs, None), False), ((outputs, temperature), True)):
        operators.round_vjp(inputs, weight, outputs, outputs, *state, limited)
    if count == COUNTS[0]:
        operators.sda_round(inputs, weight, bias, outputs, temperature)
        operators.sda_temperature(inputs, weight, outputs, False)
        given = (inputs, weight, of_output, outputs, outputs)
        operators.em_round(*given)
        for operator in (operators.em_state_vjp, operators.em_votes_vjp):
            operator(*given, outputs, of_output, outputs, outputs)


class Compiled(NamedTuple):
    """A kernel for one architecture."""

    figures: Figures
    ttir: str
    ptx: str


def compile_for(launch: Launch, architecture: int) -> Compiled:
    """A launched kernel for an architecture."""
    return compiled(getattr(kernels, launch.kernel), launch.arguments, launch.plan.sizes, launch.plan.options, architecture)


def compiled(
    function: Any,
    arguments: Sequence[Tensor | int | None],
    sizes: dict[str, int],
    options: dict[str, int | bool],
    architecture: int,
) -> Compiled:
    """Compile as Triton would at the first call on such a device, and read the report of ptxas.

    Args:
        function: the kernel.
        arguments: its arguments in order, up to the constants; None for a tensor that is left out.
        sizes: constants by name.
        options: options of the compilation.
        architecture: compute capability, 80 for 8.0.
    """
    signature, constants, aligned = {}, dict(sizes), {}
    for index, name in enumerate(function.arg_names):
        given = arguments[index] if index < len(arguments) else None
        if isinstance(given, Tensor):
            signature[name] = _POINTERS[given.dtype]
            # PyTorch's allocators align to more; without this hint another kernel is compiled.
            aligned[(index,)] = [["tt.divisibility", 16]]
        elif given is not None:
            signature[name] = "i32" if given < 2**31 else "i64"
        else:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
    source = ASTSource(function, signature, constants, aligned)
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), redirect_stdout(io.StringIO()) as log:
        triton.knobs.nvidia.dump_ptxas_log = True
        # A kernel found in the cache comes without the report of ptxas.
        triton.knobs.compilation.always_compile = True
        found = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    figures = Figures(_number(r"Used (\d+) registers", log), _number(r"(\d+) bytes spill stores", log), found.metadata.shared)
    return Compiled(figures, found.asm["ttir"], found.asm["ptx"])


def _number(pattern: str, log: io.StringIO) -> int:
    found = re.search(pattern, log.getvalue())
    assert found is not None, f"ptxas did not say '{pattern}':\n{log.getvalue()}"
    return int(found[1])


def row(size: Size, launch: Launch, compiled: Iterable[Compiled]) -> str:
    """A line of the table: a launch, compiled for each of `ARCHITECTURES`."""
    cells = [launch.title, *size, 32 * launch.plan.warps]
    for one in compiled:
        cells += one.figures
    return "| " + " | ".join(map(str, cells)) + " |"


def rows(sizes: Sequence[Size] = SIZES) -> Iterator[str]:
    """The lines of these sizes."""
    return (
        row(size, launch, (compile_for(launch, architecture) for architecture in ARCHITECTURES))
        for size in sizes
        for launch in launches(size)
    )


def kept() -> dict[str, list[str]]:
    """The lines of each release of Triton in the committed page."""
    _, *sections = TABLE.read_text(encoding="utf-8").split(_SECTION)
    found = {}
    for section in sections:
        release, *lines = section.splitlines()
        found[release] = [line for line in lines if line.startswith("|")][2:]
    return found


def page(tables: dict[str, list[str]]) -> str:
    """The page with the lines of each release, the newest first."""
    figures = [f"sm_{architecture} {name}" for architecture in ARCHITECTURES for name in Figures._fields]
    names = ["kernel", "K", "J", "D", "threads", *figures]
    lines = [_INTRODUCTION]
    for release in sorted(tables, key=lambda release: [int(part) for part in release.split(".")], reverse=True):
        lines += [f"{_SECTION}{release}\n\n| {' | '.join(names)} |", "| --- " + "| ---: " * (len(names) - 1) + "|"]
        lines += tables[release]
    return "\n".join(lines) + "\n"


_SECTION = "\n## Triton "
_INTRODUCTION = """# Triton kernels, compiled ahead of time

Made by `python -m benchmarks.compile_kernels --write`, once with each release of Triton.

*Registers* are counted per thread, *spills* are bytes per thread that did not fit into them, *shared* are bytes per
block of threads. All is float32, and holds for every I (`rounds_at_once` for 17 to 32) and every B of at least 8.
`coupled_sum` serves RBA without a temperature and SDA with one, and the first round without an `anchor`;
`coupled_sum_vjp` computes the gradient of squash itself where it is given `sums`; `em_moment` runs twice a round, for
the mean without `about`, for the variance without `total_parts`."""


def main() -> None:
    """The command."""
    write = parser_of(__doc__, TABLE).parse_args().write
    now = {triton.__version__: list(rows())}
    if write:
        TABLE.write_text(page(kept() | now), encoding="utf-8")
    else:
        print(page(now), end="")


if __name__ == "__main__":
    main()
