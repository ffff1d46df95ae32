"""Published numbers beside measured ones: never on one axis with them, in a row of their own, in grey."""

import re
from collections.abc import Sequence
from functools import cache

import pandas as pd

from figures import style
from results.published import load_published

STUDY = "paper"


@cache
def _paper() -> pd.DataFrame:
    return load_published(STUDY)


def only(rows: pd.DataFrame) -> bool:
    """Whether there are rows, and all of them are published ones."""
    return len(rows) > 0 and bool((rows["source"] != "").all())


def beside(table: pd.DataFrame, ablation: str) -> pd.DataFrame | None:
    """The paper's rows for an ablation, or of `frontier` where it has none; None beside published rows themselves."""
    if only(table):
        return None
    paper = _paper()
    for name in (ablation, "frontier"):
        asked = paper["ablations"].map(lambda names, a=name: a in names.split())
        if asked.any():
            return paper[asked]
    raise AssertionError("the paper has Table 2")


def look(table: pd.DataFrame) -> style.LookOf:
    """How the tokenizers of a table look."""
    return style.grey if only(table) else style.look


def source(rows: pd.DataFrame) -> str:
    """The publication of published rows, and those of its tables that print all of them."""
    printed = [set(re.findall(r"Table \d+", text)) for text in rows[rows["kind"] == "generator"]["source"]]
    tables = sorted(set.intersection(*printed))
    publication = rows["source"].iloc[0].split(",")[0]
    return f"{publication}, {' and '.join(tables)}"


def sourced(points: pd.DataFrame, of: pd.DataFrame) -> pd.DataFrame:
    """Points made of published rows, with their source in a column."""
    return points.assign(source=source(of))


def ends(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of some names, spread over their order."""
    if count >= len(names):
        return list(names)
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
