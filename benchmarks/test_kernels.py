"""The routing kernels compared: time of forward + backward, and the peak of the same step.

    python -m pytest benchmarks --benchmark-only --benchmark-group-by=param:layer,param:routing

prints the times; `--benchmark-json FILE` keeps them with `peak_bytes` in each entry's `extra_info`: the highest point above
what was there before the step (inputs and weights), so their gradients are in it. Compare within one run only.
"""

import pytest
import torch

from benchmarks.layers import DEVICE, LAYERS, make_step, peak_bytes, step
from capsbench.routing import algorithms, compiled, kernels


def runs_here(kernel: str) -> bool:
    """`triton` on CUDA alone, `compiled` on a CPU alone."""
    if kernel == "triton":
        return DEVICE.type == "cuda"
    return kernel != "compiled" or (DEVICE.type == "cpu" and compiled.available())


@pytest.mark.parametrize("kernel", [kernel for kernel in kernels() if runs_here(kernel)])
@pytest.mark.parametrize("routing", algorithms())
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_and_backward(benchmark, layer: str, routing: str, kernel: str) -> None:
    if kernel not in kernels(routing):
        pytest.skip(f"no {kernel} for {routing}")
    torch.set_flush_denormal(True)
    peak = peak_bytes(LAYERS[layer], kernel, routing)
    benchmark.extra_info.update(device=DEVICE.type, threads=torch.get_num_threads(), peak_bytes=peak)
    benchmark.pedantic(step, args=(*make_step(LAYERS[layer], routing), routing, kernel), rounds=5, warmup_rounds=1)
    assert peak > 0
