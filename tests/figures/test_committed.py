"""The figures of every committed study are what its committed table gives."""

from pathlib import Path

import matplotlib
import pytest

from figures import reconstructions
from figures.render import render
from results.table import load

CHECKOUT = Path(__file__).resolve().parents[2]
STUDIES = ["paper", *sorted(path.parent.name for path in (CHECKOUT / "results").glob("desk*/table.csv"))]
DRAWN_WITH = "3.11"  # another matplotlib may place a glyph elsewhere; the numbers drawn must never differ


@pytest.mark.parametrize("study", [name for name in STUDIES if (CHECKOUT / "figures" / name).is_dir()])
def test_figures_redraw_byte_for_byte(study, tmp_path):
    drawn = render(CHECKOUT / "results" / study, tmp_path)
    assert not drawn.refused
    committed = CHECKOUT / "figures" / study
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in committed.iterdir()}
    suffixes = (".csv", ".png", ".pdf") if matplotlib.__version__.startswith(DRAWN_WITH) else (".csv",)
    for path in drawn.written:
        if path.suffix in suffixes:
            assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


def test_labels_of_ranges_end_before_the_pictures_begin():
    study = CHECKOUT / "results" / "desk-full"
    figure = reconstructions.draw(load(study / "table.csv"), study).figure
    figure.draw_without_rendering()
    left = min(ax.get_window_extent().x0 for ax in figure.axes)
    labels = [text for text in figure.texts if "rFID" in text.get_text() and "\n" in text.get_text()]
    assert len(labels) == 6
    assert max(label.get_window_extent().x1 for label in labels) < left
