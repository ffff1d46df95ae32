"""The dilemma itself: what a wider latent does to reconstruction and to generation.

Claim (the paper's Figure 1): with more latent channels rFID falls and gFID rises; aligned with a foundation model, rFID
falls as far and gFID stays low.
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from figures import labels, page, rows, scales, style, wording
from figures.drawing import Drawing

NAME = "dilemma"
TITLE = "What does a wider latent do to reconstruction and to generation?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """rFID (left) and gFID of the smallest generator (right) against latent channels, a row of panels per judge.

    `folder` is not read. Raises NothingToDraw without finished tokenizers and generators.
    """
    chosen = rows.asked(table, NAME)
    tokenizers, generators = rows.done(chosen, "tokenizer"), rows.done(chosen, "generator")
    smallest = rows.generators(generators)[0]
    chosen = chosen[(chosen["kind"] == "tokenizer") | (chosen["generator"] == smallest)]
    generators = generators[generators["generator"] == smallest]
    mark = rows.common_mark(generators)
    generators = generators[generators["images_seen"] == mark]
    by = ["extractor", "extractor_size", "foundation_model", "latent_channels", "tokenizer"]
    last = tokenizers.sort_values("images_seen").drop_duplicates(["fingerprint", *by[:2]], keep="last")
    points = rows.averaged(last, by, "rfid").merge(rows.averaged(generators, by, "gfid"), on=by, how="outer")
    points = points.assign(generator=smallest, images_seen=mark)

    judges = rows.judges(points)
    notes = rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += rows.seeds_note([*points["rfid_runs"].dropna(), *points["gfid_runs"].dropna()])
    notes += wording.caption(pd.concat([tokenizers, generators]))
    at = " (last mark common to all)" if mark < chosen[chosen["kind"] == "generator"]["images_seen"].max() else ""
    subtitle = f"Left: reconstructions. Right: samples of {smallest} after {wording.count(mark)} images{at}."
    names = [_name(model) for model in sorted(set(points["foundation_model"]))]
    with style.applied():
        figure, axes = page.panels(TITLE, subtitle, notes, len(judges), 2, right=page.beside(names))
        for number, judge in enumerate(judges):
            here = judge.of(points)
            for ax, metric, scored in zip(
                axes[2 * number :], ("rfid", "gfid"), (judge.of(tokenizers), judge.of(generators)), strict=False
            ):
                scales.budget(ax, sorted(set(points["latent_channels"])))
                _panel(ax, here.dropna(subset=[metric]), metric)
                ax.set_xlabel("latent channels")
                ax.set_ylabel(wording.axis({"rfid": "rFID", "gfid": "gFID"}[metric], scored))
    return Drawing(figure, points)


def _name(model: str) -> str:
    return "plain" if model == "none" else f"aligned ({model})"


def _panel(ax: Axes, points: pd.DataFrame, metric: str) -> None:
    """A line per foundation model, which leaves out widths without a result; markers in the width's colour."""
    scales.fit(ax, "y", [*points[f"{metric}_min"], *points[f"{metric}_max"]], pad=0.08)
    names = []
    for model in sorted(set(points["foundation_model"]), key=lambda name: (name != "none", name)):
        line = points[points["foundation_model"] == model].sort_values("latent_channels")
        x = line["latent_channels"].astype(float)
        dash = style.look(int(line["latent_channels"].iloc[0]), model).dash
        ax.plot(x, line[metric], color=style.GREY, linestyle=dash, linewidth=1, zorder=2)
        for point in line.to_dict("records"):
            look = style.look(point["latent_channels"], model)
            at = float(point["latent_channels"])
            ax.vlines(at, point[f"{metric}_min"], point[f"{metric}_max"], color=look.color, linewidth=1, zorder=3)
            ax.plot([at], [point[metric]], linestyle="none", zorder=4, **look.markers())
        names.append(labels.Label(_name(model), float(x.iloc[-1]), float(line[metric].iloc[-1]), style.INK))
    labels.beside(ax, names)
