"""The dilemma itself: what a wider latent does to reconstruction and to generation.

Claim (the paper's Figure 1): with more latent channels rFID falls and gFID rises; aligned with a foundation model, rFID
falls as far and gFID stays low.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from figures import axis_scales, label_places, layout, marks, paper_values, rows, style, wording
from figures.drawing import Drawing, NothingToDraw

NAME = "dilemma"
METRICS = {"rfid": "rFID", "gfid": "gFID"}
TITLE = "What does a wider latent do to reconstruction and to generation?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID (left) and gFID of the smallest generator (right) against latent channels, a row of panels per judge.

    `folder` is not read. Raises NothingToDraw without finished tokenizers and generators, or if two tokenizers have the
    same place on a line, as published ones of several authors do.
    """
    chosen = rows.rows_for_figure(table, NAME)
    for (width, model, regularisers), same in chosen.groupby(["latent_channels", *_families(chosen)]):
        if len(names := rows.tokenizers(same)) > 1:
            alike = f"{_name(str(model), str(regularisers))}, {width} channels wide"
            raise NothingToDraw(f"{' and '.join(names)} are all {alike}: see frontier")
    tokenizers, generators, mark, points = _panel_data(chosen)
    smallest = points["generator"].iloc[0]
    chosen = chosen[(chosen["kind"] == "tokenizer") | (chosen["generator"] == smallest)]
    used = pd.concat([tokenizers, generators])

    judges = rows.judges(points)
    notes = rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += rows.seeds_note([*points["rfid_runs"].dropna(), *points["gfid_runs"].dropna()], used)
    notes += wording.caption(used)
    late = mark and mark < chosen[chosen["kind"] == "generator"]["images_seen"].max()
    at = " (last mark common to all)" if late else ""
    subtitle = f"Left: reconstructions. Right: samples of {smallest} after {wording.images(mark)}{at}."
    paper = paper_values.paper_rows(table, NAME)
    paper_data = None if paper is None else _panel_data(paper)
    families = _named(points) | (set() if paper_data is None else _named(paper_data.points))
    published_note = wording.published_note(paper)
    if paper_data is not None:
        published_note += f" Right: {paper_data.points['generator'].iloc[0]}."
    with style.applied():
        right = layout.label_room([_name(*family) for family in sorted(families)])
        figure, axes = layout.panels(TITLE, subtitle, notes, len(judges), 2, right=right, published_note=published_note)
        for number, judge in enumerate(judges):
            scored = PanelData(judge.of(tokenizers), judge.of(generators), mark, judge.of(points))
            _draw_row(axes[2 * number : 2 * number + 2], scored, paper_values.look_for(table))
        if paper_data is None:
            return Drawing(figure, points)
        _draw_row(axes[-2:], paper_data, style.grey)
    return Drawing(figure, points, paper_values.with_source(paper_data.points, paper_data.generators))


class PanelData(NamedTuple):
    """What the panels show: finished tokenizers at their last mark, the smallest generator at its last common mark, a
    point per width.
    """

    tokenizers: pd.DataFrame
    generators: pd.DataFrame
    mark: int | None
    points: pd.DataFrame


def _panel_data(chosen: pd.DataFrame) -> PanelData:
    tokenizers, generators = rows.done(chosen, "tokenizer"), rows.done(chosen, "generator")
    smallest = rows.generators(generators)[0]
    generators, mark = rows.at_common_mark(generators[generators["generator"] == smallest])
    by = ["extractor", "extractor_size", "foundation_model", "latent_channels", "tokenizer"]
    tokenizers = tokenizers.sort_values("images_seen", kind="stable")
    tokenizers = tokenizers.drop_duplicates(["fingerprint", *by[:2]], keep="last")
    points = rows.averaged(tokenizers, by, "rfid").merge(rows.averaged(generators, by, "gfid"), on=by, how="outer")
    return PanelData(tokenizers, generators, mark, points.assign(generator=smallest, images_seen=mark))


def _draw_row(axes: Sequence[Axes], data: PanelData, look_of: style.LookOf) -> None:
    """rFID in the first of two axes, gFID in the second, of one judge."""
    for ax, metric, scored in zip(axes, METRICS, (data.tokenizers, data.generators), strict=True):
        points = data.points.dropna(subset=[metric])
        names = _lines(ax, scored.dropna(subset=[metric]), metric, look_of)
        axis_scales.fit(ax, "y", [*points[f"{metric}_min"], *points[f"{metric}_max"]], pad=0.08)
        axis_scales.budget(ax, sorted(set(data.points["latent_channels"])))
        ax.set_xlabel("latent channels")
        ax.set_ylabel(wording.axis(METRICS[metric], scored))
        label_places.at_line_ends(ax, names)


def _families(data: pd.DataFrame) -> list[pd.Series]:
    """What the tokenizers of a line share: foundation model and regularisers."""
    return [data["foundation_model"], data["tokenizer"].map(rows.regularisers).rename("regularisers")]


def _named(data: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(*_families(data), strict=True))


def _name(model: str, regularisers: str) -> str:
    alignment = "plain" if model == "none" else model if model.startswith("rae-") else f"aligned ({model})"
    return " + ".join([alignment, *filter(None, regularisers.split("+"))])


def _lines(ax: Axes, repeats: pd.DataFrame, metric: str, look_of: style.LookOf) -> list[label_places.Label]:
    """Draw a line per foundation model and regularisers, without the widths that have no result, and markers in the
    colour of the width.

    Returns the labels of the lines' ends.
    """
    x, names = "latent_channels", []
    for model, regularisers in sorted(_named(repeats), key=lambda family: (family[1], family[0] != "none", family[0])):
        of_model, of_regularisers = _families(repeats)
        mine = repeats[(of_model == model) & (of_regularisers == regularisers)]
        tokenizer = mine["tokenizer"].iloc[0]  # of any width
        dash = look_of(int(mine[x].min()), model, tokenizer).dash
        marks.means(ax, mine, x, metric, spread=None, color=style.GREY, linestyle=dash, linewidth=1, zorder=2)
        for _, same in mine.groupby(x):
            look = look_of(int(same[x].iloc[0]), model, tokenizer)
            marks.means(ax, same, x, metric, linestyle="none", zorder=4, **look.markers())
        last = mine[mine[x] == mine[x].max()]
        names.append(
            label_places.Label(
                _name(model, regularisers), float(last[x].iloc[0]), float(last[metric].mean()), style.INK
            )
        )
    return names
