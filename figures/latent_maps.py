"""How the latents of each tokenizer lie: their density on a map, and what they keep of a picture's layout.

Claim (the paper's figure of latent distributions, with its Table 6): latents of a wide plain tokenizer are dense in
some regions, and those of an aligned one are distributed more evenly. The numbers are in the figure `uniformity`.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures import layout, paper_values, pictures, rows, style, wording
from figures.drawing import Drawing, NotAsked, NothingToDraw
from results.numbers import three_digits
from results.schema import latents_file

NAME = "latent_maps"
TITLE = "How do the latents of each tokenizer lie?"
MAP, PICTURE, GAP, LEFT, BAR = 1.34, 0.66, 0.14, 1.22, 0.5  # inches; LEFT is for labels, BAR for the scale of colours
SHOWN = 5  # pictures of a sheet's eight
COLORS = "cividis_r"  # darker is denser: also in grey, and for the colour-blind
NUMBERS = {"density_cv": "spread", "gini": "Gini", "effective_rank": "eff. rank"}


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """For the first seed of each tokenizer a t-SNE map of latents coloured by density, and pictures with their latents.

    Each latent is below its picture; red, green and blue are its first three principal components. Reads
    `folder`/sheets. Raises NothingToDraw without a finished tokenizer that has a map, NotAsked for published tables.
    """
    if paper_values.is_published(table):
        raise NotAsked("nobody publishes latents")
    chosen = rows.rows_for_figure(table, NAME)
    tokenizers = rows.done(chosen, "tokenizer").sort_values(["tokenizer_seed", "seed"]).drop_duplicates("tokenizer")
    of = {row["tokenizer"]: row for row in tokenizers.to_dict("records")}
    maps = {
        name: pd.read_csv(path)
        for name in rows.tokenizers(tokenizers)
        if (path := folder / "sheets" / latents_file(of[name]["fingerprint"], ".csv")).exists()
    }
    if not maps:
        raise NothingToDraw("no tokenizer has a map of its latents: python -m study.diagnose brings them")
    without = [name for name in rows.tokenizers(tokenizers) if name not in maps]
    notes = rows.missing_note(chosen, ("tokenizer",))
    notes += [f"No map: {', '.join(without)} (python -m study.diagnose brings it)."] if without else []
    notes += _explained(maps)
    several = chosen[chosen["kind"] == "tokenizer"].groupby("tokenizer")["fingerprint"].nunique().max() > 1
    notes += ["The first of several seeds."] if several else ["One seed."]
    notes += wording.caption(tokenizers.assign(comparable=True, reference=""))  # the figure shows no FID
    densities = np.concatenate([found["density"] for found in maps.values()])
    colors = ScalarMappable(Normalize(0, float(np.quantile(densities, 0.995))), COLORS)
    width = LEFT + MAP + GAP + SHOWN * (PICTURE + 0.04) + layout.EDGE
    line = MAP + GAP
    subtitle = "Left: t-SNE of latents, coloured by local density. Right: pictures, and below each its latent."
    with style.applied():
        figure, foot = layout.sheet(TITLE, subtitle, notes, (width, len(maps) * line + BAR))
        for i, (name, found) in enumerate(maps.items()):
            bottom = foot + BAR + (len(maps) - 1 - i) * line
            _label(figure, of[name], bottom + MAP)
            _map(figure, found, bottom, colors)
            sheet = latents_file(of[name]["fingerprint"], ".png")
            if (folder / "sheets" / sheet).exists():
                _pictures(figure, pictures.load(folder, sheet)[:, :SHOWN], bottom)
        _scale(figure, colors, foot + BAR - 0.17)
    data = pd.concat([found.assign(tokenizer=name) for name, found in maps.items()], ignore_index=True)
    return Drawing(figure, data[["tokenizer", "x", "y", "density"]])


def _explained(maps: dict[str, pd.DataFrame]) -> list[str]:
    """How maps and pictures were made."""
    number = " or ".join(f"{n:,}" for n in sorted({len(found) for found in maps.values()}))
    return [
        f"Maps: {number} latent tokens, one per training image, normalised per channel; t-SNE with perplexity 30, so "
        "places and distances of two maps cannot be compared; Gaussian kernel density.",
        "Pictures: training images, drawn at random; of their latents the first three principal components as red, "
        "green and blue, each over its own range.",
        "Spread and Gini are of the densities (0: even); the effective rank is at most the channels.",
    ]


def _label(figure: Figure, row: Mapping[Hashable, Any], top: float) -> None:
    width, height = figure.get_size_inches()
    color = style.look(row["latent_channels"], row["foundation_model"]).color
    place: dict[str, Any] = {"va": "top", "ha": "left"}
    x = layout.EDGE / width
    figure.text(x, top / height, row["tokenizer"], fontsize=style.TEXT, weight="bold", color=color, **place)
    lines = [f"{text} {three_digits(row[key])}" for key, text in NUMBERS.items() if not pd.isna(row[key])]
    figure.text(x, (top - 0.16) / height, "\n".join(lines), fontsize=style.SMALL, linespacing=1.25, **place)


def _map(figure: Figure, found: pd.DataFrame, bottom: float, colors: ScalarMappable) -> None:
    """Draw a square map with equal units on both axes; dense points are drawn last, so that they are not hidden."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((LEFT / width, bottom / height, MAP / width, MAP / height))
    found = found.sort_values("density", kind="stable")
    size = min(5.0, 3000 / len(found))
    shades = colors.to_rgba(found["density"].to_numpy())
    ax.scatter(found["x"], found["y"], s=size, c=shades, linewidths=0, rasterized=True)
    middle = [(found[axis].min() + found[axis].max()) / 2 for axis in "xy"]
    reach = max(found[axis].max() - found[axis].min() for axis in "xy") * 0.53
    ax.set_xlim(middle[0] - reach, middle[0] + reach)
    ax.set_ylim(middle[1] - reach, middle[1] + reach)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, color=style.FAINT)


def _pictures(figure: Figure, sheet: np.ndarray, bottom: float) -> None:
    gap = max(sheet.shape[2] // 16, 1)
    image = pictures.tiled(sheet, gap=gap)
    pictures.place(figure, image, LEFT + MAP + GAP, bottom, MAP * style.DPI / image.shape[0])


def _scale(figure: Figure, colors: ScalarMappable, top: float) -> None:
    width, height = figure.get_size_inches()
    ax = figure.add_axes((LEFT / width, top / height, MAP / width, 0.07 / height))
    bar = figure.colorbar(colors, cax=ax, orientation="horizontal", extend="max")
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}×"))
    ax.tick_params(labelsize=style.SMALL, length=2)
    figure.text(
        (LEFT + MAP + 0.22) / width, top / height, "density over the mean of the map", fontsize=style.SMALL, va="bottom"
    )
