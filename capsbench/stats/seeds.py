"""Accuracies of several seeds compared with the paper's: means, deviations, and whether they agree."""

import math

import pandas as pd

KEY = ("dataset", "model", "networks", "blocks", "optimizer", "routing", "learning_rate", "capsules", "batch_size")
"""Columns that distinguish the rows of an accuracy table."""

SHORTENED = ("scale", "epochs", "paper_epochs")
"""Columns with the share of the training set that was used, and of the paper's epochs."""

ROW = (*KEY, *SHORTENED, "runs", "accuracy_percent", "std_percent", "paper_percent", "paper_std_percent", "difference", "within")
"""Columns of `compared_with_paper`."""


def compared_with_paper(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each row of a table: mean and standard deviation over seeds, the paper's, and their difference.

    Args:
        runs: a row per seed: `KEY`, `SHORTENED`, `accuracy_percent` (NaN for a seed that was not
            trained), `paper_percent` and `paper_std_percent` (NaN where the paper prints none).

    Returns:
        Columns `ROW`, all in percent and percentage points, in the order of the input. Standard deviations are those of a sample
        (n − 1), and NaN for fewer than two runs. `within` is True if the difference is no larger than either standard deviation
        (so that each mean lies in the other's interval), judged by the known ones; None if neither is known, or nothing
        was trained.
    """
    rows = []
    for key, group in runs.groupby([*KEY, *SHORTENED], sort=False, dropna=False):
        known = group["accuracy_percent"].dropna()
        mean = float(known.mean()) if len(known) else math.nan
        std = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        paper, paper_std = float(group["paper_percent"].iloc[0]), float(group["paper_std_percent"].iloc[0])
        difference = mean - paper
        deviations = [one for one in (std, paper_std) if not math.isnan(one)]
        judged = deviations and not math.isnan(difference)
        within = all(abs(difference) <= one for one in deviations) if judged else None
        rows.append((*key, len(known), mean, std, paper, paper_std, difference, within))
    return pd.DataFrame(rows, columns=list(ROW))
