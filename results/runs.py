"""Runs in the rows of the table: which rows have scores, and the changes that a run's name states."""

import ast
from typing import Any

import pandas as pd

from results.guidance import ABLATION, choosing

SEARCH = "search-"  # prefix of a search in the column `ablations`; the name of the space follows


def changes_of(run: str) -> dict[str, Any]:
    """The changed training settings in a run's name: 'f4d4 + DiT-XS/2 + swiglu=True' gives {'swiglu': True}.

    A value that is not a Python literal stays text. Changes of the sampling are left out: they are part of the
    protocol, which has its own columns.
    """
    changes: dict[str, Any] = {}
    for part in run.split(" + "):
        key, equals, value = part.partition("=")
        if equals and not key.startswith("sampling."):
            try:
                changes[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                changes[key] = value
    return changes


def of_searches(table: pd.DataFrame) -> pd.Series:
    """Which rows belong only to searches, and to no ablation."""
    of_search = table["ablations"].map(lambda names: bool(names) and all(n.startswith(SEARCH) for n in names.split()))
    return of_search.astype(bool)  # an empty table would give another dtype


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of ablations, without those whose samples only choose a setting or try a guidance scale."""
    table = table[~of_searches(table)]
    tried = (table["ablations"] == ABLATION) & (table["guidance_scale"] != 1).fillna(True)
    return table[(table["state"] == "done") & (table["ablations"] != "") & ~choosing(table) & ~tried]
