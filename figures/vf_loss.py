"""Which parts of the VF loss help.

Claim (the paper's Table 5): gFID rises without the cosine part, without the distance part and without the margins, most
without the first.
"""

from pathlib import Path

import pandas as pd

from figures import dots
from figures.drawing import Drawing

NAME = "vf_loss"
TITLE = "Which parts of the VF loss help?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID and gFID without one part at a time, a row of panels per judge. `folder` is not read.

    Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    return dots.beside_base(table, NAME, TITLE, "Line: the full loss. None: not aligned.", published=True)
