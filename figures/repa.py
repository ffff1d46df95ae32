"""Whether a generator should be aligned with a foundation model, beside its tokenizer or in its place.

It shows gFID of the ablation `repa`: on a plain and on an aligned tokenizer, without REPA, with REPA and with iREPA.
"""

from pathlib import Path

import pandas as pd

from figures import dots
from figures.drawing import Drawing

NAME = "repa"
TITLE = "Should the generator be aligned too?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID and gFID of each alignment, a row of panels per judge. `folder` is not read.

    Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    return dots.beside_base(table, NAME, TITLE, "Line: neither is aligned.")
