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
    metrics = ("rfid", "gfid")
    found = dots.compared(table, NAME, metrics)
    full = next(line for line in found.lines if not line["changed"])
    subtitle = f"{full['tokenizer']} under {full['generator']} at {found.at}. Line: the full loss. None: not aligned."
    paper = dots.published_counterpart(table, NAME, metrics)
    return dots.draw(TITLE, subtitle, found, metrics, steps=False, paper=paper)
