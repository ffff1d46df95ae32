"""What the weight of the alignment and the grid of its features do to rFID and gFID."""

from pathlib import Path

import pandas as pd

from figures import dots
from figures.drawing import Drawing

NAME = "alignment"
TITLE = "How strong should the alignment be?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID and gFID with one setting changed at a time, a row of panels per judge. `folder` is not read.

    Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    metrics = ("rfid", "gfid")
    found = dots.compared(table, NAME, metrics)
    base = next(line for line in found.lines if not line["changed"])
    subtitle = f"{base['tokenizer']} under {base['generator']} at {found.at}. Line: as the scale. None: not aligned."
    return dots.draw(TITLE, subtitle, found, metrics, steps=False)
