"""Rows of the table as runs: those with a score, and what a run's name says that it changes."""

import ast
from typing import Any

import pandas as pd

from results.guidance import ABLATION, choosing

SEARCH = "search-"  # begins what a row of study/search/__main__.py has in the column `ablations`; then comes the space


def changes_of(run: str) -> dict[str, Any]:
    """What a run trains otherwise: 'f4d4 + DiT-XS/2 + swiglu=True' gives {'swiglu': True}. Text where it is no literal.

    How it is sampled is left out: that is protocol, which a row has in columns of its own.
    """
    found: dict[str, Any] = {}
    for part in run.split(" + "):
        key, equals, value = part.partition("=")
        if equals and not key.startswith("sampling."):
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = value
    return found


def of_searches(table: pd.DataFrame) -> pd.Series:
    """Which rows are asked for by searches alone: they answer no ablation's question."""
    found = table["ablations"].map(lambda names: bool(names) and all(n.startswith(SEARCH) for n in names.split()))
    return found.astype(bool)  # of an empty table too


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """Finished rows that an ablation asks for, but for samples that only choose a setting or try a guidance scale."""
    table = table[~of_searches(table)]
    tried = (table["ablations"] == ABLATION) & (table["guidance_scale"] != 1).fillna(True)
    return table[(table["state"] == "done") & (table["ablations"] != "") & ~choosing(table) & ~tried]
