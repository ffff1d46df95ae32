"""Effects of several studies side by side: a forest plot with a row per contrast, a mark per study and judge.

The studies' numbers themselves cannot share an axis where data or judges differ; relative changes can. It needs several
studies, so that study.compare draws it, not study.figures.
"""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from figures import layout, style, wording
from figures.drawing import Drawing
from results.numbers import percent

NAME = "effects"
TITLE = "Do the same changes have the same effects?"
SUBTITLE = "What each change does to rFID, to gFID, or to the images needed; left of 0 is better."
HUES = ("#a3195b", "#006d77", "#b36a00", "#5b4bb3", "#4d8a1f")  # by measured study; published numbers are black
MARKERS = "osD^v"  # by judge
MARK, GAP, HEADING = 0.105, 0.11, 0.24  # inches between marks, between contrasts, of a heading
PLOT, KEY, AXIS, TICKS = 3.3, 0.16, 0.42, 0.2  # width of the plot; heights of a line of the key, of the axes, inches
CHANGES = (-0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
NOTES = (
    "Marks: means of logarithms, on a logarithmic axis. Bars: 90% intervals, by the rule of claims; hollow marks "
    "(published, or fewer than three repeats) have none.",
    "Signs agree where all judges of all studies decide or indicate the same; '2 times': the largest effect is twice "
    "the smallest, as logarithms, in the mean of the judges. Widths and generators are matched by rank.",
)


def draw(effects: pd.DataFrame, studies: Sequence[str]) -> Drawing:
    """A row per contrast under a heading per kind of change, and the number beside each mark.

    Args:
        effects: a row per contrast, study and judge, with the columns `kind`, `contrast`, `study`, `data`, `runs`,
            `judge`, `change` (relative; missing if never reached), `low` and `high` (ends of its interval, or missing),
            `repeats` (missing if published), `text` (of the change) and `agreement`.
        studies: in the order of the key.
    """
    colors = _colors(effects, studies)
    judges = list(dict.fromkeys(effects["judge"]))
    rows = effects.to_dict("records")
    texts = [f"{row['runs']}: {row['text']}" for row in rows]
    words = [*effects["contrast"], *effects["agreement"]]
    left = max(layout.width(text, style.TEXT) for text in words) + 3 * layout.EDGE
    right = max(layout.width(text, style.SMALL) for text in texts) + 2 * layout.EDGE
    marks, labels, headings, height = _places(effects)
    body = (left + PLOT + right, height + AXIS + TICKS + KEY * (len(colors) + 0.8))
    with style.applied():
        figure, foot = layout.sheet(TITLE, SUBTITLE, NOTES, body)
        width, full = figure.get_size_inches()
        ax = figure.add_axes((left / width, (foot + AXIS) / full, PLOT / width, height / full))
        ax.set_ylim(height, 0)
        _axis(ax, effects)
        for row, y, text in zip(rows, marks, texts, strict=True):
            color, marker = colors[row["study"]], MARKERS[judges.index(row["judge"]) % len(MARKERS)]
            face = "white" if pd.isna(row["low"]) else color
            if not pd.isna(row["low"]):
                ax.plot([math.log1p(row["low"]), math.log1p(row["high"])], [y, y], color=color, zorder=3)
            if not pd.isna(row["change"]):
                ax.plot(
                    [math.log1p(row["change"])], [y], marker=marker, color=color, markersize=3.6, linestyle="none",
                    markerfacecolor=face, markeredgewidth=1, zorder=4,
                )  # fmt: skip
            _beside(ax, 1, y, text, 5, color, style.SMALL)
        for contrast, agreement, y in labels:
            _beside(ax, 0, y - 0.06, contrast, -6, style.INK, style.TEXT)
            _beside(ax, 0, y + 0.06, agreement, -6, style.GREY, style.TEXT)
        for i, (kind, y) in enumerate(headings):
            if i:
                ax.axhline(y - HEADING / 2, color=style.FAINT, linewidth=0.8, zorder=1)
            place = (-(left - layout.EDGE) * 72, 0)
            ax.annotate(
                kind, (0, y), xycoords=("axes fraction", "data"), xytext=place, textcoords="offset points",
                fontsize=style.TEXT, weight="bold", va="center_baseline", annotation_clip=False,
            )  # fmt: skip
        top = foot + AXIS + height + TICKS + KEY * (len(colors) + 0.3)
        for i, (study, color) in enumerate(colors.items()):
            _key(figure, effects[effects["study"] == study], judges, color, top - i * KEY)
    return Drawing(figure, effects)


def _colors(effects: pd.DataFrame, studies: Sequence[str]) -> dict[str, str]:
    """The colour of every study that has effects."""
    published = effects.groupby("study")["repeats"].count() == 0
    hues = cycle(HUES)
    return {study: style.INK if published[study] else next(hues) for study in studies if study in published.index}


class Places(NamedTuple):
    """Inches from the top: of marks; of contrasts, with their agreement; of headings; the whole height."""

    marks: list[float]
    labels: list[tuple[str, str, float]]
    headings: list[tuple[str, float]]
    height: float


def _places(effects: pd.DataFrame) -> Places:
    marks: list[float] = []
    labels: list[tuple[str, str, float]] = []
    headings: list[tuple[str, float]] = []
    y = 0.0
    for kind, same in effects.groupby("kind", sort=False):
        headings.append((str(kind), y + HEADING / 2))
        y += HEADING
        for contrast, found in same.groupby("contrast", sort=False):
            own = max(len(found), 2.4) * MARK
            start = y + (own - len(found) * MARK) / 2
            marks += [start + (i + 0.5) * MARK for i in range(len(found))]
            labels.append((str(contrast), str(found["agreement"].iloc[0]), y + own / 2))
            y += own + GAP
    return Places(marks, labels, headings, y)


def _axis(ax: Axes, effects: pd.DataFrame) -> None:
    """A logarithmic axis of relative changes with a line at none."""
    ends = effects[["change", "low", "high"]]
    low, high = math.log1p(min(float(ends.min().min()), -0.1)), math.log1p(max(float(ends.max().max()), 0.1))
    margin = 0.03 * (high - low)
    ax.set_xlim(low - margin, high + margin)
    least, chosen = 0.36 * (high - low) / PLOT, [0.0]
    for change in sorted(CHANGES, key=abs):
        place = math.log1p(change)
        if low - margin <= place <= high + margin and all(abs(place - other) >= least for other in chosen):
            chosen.append(place)
    chosen.sort()
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(chosen, [percent(math.expm1(place)) if place else "0" for place in chosen])
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")
    ax.axvline(0, color=style.GREY, linewidth=0.8, zorder=2)
    ax.tick_params(axis="x", top=True, labeltop=True)
    ax.set_xlabel("relative change")


def _beside(ax: Axes, x: float, y: float, text: str, offset: float, color: str, size: float) -> None:
    """Write text left or right of the plot."""
    ax.annotate(
        text, (x, y), xycoords=("axes fraction", "data"), xytext=(offset, 0), textcoords="offset points", fontsize=size,
        ha="left" if offset > 0 else "right", va="center_baseline", color=color, annotation_clip=False,
    )  # fmt: skip


def _key(figure: Figure, own: pd.DataFrame, judges: list[str], color: str, y: float) -> None:
    """A line in a study's colour: its name and data set, and the mark of each judge. y: inches from below."""
    width, height = figure.get_size_inches()
    data = str(own["data"].iloc[0])
    x = layout.EDGE

    def put(text: str, weight: str = "normal") -> float:
        figure.text(x / width, y / height, text, color=color, weight=weight, fontsize=style.TEXT, va="center_baseline")
        return x + layout.width(text, style.TEXT, weight) + layout.EDGE

    x = put(str(own["study"].iloc[0]), "bold")
    x = put(f"{wording.DATA.get(data, data)}, judged by")
    for judge in dict.fromkeys(own["judge"]):
        marker = Line2D(
            [(x + 0.03) / width], [(y + 0.005) / height], marker=MARKERS[judges.index(judge) % len(MARKERS)],
            color=color, markersize=3.6, linestyle="none",
        )  # fmt: skip
        figure.add_artist(marker)
        x += 0.1
        extractor, _, size = judge.partition(" @ ")
        x = put(wording.JUDGES.get(extractor, extractor) + (f" @ {size}" if size else ""))
