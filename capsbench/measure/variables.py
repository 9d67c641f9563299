"""The environment variables of the processes that measure."""

import os
import re
from collections.abc import Mapping
from typing import Literal

SETTING_VARIABLES = re.compile(
    r"""
    PYTORCH_(CUDA_|HIP_)?ALLOC_CONF | PYTORCH_NO_(CUDA|HIP)_MEMORY_CACHING | PYTORCH_JIT | THP_MEM_ALLOC_ENABLE |
    CUBLAS(LT)?_\w+ | CUDNN_\w+ | NVIDIA_TF32_OVERRIDE | TORCH_ALLOW_TF32_CUBLAS_OVERRIDE |
    TORCH_(BLAS|LINALG|CUDNN|ROCM)_\w+ | TORCH_COMPILE_DISABLE | TORCHDYNAMO_DISABLE |
    TORCHINDUCTOR_(?!(?:\w*_DIR|COMPILE_THREADS)$)\w+ |
    TRITON_INTERPRET | CUDA_(LAUNCH_BLOCKING|MODULE_LOADING|DEVICE_MAX_CONNECTIONS|FORCE_PTX_JIT) |
    (OMP|GOMP|KMP|MKL|VECLIB|OPENBLAS|ONEDNN|DNNL|MALLOC)_\w+ | GLIBC_TUNABLES | LD_PRELOAD | ATEN_CPU_CAPABILITY |
    CAPSBENCH_NO_COMPILER
    """,
    re.VERBOSE,
)
"""Names of variables that set how memory is allocated, which kernels run, and on how many threads."""

QUIET_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}
"""Settings under which glibc keeps its memory: giving it back in every step is most of the noise of a CPU's time."""

SLEEPING = {"OMP_WAIT_POLICY": "passive"}
"""Setting under which a thread that waits for others sleeps. By default it spins: while other work takes one of two cores,
threads that wait keep the other core from working, and a step takes several times as long. On a quiet machine it takes time to
wake a thread, so that a time taken there is one of threads that spin (benchmarks/shared_cores.md)."""

_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_is_chosen(given: Mapping[str, str] | None = None) -> bool:
    """Return whether a user has chosen how threads wait.

    Args:
        given: variables of this process; by default `os.environ`.
    """
    return any(name in (os.environ if given is None else given) for name in _CHOSEN_BY_USER)


def variables_of(
    what: Literal["memory", "time"], given: Mapping[str, str] | None = None, *, shared: bool = False
) -> dict[str, str]:
    """Return the environment variables of a process that counts bytes or takes times.

    The wait of threads does not change bytes. Settings of the wait that a user has chosen are kept.

    Args:
        what: values that the process measures.
        given: variables of this process; by default `os.environ`.
        shared: True if other work has much of the cores, where times are to be taken.
    """
    variables = dict(os.environ if given is None else given)
    if not wait_is_chosen(variables):
        variables |= SLEEPING if what == "memory" or shared else {}
    return variables | (QUIET_MALLOC if what == "time" else {})
