"""Helpers that find what is visible in a figure."""

import matplotlib.text
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.layout import PUBLISHED


def measured(figure: Figure) -> list[Axes]:
    """The axes with the study's own numbers, without those of published numbers."""
    return [ax for ax in figure.axes if ax.get_gid() != PUBLISHED]


def visible(figure: Figure) -> list[matplotlib.text.Text]:
    """All texts that are drawn, so without the labels of ticks outside the limits."""
    found = list(figure.texts)
    for ax in figure.axes:
        found += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            at = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            found += [label for place, label in at if low <= place <= high]
    return [text for text in found if text.get_text()]
