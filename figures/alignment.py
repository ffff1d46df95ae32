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
    return dots.beside_base(table, NAME, TITLE, "Line: as the scale. None: not aligned.")
