"""What every regulariser does to rFID and gFID, at each width and strength, alone and on aligned tokenizers.

It shows the ablation `latents`. The number in a cell is a mean over repeats, its colour the change from the tokenizer
of that width and family without regularisers.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance

from figures import layout, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.foretell import ABLATION, FAMILIES, family, latent_points, latent_rows
from results.numbers import percent, three_digits

NAME = "latents"
TITLE = "Which latents are easy to learn?"
METRICS = {"rfid": "rFID", "gfid": "gFID"}
NONE = "no regulariser"
CELL, LINE = 0.52, 0.185  # inches: width and height of a cell
HEAD, FOOT, GAP = 0.5, 0.34, 0.16  # inches above and below the cells, and between metrics
DARK = 0.2  # luminance of a cell below which white has more contrast than ink
COLOURS, FULL = "PuOr_r", math.log(1.5)  # lower is violet, higher orange; the change that has the full colour


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """A block of cells per family, metric and judge: a row per regulariser and strength, a column per width.

    `folder` is not read. Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    planned = rows.labelled(table, ABLATION)
    asked = _settings(planned[planned["kind"] == "generator"])
    points = latent_points(table)
    if points.empty:
        raise NothingToDraw("no generator has finished")
    data = _changes(points.drop(columns="family").merge(asked, on="label"))
    tokenizers, generators = latent_rows(table)
    judges, families = rows.judges(data), [name for name in FAMILIES if name in set(asked["family"])]
    asked = asked[asked["family"].isin(families)]
    widths = sorted(set(asked["width"]))
    notes = [
        f"Colour: change from {NONE}, of the same width and family; violet is lower and better, orange higher, full "
        f"from {percent(round(math.expm1(-FULL), 2))} and {percent(math.expm1(FULL))} on. –: no result.",
        *_neither(data, judges),
        *rows.missing_note(planned, ("tokenizer", "generator")),
        *_repeated(data),
        *wording.caption(pd.concat([tokenizers, generators])),
    ]
    settings = {name: list(dict.fromkeys(asked[asked["family"] == name]["setting"])) for name in families}
    texts = [text for family_settings in settings.values() for text in family_settings]
    left = max(
        *(layout.width(text, style.TEXT) for text in texts),
        *(layout.width(_title(name), style.TEXT, "bold") for name in families),
    )
    left += 2 * layout.EDGE
    counted = {metric: wording.counted(title, _samples(of)) + " (↓)"
               for (metric, title), of in zip(METRICS.items(), (tokenizers, generators), strict=True)}  # fmt: skip
    block = GAP + max(
        CELL * len(widths),
        *(layout.width(text, style.TEXT) for text in counted.values()),
        *((layout.width(wording.judge(*judge), style.TEXT) - GAP) / 2 for judge in judges),
    )
    heights = {name: HEAD + LINE * len(texts) + FOOT for name, texts in settings.items()}
    subtitle = f"{rows.generators(generators)[0]} at {wording.images(int(data['images_seen'].iloc[0]))} seen."
    with style.applied():
        body = (max(left + block * len(judges) * len(METRICS) + layout.EDGE, 4.6), sum(heights.values()))
        figure, lower = layout.sheet(TITLE, subtitle, notes, body)
        for name in reversed(families):  # from below
            here, top = data[data["family"] == name], lower + heights[name]
            _write(figure, layout.EDGE, top - 0.22, _title(name), weight="bold")
            x = left
            for judge in judges:
                _write(figure, x, top - 0.22, wording.judge(*judge))
                for metric, text in counted.items():
                    _write(figure, x, top - 0.4, text, color=style.GREY)
                    place = (x, lower + FOOT, block - GAP, LINE * len(settings[name]))
                    _cells(figure, place, judge.of(here), metric, settings[name], widths, x == left)
                    x += block
            lower = top
    return Drawing(figure, data)


def _title(name: str) -> str:
    return f"{name} tokenizers"


def _samples(scored: pd.DataFrame) -> list[int]:
    return [int(n) for n in scored["samples"].dropna()]


