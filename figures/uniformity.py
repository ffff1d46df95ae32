"""Which number of a tokenizer foretells gFID, before a generator is trained on its latents?

Claim (the paper's Table 6): aligned latents lie more evenly, and the more evenly they lie, the lower gFID. Beside it
the effective rank of the latents and the interpolated FID (arXiv 2603.05630).
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from figures import labels, page, rows, scales, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.foretell import correlations, foretelling
from results.ranks import FEWEST, LEVEL, by_chance
from results.schema import DIAGNOSTICS

NAME = "uniformity"
TITLE = "What foretells gFID before a generator is trained?"
SHORT = {
    "density_cv": "Spread of density",
    "gini": "Gini of density",
    "normalized_entropy": "Entropy of density",
    "effective_rank": "Effective rank",
    "ifid": "iFID",
}
AXES = {
    "density_cv": "spread over mean of the latents' density\n(← more even)",
    "gini": "Gini coefficient of the latents' density\n(← more even)",
    "normalized_entropy": "normalised entropy of the latents' density\n(more even →)",
    "effective_rank": "effective rank of the latents\n(at most their channels)",
}


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID of the largest generator against each diagnostic, a panel per diagnostic and judge, its rank correlation
    above; at the last common number of images seen. The data has every generator, and rFID to compare with.

    `folder` is not read. Raises NothingToDraw without finished generators, or without diagnostics of their tokenizers.
    """
    chosen = rows.asked(table, NAME)
    tokenizers, generators = rows.done(chosen, "tokenizer"), rows.done(chosen, "generator")
    mark = rows.common_mark(generators)
    generators = generators[generators["images_seen"] == mark]
    points = foretelling(tokenizers, generators)
    points = points.merge(correlations(points), how="left").assign(images_seen=mark)
    largest = rows.generators(generators)[-1]
    drawn = points[(points["generator"] == largest) & points["diagnostic"].isin(DIAGNOSTICS)]
    known = drawn.dropna(subset=["value"])
    if known.empty:
        raise NothingToDraw("no tokenizer has diagnostics of its latents: python -m study.diagnose brings them")

    judges, names = rows.judges(known), [name for name in DIAGNOSTICS if name in set(known["diagnostic"])]
    columns = len(judges) if len(judges) > 1 else min(len(names), 2)
    panels = [(name, judge) for name in names for judge in judges if name in set(judge.of(known)["diagnostic"])]
    notes = _correlated(known.dropna(subset=["rho"])) + _described(tokenizers, names) + _gaps(drawn)
    notes += rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += rows.seeds_note(drawn["gfid_runs"])
    notes += wording.caption(pd.concat([tokenizers, generators]))
    others = " Other sizes are in the CSV." if generators["generator"].nunique() > 1 else ""
    subtitle = f"{largest} at {wording.count(mark)} images seen.{others}"
    with style.applied():
        figure, axes = page.panels(
            TITLE, subtitle, notes, -(-len(panels) // columns), columns, headings=True, two_line_label=True
        )
        for ax, (name, judge) in zip(axes, panels, strict=False):
            here = judge.of(known)
            scales.fit(ax, "y", [*here["gfid_min"], *here["gfid_max"]], pad=0.14)
            here = here[here["diagnostic"] == name]
            _panel(ax, here, least=1e-4 if name == "normalized_entropy" else 0.02)  # it is close to 1 for all
            ax.set_xlabel(AXES.get(name) or wording.axis("iFID", judge.of(tokenizers)).replace("↓", "←"))
            ax.set_ylabel(wording.axis("gFID", judge.of(generators)))
            page.heading(ax, f"{SHORT[name]}: {_answer(here)}")
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
    return Drawing(figure, points)


def _panel(ax: Axes, points: pd.DataFrame, least: float) -> None:
    scales.fit(ax, "x", [*points["value_min"], *points["value_max"]], pad=0.16, least=least)
    if ax.get_xscale() == "linear":
        ax.ticklabel_format(axis="x", useOffset=False)
    names, segments = [], []
    for tokenizer in rows.tokenizers(points):
        (p,) = points[points["tokenizer"] == tokenizer].to_dict("records")
        look = style.look(p["latent_channels"], p["foundation_model"])
        ax.plot([p["value_min"], p["value_max"]], [p["gfid"]] * 2, color=look.color, linewidth=1, zorder=3)
        ax.plot([p["value"]] * 2, [p["gfid_min"], p["gfid_max"]], color=look.color, linewidth=1, zorder=3)
        ax.plot([p["value"]], [p["gfid"]], linestyle="none", zorder=4, **look.markers())
        segments.append((p["value_min"], p["gfid"], p["value_max"], p["gfid"]))
        segments.append((p["value"], p["gfid_min"], p["value"], p["gfid_max"]))
        names.append(labels.Label(tokenizer, p["value"], p["gfid"], look.color))
    labels.around(ax, names, segments)


def _answer(points: pd.DataFrame) -> str:
    """The correlation, its interval, and over how many tokenizers."""
    found = points.iloc[0]
    if pd.isna(found["rho"]):
        return f"n = {found['n']}, " + ("too few to rank" if found["n"] < FEWEST else "nothing to rank")
    low, high = found["rho_low"], found["rho_high"]
    interval = "too few for an interval" if pd.isna(low) else f"{_signed(low)} to {_signed(high)}"
    return f"ρ = {_signed(found['rho'])} ({interval}), n = {found['n']}"


def _correlated(points: pd.DataFrame) -> list[str]:
    """What ρ is, and what it is worth over so few: a perfect order leaves the bootstrap no width."""
    if points.empty:
        return []
    reached = {n: by_chance(n) for n in sorted(set(points["n"]))}
    parts = [f"{f'|ρ| ≥ {rho:.2f}' if rho else 'no |ρ|'} where n = {n}" for n, rho in reached.items()]
    return [
        f"ρ: Spearman's rank correlation over n tokenizers, in brackets its {LEVEL:.0%} bootstrap interval.",
        f"In at most {1 - LEVEL:.0%} of random orders: {', '.join(parts)}.",
    ]


def _signed(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")


def _described(tokenizers: pd.DataFrame, names: list[str]) -> list[str]:
    """How the diagnostics were measured."""
    counts = sorted(set(tokenizers["diagnostic_points"].dropna()))
    if not counts or set(names) == {"ifid"}:
        return []
    return [f"Latents: {counts[0]:,} tokens, one per training image; density on a t-SNE map of them, perplexity 30."]


def _gaps(points: pd.DataFrame) -> list[str]:
    """Which tokenizers have a gFID and lack a diagnostic, by diagnostic."""
    lost = points[points["value"].isna()]
    by_names: dict[str, list[str]] = {}
    for name in DIAGNOSTICS:
        if here := rows.tokenizers(lost[lost["diagnostic"] == name]):
            by_names.setdefault("all" if len(here) == points["tokenizer"].nunique() else ", ".join(here), []).append(
                SHORT[name]
            )
    parts = [f"{', '.join(what)} of {who}" for who, what in by_names.items()]
    return [f"Not measured: {'; '.join(parts)} (python -m study.diagnose brings it)."] if parts else []
