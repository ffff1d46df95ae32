"""What classifier-free guidance gives on each tokenizer, when its scale is chosen on other samples.

Claim: gFID falls with the scale and rises again. The paper's Table 3 has numbers with and without guidance; choosing
the scale on a separate seed is our addition.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from figures import axis_scales, label_places, layout, marks, rows, style, wording
from figures.drawing import Drawing, NotAsked
from results.guidance import choices, swept
from results.numbers import count
from results.runs import GUIDANCE, choosing

NAME = GUIDANCE
TITLE = "What does guidance give on each tokenizer?"
RING: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.1}


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID against the guidance scale, a panel per judge and generator; the samples that choose a scale as thin lines.

    `folder` is not read. Raises NotAsked without rows of the ablation, NothingToDraw without finished scores.
    """
    chosen = swept(table)
    if chosen.empty:
        raise NotAsked(f"the ablation {GUIDANCE} has not been asked")
    parts = {"choosing": chosen[choosing(chosen)], "scoring": chosen[~choosing(chosen)]}
    scored = rows.done(parts["scoring"], "generator", varies=("guidance_scale",))
    found = pd.concat([part.assign(seed_is_for=name) for name, part in parts.items()])
    found = found[found["state"] == "done"]
    by = ["extractor", "extractor_size", "generator", "tokenizer", "foundation_model", "latent_channels", "images_seen"]
    points = rows.averaged(found, [*by, "seed_is_for", "guidance_scale"], "gfid")
    points["parameters"] = points["generator"].map(scored.groupby("generator")["parameters"].min())
    best = _best(table, scored)
    keys = [*by, "seed_is_for", "guidance_scale"]
    counts = best.assign(seed_is_for="scoring").groupby(keys, dropna=False).size().rename("best_of_runs").reset_index()
    points = points.merge(counts, on=keys, how="left").fillna({"best_of_runs": 0}).astype({"best_of_runs": int})

    panels, n_rows, n_columns = rows.cells(points)
    only_generator = panels[0][0] if len(rows.generators(points)) == 1 else ""
    notes = rows.missing_note(chosen, ("generator",))
    notes += rows.seeds_note(scored.groupby([*by, "guidance_scale"]).size(), scored)
    if counted := sorted(set(parts["choosing"]["samples"].dropna())):
        notes.append(f"Chosen on {' and '.join(f'{n:,}' for n in counted)} samples of other seeds that score nothing.")
    notes += wording.caption(scored)
    marks = " or ".join(count(mark) for mark in sorted(set(points["images_seen"])))
    subtitle = "Thick: samples that score. Thin: samples that choose the scale. Rings: the chosen scale, as it scores."
    with style.applied():
        figure, axes = layout.panels(
            TITLE,
            f"{only_generator or 'Generators'} after {marks} images. {subtitle}",
            notes,
            n_rows,
            n_columns,
            right=layout.label_room(rows.tokenizers(points)),
            headings=not only_generator,
        )
        for ax, (generator, judge) in zip(axes, panels, strict=False):
            mine, rings = judge.of(found), best[best["extractor"] == judge.extractor]
            names = _lines(ax, mine[mine["generator"] == generator], rings[rings["generator"] == generator])
            _frame(ax, judge.of(points), judge.of(scored))
            label_places.at_line_ends(ax, names)
            if not only_generator:
                layout.heading(ax, generator)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
    return Drawing(figure, points)


def _best(table: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """The scored rows at the guidance scale that was chosen for the row's generator by the row's judge."""
    chosen = {(c.fingerprint, c.images_seen, c.extractor, c.scale) for c in choices(table)}
    keys = zip(*(scored[name] for name in ("fingerprint", "images_seen", "extractor", "guidance_scale")), strict=True)
    return scored[[key in chosen for key in keys]]


def _frame(ax: Axes, points: pd.DataFrame, scored: pd.DataFrame) -> None:
    """Set the axes, equal in all panels of one judge."""
    values = sorted(set(points["guidance_scale"]))
    axis_scales.fit(ax, "y", [*points["gfid_min"], *points["gfid_max"]], pad=0.08)
    axis_scales.fit(ax, "x", values, pad=0.05)
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    ax.set_xlabel("scale of guidance (1 is none)")
    ax.set_ylabel(wording.axis("gFID", scored))


def _lines(ax: Axes, repeats: pd.DataFrame, best: pd.DataFrame) -> list[label_places.Label]:
    """Draw two lines per tokenizer, and rings at the chosen scale; returns the labels of their ends."""
    names = []
    for tokenizer in rows.tokenizers(repeats):
        mine = repeats[repeats["tokenizer"] == tokenizer]
        look = style.look(mine["latent_channels"].iloc[0], mine["foundation_model"].iloc[0], tokenizer)
        choosing_, scoring = (mine[mine["seed_is_for"] == name] for name in ("choosing", "scoring"))
        x, y = "guidance_scale", "gfid"
        marks.means(
            ax, choosing_, x, y, spread=None, color=look.color, linewidth=0.7, alpha=0.7, linestyle=look.dash, zorder=2,
        )  # fmt: skip
        marks.means(ax, scoring, x, y, linestyle=look.dash, markersize=4, zorder=3, **look.markers())
        ringed = best[best["tokenizer"] == tokenizer]
        ax.plot(ringed[x], ringed[y], linestyle="none", color=look.color, zorder=4, **RING)
        if len(scoring):
            last = scoring[scoring[x] == scoring[x].max()]
            names.append(label_places.Label(tokenizer, float(last[x].iloc[0]), float(last[y].mean()), look.color))
    return names
