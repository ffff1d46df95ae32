"""The committed figures and reports equal those drawn from the committed tables."""

import re

import matplotlib
import PIL
import pytest
from committed import listed

from figures.render import render
from study.compare import main as compare
from study.report.html.page import page

MEASURED = re.findall(r"^results/(desk[^/]*)/table.csv$", "\n".join(listed()), re.M)
STUDIES = ["paper", *(pytest.param(name, marks=pytest.mark.slow) for name in MEASURED)]  # those take 10 s and more each
REFUSED = {"desk": {"pareto-tokenizer"}}  # its searches were measured by an earlier version than its frontier
DRAWN_WITH = "3.11"  # another matplotlib may place a glyph elsewhere; the numbers drawn must never differ
PACKED_WITH = "13."  # another Pillow may pack the same pixels otherwise


@pytest.mark.parametrize("study", STUDIES)
def test_figures_redraw_byte_for_byte(study, committed, tmp_path):
    results, figures = committed / "results" / study, committed / "figures" / study
    drawn = render(results, tmp_path)
    assert set(drawn.refused) == REFUSED.get(study, set())
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in figures.iterdir()}
    suffixes = (".csv", ".png", ".pdf") if matplotlib.__version__.startswith(DRAWN_WITH) else (".csv",)
    for path in drawn.written:
        if path.suffix in suffixes:
            assert path.read_bytes() == (figures / path.name).read_bytes(), path.name
    if study == "paper":  # has no report
        return
    report = page(results, tmp_path, {**drawn.skipped, **drawn.refused})
    committed_report = (results / "report.html").read_text(encoding="utf-8")
    if not (matplotlib.__version__.startswith(DRAWN_WITH) and PIL.__version__.startswith(PACKED_WITH)):
        report, committed_report = (re.sub(r'src="[^"]+"', "", text) for text in (report, committed_report))
    assert report == committed_report


@pytest.mark.slow
def test_effects_redraw_from_the_committed_tables(committed, tmp_path):
    assert compare(["paper", "desk-full", "desk-full-fashion-mnist"], figure=tmp_path, out=committed) == 0
    drawn = {path.name for path in (committed / "figures" / "effects").iterdir()}
    assert drawn == {path.name for path in tmp_path.iterdir()} == {"effects.csv", "effects.png", "effects.pdf"}
    for name in drawn if matplotlib.__version__.startswith(DRAWN_WITH) else {"effects.csv"}:
        assert (tmp_path / name).read_bytes() == (committed / "figures" / "effects" / name).read_bytes(), name
