"""Parallel coordinates: an axis per parameter and per objective, a line per trial, coloured by the last objective."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator

from figures import axis_scales, layout, style
from results.numbers import three_digits
from results.searches import Parameter, Search, Trial, Value, printed

TICK_DISTANCE = 0.13  # shares of an axis that two of its ticks keep from each other
SPREAD = 0.07  # range over which trials with the same choice are spread, so that their lines are distinguishable
LIGHTEST = 0.88  # largest value used of the colour map: the colours above it are too light for paper


class Scale(NamedTuple):
    """One vertical axis: the position of a value (0 at the bottom, 1 at the top), and the ticks."""

    title: str
    place: Callable[[Value], float]
    ticks: list[tuple[float, str]]
    choices: bool = False


def draw(ax: Axes, search: Search, done: Sequence[Trial]) -> None:
    """Complete trials, the best on top and the winner thick; pruned ones in grey, without an objective."""
    by_parameter = {key: of_parameter(parameter) for key, parameter in search.parameters.items()}
    by_objective = {key: of_objective(printed(key), [t.values[key] for t in done]) for key in search.objectives}
    axes = [*by_parameter.values(), *by_objective.values()]
    goal = search.objectives[-1]
    colors = matplotlib.colormaps["viridis"]

    def color(value: float) -> tuple[float, ...]:
        return colors(LIGHTEST * by_objective[goal].place(value))

    ordered = sorted(done, key=lambda trial: -trial.values[goal])
    pruned = [trial for trial in search.trials if trial.state == "pruned"]
    for trial in pruned:
        heights = [_height(search, key, scale, trial) for key, scale in by_parameter.items()]
        ax.plot(heights, color=style.FAINT, linewidth=0.6, zorder=1)
    for i, trial in enumerate(ordered):
        heights = [_height(search, key, scale, trial) for key, scale in by_parameter.items()]
        heights += [scale.place(trial.values[key]) for key, scale in by_objective.items()]
        won = trial.trial == search.winner
        casing = [withStroke(linewidth=3.6, foreground="white")] if won else []
        ax.plot(
            heights, color=color(trial.values[goal]), linewidth=2.2 if won else 0.9,
            zorder=3 if won else 2 + i / len(ordered), path_effects=casing, solid_joinstyle="round",
        )  # fmt: skip
    for i, (key, scale) in enumerate(by_parameter.items()):
        if (default := search.default.params.get(key)) is not None or (scale.choices and key in search.default.params):
            _mark_default(ax, i, scale, default)
    _gradient(ax, len(axes) - 1, colors)
    room = ax.get_window_extent().width / ax.figure.dpi / max(len(axes) - 0.5, 1)
    for i, scale in enumerate(axes):
        _axis(ax, i, scale, room)
    ax.set(xlim=(-0.05, len(axes) - 0.95), ylim=(-0.03, 1.03))
    ax.set_axis_off()


def of_parameter(parameter: Parameter) -> Scale:
    """The axis of a parameter: a range from end to end, or evenly spaced choices."""
    if parameter.choices:
        places = {str(choice): (i + 0.5) / len(parameter.choices) for i, choice in enumerate(parameter.choices)}
        ticks = [(place, text) for text, place in places.items()]
        return Scale(parameter.label, lambda value: places.get(str(value), math.nan), ticks, choices=True)
    assert parameter.low is not None and parameter.high is not None
    return _range(parameter.label, parameter.low, parameter.high, parameter.log)


def of_objective(title: str, values: Sequence[float]) -> Scale:
    """The axis of an objective, which is minimised: its lowest value is at the bottom."""
    low, high = min(values), max(values)
    return _range(title, low, high, 0 < low * axis_scales.LOG_FROM <= high, three_digits)


def _range(title: str, low: float, high: float, logarithmic: bool, end: Callable[[float], str] | None = None) -> Scale:
    """An axis from `low` to `high`, both with a tick (written by `end`)."""
    end = end or _short

    def place(value: Value) -> float:
        if not isinstance(value, (int, float)) or (logarithmic and value <= 0):
            return math.nan
        if low == high:
            return 0.5
        if logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    if low == high:
        return Scale(title, place, [(0.5, end(low))])
    locator = (
        LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,))
        if logarithmic
        else MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    )
    ticks = [(place(low), end(low)), (place(high), end(high))]
    for tick in sorted(map(float, locator.tick_values(low, high))):
        at = place(tick)
        if 0 <= at <= 1 and all(abs(at - other) >= TICK_DISTANCE for other, _ in ticks):
            ticks.append((at, _short(tick)))
    return Scale(title, place, ticks)


def _height(search: Search, key: str, scale: Scale, trial: Trial) -> float:
    """The position where a trial crosses an axis; NaN if it has no value there."""
    if key not in trial.params:
        return math.nan
    place = scale.place(trial.params[key])
    if not scale.choices:
        return place
    same = [t.trial for t in search.trials if key in t.params and str(t.params[key]) == str(trial.params[key])]
    return place + SPREAD * ((same.index(trial.trial) + 0.5) / len(same) - 0.5)


def _mark_default(ax: Axes, x: int, scale: Scale, value: Value) -> None:
    place = scale.place(value)
    if 0 <= place <= 1:
        ax.plot(
            [x], [place], marker="D", markersize=4.5, color=style.INK, markerfacecolor="white", markeredgewidth=1,
            zorder=6, linestyle="none",
        )  # fmt: skip


def _gradient(ax: Axes, x: int, colors: matplotlib.colors.Colormap) -> None:
    """Draw the colour map along the last axis, which so serves as the colour key."""
    steps = 64
    lines = [[(x, i / steps), (x, (i + 1) / steps)] for i in range(steps)]
    shades = [colors(LIGHTEST * (i + 0.5) / steps) for i in range(steps)]
    ax.add_collection(LineCollection(lines, colors=shades, linewidths=5, capstyle="butt", zorder=5))


def _axis(ax: Axes, x: int, scale: Scale, room: float) -> None:
    """Draw one axis, with ticks at its right and its title (at most two lines) above. room: inches to the next axis."""
    ax.plot([x, x], [0, 1], color=style.GREY, linewidth=0.8, zorder=4)
    halo = [withStroke(linewidth=2.2, foreground="white")]
    for place, text in scale.ticks:
        ax.annotate(
            text, (x, place), xytext=(5, 0), textcoords="offset points", fontsize=style.SMALL, va="center_baseline",
            color=style.INK, path_effects=halo, zorder=7, annotation_clip=False,
        )  # fmt: skip
        ax.plot([x], [place], marker="_", markersize=4, color=style.GREY, markeredgewidth=0.7, zorder=4.5)
    title = "\n".join(layout.wrap(scale.title, style.TEXT, room - 0.08))
    ax.annotate(
        title, (x, 1), xytext=(0, 9), textcoords="offset points", fontsize=style.TEXT, va="baseline", ha="center",
        annotation_clip=False, linespacing=1.1,
    )  # fmt: skip


def _short(number: float) -> str:
    """A tick: 2e-4, 0.05, 1,500."""
    if number and abs(number) < 1e-3:
        digits, power = f"{number:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}".replace("-", "−")
    return f"{number:,.4g}".replace("-", "−")
