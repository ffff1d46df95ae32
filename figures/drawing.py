"""What a figure module returns, and what it raises when it cannot draw."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers plotted in it; published numbers that it also shows are kept separately."""

    figure: Figure
    data: pd.DataFrame
    published: pd.DataFrame | None = None

    @property
    def plotted(self) -> pd.DataFrame:
        """All plotted numbers: the study's own, then the published ones with their source."""
        if self.published is None:
            return self.data
        return pd.concat([self.data.assign(source=""), self.published], ignore_index=True)[[*self.data, "source"]]


class NothingToDraw(Exception):
    """The figure has no finished result to show; the message says why."""


class NotAsked(NothingToDraw):
    """The figure belongs to an ablation that is not part of this study, so its absence is not reported."""
