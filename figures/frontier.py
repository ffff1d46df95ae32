"""The optimization dilemma and its way out: better reconstruction can mean worse generation.

Claim (the paper's Figures 1 and 2, Table 2): more latent channels lower rFID and raise gFID; aligning the
tokenizer with a foundation model lowers gFID at nearly the same rFID.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from figures import axis_scales, label_places, layout, paper_values, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.verdicts import MARGIN, Measure, Spread, Verdict, at_places, decide, measure, spreads

NAME = "frontier"
TITLE = "Does better reconstruction mean better generation?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID against the tokenizer's rFID at the last common number of images seen, one panel per judge.

    `folder` is not read. Raises NothingToDraw without finished tokenizers and generators.
    """
    chosen = rows.rows_for_figure(table, NAME)
    tokenizers, generators, mark, points = _panel_data(chosen)
    if points.empty:
        raise NothingToDraw("no generator has both its gFID and its tokenizer's rFID")

    spread = spreads(table)
    panels, n_rows, n_columns = rows.cells(points)
    only_generator = panels[0][0] if len(rows.generators(points)) == 1 else ""
    used = pd.concat([tokenizers, generators])
    notes = rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += _unscored(points, generators)
    notes += rows.seeds_note(points["gfid_runs"], used)
    notes += wording.caption(used)
    subtitle = f"{only_generator or 'Generators'} at {wording.images(mark)} seen."
    if mark and mark < chosen[chosen["kind"] == "generator"]["images_seen"].max():
        subtitle = subtitle.replace(" images seen", " images seen (last mark common to all)")
    if any(rows.pairs(judge.of(points)) for judge in rows.judges(points)):
        subtitle += " Arrows: alignment added."
        if paper_values.is_published(table):
            subtitle += f" Lower: gFID with it, by at least {MARGIN:.0%} (published, single)."
        elif not only_generator:
            subtitle += " Lower: gFID with it."
    if paper_values.is_published(table):
        subtitle += _marks(points)
    paper = paper_values.paper_rows(table, NAME)
    published_note = "" if paper is None else wording.published_note(paper) + _marks(paper)
    with style.applied():
        figure, axes = layout.panels(
            TITLE, subtitle, notes, n_rows, n_columns, headings=True, two_line_label=True, published_note=published_note
        )
        for ax, (generator, judge) in zip(axes, panels, strict=False):
            here = judge.of(points)
            _frame(ax, here, judge.of(tokenizers), judge.of(generators))
            here = here[here["generator"] == generator]
            _panel(ax, here, paper_values.look_for(table))
            facts = [] if only_generator else [generator]
            repeats = judge.of(generators)
            repeats = repeats[repeats["generator"] == generator]
            lower = "lower gFID with alignment" if only_generator else "lower"
            text = ": ".join(facts + [f"{lower} {count}" for count in _counts(repeats, rows.pairs(here), spread)])
            layout.heading(ax, text[:1].upper() + text[1:])
        published_points = _draw_published(axes[-n_columns:], paper)
        layout.hide_empty(axes)
    return Drawing(figure, points, published_points)


def _draw_published(axes: Sequence[Axes], paper: pd.DataFrame | None) -> pd.DataFrame | None:
    """Draw the published frontier, one generator per axes; returns the numbers drawn."""
    if paper is None:
        return None
    tokenizers, generators, _, points = _panel_data(paper)
    sizes = paper_values.spread_out(rows.generators(points), len(axes))
    points = points[points["generator"].isin(sizes)]
    for ax, generator in zip(axes, sizes, strict=False):
        _frame(ax, points, tokenizers, generators)
        _panel(ax, points[points["generator"] == generator], style.grey)
        layout.heading(ax, generator)
    return paper_values.with_source(points, generators)


class PanelData(NamedTuple):
    """What the panels show: finished tokenizers, generators at their last common mark, a point per tokenizer."""

    tokenizers: pd.DataFrame
    generators: pd.DataFrame
    mark: int | None
    points: pd.DataFrame


def _panel_data(chosen: pd.DataFrame) -> PanelData:
    tokenizers = rows.done(chosen, "tokenizer")
    generators, mark = rows.at_common_mark(rows.done(chosen, "generator"))
    return PanelData(tokenizers, generators, mark, rfid_and_gfid(tokenizers, generators))


def rfid_and_gfid(tokenizers: pd.DataFrame, generators: pd.DataFrame) -> pd.DataFrame:
    """One row per tokenizer, generator and judge: rFID and gFID over seeds."""
    judge = ["extractor", "extractor_size"]
    last = tokenizers.sort_values("images_seen", kind="stable").drop_duplicates(["fingerprint", *judge], keep="last")
    rfid = last[["fingerprint", *judge, "rfid"]].set_axis(["tokenizer_fingerprint", *judge, "tokenizer_rfid"], axis=1)
    joined = generators.merge(rfid, on=["tokenizer_fingerprint", *judge]).dropna(subset=["tokenizer_rfid"])
    by = [*judge, "generator", "tokenizer", "foundation_model", "latent_channels", "images_seen"]
    once = joined.drop_duplicates([*by, "tokenizer_fingerprint"])  # several generators may share a tokenizer
    quality = rows.averaged(once.assign(rfid=once["tokenizer_rfid"]), by, "rfid")
    points = rows.averaged(joined, by, "gfid").merge(quality, on=by)
    parameters = joined.groupby("generator")["parameters"].min()
    return points.assign(parameters=points["generator"].map(parameters))


