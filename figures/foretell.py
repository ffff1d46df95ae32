"""How well each number of a latent foretells gFID, within the plain and the aligned tokenizers and over all.

It shows the ablation `latents`: correlations with gFID over tokenizers, with their intervals, ranked; and those that a
study of other tokenizers has published.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import layout, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.foretell import ABLATION, FAMILIES, NAMES, POOLED, foretold, latent_points, latent_rows, noise
from results.numbers import percent
from results.published import load_correlations

NAME = "foretell"
TITLE = "What foretells gFID before a generator is trained?"
SCOPES = (*FAMILIES, POOLED)
PUBLISHED = "published"
ROW, PLOT, PRINTED = 0.27, 1.6, 1.3  # inches: height of a row; width of a panel, and of the published one
VALUE, GAP = 0.36, 0.1  # inches right of a panel, for the number and free
HEAD, FOOT, KEY = 0.46, 0.44, 0.26  # inches above and below the panels of a judge; of the key


class Mark(NamedTuple):
    """How a statistic is drawn: its words, its place within a row, its marker and colour, which is never grey."""

    words: str
    offset: float
    marker: str
    color: str
    hollow: bool


MARKS = {
    "rho": Mark("Spearman's ρ", -0.24, "o", "#0072b2", False),
    "r": Mark("Pearson's r", 0.0, "o", "#0072b2", True),
    "rho_given_rfid": Mark("ρ given rFID", 0.24, "D", "#d55e00", True),
}
SHAPES = {"SiT-B": "o", "SiT-XL": "s", "LightningDiT-B": "^", "LightningDiT-XL": "D"}  # of published generators


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """A row per predictor, a block per judge, a column per family, pooled, and published.

    The data has more statistics. `folder` is not read. Raises NotAsked without rows of the ablation, NothingToDraw
    without finished generators.
    """
    planned = rows.labelled(table, ABLATION)
    points = latent_points(table)
    if points.empty:
        raise NothingToDraw("no generator has finished")
    tokenizers, generators = latent_rows(table)
    found = foretold(points).assign(images_seen=points["images_seen"].iloc[0]).astype({"images_seen": "Int64"})
    measured = found.groupby("diagnostic")["n"].max()
    names = _ranked(found[found["diagnostic"].map(measured) > 0])
    judges, printed = rows.judges(points), load_correlations()
    printed = printed.assign(as_expected=-printed["r"])  # printed for turned predictors, against gFID itself
    notes = [
        "Correlations with gFID over tokenizers, turned so that 1 is what the authors of a number expect and −1 the "
        "reverse; bars: 90% bootstrap intervals over tokenizers. Numbers are ρ, whose mean over families ranks.",
        "Over all tokenizers a correlation is partly the distance between two families, so it can mislead.",
        *_fewer(found, names),
        *_unmeasured(measured),
        *[_noise(judge, judge.of(generators)) for judge in judges if noise(judge.of(generators))],
        _source(printed),
        *rows.missing_note(planned, ("tokenizer", "generator")),
        *wording.caption(pd.concat([tokenizers, generators])),
    ]
    left = max(layout.width(NAMES[name], style.TEXT) for name in names) + 2 * layout.EDGE
    block = HEAD + ROW * len(names) + FOOT
    body = (left + len(SCOPES) * (PLOT + VALUE + GAP) + PRINTED + layout.EDGE, KEY + block * len(judges))
    subtitle = f"{points['generator'].iloc[0]} at {wording.images(int(points['images_seen'].iloc[0]))} seen."
    with style.applied():
        figure, lower = layout.sheet(TITLE, subtitle, notes, body)
        _key(figure, left, lower + body[1] - KEY / 2)
        for number, judge in enumerate(judges):
            top = lower + body[1] - KEY - number * block
            of_judge = judge.of(found)
            _write(figure, layout.EDGE, top - 0.16, f"gFID by {wording.judge(*judge)}", weight="bold")
            x, height = left, ROW * len(names)
            for scope in SCOPES:
                here = of_judge[of_judge["scope"] == scope].set_index("diagnostic").loc[names]
                ax = _axes(figure, (x, top - HEAD - height, PLOT, height), names, named=scope == SCOPES[0])
                _write(figure, x, top - HEAD + 0.07, f"{scope}, n = {here['n'].max()}", color=style.GREY)
                _draw_one(ax, here)
                x += PLOT + VALUE + GAP
            ax = _axes(figure, (x, top - HEAD - height, PRINTED, height), names, named=False)
            _write(figure, x, top - HEAD + 0.07, f"published r, n = {printed['n'].max()}", color=style.GREY)
            _draw_printed(ax, printed, names)
    return Drawing(figure, found, _as_rows(printed, found))


def _ranked(found: pd.DataFrame) -> list[str]:
    """Predictors from the one that foretells best; those without a correlation come last."""
    within = found[found["scope"].isin(FAMILIES)].groupby("diagnostic", sort=False)["rho"].mean()
    return list(within.sort_values(ascending=False, kind="stable", na_position="last").index)


def _axes(figure: Figure, place: tuple[float, float, float, float], names: Sequence[str], *, named: bool) -> Axes:
    """A panel of correlations; place: left, lower, width and height in inches. named: whether rows have their names."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height))
    ax.set_xlim(-1.06, 1.06)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    ax.set_yticks(range(len(names)), [NAMES[name] for name in names] if named else [], fontsize=style.TEXT)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")
    ax.axvline(0, color=style.GREY, linewidth=0.8, zorder=1.5)
    for y in range(len(names) - 1):
        ax.axhline(y + 0.5, color=style.FAINT, linewidth=0.4, zorder=1)
    ax.set_xlabel("← the reverse   as expected →", fontsize=style.SMALL, color=style.GREY)
    return ax


