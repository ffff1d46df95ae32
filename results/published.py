"""What others have published, as tables of the same form: `paper`, and as `since` what came after it.

The numbers lie in results/paper/, a file per table of the paper; results/paper/README.md says how they were copied.
"""

import difflib
from pathlib import Path

import pandas as pd

from results.schema import KEY, PUBLISHED
from results.schema import PUBLISHED_STUDIES as STUDIES
from results.table import from_records, load

FOLDER = Path(__file__).resolve().parent / "paper"
IMAGENET_IMAGES = 1_281_167  # one epoch
WORDS = {"ablations": " ", "labels": "; ", "source": "; "}  # what several tables say of one row, and between them
# Figure 4 (a, b): times fewer images to the gFID that the plain tokenizer ends with, by that tokenizer
SPEED_UPS = {"f16d32": 2.54, "f16d64": 2.76}
SPEED_UPS_SOURCE = "arXiv 2501.01423, Figure 4"
SPEED_UPS_RUN = "LightningDiT-B/1 after 160 epochs of ImageNet 256"


def load_published(study: str, folder: Path = FOLDER) -> pd.DataFrame:
    """All rows of one published study. What several tables of the paper print is one row, with all their sources.

    Args:
        study: of STUDIES.
        folder: with the CSV files.

    Raises:
        ValueError: a file cannot be read, two of them disagree on a number, or a row could be taken for a measured one.
    """
    rows: dict[tuple[str, str, str], dict[str, object]] = {}
    for path in sorted(folder.glob("*.csv")):
        for row in load(path).to_dict("records"):
            if row["study"] not in STUDIES or not row["fingerprint"].startswith(PUBLISHED):
                raise ValueError(f"{path}: {row['run']} is of study {row['study']!r}; valid are {', '.join(STUDIES)}")
            if row["study"] != study:
                continue
            known = {str(name): cell for name, cell in row.items() if not pd.isna(cell) and cell != ""}
            one = rows.setdefault(tuple(str(row[name]) for name in KEY), {})  # type: ignore[arg-type]
            for name, cell in known.items():
                if name in WORDS and name in one:
                    separator = WORDS[name]
                    cell = separator.join(dict.fromkeys([*str(one[name]).split(separator), *cell.split(separator)]))
                elif one.get(name, cell) != cell:
                    raise ValueError(f"{path}: {row['run']} has {name} {cell}, another table {one[name]}")
                one[name] = cell
    return from_records(rows.values())


def load_study(study: str, folder: Path) -> pd.DataFrame:
    """The table of a study, measured or published.

    Args:
        study: a name of STUDIES, or of a folder with a table.csv.
        folder: that holds the studies' folders.

    Raises:
        ValueError: there is no such study, or its table cannot be read.
    """
    if study in STUDIES:
        return load_published(study)
    path = folder / study / "table.csv"
    if not path.exists():
        found = [*sorted(path.parent.name for path in folder.glob("*/table.csv")), *STUDIES]
        near = difflib.get_close_matches(study, found, 3, 0.5) or found
        raise ValueError(f"no study {study!r} in {folder}; nearest: {', '.join(near)}")
    return load(path)
