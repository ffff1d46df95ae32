"""Published results as tables of the same form: `paper` has those of the paper, `since` those published later.

The numbers are in results/paper/, one file per table of the paper; results/paper/README.md says how they were copied.
"""

import difflib
from pathlib import Path

import pandas as pd

from results.schema import KEY, PUBLISHED
from results.schema import PUBLISHED_STUDIES as STUDIES
from results.table import from_records, load

FOLDER = Path(__file__).resolve().parent / "paper"
IMAGENET_IMAGES = 1_281_167  # one epoch
SEPARATORS = {"ablations": " ", "labels": "; ", "source": "; "}  # columns that are joined if several tables have a row
# Figure 4 (a, b), by plain tokenizer: the factor of fewer images that its aligned counterpart needs for its last gFID
SPEED_UPS = {"f16d32": 2.54, "f16d64": 2.76}
SPEED_UPS_SOURCE = "arXiv 2501.01423, Figure 4"
SPEED_UPS_RUN = "LightningDiT-B/1 after 160 epochs of ImageNet 256"


def load_published(study: str, folder: Path = FOLDER) -> pd.DataFrame:
    """All rows of one published study. A result printed in several tables of the paper is one row with all sources.

    Args:
        study: one of STUDIES.
        folder: of the CSV files.

    Raises:
        ValueError: a file cannot be read, two files disagree on a number, or a row is not marked as published.
    """
    rows: dict[tuple[str, str, str], dict[str, object]] = {}
    for path in sorted(folder.glob("*.csv")):
        for row in load(path).to_dict("records"):
            if row["study"] not in STUDIES or not row["fingerprint"].startswith(PUBLISHED):
                raise ValueError(f"{path}: {row['run']} is of study {row['study']!r}; valid are {', '.join(STUDIES)}")
            if row["study"] != study:
                continue
            cells = {str(name): cell for name, cell in row.items() if not pd.isna(cell) and cell != ""}
            merged = rows.setdefault(tuple(str(row[name]) for name in KEY), {})  # type: ignore[arg-type]
            for name, cell in cells.items():
                if name in SEPARATORS and name in merged:
                    separator = SEPARATORS[name]
                    cell = separator.join(dict.fromkeys([*str(merged[name]).split(separator), *cell.split(separator)]))
                elif merged.get(name, cell) != cell:
                    raise ValueError(f"{path}: {row['run']} has {name} {cell}, another table {merged[name]}")
                merged[name] = cell
    return from_records(rows.values())


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
        near = difflib.get_close_matches(study, studies, 3, 0.5) or studies
        raise ValueError(f"no study {study!r} in {folder}; nearest: {', '.join(near)}")
    return load(path)
