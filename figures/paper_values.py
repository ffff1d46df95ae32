"""Published numbers beside measured ones: never on one axis with them, in a row of their own, in grey."""

from collections.abc import Sequence
from functools import cache

import pandas as pd

from figures import style
from results.published import load_published
from results.runs import asked_by

STUDY = "paper"


@cache
def _paper() -> pd.DataFrame:
    return load_published(STUDY)


def is_published(rows: pd.DataFrame) -> bool:
    """Whether there are rows and all of them are published."""
    return len(rows) > 0 and bool(rows["source"].map(bool).all())


def paper_rows(table: pd.DataFrame, ablation: str) -> pd.DataFrame | None:
    """The paper's rows for an ablation, or for `frontier` if it has none; None if the table itself is published."""
    if is_published(table):
        return None
    paper = _paper()
    for name in (ablation, "frontier"):
        asked = asked_by(paper, name)
        if asked.any():
            return paper[asked]
    raise AssertionError("the paper has Table 2")


def look_for(table: pd.DataFrame) -> style.LookOf:
    """The function that gives the look of a table's tokenizers: grey for published ones."""
    return style.grey if is_published(table) else style.look


def source(rows: pd.DataFrame) -> str:
    """The publication of published rows, and the tables in it that print all of them."""
    sources = rows[rows["kind"] == "generator"]["source"]
    tables = sorted(set.intersection(*({source.table for source in of_row} - {""} for of_row in sources)))
    return f"{rows['source'].iloc[0][0].publication}, {' and '.join(tables)}"


def with_source(points: pd.DataFrame, of: pd.DataFrame) -> pd.DataFrame:
    """Points computed from published rows, with their source in a column."""
    return points.assign(source=source(of))


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread, the first one included."""
    if count >= len(names):
        return list(names)
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
