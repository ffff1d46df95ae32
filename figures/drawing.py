"""What a figure module returns, and what it raises when it cannot draw."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers plotted in it; apart from them published ones that it shows beside them."""

    figure: Figure
    data: pd.DataFrame
    published: pd.DataFrame | None = None

    @property
    def plotted(self) -> pd.DataFrame:
        """All numbers; published ones last, with their source."""
        if self.published is None:
            return self.data
        return pd.concat([self.data.assign(source=""), self.published], ignore_index=True)[[*self.data, "source"]]


class NothingToDraw(Exception):
    """No finished result belongs in the figure; the message says why."""


class NotAsked(NothingToDraw):
    """The figure belongs to an ablation that nobody asked for here, so its absence is not worth a line."""
