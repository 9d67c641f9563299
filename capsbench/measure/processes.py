"""Processes as the system and the driver report them: the memory of this one, and others on the device."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import psutil
import torch

from capsbench.devices import MIB
from capsbench.errors import CapsbenchError

_CONTROL_GROUP = Path("/sys/fs/cgroup")


def nvml_process_bytes(device: torch.device) -> int | None:
    """Device memory of this process in bytes, context and cache included; None where the driver does not report it."""
    return next((process.usedGpuMemory for process in _computing(device) or () if process.pid == os.getpid()), None)


def other_processes(device: torch.device) -> list[str]:
    """A line if other processes compute on a CUDA device, as NVML reports; none if not, or where the driver is silent.

    In a container this process may have another number there: if its own is not listed, one of the others is taken for it.
    """
    if device.type != "cuda":
        return []
    # This puts this process among them.
    torch.cuda.synchronize(device)
    computing = _computing(device) or []
    others = [process for process in computing if process.pid != os.getpid()]
    count = len(others) if len(others) < len(computing) else len(others) - 1
    if count < 1:
        return []
    used = ", ".join(f"pid {process.pid} ({_mib(process.usedGpuMemory)})" for process in others)
    noun = "process computes" if count == 1 else "processes compute"
    return [f"{count} other {noun} on {device}: {used if count == len(others) else f'this one is among {used}'}"]


def unknown_others(device: torch.device) -> list[str]:
    """A line if it cannot be known whether others compute on a CUDA device: NVML does not answer, or lists no process."""
    if device.type != "cuda":
        return []
    torch.cuda.synchronize(device)
    computing = _computing(device)
    if computing:
        return []
    why = "NVML does not answer" if computing is None else "NVML names no process, not even this one"
    return [f"whether other processes compute on {device} cannot be known: {why}"]


def refuse_others(others: list[str], unknown: list[str]) -> None:
    """Refuse to measure beside other processes, and where it cannot be known whether there are any.

    Args:
        others: result of `other_processes`.
        unknown: result of `unknown_others`.

    Raises:
        CapsbenchError: one of them is not empty.
    """
    if others:
        raise CapsbenchError(others[0], "end them, choose another device, or measure without `strict`")
    if unknown:
        raise CapsbenchError(unknown[0], "measure without `strict`")


def largest_resident_set() -> int | None:
    """Bytes of this process's largest resident set.

    It is read from /proc where there is one, because getrusage counts the parent's memory before this program replaced it.
    """
    found = _own_status("VmHWM")
    if found is None:
        with contextlib.suppress(ImportError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, which has no /proc
    return found


def available_bytes(device: str) -> int | None:
    """Free bytes of a device, or of this machine or container for a CPU; None where they are not reported."""
    if device != "cpu":
        with contextlib.suppress(Exception):  # no driver, no device: what measures there will say so
            return int(torch.cuda.mem_get_info(torch.device(device))[0])
        return None
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def data_bytes() -> int:
    """Bytes of this process's data segments, which RLIMIT_DATA counts; 0 where the system does not report them."""
    return _own_status("VmData") or 0


def nvml_handle(device: torch.device) -> Any:
    """NVML's handle of a device, or of the slice of one, by its identity: NVML does not know CUDA_VISIBLE_DEVICES.

    Raises:
        pynvml.NVMLError: NVML knows no such device.
    """
    import pynvml

    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _computing(device: torch.device) -> list[Any] | None:
    """The processes that compute on a device; None where the driver does not report them."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except Exception:  # NVML has many exceptions, and none of them may end a measurement
        return None
    try:
        return list(pynvml.nvmlDeviceGetComputeRunningProcesses(nvml_handle(device)))
    except Exception:
        return None
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _mib(nbytes: int | None) -> str:
    return "memory unknown" if nbytes is None else f"{nbytes / MIB:.0f} MiB"


def _own_status(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
