"""Published results as tables of the same form: `paper` has those of the paper, `since` those published later.

The numbers are in results/paper/, one file per table of the paper; results/paper/README.md says how they were copied.
"""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from models.names import nearest
from results.schema import NAMES, PUBLISHED, Row
from results.schema import PUBLISHED_STUDIES as STUDIES
from results.table import Key, load, rows_in, table_of

FOLDER = Path(__file__).resolve().parent / "paper"
IMAGENET_IMAGES = 1_281_167  # one epoch
# Figure 4 (a, b), by plain tokenizer: the factor of fewer images that its aligned counterpart needs for its last gFID
SPEED_UPS = {"f16d32": 2.54, "f16d64": 2.76}
SPEED_UPS_SOURCE = "arXiv 2501.01423, Figure 4"
SPEED_UPS_RUN = "LightningDiT-B/1 after 160 epochs of ImageNet 256"
CORRELATIONS = "correlations.csv"  # of another study, and no rows of a table


def load_published(study: str, folder: Path = FOLDER) -> pd.DataFrame:
    """All rows of one published study. A result printed in several tables of the paper is one row with all sources.

    Args:
        study: one of STUDIES.
        folder: of the CSV files.

    Raises:
        ValueError: a file cannot be read, two files disagree on a number, or a row is not marked as published.
    """
    return _read(study, folder).copy()


@cache
def _read(study: str, folder: Path) -> pd.DataFrame:
    rows: dict[Key, Row] = {}
    for path in sorted(set(folder.glob("*.csv")) - {folder / CORRELATIONS}):
        for row in rows_in(load(path)):
            if row.study not in STUDIES or not row.fingerprint.startswith(PUBLISHED):
                raise ValueError(f"{path}: {row.run} is of study {row.study!r}; valid are {', '.join(STUDIES)}")
            if row.study == study:
                rows[row.key] = _joined(rows[row.key], row, path) if row.key in rows else row
    return table_of(rows.values())


def _joined(row: Row, again: Row, path: Path) -> Row:
    """A row that two tables of the paper print, `again` in the file `path`."""
    cells: dict[str, Any] = {}
    for name in NAMES:
        one, other = getattr(row, name), getattr(again, name)
        stated = [value for value in (one, other) if value not in (None, "", {})]
        if isinstance(one, tuple):
            cells[name] = tuple(dict.fromkeys([*one, *other]))
        elif len(stated) == 2 and one != other:
            raise ValueError(f"{path}: {row.run} has {name} {other}, another table {one}")
        else:
            cells[name] = stated[0] if stated else one
    return dataclasses.replace(row, **cells)


def load_correlations() -> pd.DataFrame:
    """Published correlations of a tokenizer's numbers with gFID, as results/paper/README.md describes them."""
    return pd.read_csv(FOLDER / CORRELATIONS)


def load_study(study: str, folder: Path) -> pd.DataFrame:
    """The table of a study, measured or published.

    Args:
        study: one of STUDIES, or the name of a folder with a table.csv.
        folder: results/, which holds the folders of the studies.

    Raises:
        ValueError: there is no such study, or its table cannot be read.
    """
    if study in STUDIES:
        return load_published(study)
    path = folder / study / "table.csv"
    if not path.exists():
        studies = [*sorted(path.parent.name for path in folder.glob("*/table.csv")), *STUDIES]
        raise ValueError(f"no study {study!r} in {folder}; {nearest(study, studies)}")
    return load(path)
