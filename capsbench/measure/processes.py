"""Processes as the system and the driver report them: the memory of this one, and others on the device."""

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from capsbench.errors import CapsbenchError, error_line
from capsbench.measure.facts import asked
from capsbench.sizes import MEBIBYTES

_CONTROL_GROUP = Path("/sys/fs/cgroup")


class NvmlError(Exception):
    """NVML does not answer; the message is the reason."""


def nvml_process_bytes(device: torch.device) -> tuple[int | None, str]:
    """Device memory of this process in bytes, context and cache included; None and the reason if it is not known."""
    try:
        own = next((process for process in _computing(device) if process.pid == os.getpid()), None)
    except NvmlError as error:
        return None, str(error)
    if own is None:
        return None, "NVML does not list it, as in a container with numbers of its own"
    # No process with a context takes none.
    return (own.usedGpuMemory, "") if own.usedGpuMemory else (None, "the driver does not report memory by process")


def other_processes(device: torch.device) -> list[str]:
    """A line if other processes compute on a CUDA device, as NVML reports; none if not, or where the driver is silent.

    In a container this process may have another number there: if its own is not listed, one of the others is taken for it.
    """
    if device.type != "cuda":
        return []
    # This puts this process among them.
    torch.cuda.synchronize(device)
    with contextlib.suppress(NvmlError):
        return _others(device, _computing(device))
    return []


def _others(device: torch.device, found: list[Any]) -> list[str]:
    others = [process for process in found if process.pid != os.getpid()]
    count = len(others) if len(others) < len(found) else len(others) - 1
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
    why = "NVML names no process, not even this one"
    try:
        if _computing(device):
            return []
    except NvmlError as error:
        why = str(error)
    return [f"whether other processes compute on {device} cannot be known: {why}"]


def refuse_others(others: list[str], unknown: list[str]) -> None:
    """Refuse to measure while other processes use the device, and where it cannot be known whether there are any.

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
    """Free bytes of a device, or of this machine or container for a CPU; None where they are not reported.

    Where NVML does not report what is free on a CUDA device, all of it is taken to be. CUDA itself would answer, but only to a
    process with a context, which takes half a gigabyte and computes there in the eyes of the others.
    """
    if device != "cpu":
        index = torch.device(device)
        with contextlib.suppress(NvmlError), _nvml() as nvml:
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml_handle(index)).free)
        return asked(lambda: int(torch.cuda.get_device_properties(index).total_memory))
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used = (int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def data_bytes() -> int:
    """Bytes of this process's data segments, which RLIMIT_DATA counts; 0 where the system does not report them."""
    return _own_status("VmData") or 0


def device_identity(device: str) -> str:
    """A name of a device that is the same in every process of this machine.

    The number of a CUDA device is not: CUDA_VISIBLE_DEVICES may give two processes one device by different numbers, and two
    devices by one. Two slices of a GPU (MIG) are two devices.
    """
    if device == "cpu":
        return device
    found = asked(lambda: _uuids(torch.device(device))[0])
    return device if found is None else f"cuda-{re.sub(r'[^0-9A-Za-z-]', '-', found.removeprefix('MIG-').removeprefix('GPU-'))}"


def nvml_handle(device: torch.device) -> Any:
    """NVML's handle of a device, or of the slice of one, by its identity: NVML does not know CUDA_VISIBLE_DEVICES.

    Raises:
        pynvml.NVMLError: NVML knows no such device.
    """
    import pynvml

    *first, last = _uuids(device)
    for uuid in first:
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return pynvml.nvmlDeviceGetHandleByUUID(last)


def _uuids(device: torch.device) -> list[str]:
    """Names that NVML may have for a device, the most likely one first."""
    uuid, index = str(torch.cuda.get_device_properties(device).uuid), device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = visible[index].strip() if index < len(visible) else ""
    # For a slice that was named, some releases of CUDA report the identity of the whole GPU.
    slices = [named] if named.startswith("MIG-") else []
    return [*slices, f"GPU-{uuid}", f"MIG-{uuid}"]


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, open inside.

    Raises:
        NvmlError: it cannot be opened, or whatever was asked inside has no answer.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            with contextlib.suppress(Exception):
                pynvml.nvmlShutdown()
    except Exception as error:  # NVML has many exceptions, and none of them may end a measurement
        raise NvmlError(f"NVML does not answer ({error_line(error)})") from None


def _computing(device: torch.device) -> list[Any]:
    """The processes that compute on a device.

    Raises:
        NvmlError: the driver does not report them.
    """
    with _nvml() as nvml:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses(nvml_handle(device)))


def _mib(nbytes: int | None) -> str:
    return "memory unknown" if nbytes is None else f"{nbytes / MEBIBYTES.size:.0f} {MEBIBYTES.name}"


def _own_status(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
