"""Runs with labels as lines of dots: one line per label in the ablation's order, its numbers beside it.

A label without a result keeps its line. A run that differs in more than one factor from the run it is compared with is
marked as confounded, at its label and in the caption.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures import axis_scales, layout, marks, paper_values, rows, style, wording
from figures.drawing import Drawing
from results.numbers import three_digits, value_or_range

LINE = 0.2  # inches between labels
WIDTH = 2.0  # of a panel, inches
FOOT, TOP, GAP = 0.56, 0.06, 0.25  # inches below a panel for its axis, above it, and between columns
METRICS = {"rfid": "rFID", "gfid": "gFID"}


class Compared(NamedTuple):
    """An ablation's labelled runs at one number of images seen."""

    planned: pd.DataFrame  # the ablation's rows, finished or not
    scored: pd.DataFrame  # finished rows at the mark, and the rows of their tokenizers
    repeats: pd.DataFrame  # one row per number averaged: the gFID of a generator, or on request the rFID of a tokenizer
    points: pd.DataFrame  # one row per judge and label, with the means of both
    mark: int | None

    @property
    def lines(self) -> list[dict[Hashable, Any]]:
        """One row per label of the ablation, in order."""
        generators = self.planned[self.planned["kind"] == "generator"]
        return generators.sort_values("place", kind="stable").drop_duplicates("label").to_dict("records")

    @property
    def data(self) -> pd.DataFrame:
        """The plotted numbers as written to the CSV file."""
        return self.points.assign(changed=self.points["changed"].map(", ".join))

    @property
    def at(self) -> str:
        """The mark as text: '128k images seen'."""
        generators = self.planned[self.planned["kind"] == "generator"]
        late = self.mark is not None and self.mark < generators["images_seen"].max()
        return f"{wording.images(self.mark)} seen{' (last mark common to all)' if late else ''}"


def compared(table: pd.DataFrame, ablation: str, metrics: Sequence[str], varies: tuple[str, ...] = ()) -> Compared:
    """gFID per judge and label at the last mark that all finished runs have, and rFID of their tokenizers.

    Raises NotAsked without such an ablation in the table, NothingToDraw without finished generators.
    """
    planned = rows.labelled(table, ablation)
    generators = rows.done(planned, "generator", varies, also_by=("label",))
    generators, mark = rows.at_common_mark(generators, ["label"])
    judge = ["extractor", "extractor_size"]
    by = [*judge, "place", "label", "changed", "tokenizer", "foundation_model", "latent_channels", "generator"]
    gfid = generators[[*by, "gfid"]]
    points = rows.averaged(generators, [*by, "images_seen"], "gfid")
    if "rfid" not in metrics:
        return Compared(planned, generators, gfid, points, mark)
    tokenizers = rows.done(planned, "tokenizer", also_by=("fingerprint",)).drop(columns=["place", "label", "changed"])
    of = generators[[*by, "tokenizer_fingerprint"]].drop_duplicates([*judge, "label", "tokenizer_fingerprint"])
    rfid = of.merge(tokenizers[["tokenizer_fingerprint", *judge, "rfid"]], on=["tokenizer_fingerprint", *judge])
    points = points.merge(rows.averaged(rfid, by, "rfid"), on=by, how="left")
    return Compared(planned, pd.concat([tokenizers, generators]), pd.concat([gfid, rfid]), points, mark)


def published_counterpart(table: pd.DataFrame, ablation: str, metrics: Sequence[str]) -> Compared | None:
    """The paper's runs of an ablation; None if the table itself is the paper's."""
    paper = paper_values.paper_rows(table, ablation)
    return None if paper is None else compared(paper, ablation, metrics)


def draw(
    title: str,
    subtitle: str,
    ours: Sequence[Compared],
    metrics: Sequence[str],
    *,
    steps: bool,
    notes: Sequence[str] = (),
    paper: Compared | None = None,
) -> Drawing:
    """A column of panels per metric and a row per judge, or with one metric a column per judge; published runs below.

    ours: blocks of such panels, one below the other. steps: each label is compared with the previous one, so lines
    connect the dots; otherwise a vertical line marks the label that the others are compared with.
    """
    blocks = [*ours] if paper is None else [*ours, paper]
    planned, points_of_ours = (pd.concat([getattr(block, name) for block in ours]) for name in ("planned", "points"))
    notes = [
        *_confounded([line for block in blocks for line in block.lines]),
        *rows.missing_note(planned, ("tokenizer", "generator")),
        *rows.seeds_note((n for metric in metrics for n in points_of_ours[f"{metric}_runs"].dropna()), planned),
        *notes,
        *wording.caption(pd.concat([block.scored for block in ours])),
    ]
    left = max(layout.width(text, style.TEXT) for block in blocks for text in _texts(block)) + 2 * layout.EDGE
    points = [point for block in blocks for point in block.points.to_dict("records")]
    values = ["missing", *(_value(point, m) for m in metrics for point in points if not pd.isna(point[m]))]
    column = WIDTH + max(layout.width(text, style.SMALL) for text in values) + GAP
    heights = [len(_cells(block, metrics)) * _height(block) for block in blocks]
    width = left + column * len(_cells(ours[0], metrics)[0])
    note_lines = (
        layout.wrap(wording.published_note(paper.planned), style.SMALL, width - 2 * layout.EDGE) if paper else []
    )
    published_height = heights[-1] + layout.band_height(note_lines) if paper else 0.0
    data = pd.concat([block.data for block in ours], ignore_index=True)
    with style.applied():
        figure, foot = layout.sheet(title, subtitle, notes, (width, sum(heights[: len(ours)])), published_height)
        for i, block in enumerate(ours):
            _draw_block(figure, block, metrics, steps, (left, foot + sum(heights[i + 1 : len(ours)])), column)
        if paper is None:
            return Drawing(figure, data)
        axes = _draw_block(figure, paper, metrics, steps, (left, layout.EDGE), column)
        layout.draw_published_header(figure, note_lines, published_height, axes)
    return Drawing(figure, data, paper_values.with_source(paper.data, paper.planned))


