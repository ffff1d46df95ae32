"""Which foundation model a tokenizer should be aligned with.

Claim (the paper's Table 4): each of them lowers gFID at nearly the same rFID, DINOv2 the most.
"""

from pathlib import Path

import pandas as pd

from figures import dots
from figures.drawing import Drawing

NAME = "foundation_models"
TITLE = "Which foundation model should a tokenizer be aligned with?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID and gFID per foundation model, a row of panels per judge. `folder` is not read.

    Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    metrics = ("rfid", "gfid")
    found = dots.compared(table, NAME, metrics)
    first, models = found.lines[0], sorted(set(found.planned["foundation_model"]) - {"none"})
    alone = f" One model here, {models[0]}: nothing to choose from." if len(models) == 1 else ""
    subtitle = f"{first['tokenizer']} under {first['generator']} at {found.at}. Line: not aligned.{alone}"
    paper = dots.published_counterpart(table, NAME, metrics)
    return dots.draw(TITLE, subtitle, [found], metrics, steps=False, paper=paper)
