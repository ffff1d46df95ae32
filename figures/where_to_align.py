"""Where a foundation model should come in: in the tokenizer, in the generator, in both, or nowhere.

It shows gFID of the ablation `where_to_align`, at each of two widths: on a plain and on an aligned tokenizer, without
REPA, with REPA and with iREPA.
"""

from pathlib import Path

import pandas as pd

from figures import dots, rows
from figures.drawing import Drawing

NAME = "where_to_align"
TITLE = "Where should a foundation model come in?"
KINDS = ("tokenizer", "generator")


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID of each way of aligning, a block of panels per width, a column per judge. `folder` is not read.

    Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    found = dots.compared(table, NAME, ("gfid",))
    generator = found.planned[found.planned["kind"] == "generator"]
    widths = generator.sort_values("place", kind="stable")["latent_channels"].drop_duplicates()
    blocks = [_at_width(found, width) for width in widths]
    drawn = [block for block in blocks if len(block.points)]
    waiting = [line for block in blocks if block.points.empty for line in rows.missing_note(block.planned, KINDS)]
    subtitle = f"{generator['generator'].iloc[0]} at {found.at}. Line: nothing is aligned."
    return dots.draw(TITLE, subtitle, drawn, ("gfid",), steps=False, notes=waiting)


def _at_width(found: dots.Compared, width: int) -> dots.Compared:
    """The runs at one width, each compared with the one that is not aligned."""
    planned, scored, repeats, points = (
        part[part["latent_channels"] == width] for part in (found.planned, found.scored, found.repeats, found.points)
    )
    changed = points["label"].map(lambda label: () if label == f"d{width}: none" else ("alignment",))
    return dots.Compared(planned, scored, repeats, points.assign(changed=changed), found.mark)
