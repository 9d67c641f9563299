"""The paper's own figures as data, to draw beside one's own.

Source: Gugglberger, Peer, Rodríguez-Sánchez, *Momentum Capsule Networks*, tables 1 to 5 and the slopes printed in figure 4.
Table 4 is one `nvidia-smi` reading per network: context, cache and fragmentation included; comparable with process memory,
and with reserved memory apart from the context.
"""

from importlib import resources

import pandas as pd

from capsbench.devices import MIB

COMPARABLE_METRICS = ("process", "reserved")
"""Metrics with which table 4 can be compared."""

BATCH_SIZE = 128
"""The batch of table 4."""


def table(name: str) -> pd.DataFrame:
    """The table of this name, as printed in the paper."""
    with (resources.files("capsbench.paper") / f"{name}.csv").open("rb") as file:
        return pd.read_csv(file)


def memory() -> pd.DataFrame:
    """Table 4: `dataset`, `model`, `blocks`, and `bytes`; the source is nvidia-smi, which prints MiB."""
    read = table("table4_memory_mb")
    return read.assign(bytes=read["memory_mb"] * MIB)
