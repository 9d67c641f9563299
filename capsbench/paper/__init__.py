"""The paper's own figures as data, to draw with one's own.

Source: Gugglberger, Peer, Rodríguez-Sánchez, *Momentum Capsule Networks*, tables 1 to 5 and the slopes printed in figure 4.
Table 4 is one `nvidia-smi` reading per network: context, cache and fragmentation included; comparable with process memory,
and with reserved memory apart from the context.
"""

from importlib import resources

import numpy as np
import pandas as pd

from capsbench.sizes import MIB

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


def memory_slopes(dataset: str) -> dict[str, float]:
    """Bytes per block by network, by least squares over table 4; empty for a data set that it does not have."""
    read = memory()
    own = read[read["dataset"] == dataset].groupby("model", sort=False)
    return {str(model): float(np.polyfit(rows["blocks"], rows["bytes"], 1)[0]) for model, rows in own}


def slope_ratio(quantity: str) -> float:
    """The ratio of MoCapsNet's slope to ResCapsNet's in figure 4, which prints one line for CapsNet and ResCapsNet together.

    Args:
        quantity: `memory` or `train_time`.
    """
    printed = table("figure4_slopes")
    by_model = printed[printed["quantity"] == quantity].set_index("model")["slope_per_block"]
    return float(by_model["mocapsnet"] / by_model["capsnet"])
