"""Which trials of a search with two objectives no other beats in both, over the study's own frontier.

Claim (the paper's Figure 1): reconstruction and generation trade off, and the frontier can be moved. Trials have one
seed; repeats on held-out seeds are drawn with other markers.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import axis_scales, frontier, label_places, layout, rows, style, trial_marks
from figures.drawing import Drawing, NotAsked, NothingToDraw
from results.numbers import count
from results.pareto import front
from results.runs import asked_by
from results.schema import PROTOCOL
from results.searches import Search, Trial, Value
from results.table import ProtocolError

STUDY: dict[str, Any] = {"marker": "o", "markersize": 4.5, "color": "#9a9a9a", "linestyle": "none"}
DOT: dict[str, Any] = {"marker": "o", "markersize": 4.5, "color": trial_marks.TRIAL, "linestyle": "none"}
FRONT = DOT | {"markersize": 6}
BEHIND = DOT | {"markerfacecolor": "white"}
AGAIN = DOT | {"marker": "s", "color": trial_marks.CHOSEN, "markerfacecolor": "white"}
DEFAULT = DOT | {"marker": "D", "color": style.INK, "markerfacecolor": "white"}
HEIGHT, SIDE, BOX = 3.9, 4.9, (0.78, 0.12, 0.55, 0.32)  # of the panel, inches; room left, right, below and above


def draw(search: Search, table: pd.DataFrame) -> Drawing:
    """The second objective against the first; for rFID and gFID also the study's frontier, in grey, from `table`.

    Raises NotAsked for another number of objectives, NothingToDraw without a complete trial, ProtocolError if the
    search and the frontier were measured in different ways.
    """
    if len(search.objectives) != 2:
        raise NotAsked("a front needs two objectives")
    done = trial_marks.complete(search)
    best = front(done, lambda trial: [trial.values[objective] for objective in search.objectives])
    grey, note = _study(search, table)
    points = _points(search, done, best, grey)
    subtitle = (
        f"Space {search.space}, {trial_marks.counted(search)}. "
        f"Numbered: {len(best)} that no other beats in both. {trial_marks.verdict(search)}"
    )
    seeds = "Trials: one seed each." if any(candidate.scores for candidate in search.candidates) else "One seed each."
    if any(candidate.scores for candidate in search.candidates) or search.default.scores:
        seeds += " Held-out seeds: mean and range."
    with style.applied():
        figure, foot = layout.sheet(
            search.question, subtitle, [seeds, *note, *trial_marks.caption(search)], (SIDE, HEIGHT)
        )
        full_width, full_height = figure.get_size_inches()
        left, right, bottom, top = BOX
        w, h = SIDE - left - right, HEIGHT - bottom - top
        ax = figure.add_axes((left / full_width, (foot + bottom) / full_height, w / full_width, h / full_height))
        _panel(ax, search, points)
    return Drawing(figure, points)


def _study(search: Search, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The frontier's points by the search's judge at the search's number of images, or a note why there are none."""
    nothing = pd.DataFrame(columns=["tokenizer", "rfid", "gfid"])
    if set(search.objectives) != {"rfid", "gfid"}:
        return nothing, []
    about = {key: search.protocol.get(key, {}) for key in ("rfid", "gfid")}
    own = asked_by(table, frontier.NAME)
    try:
        chosen = rows.rows_for_figure(table[own | (table["kind"] == "tokenizer")], frontier.NAME)
        tokenizers, generators = rows.done(chosen, "tokenizer"), rows.done(chosen, "generator")
    except NothingToDraw as reason:
        return nothing, [f"The study has no frontier to compare with: {reason}."]
    tokenizers = _where(tokenizers, about["rfid"], ("extractor", "extractor_size"))
    generators = _where(generators, about["gfid"], ("extractor", "extractor_size", "generator", "images_seen"))
    points = frontier.rfid_and_gfid(tokenizers, generators)
    if points.empty:
        like = [str(about["gfid"][key]) for key in ("generator", "extractor") if about["gfid"].get(key)]
        seen = about["gfid"].get("images_seen")
        like += [f"{count(seen)} images seen"] if isinstance(seen, int) else []
        return nothing, [f"The study's frontier has nothing like the trials to compare with ({', '.join(like)})."]
    for found, measured in ((tokenizers, about["rfid"]), (generators, about["gfid"])):
        _check_alike(search, found, measured)
    return points, []


def _where(found: pd.DataFrame, about: Mapping[str, Value], columns: Sequence[str]) -> pd.DataFrame:
    """The rows whose cells in these columns equal those of the search's protocol."""
    for column in columns:
        if column in about:
            found = found[[_same(cell, about[column]) for cell in found[column]]]
    return found


