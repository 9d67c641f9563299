"""Facts about a GPU that a prediction needs: its memory, and the memory that CUDA and its libraries take."""

from dataclasses import dataclass

from capsbench.errors import ConfigurationError

KIB, MIB, GIB = 2**10, 2**20, 2**30
"""Bytes of a KiB, a MiB and a GiB."""


@dataclass(frozen=True)
class Gpu:
    """A model of GPU."""

    name: str
    """Name on the command line."""
    memory_bytes: int
    """Size of its memory as the driver reports it."""
    capability: tuple[int, int]
    """Compute capability."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes that cuBLAS takes through PyTorch's allocator for one handle and stream, at its first product."""
        return 33_554_432 if self.capability >= (9, 0) else 8_519_680

    @property
    def context_bytes(self) -> int:
        """Bytes of the driver's context and loaded kernels beside the allocator, guessed because they depend on the driver."""
        return 512 * MIB if self.capability >= (8, 0) else 384 * MIB


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 15_360 * MIB, (7, 5)),
        Gpu("v100", 16_384 * MIB, (7, 0)),
        Gpu("rtx2080ti", 11_264 * MIB, (7, 5)),
        Gpu("a10", 23_028 * MIB, (8, 6)),
        Gpu("a100", 40_960 * MIB, (8, 0)),
        Gpu("a100-80gb", 81_920 * MIB, (8, 0)),
        Gpu("rtx3090", 24_576 * MIB, (8, 6)),
        Gpu("l4", 23_034 * MIB, (8, 9)),
        Gpu("l40s", 46_068 * MIB, (8, 9)),
        Gpu("rtx4090", 24_564 * MIB, (8, 9)),
        Gpu("h100", 81_559 * MIB, (9, 0)),
        Gpu("h200", 143_771 * MIB, (9, 0)),
        Gpu("b200", 183_359 * MIB, (10, 0)),
    )
}
"""Known GPUs by name, with the sizes that nvidia-smi prints."""

DEFAULT_GPU = "h100"


def gpu_of(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigurationError: it is not known.
    """
    found = GPUS.get(name.lower())
    if found is None:
        raise ConfigurationError(
            f"`gpu` '{name}' is not known", f"choose one of {', '.join(GPUS)}, and give its memory as `capacity`"
        )
    return found