def beside_base(table: pd.DataFrame, ablation: str, title: str, line: str, *, published: bool = False) -> Drawing:
    """rFID and gFID of an ablation's runs, a vertical line where the one is that the others are compared with.

    line: what it stands for, in words. published: whether the paper has such an ablation, to be drawn below. Raises as
    `compared`.
    """
    metrics = ("rfid", "gfid")
    found = compared(table, ablation, metrics)
    base = next(row for row in found.lines if not row["changed"])
    subtitle = f"{base['tokenizer']} under {base['generator']} at {found.at}. {line}"
    paper = published_counterpart(table, ablation, metrics) if published else None
    return draw(title, subtitle, [found], metrics, steps=False, paper=paper)


def _cells(block: Compared, metrics: Sequence[str]) -> list[list[tuple[rows.Judge, str]]]:
    cells = [[(judge, metric) for metric in metrics] for judge in rows.judges(block.points)]
    return [[cell for row in cells for cell in row]] if len(metrics) == 1 else cells


def _texts(block: Compared) -> list[str]:
    return [f"{line['label']} †" if len(line["changed"]) > 1 else str(line["label"]) for line in block.lines]


def _height(block: Compared) -> float:
    """Height of a row of panels with its axis, in inches."""
    return len(block.lines) * LINE + FOOT + TOP


def _draw_block(
    figure: Figure, block: Compared, metrics: Sequence[str], steps: bool, corner: tuple[float, float], column: float
) -> list[Axes]:
    """Draw the panels of one study in columns from `corner`: left of the first panel and lower edge, in inches."""
    full_width, full_height = figure.get_size_inches()
    cells, texts, order = _cells(block, metrics), _texts(block), [str(line["label"]) for line in block.lines]
    left, lower = corner
    panel, axes = len(order) * LINE, []
    for i, row in enumerate(cells):
        for j, (judge, metric) in enumerate(row):
            x, y = left + j * column, lower + (len(cells) - 1 - i) * _height(block) + FOOT
            ax = figure.add_axes((x / full_width, y / full_height, WIDTH / full_width, panel / full_height))
            look_of = paper_values.look_for(block.planned)
            _panel(ax, judge.of(block.points), judge.of(block.repeats), metric, order, steps, look_of)
            scored = judge.of(block.scored)
            scored = scored[scored["kind"] == ("tokenizer" if metric == "rfid" else "generator")]
            ax.set_xlabel(wording.axis(METRICS[metric], scored).replace("↓", "←"))
            ax.set_yticks(range(len(texts)) if j == 0 else [], texts if j == 0 else [], fontsize=style.TEXT)
            axes.append(ax)
    return axes


def _confounded(lines: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    several = {line["label"]: map(wording.factor, line["changed"]) for line in lines if len(line["changed"]) > 1}
    changes = "; ".join(f"{label} changes {' and '.join(factors)}" for label, factors in several.items())
    return [f"† Confounded, more than one factor at once: {changes}."] if changes else []


def _panel(
    ax: Axes, points: pd.DataFrame, repeats: pd.DataFrame, metric: str, order: Sequence[str], steps: bool,
    look_of: style.LookOf,
) -> None:  # fmt: skip
    here = {point["label"]: point for point in points.dropna(subset=[metric]).to_dict("records")}
    before: tuple[float, int] | None = None
    for y, label in enumerate(order):
        ax.axhline(y, color=style.FAINT, linewidth=0.5, linestyle=(0, (1, 2)), zorder=1)
        if label not in here:
            _write(ax, y, "missing", style.GREY)
            before = None
            continue
        point = here[label]
        x, changed = point[metric], point["changed"]
        look = look_of(point["latent_channels"], point["foundation_model"], point["tokenizer"])
        if steps and before:
            dash: Any = (0, (1, 1.5)) if len(changed) > 1 else "-"
            ax.plot([before[0], x], [before[1], y], color=style.GREY, linewidth=0.7, linestyle=dash, zorder=2)
        elif not steps and not changed:
            ax.axvline(x, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1.5)
        mine = repeats[(repeats["label"] == label) & (repeats["generator"] == point["generator"])].assign(line=y)
        marks.means(ax, mine, metric, "line", along="y", bar_width=1.4, linestyle="none", zorder=4, **look.markers())
        _write(ax, y, _value(point, metric), style.INK)
        before = (x, y)
    axis_scales.fit(ax, "x", [point[f"{metric}_{end}"] for point in here.values() for end in ("min", "max")], pad=0.07)
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.spines["left"].set_visible(False)


def _write(ax: Axes, y: float, text: str, color: str) -> None:
    """Write text at the right end of a line."""
    ax.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
        fontsize=style.SMALL, va="center_baseline", color=color, annotation_clip=False,
    )  # fmt: skip


def _value(point: Mapping[Hashable, Any], metric: str) -> str:
    mean = three_digits(point[metric])
    if point[f"{metric}_runs"] < 2:
        return mean
    return f"{mean} ({value_or_range(point[f'{metric}_min'], point[f'{metric}_max'])})"
