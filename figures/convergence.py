"""How fast a generator learns on each tokenizer.

Claim (the paper's Figure 4 a, b): on an aligned tokenizer a generator reaches the gFID that the plain one
ends with after fewer images: SPEED_UPS of results/published.py.
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from figures import axis_scales, label_places, layout, marks, paper_values, rows, style, wording
from figures.drawing import Drawing, NothingToDraw
from results.convergence import SpeedUp, speed_up
from results.published import SPEED_UPS, SPEED_UPS_RUN, SPEED_UPS_SOURCE

NAME = "convergence"
PUBLISHED = (
    f"Published, not measured here ({SPEED_UPS_SOURCE}): {SPEED_UPS_RUN}, the speed-up alone, "
    "without the curves behind it."
)
TITLE = "How much faster does a generator learn on an aligned tokenizer?"


def draw(table: pd.DataFrame, folder: Path) -> Drawing:
    """gFID against images seen, one line per tokenizer, one panel per judge and generator.

    `folder` is not read. Raises NothingToDraw without finished generators that were trained here.
    """
    if paper_values.is_published(table):
        return _published_alone()
    chosen = rows.rows_for_figure(table, NAME)
    if (chosen[chosen["kind"] == "generator"]["pretrained_weights"] != "").all():
        raise NothingToDraw("pretrained weights have no learning curve")
    chosen = chosen[(chosen["pretrained_weights"] == "") | (chosen["kind"] == "tokenizer")]
    generators = rows.done(chosen, "generator")
    by = ["extractor", "extractor_size", "generator", "tokenizer", "foundation_model", "latent_channels"]
    points = rows.averaged(generators, [*by, "images_seen"], "gfid")
    points["parameters"] = points["generator"].map(generators.groupby("generator")["parameters"].min())
    panels, n_rows, n_columns = rows.cells(points)
    gains = {panel: _gains(_of(points, *panel)) for panel in panels}
    points["speed_up"] = points["speed_up_of_each_seed"] = ""
    for generator, judge in panels:
        here = _of(points, generator, judge)
        gained = {name: str(gain) for name, gain in gains[generator, judge].items()}
        points.loc[here.index, "speed_up"] = [gained.get(name, "") for name in here["tokenizer"]]
        each = _gains_of_each_seed(_of(generators, generator, judge))
        points.loc[here.index, "speed_up_of_each_seed"] = [each.get(name, "") for name in here["tokenizer"]]

    only_generator = panels[0][0] if len(rows.generators(points)) == 1 else ""
    notes = rows.missing_note(chosen, ("tokenizer", "generator"))
    notes += rows.seeds_note(points["gfid_runs"], generators)
    notes += wording.caption(generators)
    right = layout.label_room(
        [_label(name, gain) for found in gains.values() for name, gain in found.items()]
        + rows.tokenizers(points)
        + [_published_label(name) for name in SPEED_UPS]
    )
    subtitle = "No plain and aligned tokenizer of one width to compare."
    if any(gains.values()):
        subtitle = "N×: times fewer images to the gFID its plain counterpart ends with."
    with style.applied():
        figure, axes = layout.panels(
            TITLE,
            f"{only_generator}. {subtitle}" if only_generator else subtitle,
            notes,
            n_rows,
            n_columns,
            right=right,
            headings=not only_generator,
            published_note=PUBLISHED,
        )
        for ax, (generator, judge) in zip(axes, panels, strict=False):
            here, repeats = _of(points, generator, judge), _of(generators, generator, judge)
            names = _curves(ax, here, repeats, gains[generator, judge])
            _frame(ax, judge.of(points), judge.of(generators))
            label_places.at_line_ends(ax, names)
            if not only_generator:
                layout.heading(ax, generator)
        _draw_published(axes[-n_columns])
        layout.hide_empty(axes)
    return Drawing(figure, points, _published())


def _published_alone() -> Drawing:
    with style.applied():
        right = layout.label_room([_published_label(name) for name in SPEED_UPS])
        figure, axes = layout.panels(TITLE, "As published.", [], 0, 1, right=right, published_note=PUBLISHED)
        _draw_published(axes[0])
    return Drawing(figure, _published())


def _published() -> pd.DataFrame:
    """The published speed-ups, in the same columns as the data."""
    rows_ = [
        {"tokenizer": name, "latent_channels": int(name.rpartition("d")[2]), "speed_up": f"{gain:g}×"}
        for name, gain in SPEED_UPS.items()
    ]
    return pd.DataFrame(rows_).assign(source=SPEED_UPS_SOURCE)


def _published_label(tokenizer: str) -> str:
    return f"{tokenizer} {SPEED_UPS[tokenizer]:g}×"


def _draw_published(ax: Axes) -> None:
    """Draw the published speed-up against the latent's width, because the paper prints no curves."""
    names, widths = [], []
    for (tokenizer, gain), width in zip(SPEED_UPS.items(), _published()["latent_channels"], strict=True):
        color = style.grey(width, "none").color
        ax.plot([width], [gain], linestyle="none", marker="o", color=color, zorder=3)
        names.append(label_places.Label(_published_label(tokenizer), width, gain, color))
        widths.append(width)
    axis_scales.budget(ax, widths)
    ax.set_xlim(widths[0] / 1.4, widths[-1] * 1.4)
    ax.axhline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
    ax.set_ylim(0, max(SPEED_UPS.values()) * 1.2)
    ax.set_xlabel("latent channels")
    ax.set_ylabel("times fewer images (↑ higher is better)\ndashed: no speed-up")
    label_places.at_line_ends(ax, names)


