"""What a search over settings found: its trials, which settings matter, and where the good ones lie.

Claim: none of the paper's. Trials are ranked on the samples they were chosen on; statements about the winner are based
on held-out seeds, which have their own panel.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from figures import axis_scales, layout, parallel, style, trial_marks
from figures.drawing import Drawing
from results.searches import Search, Trial, printed

WIDTH = 7.2  # inches, like all lengths here; the figure is wider if many trials were repeated
ROW, BOTTOM, TOP = 2.4, 0.52, 0.34  # an objective's row: its height, the room below and above its panels
LEFT, HISTORY, GAP = 0.78, 2.0, 0.3  # widths: of the labels, minimum of the history, between panels
STRIP, COLUMN = 0.5, 0.25  # widths in the held-out panel: of the default, of a trial
BARS, NUMBER = 0.9, 0.42  # widths: of the longest bar, of the number at its end
PARALLEL, CROWN, SOLE, SIDES = 2.5, 0.42, 0.14, (0.55, 0.5)  # lowest panel: height, room above, below, left and right
COMPLETE: dict[str, Any] = {
    "marker": "o", "markersize": 4, "color": trial_marks.TRIAL, "markeredgewidth": 0, "linestyle": "none"
}  # fmt: skip
WON = COMPLETE | {"marker": "*", "markersize": 9, "color": trial_marks.CHOSEN}
OWN = COMPLETE | {"marker": "D", "color": style.INK, "markerfacecolor": "white", "markeredgewidth": 1}
DEFAULT: dict[str, Any] = {"color": style.INK, "linewidth": 0.8, "linestyle": (0, (4, 2)), "zorder": 1.5}
MARKS = {
    "pruned": ("x", style.GREY), "diverged": ("^", style.GREY), "failed": ("|", style.INK),
    "running": (">", style.GREY),
}  # fmt: skip


def draw(search: Search, table: pd.DataFrame) -> Drawing:
    """A row per objective with its history and the importances, and parallel coordinates below; `table` is not read.

    Raises NothingToDraw without a complete trial.
    """
    done = trial_marks.complete(search)
    subtitle = f"Space {search.space}, {trial_marks.counted(search)}. {trial_marks.verdict(search)}"
    with style.applied():
        names = max((layout.width(parameter.label, style.TEXT) for parameter in search.parameters.values()), default=0)
        right = GAP + names + 0.1 + BARS + NUMBER
        again = STRIP + COLUMN * len(search.candidates) + 0.1
        width = max(WIDTH, LEFT + HISTORY + again + right)
        body = (width, ROW * len(search.objectives) + PARALLEL)
        figure, foot = layout.sheet(search.question, subtitle, _notes(search, done), body)
        for i, objective in enumerate(search.objectives):
            y = foot + PARALLEL + ROW * (len(search.objectives) - 1 - i) + BOTTOM
            height = ROW - BOTTOM - TOP
            _history(figure, search, done, objective, (LEFT, y, width - LEFT - right, height))
            _importance(figure, search, objective, (width - BARS - NUMBER, y, BARS, height))
        ax = _axes(figure, SIDES[0], foot + SOLE, width - sum(SIDES), PARALLEL - CROWN - SOLE)
        parallel.draw(ax, search, done)
    return Drawing(figure, _data(search))


def _history(
    figure: Figure, search: Search, done: Sequence[Trial], objective: str, box: tuple[float, float, float, float]
) -> None:
    """Values in the order of trials, and at the right held-out scores on the same axis.

    A pruned trial was judged after fewer images than the others, so only its number is marked, not its value.
    """
    values = [trial.values[objective] for trial in done]
    again = [(None, search.default.scores), *((candidate.trial, candidate.scores) for candidate in search.candidates)]
    held_out = {number: scores[objective] for number, scores in again if scores.get(objective)}
    x, y, width, height = box
    strip_width = sum(STRIP if number is None else COLUMN for number in held_out)
    main_width = width - strip_width - 0.1 * bool(held_out)
    ax = _axes(figure, x, y, main_width, height)
    axis_scales.fit(ax, "y", [*values, *(score for scores in held_out.values() for score in scores)], pad=0.07)
    numbers = [trial.trial for trial in search.trials]
    margin = max(1.0, 0.03 * (max(numbers) - min(numbers)))
    ax.set_xlim(min(numbers) - margin, max(numbers) + margin)
    ticks = MaxNLocator(6, integer=True).tick_values(min(numbers), max(numbers))
    ax.set_xticks([tick for tick in ticks if min(numbers) <= tick <= max(numbers)])
    ax.grid(True, axis="y")
    ax.set_xlabel("trial")
    ax.set_ylabel(trial_marks.axis(search, objective))
    ax.yaxis.set_label_coords(-(LEFT - 0.37) / main_width, 0.5)

    ax.step(
        [trial.trial for trial in done] + [max(numbers)], [*accumulate(values, min), min(values)], where="post",
        color=style.GREY, linewidth=1, zorder=2,
    )  # fmt: skip
    for trial in done:
        look = WON if trial.trial == search.winner else OWN if _is_default(search, trial) else COMPLETE
        ax.plot(trial.trial, trial.values[objective], zorder=3, **look)
    for trial in search.trials:
        if trial.state in MARKS:
            marker, color = MARKS[trial.state]
            ax.plot(
                trial.trial, 1.045, marker, markersize=3.6, color=color, transform=ax.get_xaxis_transform(),
                clip_on=False, markeredgewidth=0.9,
            )  # fmt: skip
    _key(ax, search)
    if held_out:
        strip = figure.add_axes(_box(figure, x + width - strip_width, y, strip_width, height), sharey=ax)
        _strip(strip, search, held_out)
        if None in held_out:
            strip.axhline(trial_marks.mean(held_out[None]), **DEFAULT)


def _is_default(search: Search, trial: Trial) -> bool:
    return bool(search.default.params) and trial.params == search.default.params


def _strip(ax: Axes, search: Search, held_out: Mapping[int | None, Sequence[float]]) -> None:
    """Held-out scores: a column for the default (None) and one for each repeated trial."""
    ends = list(accumulate(STRIP if number is None else COLUMN for number in held_out))
    places = [end - (STRIP if number is None else COLUMN) / 2 for end, number in zip(ends, held_out, strict=True)]
    ax.set_xlim(0, ends[-1])
    ax.set_xticks(places, ["default" if number is None else str(number) for number in held_out], fontsize=style.SMALL)
    ax.tick_params(axis="y", left=False, labelleft=False)
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="y")
    ax.set_xlabel("held-out seeds")
    for x, (number, scores) in zip(places, held_out.items(), strict=True):
        color = style.INK if number is None else trial_marks.CHOSEN if number == search.winner else trial_marks.TRIAL
        sns.stripplot(
            x=[x] * len(scores), y=scores, orient="x", native_scale=True, jitter=False, size=3, color="white",
            edgecolor=color, linewidth=1, ax=ax,
        )  # fmt: skip
        ax.hlines(trial_marks.mean(scores), x - 0.08, x + 0.08, color=color, linewidth=1.6, zorder=4)


def _key(ax: Axes, search: Search) -> None:
    """The legend of the markers, in a line above the panel."""
    states = {trial.state for trial in search.trials}
    handles = [Line2D([], [], label="complete", **COMPLETE)]
    if search.winner is not None:
        handles.append(Line2D([], [], label="winner", **WON))
    handles.append(Line2D([], [], color=style.GREY, linewidth=1, label="best so far"))
    if any(_is_default(search, trial) for trial in search.trials):
        handles.append(Line2D([], [], label="default", **OWN))
    for state, (marker, color) in MARKS.items():
        if state in states:
            handles.append(Line2D([], [], marker=marker, color=color, linestyle="none", markersize=3.6, label=state))
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.08), ncols=len(handles), fontsize=style.SMALL,
        frameon=False, handlelength=1.2, handletextpad=0.35, columnspacing=0.9, borderpad=0, borderaxespad=0,
    )  # fmt: skip


def _importance(figure: Figure, search: Search, objective: str, box: tuple[float, float, float, float]) -> None:
    """Bars, the largest share first, with their names left of `box`; with too few trials a sentence instead."""
    shares = sorted(search.importances.get(objective, {}).items(), key=lambda share: -share[1])
    names = [search.parameters[key].label for key, _ in shares]
    ax = _axes(figure, *box)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(bool(shares))
    ax.spines["bottom"].set_visible(False)
    ax.set_xticks([])
    if not shares:
        ax.set_yticks([])
        ax.annotate("too few trials to tell\nwhich settings matter", (0.5, 0.5), xycoords="axes fraction", ha="center",
                    va="center", color=style.GREY)  # fmt: skip
        return
    ax.annotate(f"Importance for {printed(objective)}", (1, 1), xycoords="axes fraction", xytext=(NUMBER * 36, 8),
                textcoords="offset points", ha="right", fontsize=style.TEXT)  # fmt: skip
    places = range(len(shares))
    sns.barplot(
        x=[share for _, share in shares], y=list(places), orient="y", native_scale=True, errorbar=None, width=0.56,
        color=trial_marks.TRIAL, saturation=1, linewidth=0, ax=ax,
    )  # fmt: skip
    ax.set_yticks(places, names)
    ax.set_ylim(max(len(shares), 4) - 0.5, -0.5)
    ax.set_xlim(0, max(share for _, share in shares) or 1)
    for place, (_, share) in zip(places, shares, strict=True):
        ax.annotate(f"{share:.2f}", (share, place), xytext=(3, 0), textcoords="offset points", va="center_baseline",
                    fontsize=style.SMALL, annotation_clip=False)  # fmt: skip


def _notes(search: Search, done: Sequence[Trial]) -> list[str]:
    goal = printed(search.objectives[-1])
    notes = [f"Below: a line per complete trial, coloured by its {goal} (dark is better)."]
    if search.winner is not None:
        notes[0] = notes[0].replace(").", "), the winner thick.")
    if any(trial.state == "pruned" for trial in search.trials):
        notes[0] += " Grey: pruned, so without a value that compares."
    if search.default.params:
        notes[0] += " Diamonds: the default."
    scores = [search.default.scores, *(candidate.scores for candidate in search.candidates)]
    repeats = sorted({len(values) for found in scores for values in found.values() if values})
    if repeats:
        seeds = str(repeats[0]) if repeats[0] == repeats[-1] else f"{repeats[0]}–{repeats[-1]}"
        notes.append(
            f"Right of the trials: {seeds} held-out seed{'s' * (repeats[-1] > 1)}, on which nothing was chosen, and "
            "their mean (bar; dashed: the default's)."
        )
    return notes + trial_marks.caption(search)


def _data(search: Search) -> pd.DataFrame:
    """The trials with the best value so far, held-out scores, and a row per importance."""
    frame = trial_marks.frame(search)
    for objective in search.objectives:
        frame[f"best_{objective}"] = frame.loc[frame["state"] == "complete", objective].astype(float).cummin()
    shares = [
        {"part": "importance", "objective": objective, "parameter": key, "importance": share}
        for objective, found in search.importances.items()
        for key, share in found.items()
    ]
    return pd.concat([frame, pd.DataFrame(shares, dtype=object)], ignore_index=True)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    return figure.add_axes(_box(figure, x, y, width, height))


def _box(figure: Figure, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    full_width, full_height = figure.get_size_inches()
    return x / full_width, y / full_height, width / full_width, height / full_height
