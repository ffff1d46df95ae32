"""Runs with labels as lines of dots: one line per label in the ablation's order, its numbers beside it.

A label without a result keeps its line. A run that changes more than one factor against the one it is compared with is
marked as confounded, there and in the caption.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures import page, rows, scales, style, wording

LINE = 0.2  # inches from label to label
WIDTH = 2.0  # of a panel, inches
FOOT, TOP, GAP = 0.56, 0.06, 0.25  # inches below a panel for its axis, above it, and between columns
METRICS = {"rfid": "rFID", "gfid": "gFID"}


class Compared(NamedTuple):
    """An ablation's runs with labels at one mark of images seen."""

    asked: pd.DataFrame  # its rows, finished or not
    scored: pd.DataFrame  # finished ones at the mark, with the tokenizers'
    points: pd.DataFrame  # one row per judge and label: gFID, perhaps rFID
    mark: int

    @property
    def lines(self) -> list[dict[Hashable, Any]]:
        """One row per label that was asked for, in order."""
        generators = self.asked[self.asked["kind"] == "generator"]
        return generators.sort_values("place").drop_duplicates("label").to_dict("records")

    @property
    def data(self) -> pd.DataFrame:
        """The plotted numbers, for their file."""
        return self.points.assign(changed=self.points["changed"].map(", ".join))

    @property
    def at(self) -> str:
        """When: '128k images seen'."""
        asked = self.asked[self.asked["kind"] == "generator"]
        late = " (last mark common to all)" if self.mark < asked["images_seen"].max() else ""
        return f"{wording.count(self.mark)} images seen{late}"


def compared(table: pd.DataFrame, ablation: str, metrics: Sequence[str], varies: tuple[str, ...] = ()) -> Compared:
    """gFID per judge and label at the last mark that all finished runs have, and rFID of their tokenizers.

    Raises NotAsked without such an ablation in the table, NothingToDraw without finished generators.
    """
    asked = rows.labelled(table, ablation)
    generators = rows.done(asked, "generator", varies, apart=("label",))
    mark = rows.common_mark(generators, ["label"])
    generators = generators[generators["images_seen"] == mark]
    judge = ["extractor", "extractor_size"]
    by = [*judge, "place", "label", "changed", "tokenizer", "foundation_model", "latent_channels", "generator"]
    points = rows.averaged(generators, [*by, "images_seen"], "gfid")
    if "rfid" not in metrics:
        return Compared(asked, generators, points, mark)
    tokenizers = rows.done(asked, "tokenizer", apart=("fingerprint",)).drop(columns=["place", "label", "changed"])
    of = generators[[*by, "tokenizer_fingerprint"]].drop_duplicates([*judge, "label", "tokenizer_fingerprint"])
    rfid = tokenizers.set_index(["tokenizer_fingerprint", *judge])["rfid"]
    quality = rows.averaged(of.join(rfid, on=["tokenizer_fingerprint", *judge]), by, "rfid")
    return Compared(asked, pd.concat([tokenizers, generators]), points.merge(quality, on=by, how="left"), mark)


def draw(
    title: str, subtitle: str, found: Compared, metrics: Sequence[str], *, steps: bool, notes: Sequence[str] = ()
) -> Figure:
    """A column of panels per metric and a row per judge; with one metric a column per judge.

    steps: each label is compared with the one before, so a line leads from dot to dot; otherwise one runs down from the
    label that the others are compared with.
    """
    judges = rows.judges(found.points)
    cells = [[(judge, metric) for metric in metrics] for judge in judges]
    if len(metrics) == 1:
        cells = [[cell for row in cells for cell in row]]
    lines = found.lines
    order = [str(line["label"]) for line in lines]
    texts = [f"{line['label']} †" if len(line["changed"]) > 1 else str(line["label"]) for line in lines]
    notes = [
        *_confounded(lines),
        *rows.missing_note(found.asked, ("tokenizer", "generator")),
        *rows.seeds_note(n for metric in metrics for n in found.points[f"{metric}_runs"].dropna()),
        *notes,
        *wording.caption(found.scored),
    ]
    left = max(page.width(text, style.TEXT) for text in texts) + 2 * page.EDGE
    values = ["missing", *(_value(p, m) for m in metrics for p in found.points.dropna(subset=[m]).to_dict("records"))]
    column = WIDTH + max(page.width(text, style.SMALL) for text in values) + GAP
    panel, height = len(lines) * LINE, len(lines) * LINE + FOOT + TOP
    figure, foot = page.sheet(title, subtitle, notes, (left + column * len(cells[0]), height * len(cells)))
    full_width, full_height = figure.get_size_inches()
    for i, row in enumerate(cells):
        for j, (judge, metric) in enumerate(row):
            x, y = left + j * column, foot + (len(cells) - 1 - i) * height + FOOT
            ax = figure.add_axes((x / full_width, y / full_height, WIDTH / full_width, panel / full_height))
            _panel(ax, judge.of(found.points), metric, order, steps)
            scored = judge.of(found.scored)
            scored = scored[scored["kind"] == ("tokenizer" if metric == "rfid" else "generator")]
            ax.set_xlabel(wording.axis(METRICS[metric], scored).replace("↓", "←"))
            ax.set_yticks(range(len(texts)) if j == 0 else [], texts if j == 0 else [], fontsize=style.TEXT)
    return figure


def _confounded(lines: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    several = {line["label"]: map(wording.factor, line["changed"]) for line in lines if len(line["changed"]) > 1}
    found = "; ".join(f"{label} changes {' and '.join(factors)}" for label, factors in several.items())
    return [f"† Confounded, more than one factor at once: {found}."] if found else []


def _panel(ax: Axes, points: pd.DataFrame, metric: str, order: Sequence[str], steps: bool) -> None:
    here = {point["label"]: point for point in points.dropna(subset=[metric]).to_dict("records")}
    scales.fit(ax, "x", [point[f"{metric}_{end}"] for point in here.values() for end in ("min", "max")], pad=0.07)
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.spines["left"].set_visible(False)
    before: tuple[float, int] | None = None
    for y, label in enumerate(order):
        ax.axhline(y, color=style.FAINT, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
        if label not in here:
            _write(ax, y, "missing", style.GREY)
            before = None
            continue
        point = here[label]
        x, changed = point[metric], point["changed"]
        look = style.look(point["latent_channels"], point["foundation_model"])
        if steps and before:
            dash: Any = (0, (1, 1.5)) if len(changed) > 1 else "-"
            ax.plot([before[0], x], [before[1], y], color=style.GREY, linewidth=0.7, linestyle=dash, zorder=2)
        elif not steps and not changed:
            ax.axvline(x, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5)
        ax.hlines(y, point[f"{metric}_min"], point[f"{metric}_max"], color=look.color, linewidth=1.4, zorder=3)
        ax.plot([x], [y], linestyle="none", zorder=4, **look.markers())
        _write(ax, y, _value(point, metric), style.INK)
        before = (x, y)


def _write(ax: Axes, y: float, text: str, color: str) -> None:
    """Text right of a line."""
    ax.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
        fontsize=style.SMALL, va="center_baseline", color=color, annotation_clip=False,
    )  # fmt: skip


def _value(point: Mapping[Hashable, Any], metric: str) -> str:
    mean = wording.value(point[metric])
    if point[f"{metric}_runs"] < 2:
        return mean
    return f"{mean} ({wording.spread(point[f'{metric}_min'], point[f'{metric}_max'])})"