def _settings(generators: pd.DataFrame) -> pd.DataFrame:
    """In the ablation's order, the label of each tokenizer, its family, width and regulariser with its strength."""
    asked = generators.sort_values("place", kind="stable").drop_duplicates("label")
    base = asked["tokenizer"].str.partition("+")[0]
    setting = [label.removeprefix(spec).lstrip("+, ") for label, spec in zip(asked["label"], base, strict=True)]
    return pd.DataFrame(
        {
            "label": asked["label"],
            "family": asked["foundation_model"].map(family),
            "width": asked["latent_channels"],
            "setting": [text or NONE for text in setting],
        }
    )


def _changes(points: pd.DataFrame) -> pd.DataFrame:
    """Adds, for each metric, its change from the tokenizer without regularisers; missing where that is missing."""
    place = ["extractor", "extractor_size", "family", "width"]
    base = points[points["setting"] == NONE][[*place, *METRICS]]
    points = points.merge(base, on=place, how="left", suffixes=("", "_base"))
    for metric in METRICS:
        points[f"{metric}_change"] = points[metric] / points.pop(f"{metric}_base") - 1
    columns = ["extractor", "extractor_size", "generator", "images_seen", "label", "family", "width", "setting"]
    columns += [column for metric in METRICS for column in (metric, f"{metric}_change")]
    return points[[*columns, "gfid_runs"]]


def _cells(
    figure: Figure,
    place: tuple[float, float, float, float],
    scored: pd.DataFrame,
    metric: str,
    settings: list[str],
    widths: list[int],
    named: bool,
) -> None:
    """One metric by one judge; place: left, lower, width and height in inches. named: whether rows have their names."""
    sheet = [*figure.get_size_inches()] * 2
    ax: Axes = figure.add_axes(tuple(value / of for value, of in zip(place, sheet, strict=True)))
    table = scored.pivot(index="setting", columns="width", values=metric).reindex(index=settings, columns=widths)
    change = scored.pivot(index="setting", columns="width", values=f"{metric}_change").reindex_like(table)
    logs = change.map(lambda share: 0.0 if pd.isna(share) else math.log1p(share))
    texts = table.map(lambda value: "–" if pd.isna(value) else three_digits(value))
    sns.heatmap(
        logs, ax=ax, annot=texts, fmt="", cmap=matplotlib.colormaps[COLOURS], vmin=-FULL, vmax=FULL, cbar=False,
        linewidths=1.0, linecolor="white", annot_kws={"fontsize": style.SMALL},
    )  # fmt: skip
    for text, color in zip(ax.texts, ax.collections[0].get_facecolor(), strict=True):
        text.set_color("white" if relative_luminance(color) < DARK else style.INK)
    ax.set(xlabel="", ylabel="")
    ax.set_yticks(np.arange(len(settings)) + 0.5, settings if named else [""] * len(settings), fontsize=style.TEXT)
    ax.set_xticks(np.arange(len(widths)) + 0.5, [f"d{width}" for width in widths], fontsize=style.TEXT)
    ax.tick_params(axis="both", length=0, rotation=0)


def _neither(data: pd.DataFrame, judges: list[rows.Judge]) -> list[str]:
    """The numbers of tokenizers of neither family."""
    lines = []
    for judge in judges:
        for row in judge.of(data[data["family"] == "neither"]).to_dict("records"):
            numbers = ", ".join(f"{title} {three_digits(row[metric])}" for metric, title in METRICS.items())
            lines.append(f"{row['label']} by {wording.judge(*judge)}: {numbers}.")
    return lines


def _repeated(data: pd.DataFrame) -> list[str]:
    """How many tokenizers were trained several times."""
    runs = data.drop_duplicates("label")["gfid_runs"]
    several = runs[runs > 1]
    if several.empty:
        return ["One seed."]
    return [f"{len(several)} of {len(runs)} tokenizers: means of {several.max()} seeds; the others have one."]


def _write(figure: Figure, x: float, y: float, text: str, weight: str = "normal", color: str = style.INK) -> None:
    """Text at a place in inches."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, fontsize=style.TEXT, weight=weight, color=color)
