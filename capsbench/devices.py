"""Facts about a GPU that a prediction needs: its memory, what CUDA and its libraries take of it, and its speeds."""

from dataclasses import dataclass

from capsbench.errors import unknown_name
from capsbench.sizes import MIB


@dataclass(frozen=True)
class Gpu:
    """A model of GPU."""

    name: str
    """Name on the command line."""
    memory_bytes: int
    """Size of its memory as the driver reports it."""
    capability: tuple[int, int]
    """Compute capability."""
    bandwidth: float
    """Bytes per second between its memory and its cores, at most."""
    flops: float
    """Floating-point operations per second in float32, at most, without TF32."""
    half_flops: float
    """Floating-point operations per second of products of dense float16 matrices that are summed in float32, at most."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes that cuBLAS takes through PyTorch's allocator for one handle and stream, at its first product."""
        return 33_554_432 if self.capability >= (9, 0) else 8_519_680

    @property
    def context_bytes(self) -> int:
        """Bytes of the driver's context and loaded kernels outside the allocator, guessed because they depend on the driver."""
        return 512 * MIB if self.capability >= (8, 0) else 384 * MIB


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 15_360 * MIB, (7, 5), 320e9, 8.1e12, 65e12),
        Gpu("v100", 16_384 * MIB, (7, 0), 900e9, 15.7e12, 125e12),
        Gpu("rtx2080ti", 11_264 * MIB, (7, 5), 616e9, 13.4e12, 53.8e12),
        Gpu("a10", 23_028 * MIB, (8, 6), 600e9, 31.2e12, 125e12),
        Gpu("a100", 40_960 * MIB, (8, 0), 1555e9, 19.5e12, 312e12),
        Gpu("a100-80gb", 81_920 * MIB, (8, 0), 2039e9, 19.5e12, 312e12),
        Gpu("rtx3090", 24_576 * MIB, (8, 6), 936e9, 35.6e12, 71e12),
        Gpu("l4", 23_034 * MIB, (8, 9), 300e9, 30.3e12, 121e12),
        Gpu("l40s", 46_068 * MIB, (8, 9), 864e9, 91.6e12, 362e12),
        Gpu("rtx4090", 24_564 * MIB, (8, 9), 1008e9, 82.6e12, 165.2e12),
        Gpu("h100", 81_559 * MIB, (9, 0), 3350e9, 67e12, 989e12),
        Gpu("h200", 143_771 * MIB, (9, 0), 4800e9, 67e12, 989e12),
        Gpu("b200", 183_359 * MIB, (10, 0), 8000e9, 75e12, 2250e12),
    )
}
"""Known GPUs by name, with the sizes that nvidia-smi prints, and speeds as NVIDIA states them.

The speeds were written down from memory of the data sheets of T4, V100 (SXM2), A10, A100 (SXM), L4, L40S, H100 (SXM), H200 (SXM)
and HGX B200, and of the white papers of the Turing, GA102 and Ada architectures; they have not been checked against these, nor
against a GPU. Where a sheet has a figure with sparsity, half of it is taken.
"""

DEFAULT_GPU = "h100"


def gpu_of(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigurationError: it is not known.
    """
    found = GPUS.get(str(name).lower())
    if found is None:
        raise unknown_name("`gpu`", str(name), GPUS, ", and give its memory as `capacity`")
    return found
