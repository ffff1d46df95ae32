"""How many times fewer images a generator needs on one tokenizer than on another."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd


@dataclass(frozen=True)
class SpeedUp:
    """Images of the plain run over those of the aligned run at equal gFID; None if that gFID is not reached."""

    factor: float | None
    images: float | None
    at_least: bool = False

    def __str__(self) -> str:
        if self.factor is None:
            return "not reached"
        return f"{'≥ ' if self.at_least else ''}{self.factor:.2g}×"


def speed_up(plain: pd.Series, aligned: pd.Series) -> SpeedUp:
    """How many times fewer images `aligned` needs for the last gFID of `plain`.

    Both are gFID indexed by images seen. Between two marks gFID is assumed to be linear in log(images). If
    `aligned` has reached it at its first mark, the true factor is at least the returned one.
    """
    plain, aligned = plain.sort_index(), aligned.sort_index()
    goal, spent = float(plain.iloc[-1]), float(plain.index[-1])
    marks = [(float(images), float(gfid)) for images, gfid in aligned.items()]  # type: ignore[arg-type]
    if marks[0][1] <= goal:
        return SpeedUp(spent / marks[0][0], marks[0][0], at_least=True)
    for (images, gfid), (next_images, next_gfid) in pairwise(marks):
        if next_gfid <= goal:
            share = (gfid - goal) / (gfid - next_gfid)
            needed = math.exp(math.log(images) + share * math.log(next_images / images))
            return SpeedUp(spent / needed, needed)
    return SpeedUp(None, None)
