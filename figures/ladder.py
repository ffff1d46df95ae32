"""What each step from DiT to LightningDiT brings.

Claim (the paper's Table 1): gFID falls from 19.50 to 4.29 over nine steps, each of which adds one change; the last step
adds two and is marked as confounded.
"""

from pathlib import Path

import pandas as pd

from figures import dots
from figures.drawing import Drawing

NAME = "ladder"
ABLATION = "recipe"
TITLE = "What does each step from DiT to LightningDiT bring?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID of every rung, the first rung at the top, a panel per judge. `folder` is not read.

    Raises NotAsked without rows of the ablation `recipe`, NothingToDraw without finished rungs.
    """
    found = dots.compared(table, ABLATION, ("gfid",), varies=("solver", "steps"))
    return dots.draw(
        TITLE,
        f"Every rung adds to the one above it. At {found.at}.",
        [found],
        ("gfid",),
        steps=True,
        notes=_sampled_otherwise(found.scored),
        paper=dots.published_counterpart(table, ABLATION, ("gfid",)),
    )


def _sampled_otherwise(scored: pd.DataFrame) -> list[str]:
    """Name the rungs that use another sampler than the last one: Gaussian diffusion has no ODE to solve."""
    rungs = scored.sort_values("place", kind="stable")
    own = rungs["solver"].iloc[-1]
    others = rungs[rungs["solver"] != own].drop_duplicates("label")
    return [f"Sampled by {solver}: {', '.join(of['label'])}." for solver, of in others.groupby("solver")]
