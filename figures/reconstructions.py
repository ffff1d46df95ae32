"""What each tokenizer keeps of a picture: originals, then its reconstructions of them.

Claim (with the paper's Table 2): more latent channels keep more detail, with or without alignment.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from figures import layout, pictures, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.numbers import value_or_range

NAME = "reconstructions"
TITLE = "What does each tokenizer keep of a picture?"
PICTURES, LABELS, GAP = 5.26, 1.6, 0.07  # inches: width of a row, minimum width of its label, gap between them


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """A row of originals and a row of reconstructions per tokenizer, labelled with its PSNR and rFID.

    Reads sheets from `folder`/sheets. Originals that are the same for all tokenizers are shown once. Raises
    NothingToDraw without a finished tokenizer that has a sheet.
    """
    chosen = rows.rows_for_figure(table, NAME)
    tokenizers = rows.done(chosen, "tokenizer")
    last = tokenizers.sort_values("images_seen", kind="stable").drop_duplicates(
        ["fingerprint", "extractor", "extractor_size"], keep="last"
    )
    shown = {
        name: _sheet(last[last["tokenizer"] == name], folder)
        for name in rows.tokenizers(last)
        if (last[last["tokenizer"] == name]["sheet"] != "").any()
    }
    if not shown:
        raise NothingToDraw("no finished tokenizer has a picture sheet")
    originals = {name: sheet[0] for name, sheet in shown.items()}
    first = next(iter(originals.values()))
    shared = all(np.array_equal(first, other) for other in originals.values())

    strips: list[tuple[str, np.ndarray]] = [("", first)] if shared else []
    for name, sheet in shown.items():
        strips += [(name, sheet[1])] if shared else [("", sheet[0]), (name, sheet[1])]
    images = [pictures.tiled(strip[None], gap=max(strip.shape[1] // 32, 1)) for _, strip in strips]
    zooms = [pictures.scale(image.shape[1], PICTURES) for image in images]
    heights = [image.shape[0] * zoom / style.DPI + GAP for image, zoom in zip(images, zooms, strict=True)]

    data = _numbers(last)
    without = [name for name in rows.tokenizers(last) if name not in shown]
    notes = rows.missing_note(chosen, ("tokenizer",))
    notes += [f"No sheet: {', '.join(without)}."] if without else []
    seeds = last.groupby("tokenizer")["fingerprint"].nunique().max()
    notes += [f"Numbers: range over up to {seeds} seeds; pictures of the first."] if seeds > 1 else ["One seed."]
    notes += wording.caption(last)
    labels = {name: _label(data[data["tokenizer"] == name]) for name in shown}
    widest = max(layout.width(line, style.SMALL) for text in labels.values() for line in text.split("\n"))
    left = max(LABELS, layout.EDGE + widest + GAP)  # ranges over seeds are longer than one number
    with style.applied():
        figure, foot = layout.sheet(TITLE, _subtitle(last), notes, (left + PICTURES + layout.EDGE, sum(heights) + 0.14))
        y = foot + 0.08 + sum(heights)
        size = figure.get_size_inches()
        for (name, _), image, zoom, height in zip(strips, images, zooms, heights, strict=True):
            y -= height
            pictures.place(figure, image, left, y, zoom)
            middle = (y + (height - GAP) / 2) / size[1]
            if name:
                row = last[last["tokenizer"] == name].iloc[0]
                color = style.look(row["latent_channels"], row["foundation_model"]).color
                text = labels[name]
                lines = 1 + text.count("\n") + 1
                top = middle + lines * 0.058 / size[1]
                x = layout.EDGE / size[0]
                figure.text(x, top, name, va="top", fontsize=style.TEXT, weight="bold", color=color)
                figure.text(
                    x,
                    top - 0.13 / size[1],
                    text,
                    va="top",
                    fontsize=style.SMALL,
                    color=style.INK,
                    linespacing=1.25,
                )
            else:
                figure.text(
                    layout.EDGE / size[0],
                    middle,
                    "originals",
                    va="center",
                    fontsize=style.TEXT,
                    color=style.GREY,
                )
    return Drawing(figure, data)


def _sheet(runs: pd.DataFrame, folder: Path) -> np.ndarray:
    """Originals and reconstructions (2, 8, H, W, 3) of the first seed."""
    name = runs[runs["sheet"] != ""].sort_values(["tokenizer_seed", "seed", "protocol"])["sheet"].iloc[0]
    sheet = pictures.load(folder, name)
    if len(sheet) != 2:
        raise ValueError(f"{name} has {len(sheet)} rows of pictures; reconstructions have 2")
    return sheet


def _numbers(last: pd.DataFrame) -> pd.DataFrame:
    by = ["tokenizer", "foundation_model", "latent_channels", "extractor", "extractor_size"]
    rfid = rows.averaged(last, by, "rfid")
    psnr = rows.averaged(last.drop_duplicates("fingerprint"), ["tokenizer"], "psnr")
    return rfid.merge(psnr, on="tokenizer", how="left")


def _label(numbers: pd.DataFrame) -> str:
    first = numbers.iloc[0]
    lines = [] if pd.isna(first["psnr"]) else [f"{value_or_range(first['psnr_min'], first['psnr_max'])} dB PSNR"]
    for judge in rows.judges(numbers):
        row = judge.of(numbers).iloc[0]
        name = wording.judge(judge.extractor, None)
        lines.append(f"rFID {value_or_range(row['rfid_min'], row['rfid_max'])} ({name})")
    return "\n".join(lines)


def _subtitle(last: pd.DataFrame) -> str:
    judges = [wording.axis("rFID", judge.of(last)).split("\n") for judge in rows.judges(last)]
    metric = judges[0][0].split(" ")[0].rstrip(",")
    return f"PSNR: higher is better. {metric} ({', '.join(name for _, name in judges)}): lower is better."
