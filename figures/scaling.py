"""How gFID falls with the size of the generator, per tokenizer.

Claim (the paper's Figure 4 c, Table 2): on an aligned tokenizer small generators already do well, so the
slope against parameters is flatter; wide plain tokenizers need large generators.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from figures import axis_scales, label_places, layout, marks, paper_values, rows, style, wording
from figures.drawing import Drawing, NothingToDraw

NAME = "scaling"
TITLE = "How large a generator does each tokenizer need?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID against generator parameters at the last common number of images seen, one panel per judge.

    `folder` is not read. Raises NothingToDraw without finished generators of known size.
    """
    chosen = rows.rows_for_figure(table, NAME)
    generators, mark, points = _panel_data(chosen)
    judges, sizes = rows.judges(points), rows.generators(points)
    at = f"At {wording.images(mark)} seen."
    shown = f"Generators: {', '.join(sizes)}." if len(sizes) > 1 else f"{sizes[0]} only: one size shows no slope."
    notes = rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += rows.seeds_note(points["gfid_runs"], generators)
    notes += wording.caption(generators)
    paper = paper_values.paper_rows(table, NAME)
    paper_data = None if paper is None else _panel_data(paper)
    names = rows.tokenizers(points) + ([] if paper_data is None else rows.tokenizers(paper_data.points))
    with style.applied():
        figure, axes = layout.panels(
            TITLE,
            f"{at} {shown}",
            notes,
            1,
            len(judges),
            right=layout.label_room(names),
            published_note=wording.published_note(paper),
        )
        for ax, judge in zip(axes, judges, strict=False):
            _panel(ax, judge.of(points), judge.of(generators), paper_values.look_for(table))
        if paper_data is not None:
            _panel(axes[len(judges)], paper_data.points, paper_data.generators, style.grey)
        layout.hide_empty(axes)
    if paper_data is None:
        return Drawing(figure, points)
    return Drawing(figure, points, paper_values.with_source(paper_data.points, paper_data.generators))


class PanelData(NamedTuple):
    """What the panels show: finished generators of known size at their last common mark, a point per tokenizer."""

    generators: pd.DataFrame
    mark: int | None
    points: pd.DataFrame


def _panel_data(chosen: pd.DataFrame) -> PanelData:
    generators = rows.done(chosen, "generator").dropna(subset=["parameters"])
    if generators.empty:
        raise NothingToDraw("no finished generator has its number of parameters recorded")
    generators, mark = rows.at_common_mark(generators)
    by = ["extractor", "extractor_size", "tokenizer", "foundation_model", "latent_channels", "generator"]
    points = rows.averaged(generators, [*by, "images_seen"], "gfid")
    # the input layer grows a little with the latent's width; every generator still gets one place on the axis
    sizes = generators.groupby("generator")["parameters"].min()
    points["parameters"] = points["generator"].map(sizes)
    return PanelData(generators.assign(parameters=generators["generator"].map(sizes)), mark, points)


def _panel(ax: Axes, points: pd.DataFrame, generators: pd.DataFrame, look_of: style.LookOf) -> None:
    names = []
    for tokenizer in rows.tokenizers(points):
        line = points[points["tokenizer"] == tokenizer].sort_values("parameters", kind="stable")
        last = line.iloc[-1]
        look = look_of(last["latent_channels"], last["foundation_model"], tokenizer)
        repeats = generators[generators["tokenizer"] == tokenizer]
        marks.means(ax, repeats, "parameters", "gfid", linestyle=look.dash, zorder=3, **look.markers())
        names.append(label_places.Label(tokenizer, float(last["parameters"]), float(last["gfid"]), look.color))
    axis_scales.fit(ax, "y", [*points["gfid_min"], *points["gfid_max"]], pad=0.08)
    axis_scales.budget(ax, sorted(float(size) for size in set(points["parameters"])))
    ax.set_xlabel("generator parameters")
    ax.set_ylabel(wording.axis("gFID", generators))
    label_places.at_line_ends(ax, names)
