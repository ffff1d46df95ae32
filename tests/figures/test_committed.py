"""Figures and report of every committed study are what its committed table gives."""

import re
from pathlib import Path

import matplotlib
import PIL
import pytest

from figures import reconstructions
from figures.render import render
from results.table import load
from study.page.write import page

CHECKOUT = Path(__file__).resolve().parents[2]
STUDIES = ["paper", *sorted(path.parent.name for path in (CHECKOUT / "results").glob("desk*/table.csv"))]
DRAWN_WITH = "3.11"  # another matplotlib may place a glyph elsewhere; the numbers drawn must never differ
PACKED_WITH = "13."  # another Pillow may pack the same pixels otherwise


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
    if study == "paper":  # no study, so without a report
        return
    report = page(CHECKOUT / "results" / study, tmp_path, {**drawn.skipped, **drawn.refused})
    committed_report = (CHECKOUT / "results" / study / "report.html").read_text(encoding="utf-8")
    if not (matplotlib.__version__.startswith(DRAWN_WITH) and PIL.__version__.startswith(PACKED_WITH)):
        report, committed_report = (re.sub(r'src="[^"]+"', "", text) for text in (report, committed_report))
    assert report == committed_report


def test_labels_of_ranges_end_before_the_pictures_begin():
    study = CHECKOUT / "results" / "desk-full"
    figure = reconstructions.draw(load(study / "table.csv"), study).figure
    figure.draw_without_rendering()
    left = min(ax.get_window_extent().x0 for ax in figure.axes)
    labels = [text for text in figure.texts if "rFID" in text.get_text() and "\n" in text.get_text()]
    assert len(labels) == 6
    assert max(label.get_window_extent().x1 for label in labels) < left
