"""Published numbers in figures: drawn by the same modules, on separate axes, in grey, with their source."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from made_tables import JUDGES, study, with_labelled, write_study
from matplotlib.colors import to_rgb
from reading import measured, visible

import figures
from figures import layout, paper_values, style
from figures.drawing import Drawing
from figures.render import render
from results.published import SPEED_UPS, load_published

PAPER = load_published("paper")
DRAWN = ("dilemma", "frontier", "convergence", "scaling", "ladder", "foundation_models", "vf_loss", "uniformity")


def draw(name: str, table: pd.DataFrame) -> Drawing:
    return figures.module(name).draw(table, Path("/nowhere"))


@cache
def published(name: str) -> Drawing:
    """A figure of the paper's own tables, for tests that only look at it."""
    return draw(name, PAPER)


@pytest.fixture(scope="module")
def ours() -> dict[str, Drawing]:
    """Each figure of a measured study."""
    table = with_labelled(study(judges=JUDGES[:1]))
    return {name: draw(name, table) for name in DRAWN}


def colors(ax) -> set[str]:
    return {line.get_color() for line in ax.get_lines() if line.get_marker() not in ("None", "", None)}


@pytest.mark.parametrize("name", DRAWN)
def test_published_numbers_have_axes_of_their_own_in_grey(name: str, ours: dict[str, Drawing]) -> None:
    figure = ours[name].figure
    apart = [ax for ax in figure.axes if ax.get_gid() == layout.PUBLISHED and ax.axison]
    assert apart and all(ax.has_data() for ax in apart)
    for ax in apart:
        assert all(len(set(to_rgb(color))) == 1 or color == style.GREY for color in colors(ax))
    for ax in measured(figure):
        assert not any(len(set(to_rgb(color))) == 1 for color in colors(ax))
    (line,) = [text.get_text() for text in figure.texts if text.get_text().startswith("Published")]
    assert "not measured here (arXiv 2501.01423, " in line


@pytest.mark.parametrize("name", DRAWN)
def test_the_file_of_numbers_has_them_last_and_with_their_source(name: str, ours: dict[str, Drawing]) -> None:
    plotted, own = ours[name].plotted, len(ours[name].data)
    assert (plotted["source"][:own] == "").all()
    assert plotted["source"][own:].str.startswith("arXiv 2501.01423, ").all() and len(plotted) > own
    assert "source" not in ours[name].data and list(plotted)[:-1] == list(ours[name].data)


def test_what_is_drawn_of_the_paper_is_what_it_prints(ours: dict[str, Drawing]) -> None:
    frontier = ours["frontier"].published
    assert frontier is not None
    smallest = frontier[frontier["generator"] == "LightningDiT-B/1"].set_index("tokenizer")
    assert smallest.loc["f16d64", ["rfid", "gfid"]].tolist() == [0.17, 36.83]
    assert set(frontier["source"]) == {"arXiv 2501.01423, Table 2"}
    gains = ours["convergence"].published
    assert gains is not None and gains.set_index("tokenizer")["speed_up"].to_dict() == {
        name: f"{gain}×" for name, gain in SPEED_UPS.items()
    }
    ladder = ours["ladder"].published
    assert ladder is not None and len(ladder) == 10 and ladder["gfid"].iloc[-1] == 4.29


@pytest.mark.parametrize("name", DRAWN)
def test_the_papers_own_tables_are_drawn_by_the_same_modules(name: str) -> None:
    drawing = published(name)
    drawing.figure.draw_without_rendering()
    found = " ".join(text.get_text() for text in visible(drawing.figure))
    assert "not measured here" in found and "One seed" not in found and "Mixed" not in found
    for text in visible(drawing.figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 6.5
        assert box.x0 >= 0 and box.x1 <= drawing.figure.bbox.x1 + 1, text.get_text()
        assert box.y0 >= 0 and box.y1 <= drawing.figure.bbox.y1, text.get_text()


def test_the_papers_figures_hold_its_numbers() -> None:
    scaling = published("scaling").data
    assert len(scaling) == 27 and scaling.groupby("generator")["parameters"].nunique().eq(1).all()
    uniformity = published("uniformity").data
    spread = uniformity[uniformity["diagnostic"] == "density_cv"].dropna(subset=["value"])
    assert set(zip(spread["tokenizer"], spread["value"], strict=True)) >= {("f16d32", 0.263), ("f16d64", 0.296)}
    assert "† Confounded" in " ".join(text.get_text() for text in published("ladder").figure.texts)
    assert published("vf_loss").data["label"].tolist()[:2] == ["none", "full"]


@pytest.mark.slow  # seconds, but among the longest
def test_the_command_draws_the_paper_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from study.figures import main

    write_study(study(models=("none",), widths=(4,), judges=JUDGES[:1]), tmp_path / "results" / "desk")
    assert main("paper", tmp_path) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"paper"}
    assert str(tmp_path / "figures" / "paper" / "frontier.pdf") in capsys.readouterr().out
    assert main("paper", tmp_path, named="desk") == 2
    assert "'paper' and --study 'desk'" in capsys.readouterr().err


def test_a_figure_without_published_numbers_has_none(tmp_path: Path, table: pd.DataFrame) -> None:
    render(write_study(table, tmp_path / "results"), tmp_path / "out", ["samples"])
    assert "source" not in (tmp_path / "out" / "samples.csv").read_text().splitlines()[0]


def test_some_of_many_sizes() -> None:
    assert paper_values.spread_out(["B", "L", "XL"], 1) == ["B"]
    assert paper_values.spread_out(["B", "L", "XL"], 2) == ["B", "XL"]
    assert paper_values.spread_out(["B", "L", "XL"], 4) == ["B", "L", "XL"]
