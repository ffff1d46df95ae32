"""What generators draw: the first samples of each, from the same noise and labels.

Corresponds to the paper's Figures 5 and 6; it does not support a numerical claim.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from figures import layout, pictures, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.numbers import count, value_or_range

NAME = "samples"
TITLE = "What does a generator draw on each tokenizer?"
GRID, GAP, LINE = 2.63, 0.16, 0.12  # inches: width of a grid, gap between grids, height of a line of its label
ROWS = 4  # rows of eight samples shown


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """A grid of samples per tokenizer at its last snapshot, labelled with gFID, for the largest generator.

    Reads sheets from `folder`/sheets. Raises NothingToDraw without a finished generator that has a sheet.
    """
    chosen = rows.rows_for_figure(table, NAME)
    generators = rows.done(chosen, "generator")
    drawn = generators[generators["sheet"] != ""]
    if drawn.empty:
        raise NothingToDraw("no finished generator has a picture sheet")
    sizes = rows.generators(drawn)
    drawn = drawn[drawn["generator"] == sizes[-1]]
    last = drawn[drawn["images_seen"] == drawn.groupby("tokenizer")["images_seen"].transform("max")]
    names = rows.tokenizers(last)
    images = {name: _grid(last[last["tokenizer"] == name], folder) for name in names}

    head = LINE * (1 + len(rows.judges(last))) + 0.09
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    zooms = {name: pictures.scale(image.shape[1], GRID) for name, image in images.items()}
    height = max(images[name].shape[0] * zooms[name] for name in names) / style.DPI + head
    n_rows = -(-len(names) // columns)
    body = (max(columns * (GRID + GAP) - GAP + 2 * layout.EDGE, 3.4), n_rows * (height + GAP) - GAP + 0.06)

    by = ["tokenizer", "foundation_model", "latent_channels", "generator", "images_seen"]
    data = rows.averaged(last, [*by, "extractor", "extractor_size"], "gfid")
    notes = rows.missing_note(chosen[chosen["generator"].isin(["", sizes[-1]])], ("tokenizer", "generator"))
    if data["gfid_runs"].max() > 1:
        notes.append(f"gFID: range over up to {data['gfid_runs'].max()} seeds; pictures of the first.")
    else:
        notes.append("One seed.")
    notes += wording.caption(last)
    with style.applied():
        figure, foot = layout.sheet(TITLE, _subtitle(last, sizes), notes, body)
        size = figure.get_size_inches()
        for i, name in enumerate(names):
            x = layout.EDGE + (i % columns) * (GRID + GAP)
            top = foot + 0.06 + (n_rows - i // columns) * (height + GAP) - GAP
            row = last[last["tokenizer"] == name].iloc[0]
            color = style.look(row["latent_channels"], row["foundation_model"]).color
            place: dict[str, Any] = {"va": "top", "ha": "left"}
            figure.text(x / size[0], top / size[1], name, fontsize=style.TEXT, weight="bold", color=color, **place)
            text = _label(data[data["tokenizer"] == name])
            figure.text(x / size[0], (top - LINE - 0.02) / size[1], text, fontsize=style.SMALL, **place)
            bottom = top - head - images[name].shape[0] * zooms[name] / style.DPI
            pictures.place(figure, images[name], x, bottom, zooms[name])
    return Drawing(figure, data)


def _grid(runs: pd.DataFrame, folder: Path) -> np.ndarray:
    name = runs.sort_values(["tokenizer_seed", "seed", "protocol"])["sheet"].iloc[0]
    sheet = pictures.load(folder, name)[:ROWS]
    return pictures.tiled(sheet, gap=max(sheet.shape[2] // 32, 1))


def _label(numbers: pd.DataFrame) -> str:
    found = [(judge, judge.of(numbers).iloc[0]) for judge in rows.judges(numbers)]
    return "\n".join(
        f"gFID {value_or_range(row['gfid_min'], row['gfid_max'])} ({wording.judge(judge.extractor, None)})"
        for judge, row in found
    )


def _subtitle(last: pd.DataFrame, sizes: list[str]) -> str:
    judges = [wording.axis("gFID", judge.of(last)).split("\n") for judge in rows.judges(last)]
    metric = judges[0][0].split(" ")[0]
    which = f"{sizes[-1]}, the largest of {len(sizes)} generators" if len(sizes) > 1 else sizes[-1]
    marks = sorted(set(last["images_seen"]))
    at = " to ".join(count(mark) for mark in dict.fromkeys((marks[0], marks[-1])))
    return f"{which}, after {at} images. {metric} ({', '.join(name for _, name in judges)}): lower is better."
