"""The forest plot of effects: a mark per study and judge, bars only where there are intervals, room for all texts."""

import math

import matplotlib.text
import pandas as pd
import pytest

from figures import effects, style

KEYS = ("kind", "contrast", "study", "data", "runs", "judge", "change", "low", "high", "repeats", "text", "agreement")
PAPER = ("paper", "imagenet", "d16 to d64", "inception")
OURS = ("desk", "cifar10", "d4 to d32", "efficientnet_lite2 @ 64 px")
STUDIES = ("desk", "paper", "since")


def made(*rows: tuple[object, ...]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=KEYS)
    return table.astype({"change": float, "low": float, "high": float, "repeats": "Int64"})


TABLE = made(
    ("Wider: rFID", "narrowest to widest", *PAPER, -0.65, None, None, None, "−65%, published", "same sign, 1.5 times"),
    ("Wider: rFID", "narrowest to widest", *OURS, -0.5, -0.6, -0.4, 3, "−50% [−60%, −40%]", "same sign, 1.5 times"),
    ("Images", "widest latent", *PAPER, -0.6, None, None, None, "−60%, published", "sign unclear"),
    ("Images", "widest latent", *OURS, None, None, None, 3, "never in 1 of 3", "sign unclear"),
)


def test_every_effect_has_its_mark_and_only_intervals_have_bars() -> None:
    drawing = effects.draw(TABLE, STUDIES)
    (ax,) = drawing.figure.axes
    marks = [line for line in ax.lines if line.get_marker() not in ("None", None)]
    assert [round(math.expm1(line.get_xdata()[0]), 3) for line in marks] == [-0.65, -0.5, -0.6]  # type: ignore[index]
    bars = [line for line in ax.lines if line not in marks and line.get_color() in effects.HUES]
    assert [[round(math.expm1(x), 3) for x in line.get_xdata()] for line in bars] == [[-0.6, -0.4]]  # type: ignore[union-attr]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [True, False, True]
    assert {line.get_color() for line in marks} == {style.INK, effects.HUES[0]}
    assert drawing.plotted.equals(TABLE)
    key = [text.get_text() for text in drawing.figure.texts if text.get_text() in STUDIES]
    assert key == ["desk", "paper"]  # as asked; `since` has no effects


def test_the_number_of_an_effect_that_was_never_reached_is_still_printed() -> None:
    shown = [text.get_text() for text in effects.draw(TABLE, STUDIES).figure.findobj(matplotlib.text.Text)]
    assert "d4 to d32: never in 1 of 3" in shown


@pytest.mark.parametrize("factor", [1, 12])
def test_texts_lie_within_the_figure_and_apart(factor: int) -> None:
    table = pd.concat([TABLE.assign(kind=TABLE["kind"] + f" {i}") for i in range(factor)], ignore_index=True)
    figure = effects.draw(table, STUDIES).figure
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    (ax,) = figure.axes
    texts = [*figure.texts, *ax.texts, ax.xaxis.label, *ax.get_xticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    overlapping = [
        (a, b) for i, a in enumerate(boxes) for b in boxes[:i]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]  # fmt: skip
    assert not overlapping
