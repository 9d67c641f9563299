"""The choice of a launcher, with its options, and the engine that it stands for."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsbench.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:
    from capsbench.sweep.launchers.protocol import Engine

LAUNCHERS = ("local", "ray", "slurm")
"""Names of the launchers, the default one first."""

_PACKAGES = {"ray": "ray", "slurm": "submitit"}
"""The package that each launcher is made with."""


@dataclass(frozen=True)
class Launching:
    """The launcher of a sweep, and its options.

    Args:
        launcher: name of the launcher, one of `LAUNCHERS`.
        address: address of a Ray cluster; None for the one that this machine belongs to, or else a new one on this machine.
        slurm: parameters of Slurm jobs by name, as sbatch has them; `cluster=local` runs the jobs as processes of this machine.
        exclusive_node: let nothing else run on a node while times are taken there.
        device: the device of the cells, as it was given.
    """

    launcher: str = "local"
    address: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    exclusive_node: bool = False
    device: str = "auto"

    def is_local(self) -> bool:
        """Return whether this process measures, one cell at a time."""
        return self.launcher == "local"

    def check(self, *, installed: bool = True) -> None:
        """Refuse a launcher that is not known or not installed, and options that it does not have.

        Args:
            installed: False if nothing is measured, so that its package need not be here.

        Raises:
            ConfigurationError: it has to be refused.
        """
        if self.launcher not in LAUNCHERS:
            raise unknown_name("`launcher`", self.launcher, LAUNCHERS)
        given = {"address": (self.address, "ray"), "slurm": (self.slurm, "slurm")}
        for name, (value, owner) in given.items():
            if value and self.launcher != owner:
                raise ConfigurationError(
                    f"`{name}` has no effect with `launcher` {self.launcher}", f"add `launcher` {owner}, or leave `{name}` out"
                )
        if self.exclusive_node and self.is_local():
            raise ConfigurationError(
                "`exclusive_node` has no effect with `launcher` local, which measures one cell at a time",
                "add `launcher` ray or slurm, or leave `exclusive_node` out",
            )
        package = _PACKAGES.get(self.launcher)
        if installed and package is not None and importlib.util.find_spec(package) is None:
            raise ConfigurationError(
                f"`launcher` {self.launcher} needs the package {package}, which is not installed",
                f"install it with: pip install 'capsbench[{self.launcher}]'",
            )

    def engine(self, folder: Path, belongings: str) -> "Engine":
        """Make the engine of this launcher.

        Args:
            folder: folder of the report.
            belongings: what workers need of this machine, as `belongings.packed` returns it.

        Raises:
            ConfigurationError: there is no such cluster, or it cannot be used.
        """
        if self.launcher == "ray":
            from capsbench.sweep.launchers.ray import RayEngine

            return RayEngine(belongings, address=self.address, exclusive_node=self.exclusive_node)
        from capsbench.sweep.launchers.slurm import SlurmEngine

        return SlurmEngine(folder, belongings, self.slurm, exclusive_node=self.exclusive_node)