def _of(points: pd.DataFrame, generator: str, judge: rows.Judge) -> pd.DataFrame:
    here = judge.of(points)
    return here[here["generator"] == generator]


def _gains(points: pd.DataFrame) -> dict[str, SpeedUp]:
    """The speed-up of each aligned tokenizer whose plain counterpart is among the points."""
    curves = {name: group.set_index("images_seen")["gfid"] for name, group in points.groupby("tokenizer")}
    return {aligned: speed_up(curves[plain], curves[aligned]) for plain, aligned in rows.pairs(points)}


def _gains_of_each_seed(generators: pd.DataFrame) -> dict[str, str]:
    """The speed-ups within each repeat (one pair of tokenizer seed and generator seed), in the order of the seeds."""
    repeats = [_gains(repeat) for _, repeat in generators.groupby(["seed", "tokenizer_seed"])]
    names = dict.fromkeys(name for repeat in repeats for name in repeat)
    return {name: "; ".join(str(repeat[name]) for repeat in repeats if name in repeat) for name in names}


def _frame(ax: Axes, points: pd.DataFrame, generators: pd.DataFrame) -> None:
    """Set the axes, equal in all panels of one judge."""
    axis_scales.fit(ax, "y", [*points["gfid_min"], *points["gfid_max"]], pad=0.06)
    axis_scales.budget(ax, sorted(set(points["images_seen"])))
    ax.set_xlabel("images seen by the generator")
    ax.set_ylabel(wording.axis("gFID", generators))


def _label(tokenizer: str, gain: SpeedUp | None) -> str:
    if gain is None:
        return tokenizer
    return f"{tokenizer} {gain}" if gain.factor else f"{tokenizer}\n{gain}"


def _curves(
    ax: Axes, points: pd.DataFrame, repeats: pd.DataFrame, gains: dict[str, SpeedUp]
) -> list[label_places.Label]:
    """Draw a line per tokenizer; returns the labels of their ends."""
    names = []
    plain_of = {aligned: plain for plain, aligned in rows.pairs(points)}
    curves = {name: points[points["tokenizer"] == name] for name in rows.tokenizers(points)}
    for tokenizer, curve in curves.items():
        curve = curve.sort_values("images_seen", kind="stable")
        last = curve.iloc[-1]
        look = style.look(last["latent_channels"], last["foundation_model"], tokenizer)
        mine = repeats[repeats["tokenizer"] == tokenizer]
        marks.means(
            ax, mine, "images_seen", "gfid", spread="band", linestyle=look.dash, markersize=4, zorder=3,
            **look.markers(),
        )  # fmt: skip
        if tokenizer in gains:
            _bracket(ax, curves[plain_of[tokenizer]], gains[tokenizer], look.color)
        text = _label(tokenizer, gains.get(tokenizer))
        names.append(label_places.Label(text, float(last["images_seen"]), float(last["gfid"]), look.color))
    return names


def _bracket(ax: Axes, plain: pd.DataFrame, gain: SpeedUp, color: str) -> None:
    """A dotted line at the plain curve's last gFID, from the crossing of the aligned curve to the plain one's end."""
    if gain.images is None:
        return
    last = plain.sort_values("images_seen", kind="stable").iloc[-1]
    ends = [gain.images, float(last["images_seen"])]
    ax.plot(ends, [last["gfid"]] * 2, color=color, linewidth=0.8, linestyle=(0, (1, 1.2)), zorder=2)
    ax.plot(ends[:1], [last["gfid"]], color=color, marker="|", markersize=7, markeredgewidth=1, zorder=2)
