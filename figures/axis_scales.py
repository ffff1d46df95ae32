"""Axes that fit their numbers: linear or logarithmic, plain tick labels, the same for panels that compare."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from results.numbers import count

LOG_FROM = 6.0  # a range of this factor or more is drawn on a logarithmic axis


def fit(ax: Axes, which: str, values: Sequence[float], pad: float = 0.12, least: float = 0.02) -> None:
    """Fit the x or y axis to the values, with the share `pad` of its length free at each end.

    least: minimum margin of a linear axis as a share of the largest value, so that nearly equal values look close.
    """
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low >= LOG_FROM
    if logarithmic:
        factor = (high / low) ** (pad / (1 - 2 * pad))
        limits = (low / factor, high * factor)
    else:
        margin = max((high - low) * pad / (1 - 2 * pad), least * abs(high), 1e-9)
        limits = (low - margin, high + margin)
    axis: Axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}scale")("log" if logarithmic else "linear")
    getattr(ax, f"set_{which}lim")(*limits)
    if logarithmic:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if limits[1] / limits[0] < 500 else (1,), numticks=12))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.4g}"))
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def budget(ax: Axes, marks: Sequence[float]) -> None:
    """A logarithmic x axis of images or parameters, with a tick at each mark that has room."""
    low, high = min(marks), max(marks)
    ax.set_xscale("log")
    factor = (high / low) ** 0.05 if high > low else 2
    ax.set_xlim(low / factor, high * factor)
    ax.xaxis.set_minor_locator(NullLocator())
    per_label = 0.42 * ax.figure.dpi  # pixels
    ticks: list[float] = []
    for mark in sorted(marks, reverse=True):  # the largest mark always has a tick
        position = ax.transData.transform((mark, 1))[0]
        if not ticks or ax.transData.transform((ticks[-1], 1))[0] - position >= per_label:
            ticks.append(mark)
    ax.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: count(tick)))
