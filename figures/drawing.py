"""What a figure module returns, and what it raises when it cannot draw."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers plotted in it."""

    figure: Figure
    data: pd.DataFrame


class NothingToDraw(Exception):
    """No finished result belongs in the figure; the message says why."""


class NotAsked(NothingToDraw):
    """The figure belongs to an ablation that nobody asked for here, so its absence is not worth a line."""
