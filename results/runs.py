"""Which rows of the table have scores, and which ablations asked for them."""

import pandas as pd

from results.schema import SELECTION_SEED

SEARCH = "search-"  # prefix of a search in the column `ablations`; the name of the space follows
GUIDANCE = "guidance"  # the ablation that tries scales of guidance, see results/guidance.py


def asked_by(table: pd.DataFrame, ablation: str) -> pd.Series:
    """Which rows an ablation asked for."""
    return table["ablations"].map(lambda names: ablation in names).astype(bool)  # an empty table has another dtype


def of_searches(table: pd.DataFrame) -> pd.Series:
    """Which rows belong only to searches, and to no ablation."""
    only = table["ablations"].map(lambda names: bool(names) and all(name.startswith(SEARCH) for name in names))
    return only.astype(bool)


def choosing(rows: pd.DataFrame) -> pd.Series:
    """Which rows have samples that only choose a setting; their numbers are not scores."""
    return (rows["sampling_seed"] >= SELECTION_SEED).fillna(False).astype(bool)


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of ablations, without those whose samples only choose a setting or try a guidance scale."""
    asked = table["ablations"].map(bool).astype(bool)
    tried = table["ablations"].map(lambda names: names == (GUIDANCE,)).astype(bool)
    tried &= (table["guidance_scale"] != 1).fillna(True)
    return table[(table["state"] == "done") & asked & ~of_searches(table) & ~choosing(table) & ~tried]


def labels_of(table: pd.DataFrame, ablation: str) -> pd.Series:
    """What an ablation calls the run of each row; '' where it does not."""
    found = table["labels"].map(lambda labels: next((one.text for one in labels if one.ablation == ablation), ""))
    return found.astype("string[python]")  # an empty table has another dtype
