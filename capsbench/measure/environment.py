"""The description of the measuring machine in environment.json."""

import copy
import hashlib
import json
import os
import platform
import re
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from capsbench.cases.fingerprint import package_digest
from capsbench.measure.facts import Facts, asked
from capsbench.measure.variables import SETTING_VARIABLES
from capsbench.system.cores import allowed_cores, quota

PACKAGES = ("torch", "torchvision", "numpy", "triton")


def describe() -> dict[str, Any]:
    """Hardware, driver, versions, commit and clocks of this machine; no name, path or user of it.

    A fact that is not available is None, with a note in `notes`.
    """
    facts = Facts()
    version = facts.ask("capsbench", lambda: metadata.version("capsbench"))
    commit = re.search(r"\+g([0-9a-f]+)", version or "")
    settings = sorted(name for name, value in os.environ.items() if value and SETTING_VARIABLES.fullmatch(name))
    found = {
        "capsbench": version,
        "commit": commit[1] if commit else None,
        "source": facts.ask("source", package_digest),
        "python": facts.ask("python", platform.python_version),
        "packages": {name: found for name in PACKAGES if (found := facts.ask(name, partial(_version, name)))},
        "system": facts.ask("system", lambda: f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"),
        "cpu": facts.each(
            {
                "model": _cpu_model,
                "physical_cores": lambda: psutil.cpu_count(logical=False),
                "logical_cores": psutil.cpu_count,
                "allowed_cores": allowed_cores,
                "quota_cores": _quota_cores,
                "instructions": torch.backends.cpu.get_cpu_capability,
                "memory_bytes": lambda: psutil.virtual_memory().total,
                "megahertz": _megahertz,
                "load_1_min": lambda: round(os.getloadavg()[0], 2),
            }
        ),
        "cuda": _cuda(facts),
        # A path is reduced to its last part.
        "settings": {name: re.sub(r"[^\s:;,=]*/", "", os.environ[name]) for name in settings},
    }
    return found | ({"notes": facts.notes} if facts.notes else {})


def key_of(environment: dict[str, Any]) -> str:
    """A short name of an environment, constant as long as nothing changes that figures could depend on."""
    steady = copy.deepcopy(environment)
    steady.pop("notes", None)  # a source that failed once does not make another machine
    for device in [steady["cpu"], *steady.get("cuda", {}).get("devices", [])]:
        for name in ("megahertz", "load_1_min", "sm_megahertz"):
            device.pop(name, None)
    return hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()[:8]


def default_threads() -> int:
    """Number of threads of a CPU run that torch would use."""
    return torch.get_num_threads()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _quota_cores() -> float | None:
    found = quota()
    return found.cores if found else None


def _megahertz() -> int | None:
    frequency = psutil.cpu_freq()
    return round(frequency.current) if frequency else None


def _cuda(facts: Facts) -> dict[str, Any]:
    if not facts.ask("cuda", torch.cuda.is_available):
        return {"available": False}
    count = facts.ask("devices", torch.cuda.device_count) or 0
    return {
        "available": True,
        "tf32": False,  # what measures, trains and classifies forbids it; a record says if a network allowed it again
        **facts.each({"runtime": lambda: torch.version.cuda, "cudnn": torch.backends.cudnn.version, "driver": _driver}),
        "devices": [_device(facts, index) for index in range(count)],
    }


def _device(facts: Facts, index: int) -> dict[str, Any]:
    properties = partial(torch.cuda.get_device_properties, index)
    return {
        **facts.each(
            {
                "name": lambda: properties().name,
                "capability": lambda: f"{properties().major}.{properties().minor}",
                "memory_bytes": lambda: properties().total_memory,
            }
        ),
        # NVML knows clocks, but is not installed everywhere; a missing clock is no fault.
        "sm_megahertz": asked(lambda: torch.cuda.clock_rate(index)),
    }


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