def _draw_one(ax: Axes, here: pd.DataFrame) -> None:
    """The statistics of one judge in one scope, by predictor in order."""
    for y, row in enumerate(here.to_dict("records")):
        for key, mark in MARKS.items():
            if pd.isna(row[key]):
                continue
            if not pd.isna(row[f"{key}_low"]):
                ends = [row[f"{key}_low"], row[f"{key}_high"]]
                ax.plot(ends, [y + mark.offset] * 2, color=mark.color, linewidth=1, zorder=3, solid_capstyle="butt")
            ax.plot([row[key]], [y + mark.offset], zorder=4, **_marker(mark.marker, mark.color, mark.hollow))
        text = "–" if pd.isna(row["rho"]) else f"{row['rho']:.2f}".replace("-", "−")
        ax.annotate(
            text, (1, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            fontsize=style.SMALL, va="center_baseline", annotation_clip=False,
        )  # fmt: skip


def _draw_printed(ax: Axes, printed: pd.DataFrame, names: Sequence[str]) -> None:
    """Published correlations, a marker per generator; hollow where one reading alone has them."""
    ax.set_gid(layout.PUBLISHED)
    ax.set_facecolor(style.PUBLISHED_GROUND)
    ax.grid(True, axis="x", color="white")
    ax.set_xticks([-1, 0, 1], ["−1", "0", "1"])
    for name, of_predictor in printed[printed["predictor"].isin(names)].groupby("predictor"):
        generators = list(dict.fromkeys(of_predictor["generator"]))
        for row in of_predictor.to_dict("records"):
            marker = _marker(SHAPES[row["generator"]], style.GREY, row["confidence"] == "one reading")
            y = names.index(str(name)) + 0.19 * (generators.index(row["generator"]) - (len(generators) - 1) / 2)
            ax.plot([row["as_expected"]], [y], zorder=4, **marker)


def _marker(marker: str, color: str, hollow: bool) -> dict[str, Any]:
    return {
        "marker": marker, "color": color, "markersize": 3.6, "linestyle": "none", "markeredgewidth": 1.0,
        "markerfacecolor": "white" if hollow else color,
    }  # fmt: skip


def _key(figure: Figure, x: float, y: float) -> None:
    """What the marks are, in a line from a place in inches."""
    width, height = figure.get_size_inches()
    for mark in MARKS.values():
        figure.add_artist(Line2D([x / width], [y / height], **_marker(mark.marker, mark.color, mark.hollow)))
        _write(figure, x + 0.09, y, mark.words, color=mark.color)
        x += layout.width(mark.words, style.TEXT) + 0.35


def _write(figure: Figure, x: float, y: float, text: str, weight: str = "normal", color: str = style.INK) -> None:
    """Text at a place in inches."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, fontsize=style.TEXT, weight=weight, color=color, va="center_baseline")


def _fewer(found: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Which predictors fewer tokenizers have than the others."""
    n = found[found["diagnostic"].isin(names)].groupby(["scope", "diagnostic"], sort=False)["n"].min()
    parts = [f"{NAMES[name]} of {n[scope, name]} ({scope})"
             for scope in SCOPES for name in names if n[scope, name] < n[scope].max()]  # fmt: skip
    return [f"Of fewer tokenizers: {', '.join(parts)}."] if parts else []


def _unmeasured(measured: pd.Series) -> list[str]:
    names = [NAMES[str(name)] for name, n in measured.items() if n == 0]
    return [f"Not measured: {', '.join(names)} (python -m study.diagnose brings what is missing)."] if names else []


def _noise(judge: rows.Judge, generators: pd.DataFrame) -> str:
    """What repeats leave room for."""
    by_scope = noise(generators)
    parts = [f"{one.ceiling:.2f} ({scope})" for scope, one in by_scope.items()]
    repeats = next(iter(by_scope.values())).repeats
    spreads = [f"{scope} tokenizers by {percent(round(one.tokenizers, 2))[1:]}"
               for scope, one in by_scope.items() if scope in FAMILIES]  # fmt: skip
    return (
        f"Noise by {wording.judge(*judge)}: gFID varies by {percent(repeats)[1:]} over repeats, over "
        f"{' and '.join(spreads)}; a perfect number could reach a correlation of {', '.join(parts)}."
    )


def _source(printed: pd.DataFrame) -> str:
    """A note on the published correlations."""
    markers = {"o": "○", "s": "□", "^": "△", "D": "◇"}
    shapes = ", ".join(f"{markers[marker]} {name}" for name, marker in SHAPES.items())
    first, places = printed.iloc[0], ", ".join(dict.fromkeys(printed["figure"]))
    return (
        f"Published, not measured here ({first['publication']}, {places}): Pearson's r over {first['n']} tokenizers of "
        f"ImageNet ({first['tokenizers']}, most aligned, each trained once); {shapes}; hollow: from one reading of a "
        "figure. Compare ranks, not numbers."
    )


def _as_rows(printed: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Published correlations in the columns of the others."""
    source = printed["publication"] + ", " + printed["figure"] + ", " + printed["confidence"]
    own = printed[["generator", "n"]].assign(
        extractor="inception", scope=PUBLISHED, diagnostic=printed["predictor"], r=printed["as_expected"]
    )
    return own.reindex(columns=[*found]).astype(found.dtypes.to_dict()).assign(source=source)
