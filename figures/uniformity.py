"""Which number of a tokenizer foretells gFID, before a generator is trained on its latents?

Claim (the paper's Table 6): aligned latents are distributed more evenly, and gFID is lower the more even they are. The
figure also shows the effective rank of the latents and the interpolated FID (arXiv 2603.05630).
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from figures import axis_scales, label_places, layout, paper_values, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.foretell import correlations, predictor_points
from results.ranks import FEWEST, LEVEL, by_chance

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
    """gFID of the largest generator against each diagnostic of SHORT, a panel per diagnostic and judge.

    All at the last common number of images seen; the rank correlation is above each panel. The data has every
    generator, and rFID for comparison. `folder` is not read. Raises NothingToDraw without finished generators, or
    without diagnostics of their tokenizers.
    """
    chosen = rows.rows_for_figure(table, NAME)
    tokenizers, generators, mark, points, drawn = _panel_data(chosen)
    known = drawn.dropna(subset=["value"])
    if known.empty:
        raise NothingToDraw("no tokenizer has diagnostics of its latents: python -m study.diagnose brings them")

    largest, used = drawn["generator"].iloc[0], pd.concat([tokenizers, generators])
    judges, names = rows.judges(known), _names(known)
    columns = len(judges) if len(judges) > 1 else min(len(names), 2)
    panels = [(name, judge) for name in names for judge in judges if name in set(judge.of(known)["diagnostic"])]
    notes = _correlated(known.dropna(subset=["rho"])) + _described(tokenizers, names)
    notes += [] if paper_values.is_published(table) else _gaps(drawn)
    notes += rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += rows.seeds_note(drawn["gfid_runs"], used)
    notes += wording.caption(used)
    others = " Other sizes are in the CSV." if generators["generator"].nunique() > 1 else ""
    subtitle = f"{largest} at {wording.images(mark)} seen.{others}"
    paper = paper_values.paper_rows(table, NAME)
    with style.applied():
        figure, axes = layout.panels(
            TITLE,
            subtitle,
            notes,
            -(-len(panels) // columns),
            columns,
            headings=True,
            two_line_label=True,
            published_note=wording.published_note(paper),
        )
        for ax, (name, judge) in zip(axes, panels, strict=False):
            scored = PanelData(judge.of(tokenizers), judge.of(generators), mark, points, judge.of(known))
            _draw_one(ax, name, scored, paper_values.look_for(table))
        published_points = None
        if paper is not None:
            data = _panel_data(paper)
            data = data._replace(drawn=data.drawn.dropna(subset=["value"]))
            shown = _names(data.drawn)[:columns]  # figures/paper/ has all of them
            data = data._replace(drawn=data.drawn[data.drawn["diagnostic"].isin(shown)])
            for ax, name in zip(axes[-columns:], shown, strict=False):
                _draw_one(ax, name, data, style.grey)
            published_points = paper_values.with_source(data.drawn, data.generators)
        layout.hide_empty(axes)
    return Drawing(figure, points, published_points)


class PanelData(NamedTuple):
    """What the panels show: finished runs at their last common mark, and a point per diagnostic and tokenizer.

    points: under every generator. drawn: those of the largest generator.
    """

    tokenizers: pd.DataFrame
    generators: pd.DataFrame
    mark: int | None
    points: pd.DataFrame
    drawn: pd.DataFrame


def _panel_data(chosen: pd.DataFrame) -> PanelData:
    tokenizers = rows.done(chosen, "tokenizer")
    generators, mark = rows.at_common_mark(rows.done(chosen, "generator"))
    points = predictor_points(tokenizers, generators)
    points = points[points["diagnostic"].isin(["rfid", *SHORT])]
    points = points.merge(correlations(points), how="left").assign(images_seen=mark)
    largest = points["generator"] == rows.generators(generators)[-1]
    return PanelData(tokenizers, generators, mark, points, points[largest & points["diagnostic"].isin(SHORT)])


def _names(known: pd.DataFrame) -> list[str]:
    return [name for name in SHORT if name in set(known["diagnostic"])]


def _draw_one(ax: Axes, name: str, data: PanelData, look_of: style.LookOf) -> None:
    """gFID against one diagnostic, of one judge."""
    axis_scales.fit(ax, "y", [*data.drawn["gfid_min"], *data.drawn["gfid_max"]], pad=0.14)
    here = data.drawn[data.drawn["diagnostic"] == name]
    _panel(ax, here, 1e-4 if name == "normalized_entropy" else 0.02, look_of)  # the entropy is always close to 1
    ax.set_xlabel(AXES.get(name) or wording.axis("iFID", data.tokenizers).replace("↓", "←"))
    ax.set_ylabel(wording.axis("gFID", data.generators))
    layout.heading(ax, f"{SHORT[name]}: {_answer(here)}")


def _panel(ax: Axes, points: pd.DataFrame, least: float, look_of: style.LookOf) -> None:
    axis_scales.fit(ax, "x", [*points["value_min"], *points["value_max"]], pad=0.16, least=least)
    if ax.get_xscale() == "linear":
        ax.ticklabel_format(axis="x", useOffset=False)
    names, segments = [], []
    for tokenizer in rows.tokenizers(points):
        (p,) = points[points["tokenizer"] == tokenizer].to_dict("records")
        look = look_of(p["latent_channels"], p["foundation_model"], tokenizer)
        ax.plot([p["value_min"], p["value_max"]], [p["gfid"]] * 2, color=look.color, linewidth=1, zorder=3)
        ax.plot([p["value"]] * 2, [p["gfid_min"], p["gfid_max"]], color=look.color, linewidth=1, zorder=3)
        ax.plot([p["value"]], [p["gfid"]], linestyle="none", zorder=4, **look.markers())
        segments.append((p["value_min"], p["gfid"], p["value_max"], p["gfid"]))
        segments.append((p["value"], p["gfid_min"], p["value"], p["gfid_max"]))
        names.append(label_places.Label(tokenizer, p["value"], p["gfid"], look.color))
    label_places.around_points(ax, names, segments)


def _answer(points: pd.DataFrame) -> str:
    """The correlation, its interval, and the number of tokenizers."""
    first = points.iloc[0]
    if pd.isna(first["rho"]):
        return f"n = {first['n']}, " + ("too few to rank" if first["n"] < FEWEST else "nothing to rank")
    low, high = first["rho_low"], first["rho_high"]
    interval = "too few for an interval" if pd.isna(low) else f"{_signed(low)} to {_signed(high)}"
    return f"ρ = {_signed(first['rho'])} ({interval}), n = {first['n']}"


def _correlated(points: pd.DataFrame) -> list[str]:
    """What ρ is, and how large it must be with so few points: a perfect order has a bootstrap interval of no width."""
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
    """Which tokenizers have a gFID but lack a diagnostic."""
    missing = points[points["value"].isna()]
    by_names: dict[str, list[str]] = {}
    for name in SHORT:
        if names := rows.tokenizers(missing[missing["diagnostic"] == name]):
            key = "all" if len(names) == points["tokenizer"].nunique() else ", ".join(names)
            by_names.setdefault(key, []).append(SHORT[name])
    parts = [f"{', '.join(what)} of {who}" for who, what in by_names.items()]
    return [f"Not measured: {'; '.join(parts)} (python -m study.diagnose brings it)."] if parts else []
