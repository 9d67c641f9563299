"""The machine that measures: what environment.json says."""

import copy
import hashlib
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from capsbench.fingerprint import package_digest
from capsbench.measure.cores import allowed_cores, quota

PACKAGES = ("torch", "torchvision", "numpy", "triton")

_SETTINGS = re.compile(
    r"""
    PYTORCH_(CUDA_|HIP_)?ALLOC_CONF | PYTORCH_NO_(CUDA|HIP)_MEMORY_CACHING | PYTORCH_JIT | THP_MEM_ALLOC_ENABLE |
    CUBLAS(LT)?_\w+ | CUDNN_\w+ | NVIDIA_TF32_OVERRIDE | TORCH_ALLOW_TF32_CUBLAS_OVERRIDE |
    TORCH_(BLAS|LINALG|CUDNN|ROCM)_\w+ | TORCH_COMPILE_DISABLE | TORCHDYNAMO_DISABLE | TORCHINDUCTOR_(?!\w*_DIR$)\w+ |
    TRITON_INTERPRET | CUDA_(LAUNCH_BLOCKING|MODULE_LOADING|DEVICE_MAX_CONNECTIONS|FORCE_PTX_JIT) |
    (OMP|GOMP|KMP|MKL|VECLIB|OPENBLAS|ONEDNN|DNNL|MALLOC)_\w+ | GLIBC_TUNABLES | LD_PRELOAD | ATEN_CPU_CAPABILITY |
    CAPSBENCH_NO_COMPILER
    """,
    re.VERBOSE,
)
"""Names of variables that set how memory is allocated, which kernels run, and on how many threads."""


def describe() -> dict[str, Any]:
    """Hardware, driver, versions, commit and clocks of this machine; no name, path or user of it."""
    version = metadata.version("capsbench")
    commit = re.search(r"\+g([0-9a-f]+)", version)
    frequency = psutil.cpu_freq()
    return {
        "capsbench": version,
        "commit": commit[1] if commit else None,
        "source": package_digest(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "cpu": {
            "model": _cpu_model(),
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "allowed_cores": allowed_cores(),
            "quota_cores": limit.cores if (limit := quota()) else None,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": psutil.virtual_memory().total,
            "megahertz": round(frequency.current) if frequency else None,
            "load_1_min": round(os.getloadavg()[0], 2),
        },
        "cuda": _cuda(),
        "settings": _settings(),
    }


def key_of(environment: dict[str, Any]) -> str:
    """A short name of an environment, the same as long as nothing changed that figures could depend on."""
    steady = copy.deepcopy(environment)
    for device in [steady["cpu"], *steady.get("cuda", {}).get("devices", [])]:
        for name in ("megahertz", "load_1_min", "sm_megahertz"):
            device.pop(name, None)
    return hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()[:8]


def default_threads() -> int:
    """Threads of a CPU run: what torch would take."""
    return torch.get_num_threads()


def _settings() -> dict[str, str]:
    """The environment's variables that bytes or times depend on; of a path in one, the last part alone."""
    names = sorted(name for name, value in os.environ.items() if value and _SETTINGS.fullmatch(name))
    return {name: re.sub(r"[^\s:;,=]*/", "", os.environ[name]) for name in names}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"available": False}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "sm_megahertz": _clock(index),
            }
        )
    return {
        "available": True,
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
        "devices": devices,
    }


def _clock(index: int) -> int | None:
    try:
        return torch.cuda.clock_rate(index)
    except Exception:  # NVML speaks in many exceptions, and a clock is worth none of them
        return None


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
