"""What seaborn draws: arithmetic means of the repeats and the range of all of them, the same every time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_tables import JUDGES, guided, labelled, study
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from reading import measured

import figures
from figures import marks

SIZES = {"LightningDiT-XXS/2": 1_250_000, "LightningDiT-XS/2": 5_500_000}
REPEATS = pd.DataFrame({"place": [1, 1, 1, 2, 3, 3, 4], "value": [2.0, 3.0, 10.0, 4.0, 6.0, 8.0, np.nan]})
MEANS = [5.0, 4.0, 7.0]
RANGES = [(2.0, 10.0), (6.0, 8.0)]


def axes() -> Axes:
    return Figure().add_subplot()


def means(ax: Axes, along: str = "x") -> list[float]:
    """The values of all points that have a marker of a mean."""
    lines = [line for line in ax.get_lines() if line.get_marker() not in ("None", "|")]
    lines = [line for line in lines if line.get_markerfacecolor() != "none"]
    return [float(v) for line in lines for v in (line.get_ydata() if along == "x" else line.get_xdata())]


def ranges(ax: Axes, along: str = "x") -> list[tuple[float, float]]:
    """The ends of all bars and, at each of their places, of all bands."""
    return [(float(ends[:, value].min()), float(ends[:, value].max())) for ends, value in _ends(ax, along)]


def _ends(ax: Axes, along: str) -> Iterator[tuple[np.ndarray, int]]:
    place, value = (0, 1) if along == "x" else (1, 0)
    for container in ax.containers:
        for bars in container.lines[2]:
            assert isinstance(bars, LineCollection)
            yield from ((ends, value) for ends in bars.get_segments() if len(ends) and not np.isnan(ends).any())
    for band in (found for found in ax.collections if isinstance(found, PolyCollection)):
        for path in band.get_paths():
            corners = path.vertices
            yield from ((corners[corners[:, place] == at], value) for at in np.unique(corners[:, place]))


@pytest.mark.parametrize("spread", ["bars", "band"])
def test_a_mean_at_every_place_and_a_range_where_there_are_several(spread: str) -> None:
    ax = axes()
    marks.means(ax, REPEATS, "place", "value", spread=spread, marker="o")
    assert (means(ax), ranges(ax)) == (MEANS, RANGES)
    assert ax.get_xlabel() == ax.get_ylabel() == "" and ax.get_legend() is None
    lone = axes()
    marks.means(lone, REPEATS.drop_duplicates("place"), "place", "value", spread=spread, marker="o")
    assert means(lone) == [2, 4, 6] and not lone.collections and not lone.containers


def test_places_may_lie_along_the_other_axis() -> None:
    ax = axes()
    marks.means(ax, REPEATS, "value", "place", along="y", marker="o")
    assert (means(ax, "y"), ranges(ax, "y")) == (MEANS, RANGES)


def test_equal_repeats_have_a_range_of_no_length() -> None:
    """The mean of three times 0.1 is a rounding above 0.1."""
    ax = axes()
    marks.means(ax, pd.DataFrame({"place": [1] * 3, "value": [0.1] * 3}), "place", "value")
    assert ranges(ax) == [pytest.approx((0.1, 0.1))]


def test_means_of_logarithms_are_refused() -> None:
    ax = axes()
    ax.set_yscale("log")
    with pytest.raises(ValueError, match="the means are arithmetic"):
        marks.means(ax, REPEATS, "place", "value")


@pytest.fixture(scope="module")
def wide() -> pd.DataFrame:
    """Six repeats of two sizes, so far apart that their axis is logarithmic."""
    table = study(sizes=SIZES, seeds=range(6), judges=JUDGES[:1])
    table.loc[table["latent_channels"] == 16, "gfid"] *= 40
    return table


@pytest.mark.parametrize("name", ["convergence", "scaling", "dilemma", "guidance", "ladder", "vf_loss"])
def test_what_is_drawn_is_what_the_file_says(name: str, wide: pd.DataFrame) -> None:
    along = "y" if name in ("ladder", "vf_loss") else "x"
    small = wide[wide["generator"] != "LightningDiT-XS/2"]
    table = {"guidance": lambda: guided(wide), "ladder": lambda: labelled(small, "recipe"),
             "vf_loss": lambda: labelled(small, "vf_loss")}.get(name, lambda: wide)()  # fmt: skip
    drawing = figures.module(name).draw(table, Path("/nowhere"))
    data, panels = drawing.data, measured(drawing.figure)
    if along == "x":
        assert any(ax.get_yscale() == "log" for ax in panels)
    if name == "guidance":
        data = data[data["seed_is_for"] == "scoring"]
    numbers, spans = [], []
    for metric in ("rfid", "gfid") if name in ("dilemma", "vf_loss") else ("gfid",):
        numbers += data[metric].tolist()
        several = data[data[f"{metric}_runs"] > 1]
        spans += several[[f"{metric}_min", f"{metric}_max"]].to_numpy().tolist()
    assert spans
    assert sorted(v for ax in panels for v in means(ax, along)) == pytest.approx(sorted(numbers), rel=1e-12)
    drawn = sorted(span for ax in panels for span in ranges(ax, along))
    np.testing.assert_allclose(drawn, sorted(spans), rtol=1e-12)


def test_no_interval_is_resampled() -> None:
    drawn, repeats = [], pd.DataFrame({"place": 1, "value": np.arange(9.0) ** 2})
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 (the generator that seaborn's bootstrap would use)
        drawn.append(axes())
        marks.means(drawn[-1], repeats, "place", "value")
    assert ranges(drawn[0]) == ranges(drawn[1]) == [(0, 64)]
