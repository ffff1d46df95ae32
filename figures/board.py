"""Records over time: gFID of every record against its date, and the lowest so far, a panel per judge and track.

It is about the board and not about a study, so that study.board draws it.
"""

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.dates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from figures import axis_scales, label_places, layout, marks, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.board import TRACKS, Record
from results.schema import HEADLINE

NAME = "board"
TITLE = "How low does gFID get within a budget?"
SUBTITLE = (
    "Records by the day they were added: means of held-out seeds, with their range. The line is the lowest so far."
)
HUES = ("#0072b2", "#d55e00", "#00795c")  # by judge
DAY = 0.5  # free at each side of the first and last record, at least
DATES = 3  # ticks of a panel
RIGHT = 0.35  # inches, for the last date


def draw(records: Sequence[Record]) -> Drawing:
    """A row of panels per track that has records, in the order of TRACKS. Raises NothingToDraw without a record."""
    points = frame(records)
    shown = [name for name in TRACKS if (points["track"] == name).any()]
    if not shown:
        raise NothingToDraw("no record stands yet")
    columns = max(len(TRACKS[name].judges) for name in shown)
    with style.applied():
        figure, axes = layout.panels(TITLE, SUBTITLE, [], len(shown), columns, RIGHT, headings=True)
        for row, name in enumerate(shown):
            for column, judge in enumerate(TRACKS[name].judges):
                ax = axes[row * columns + column]
                here = points[(points["track"] == name) & (points["judge"] == judge)]
                _panel(ax, here, judge, TRACKS[name].samples, HUES[column % len(HUES)])
                if not column:
                    layout.heading(ax, TRACKS[name].title)
        layout.hide_empty(axes)
    return Drawing(figure, points)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row per record, judge and pair of seeds, by track in the order in which records were added."""
    rows = [
        {"track": name, "record": record.name, "date": record.date, "judge": judge, "tokenizer_seed": tokenizer,
         "seed": seed, HEADLINE["generator"]: gfid}
        for name in TRACKS
        for record in sorted((one for one in records if one.track == name), key=lambda one: one.date)
        for judge, values in record.gfid_of_seeds.items()
        for (tokenizer, seed), gfid in zip(record.seeds, values, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["track", "record", "date", "judge", "tokenizer_seed", "seed", "gfid"])


def _panel(ax: Axes, points: pd.DataFrame, judge: str, samples: int, color: str) -> None:
    points = points.assign(day=matplotlib.dates.date2num(pd.to_datetime(points["date"]).to_numpy()))
    labels: list[label_places.Label] = []
    lines: list[tuple[float, float, float, float]] = []  # that labels avoid
    best = float("inf")
    steps: list[tuple[float, float]] = []
    for name, repeats in points.groupby("record", sort=False):
        day, mean = float(repeats["day"].iloc[0]), float(repeats["gfid"].mean())
        marks.means(ax, repeats, "day", "gfid", linestyle="none", marker="o", color=color, zorder=3)
        labels.append(label_places.Label(str(name) if mean < best else "", day, mean, color))
        lines.append((day, float(repeats["gfid"].min()), day, float(repeats["gfid"].max())))
        if mean < best:
            best = mean
            steps.append((day, mean))
    first, last = float(points["day"].min()), float(points["day"].max())
    free = max(DAY, 0.06 * (last - first))
    days, lowest = zip(*steps, (last + free, best), strict=True)
    ax.step(days, lowest, where="post", color=color, linewidth=1.0, zorder=2)
    ax.set_xlim(first - free, last + free)
    ticks = np.unique(np.linspace(first, last, DATES).round())  # whole days
    ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    ax.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%Y-%m-%d"))
    axis_scales.fit(ax, "y", points["gfid"].tolist(), pad=0.12)
    lines += [(*one, *other) for one, other in pairwise(zip(days, lowest, strict=True))]
    label_places.around_points(ax, labels, lines)
    ax.set_ylabel(f"{wording.counted('gFID', [samples])} ({wording.BETTER})\n{wording.judge(judge, None)}")
