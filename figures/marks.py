"""Statistical marks by seaborn: means of repeats with the range of all of them."""

from typing import Any, Literal

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes


def full_range(values: pd.Series) -> tuple[float, float]:
    """The interval around a mean in every figure: from the smallest repeat to the largest."""
    mean = values.mean()  # of equal values it can be off by a rounding, and matplotlib refuses bars of negative length
    return min(values.min(), mean), max(values.max(), mean)


def means(
    ax: Axes,
    repeats: pd.DataFrame,
    x: str,
    y: str,
    *,
    along: Literal["x", "y"] = "x",
    spread: Literal["band", "bars"] | None = "bars",
    bar_width: float = 1.0,
    **line: Any,
) -> None:
    """Draw a line through the means at each place, and the range of all repeats where there are several.

    Args:
        ax: axes that are still linear: seaborn averages in the scale of the axis, and a mean of logarithms is another
            number.
        repeats: one row per repeat.
        x: column with the positions on the x axis.
        y: column with the positions on the y axis.
        along: axis of the places; the values that are averaged are on the other one.
        spread: how the range is drawn; None leaves it out.
        bar_width: of the bars, in points.
        line: how the line and its markers look, as keyword arguments of matplotlib's Line2D.

    Raises:
        ValueError: an axis is logarithmic.
    """
    if (ax.get_xscale(), ax.get_yscale()) != ("linear", "linear"):
        raise ValueError("draw means before the axes become logarithmic: the means are arithmetic")
    place = {"x": x, "y": y}[along]
    repeats = repeats[[x, y]].dropna()
    zorder = line.pop("zorder", 2)
    line["solid_capstyle"] = "butt"  # the bars too then end at the range
    if not repeats.duplicated(place).any():  # nothing to average, and seaborn takes several times as long
        alone = repeats.astype(float).sort_values(place)
        ax.plot(alone[x].to_numpy(), alone[y].to_numpy(), zorder=zorder, **line)
        return
    looks: dict[str | None, dict[str, Any]] = {
        "band": {"alpha": 0.15, "linewidth": 0.8},  # the outline is all that shows of a band at a single place
        "bars": {"elinewidth": bar_width, "zorder": zorder - 1},
    }
    sns.lineplot(
        x=repeats[x].to_numpy(float),  # without names, which would become labels of the axes
        y=repeats[y].to_numpy(float),
        orient=along,
        estimator="mean",
        errorbar=full_range if spread else None,
        err_style=spread,
        err_kws=looks.get(spread),
        legend=False,
        ax=ax,
        zorder=zorder,
        **line,
    )
