"""What a reader sees of a figure."""

import matplotlib.text
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.page import PUBLISHED


def measured(figure: Figure) -> list[Axes]:
    """The axes that hold numbers of the study, not published ones beside them."""
    return [ax for ax in figure.axes if ax.get_gid() != PUBLISHED]


def visible(figure: Figure) -> list[matplotlib.text.Text]:
    """Texts that are drawn: ticks outside the limits are not."""
    found = list(figure.texts)
    for ax in figure.axes:
        found += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            at = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            found += [label for place, label in at if low <= place <= high]
    return [text for text in found if text.get_text()]
