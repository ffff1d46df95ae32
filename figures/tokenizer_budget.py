"""What a tokenizer's longer training changes: reconstruction, generation, and how much of its latent it uses."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from figures import axis_scales, label_places, layout, marks, rows, style, wording
from figures.drawing import Drawing, NothingToDraw

NAME = "tokenizer_budget"
TITLE = "Does alignment gain less, the longer the tokenizers are trained?"
PLACE = ["tokenizer", "foundation_model", "latent_channels", "tokenizer_images"]


class Measure(NamedTuple):
    """A number of a tokenizer that no judge scores."""

    column: str
    label: str


RANK = Measure("effective_rank", "effective rank of the latents\n(at most their channels)")
CHROMA = Measure("chroma_r2", "share of chroma kept, R²\n(↑ higher is better)")
PSNR = Measure("psnr", "PSNR, dB (↑ higher is better)")


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID and gFID against the images that the tokenizer saw, a row of panels per judge, and below them its effective
    rank and the share of chroma that it keeps (of grey pictures PSNR). `folder` is not read.

    Raises NotAsked without rows of the ablation, NothingToDraw without finished generators.
    """
    planned = rows.labelled(table, NAME)
    generators, mark = rows.at_common_mark(rows.done(planned, "generator", also_by=("label",)), ["label"])
    tokenizers = rows.done(planned, "tokenizer", also_by=("fingerprint",))
    tokenizers = tokenizers.assign(tokenizer_images=tokenizers["images_seen"].astype(float))
    seen = tokenizers.drop_duplicates("tokenizer_fingerprint").set_index("tokenizer_fingerprint")["tokenizer_images"]
    generators = generators.assign(tokenizer_images=generators["tokenizer_fingerprint"].map(seen))
    generators = generators.dropna(subset=["tokenizer_images"])  # of tokenizers that are not judged yet
    if generators.empty:
        raise NothingToDraw("no tokenizer under a finished generator has finished")
    colours = CHROMA if tokenizers[CHROMA.column].notna().any() else PSNR
    measures = [measure for measure in (RANK, colours) if tokenizers[measure.column].notna().any()]
    points = _points(generators, tokenizers, [measure.column for measure in measures])
    judges = rows.judges(generators)

    (generator,) = set(generators["generator"])
    notes = rows.missing_note(planned, ("tokenizer", "generator"))
    notes += rows.seeds_note(points["gfid_runs"].dropna())
    notes += wording.caption(pd.concat([tokenizers, generators]))
    with style.applied():
        figure, axes = layout.panels(
            TITLE,
            f"Plain and aligned, under {generator} at {wording.images(mark)} seen.",
            notes,
            len(judges) + bool(measures),
            2,
            right=layout.label_room(rows.tokenizers(points)),
        )
        places = sorted(set(tokenizers["tokenizer_images"]))
        for judge, left, right in zip(judges, axes[::2], axes[1::2], strict=False):
            for ax, name, scored in ((left, "rFID", judge.of(tokenizers)), (right, "gFID", judge.of(generators))):
                _panel(ax, scored, name.lower(), wording.axis(name, scored), places)
        once = tokenizers.drop_duplicates("fingerprint")
        for ax, measure in zip(axes[2 * len(judges) :], measures, strict=False):
            _panel(ax, once, measure.column, measure.label, places)
        layout.hide_empty(axes)
    return Drawing(figure, points)


def _points(generators: pd.DataFrame, tokenizers: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """A row per judge, tokenizer and number of images that it saw, with the means of all that is drawn."""
    by = ["extractor", "extractor_size", *PLACE]
    points = rows.averaged(generators, by, "gfid")
    for metric in ("rfid", *measures):
        points = points.merge(rows.averaged(tokenizers, by, metric), on=by, how="outer")
    return points


def _panel(ax: Axes, repeats: pd.DataFrame, metric: str, label: str, places: list[float]) -> None:
    points = rows.averaged(repeats, PLACE, metric)
    if points.empty:
        return
    names = []
    for tokenizer in rows.tokenizers(points):
        line = points[points["tokenizer"] == tokenizer].sort_values("tokenizer_images", kind="stable")
        last = line.iloc[-1]
        look = style.look(last["latent_channels"], last["foundation_model"], tokenizer)
        mine = repeats[repeats["tokenizer"] == tokenizer]
        marks.means(ax, mine, "tokenizer_images", metric, linestyle=look.dash, zorder=3, **look.markers())
        names.append(label_places.Label(tokenizer, float(last["tokenizer_images"]), float(last[metric]), look.color))
    axis_scales.fit(ax, "y", [*points[f"{metric}_min"], *points[f"{metric}_max"]], pad=0.08)
    axis_scales.budget(ax, places)
    ax.set_xlabel("images that the tokenizer saw")
    ax.set_ylabel(label)
    label_places.at_line_ends(ax, names)