def _check_alike(search: Search, found: pd.DataFrame, about: Mapping[str, Value]) -> None:
    for column in PROTOCOL:
        for cell in found[column].drop_duplicates():
            if not _same(cell, about.get(column)):
                texts = ["empty" if _empty(value) else str(value) for value in (about.get(column), cell)]
                raise ProtocolError(
                    f"the search over {search.space} and the study's frontier differ in {column}: "
                    f"{texts[0]} and {texts[1]}; they cannot share an axis"
                )


def _same(a: object, b: object) -> bool:
    return (_empty(a) and _empty(b)) or (not _empty(a) and not _empty(b) and a == b)


def _empty(value: object) -> bool:
    return value is None or value is pd.NA or value == "" or value != value


def _points(search: Search, done: Sequence[Trial], best: Sequence[Trial], grey: pd.DataFrame) -> pd.DataFrame:
    """One row per point: `part` is front, trial, held-out, default or study; means with ranges."""
    made: list[dict[str, Any]] = []
    for trial in done:
        part = "front" if trial in best else "trial"
        made.append({"part": part, "name": str(trial.trial), **_spread({k: (v,) for k, v in trial.values.items()})})
    for part, name, scores in (
        ("default", "default", search.default.scores),
        *(("held-out", str(candidate.trial), candidate.scores) for candidate in search.candidates),
    ):
        if all(scores.get(objective) for objective in search.objectives):
            made.append({"part": part, "name": name, **_spread(scores)})
    for row in grey.to_dict("records"):
        ends = {f"{key}_{end}": row[f"{key}_{end}"] for key in search.objectives for end in ("min", "max")}
        made.append({"part": "study", "name": row["tokenizer"], **{k: row[k] for k in search.objectives}, **ends})
    columns = ["part", "name", *(f"{key}{end}" for key in search.objectives for end in ("", "_min", "_max"))]
    return pd.DataFrame(made, columns=columns)


def _spread(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, values in scores.items():
        found |= {key: trial_marks.mean(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    return found


def _panel(ax: Axes, search: Search, points: pd.DataFrame) -> None:
    first, second = search.objectives
    axis_scales.fit(ax, "x", [*points[f"{first}_min"], *points[f"{first}_max"]], pad=0.08)
    axis_scales.fit(ax, "y", [*points[f"{second}_min"], *points[f"{second}_max"]], pad=0.08)
    ax.grid(True)
    ax.set_xlabel(trial_marks.axis(search, first).replace("↓", "←"))
    ax.set_ylabel(trial_marks.axis(search, second))
    looks = {"study": STUDY, "trial": BEHIND, "held-out": AGAIN, "default": DEFAULT, "front": FRONT}
    said = {"front": "front", "trial": "other trial", "held-out": "front again, held-out seeds", "default": "default",
            "study": "the study's frontier"}  # fmt: skip
    at = {(p["part"], p["name"]): p for p in points.to_dict("records")}
    names, segments = [], []
    for z, (part, look) in enumerate(looks.items(), start=3):
        for p in (point for key, point in at.items() if key[0] == part):
            x, y, color = p[first], p[second], look["color"]
            segments += _whiskers(ax, p, first, second, color, z)
            ax.plot([x], [y], zorder=z, **look)
            if part == "held-out" and (origin := at.get(("front", p["name"]), at.get(("trial", p["name"])))):
                ax.plot([origin[first], x], [origin[second], y], color=color, linewidth=0.6, alpha=0.6, zorder=2.5)
            if part in ("front", "study"):
                names.append(label_places.Label(p["name"], x, y, style.GREY if part == "study" else color))
    line = points[points["part"] == "front"].sort_values(first, kind="stable")
    ax.step(line[first], line[second], where="post", color=trial_marks.TRIAL, linewidth=0.9, zorder=2)
    ends = list(zip(line[first], line[second], strict=True))
    for (x0, y0), (x1, y1) in pairwise(ends):
        segments += [(x0, y0, x1, y0), (x1, y0, x1, y1)]
    label_places.around_points(ax, names, segments)
    handles = [Line2D([], [], label=text, **looks[part]) for part, text in said.items() if part in set(points["part"])]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.02), ncols=len(handles), fontsize=style.SMALL,
        frameon=False, handlelength=0.8, handletextpad=0.35, columnspacing=0.9, borderpad=0, borderaxespad=0,
    )  # fmt: skip


def _whiskers(
    ax: Axes, p: Mapping[Hashable, Any], first: str, second: str, color: str, z: float
) -> list[tuple[float, float, float, float]]:
    """Draw the ranges of a point; returns the segments drawn."""
    lines = [
        (p[f"{first}_min"], p[second], p[f"{first}_max"], p[second]),
        (p[first], p[f"{second}_min"], p[first], p[f"{second}_max"]),
    ]
    for x0, y0, x1, y1 in lines:
        ax.plot([x0, x1], [y0, y1], color=color, linewidth=0.9, zorder=z - 0.5)
    return lines