def _frame(ax: Axes, points: pd.DataFrame, tokenizers: pd.DataFrame, generators: pd.DataFrame) -> None:
    """Set the axes, equal in all panels of one judge."""
    axis_scales.fit(ax, "x", [*points["rfid_min"], *points["rfid_max"]], pad=0.16)
    axis_scales.fit(ax, "y", [*points["gfid_min"], *points["gfid_max"]], pad=0.14)
    ax.set_xlabel(wording.axis("rFID", tokenizers).replace("↓", "←"))
    ax.set_ylabel(wording.axis("gFID", generators))


def _panel(ax: Axes, points: pd.DataFrame, look_of: style.LookOf) -> None:
    at = {p["tokenizer"]: p for p in points.to_dict("records")}
    segments = []
    for plain, aligned in rows.pairs(points):
        a, b = at[plain], at[aligned]
        color = look_of(b["latent_channels"], b["foundation_model"], aligned).color
        line = {"arrowstyle": "-|>,head_width=0.18,head_length=0.4", "color": color, "linewidth": 0.9}
        line |= {"alpha": 0.55, "shrinkA": 4, "shrinkB": 4}
        start, end = (a["rfid"], a["gfid"]), (b["rfid"], b["gfid"])
        ax.annotate("", end, xytext=start, arrowprops=line, zorder=2)
        segments.append((*start, *end))
    names = []
    for tokenizer in rows.tokenizers(points):
        p = at[tokenizer]
        look = look_of(p["latent_channels"], p["foundation_model"], tokenizer)
        ax.plot([p["rfid_min"], p["rfid_max"]], [p["gfid"]] * 2, color=look.color, linewidth=1, zorder=3)
        ax.plot([p["rfid"]] * 2, [p["gfid_min"], p["gfid_max"]], color=look.color, linewidth=1, zorder=3)
        ax.plot([p["rfid"]], [p["gfid"]], linestyle="none", zorder=4, **look.markers())
        segments.append((p["rfid"], p["gfid_min"], p["rfid"], p["gfid_max"]))
        unnamed = look_of is style.grey and not look.hollow  # published aligned tokenizers lie too close for names
        names.append(label_places.Label("" if unnamed else tokenizer, p["rfid"], p["gfid"], look.color))
    label_places.around_points(ax, names, segments)


def _counts(
    repeats: pd.DataFrame, pairs: Sequence[tuple[str, str]], spread: Mapping[Measure, Spread | None]
) -> list[str]:
    """In how many pairs alignment lowers gFID, by the rule of results/verdicts.py, as 'in 2 of 3 (1 undecided)'.

    repeats: gFIDs of one generator by one judge. spread: of the study, by measure.
    """
    if not pairs:
        return []
    of = {name: group["gfid"].tolist() for name, group in repeats.groupby("tokenizer")}
    first, published = repeats.iloc[0], paper_values.is_published(repeats)
    known = spread.get(measure("gfid", first["extractor"], first["extractor_size"]))
    decisions = [decide(of[aligned], of[plain], known, exact=(published, published)) for plain, aligned in pairs]
    count = Counter(at_places([[decision] for decision in decisions]))
    main: Verdict = "holds" if count["holds"] or not count["indicated"] else "indicated"
    against = "higher" if main == "indicated" else "higher indicated"
    names: dict[Verdict, str] = {
        "indicated": "indicated", "fails": "higher", "indicated against": against, "equal": "equal",
        "undecided": "undecided",
    }  # fmt: skip
    others = [f"{count[verdict]} {name}" for verdict, name in names.items() if count[verdict] and verdict != main]
    text = f"{'indicated ' if main == 'indicated' else ''}in {count[main]} of {len(pairs)}"
    return [f"{text} ({', '.join(others)})" if others else text]


def _marks(points: pd.DataFrame) -> str:
    """What the markers of published tokenizers mean."""
    models = sorted(set(points["foundation_model"]) - {"none"})
    return " Hollow: plain" + "".join(f", {style.glyph(model)} {model}" for model in models) + "."


def _unscored(points: pd.DataFrame, generators: pd.DataFrame) -> list[str]:
    columns = ["tokenizer", "extractor"]
    drawn = set(points[columns].itertuples(index=False, name=None))
    missing = [pair for pair in generators[columns].itertuples(index=False, name=None) if pair not in drawn]
    names = sorted({f"{tokenizer} ({wording.judge(extractor, None)})" for tokenizer, extractor in missing})
    return ["No rFID for: " + ", ".join(names) + "."] if names else []
