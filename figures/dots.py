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

from figures import page, published, rows, scales, style, wording
from figures.drawing import Drawing

LINE = 0.2  # inches from label to label
WIDTH = 2.0  # of a panel, inches
FOOT, TOP, GAP = 0.56, 0.06, 0.25  # inches below a panel for its axis, above it, and between columns
METRICS = {"rfid": "rFID", "gfid": "gFID"}


class Compared(NamedTuple):
    """An ablation's runs with labels at one mark of images seen."""

    asked: pd.DataFrame  # its rows, finished or not
    scored: pd.DataFrame  # finished ones at the mark, with the tokenizers'
    points: pd.DataFrame  # one row per judge and label: gFID, perhaps rFID
    mark: int | None

    @property
    def lines(self) -> list[dict[Hashable, Any]]:
        """One row per label that was asked for, in order."""
        generators = self.asked[self.asked["kind"] == "generator"]
        return generators.sort_values("place", kind="stable").drop_duplicates("label").to_dict("records")

    @property
    def data(self) -> pd.DataFrame:
        """The plotted numbers, for their file."""
        return self.points.assign(changed=self.points["changed"].map(", ".join))

    @property
    def at(self) -> str:
        """When: '128k images seen'."""
        asked = self.asked[self.asked["kind"] == "generator"]
        late = self.mark is not None and self.mark < asked["images_seen"].max()
        return f"{wording.images(self.mark)} seen{' (last mark common to all)' if late else ''}"


def compared(table: pd.DataFrame, ablation: str, metrics: Sequence[str], varies: tuple[str, ...] = ()) -> Compared:
    """gFID per judge and label at the last mark that all finished runs have, and rFID of their tokenizers.

    Raises NotAsked without such an ablation in the table, NothingToDraw without finished generators.
    """
    asked = rows.labelled(table, ablation)
    generators = rows.done(asked, "generator", varies, apart=("label",))
    generators, mark = rows.at_common_mark(generators, ["label"])
    judge = ["extractor", "extractor_size"]
    by = [*judge, "place", "label", "changed", "tokenizer", "foundation_model", "latent_channels", "generator"]
    points = rows.averaged(generators, [*by, "images_seen"], "gfid")
    if "rfid" not in metrics:
        return Compared(asked, generators, points, mark)
    tokenizers = rows.done(asked, "tokenizer", apart=("fingerprint",)).drop(columns=["place", "label", "changed"])
    of = generators[[*by, "tokenizer_fingerprint"]].drop_duplicates([*judge, "label", "tokenizer_fingerprint"])
    rfid = tokenizers[["tokenizer_fingerprint", *judge, "rfid"]]
    quality = rows.averaged(of.merge(rfid, on=["tokenizer_fingerprint", *judge]), by, "rfid")
    return Compared(asked, pd.concat([tokenizers, generators]), points.merge(quality, on=by, how="left"), mark)


def published_beside(table: pd.DataFrame, ablation: str, metrics: Sequence[str]) -> Compared | None:
    """What the paper has for an ablation, unless the table is the paper's."""
    theirs = published.beside(table, ablation)
    return None if theirs is None else compared(theirs, ablation, metrics)


def draw(
    title: str,
    subtitle: str,
    found: Compared,
    metrics: Sequence[str],
    *,
    steps: bool,
    notes: Sequence[str] = (),
    theirs: Compared | None = None,
) -> Drawing:
    """A column of panels per metric and a row per judge; with one metric a column per judge. Below, what is published.

    steps: each label is compared with the one before, so a line leads from dot to dot; otherwise one runs down from the
    label that the others are compared with.
    """
    blocks = [found] if theirs is None else [found, theirs]
    notes = [
        *_confounded([line for block in blocks for line in block.lines]),
        *rows.missing_note(found.asked, ("tokenizer", "generator")),
        *rows.seeds_note((n for metric in metrics for n in found.points[f"{metric}_runs"].dropna()), found.asked),
        *notes,
        *wording.caption(found.scored),
    ]
    left = max(page.width(text, style.TEXT) for block in blocks for text in _texts(block)) + 2 * page.EDGE
    points = [point for block in blocks for point in block.points.to_dict("records")]
    values = ["missing", *(_value(point, m) for m in metrics for point in points if not pd.isna(point[m]))]
    column = WIDTH + max(page.width(text, style.SMALL) for text in values) + GAP
    heights = [len(_cells(block, metrics)) * _height(block) for block in blocks]
    width = left + column * len(_cells(found, metrics)[0])
    said = page.wrap(wording.apart(theirs.asked), style.SMALL, width - 2 * page.EDGE) if theirs else []
    apart = heights[1] + page.band_height(said) if theirs else 0.0
    with style.applied():
        figure, foot = page.sheet(title, subtitle, notes, (width, heights[0]), apart)
        _draw_block(figure, found, metrics, steps, (left, foot), column)
        if theirs is None:
            return Drawing(figure, found.data)
        axes = _draw_block(figure, theirs, metrics, steps, (left, page.EDGE), column)
        page.set_apart(figure, said, apart, axes)
    return Drawing(figure, found.data, published.sourced(theirs.data, theirs.asked))


def _cells(found: Compared, metrics: Sequence[str]) -> list[list[tuple[rows.Judge, str]]]:
    cells = [[(judge, metric) for metric in metrics] for judge in rows.judges(found.points)]
    return [[cell for row in cells for cell in row]] if len(metrics) == 1 else cells


def _texts(found: Compared) -> list[str]:
    return [f"{line['label']} †" if len(line["changed"]) > 1 else str(line["label"]) for line in found.lines]


def _height(found: Compared) -> float:
    """Of a row of panels with its axis, inches."""
    return len(found.lines) * LINE + FOOT + TOP


def _draw_block(
    figure: Figure, found: Compared, metrics: Sequence[str], steps: bool, corner: tuple[float, float], column: float
) -> list[Axes]:
    """The panels of one study, from `corner` (left of the first panel, lower edge; inches) in columns of this width."""
    full_width, full_height = figure.get_size_inches()
    cells, texts, order = _cells(found, metrics), _texts(found), [str(line["label"]) for line in found.lines]
    left, lower = corner
    panel, axes = len(order) * LINE, []
    for i, row in enumerate(cells):
        for j, (judge, metric) in enumerate(row):
            x, y = left + j * column, lower + (len(cells) - 1 - i) * _height(found) + FOOT
            ax = figure.add_axes((x / full_width, y / full_height, WIDTH / full_width, panel / full_height))
            _panel(ax, judge.of(found.points), metric, order, steps, published.look(found.asked))
            scored = judge.of(found.scored)
            scored = scored[scored["kind"] == ("tokenizer" if metric == "rfid" else "generator")]
            ax.set_xlabel(wording.axis(METRICS[metric], scored).replace("↓", "←"))
            ax.set_yticks(range(len(texts)) if j == 0 else [], texts if j == 0 else [], fontsize=style.TEXT)
            axes.append(ax)
    return axes


def _confounded(lines: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    several = {line["label"]: map(wording.factor, line["changed"]) for line in lines if len(line["changed"]) > 1}
    found = "; ".join(f"{label} changes {' and '.join(factors)}" for label, factors in several.items())
    return [f"† Confounded, more than one factor at once: {found}."] if found else []


def _panel(
    ax: Axes, points: pd.DataFrame, metric: str, order: Sequence[str], steps: bool, look_of: style.LookOf
) -> None:
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
        look = look_of(point["latent_channels"], point["foundation_model"])
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
