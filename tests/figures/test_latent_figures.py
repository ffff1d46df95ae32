"""Figures of latents: what a regulariser does, what foretells gFID, and where to align."""

from functools import cache
from pathlib import Path

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from made_tables import JUDGES, latents, study, where_to_align
from matplotlib.colors import to_rgb
from reading import measured, visible

import figures
from figures import layout
from figures.drawing import Drawing, NotAsked, NothingToDraw

ALONE = {"judges": JUDGES[1:]}


def draw(name: str, table: pd.DataFrame) -> Drawing:
    return figures.module(name).draw(table, Path("/nowhere"))


@cache
def table_of(name: str) -> pd.DataFrame:
    return where_to_align(study(seeds=(0, 1, 2))) if name == "where_to_align" else latents()


@cache
def drawn(name: str) -> Drawing:
    """The figure of the made table, for tests that only look at it."""
    return draw(name, table_of(name))


def texts(drawing: Drawing) -> list[str]:
    return [text.get_text() for text in drawing.figure.findobj(matplotlib.text.Text)]


def notes(drawing: Drawing) -> str:
    return " ".join(text.get_text() for text in drawing.figure.texts)


NAMES = ("latents", "foretell", "where_to_align")


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_off_or_small_and_headings_do_not_meet(name: str) -> None:
    figure = drawn(name).figure
    figure.draw_without_rendering()
    boxes = []
    for text in visible(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 6.5
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
        if text in figure.texts and "\n" not in text.get_text():
            boxes.append((text.get_text(), box))
    for i, (a, box) in enumerate(boxes):
        for b, other in boxes[:i]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            assert across <= 0 or min(box.y1, other.y1) - max(box.y0, other.y0) <= 3, (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_another_study_is_not_asked_for_them_and_one_that_waits_has_nothing(name: str) -> None:
    with pytest.raises(NotAsked):
        draw(name, study())
    waiting = table_of(name).assign(state="pending", gfid=np.nan, rfid=np.nan)
    with pytest.raises(NothingToDraw, match="no generator has finished"):
        draw(name, waiting)


def test_every_regulariser_has_its_cell_and_its_change_from_none() -> None:
    data = drawn("latents").data.set_index(["extractor", "label"]).loc["classifier"]
    assert data.loc["f4d4", "gfid_change"] == 0
    assert data.loc["f4d4+eq", "gfid_change"] == pytest.approx(
        data.loc["f4d4+eq", "gfid"] / data.loc["f4d4", "gfid"] - 1
    )
    assert data.loc["f4d16-lite0+noise, up to 0.2", ["family", "width", "setting"]].tolist() == [
        "aligned", 16, "noise, up to 0.2",
    ]  # fmt: skip
    assert len(drawn("latents").figure.axes) == 2 * 2 * len(JUDGES)
    rows = [tick.get_text() for tick in drawn("latents").figure.axes[0].get_yticklabels()]
    assert rows == ["no regulariser", "spectrum", "mask", "mask, more", "noise", "noise, up to 0.2", "eq"]
    assert "rae-lite0 by trained classifier @ 32 px: rFID " in notes(drawn("latents"))
    assert "4 of 29 tokenizers: means of 3 seeds" in notes(drawn("latents"))


def test_a_cell_without_a_result_is_a_dash_and_its_run_is_named() -> None:
    table = latents(**ALONE)
    lost = (table["tokenizer"] == "f4d4+eq") & (table["kind"] == "generator")
    table.loc[lost, "gfid"], table.loc[lost, "state"], table.loc[lost, "reason"] = np.nan, "failed", "out of memory"
    drawing = draw("latents", table)
    assert texts(drawing).count("–") == 2  # rFID and gFID
    assert "Missing: f4d4+eq seed 0 (failed: out of memory)." in notes(drawing)
    base = table["tokenizer"] == "f4d16"
    without = table.assign(state=table["state"].mask(base & (table["kind"] == "generator"), "pending"))
    changes = draw("latents", without).data.set_index("label")["gfid_change"]
    assert np.isnan(changes["f4d16+eq"]) and not np.isnan(changes["f4d4+mask"])


def test_predictors_are_ranked_by_what_they_foretell_within_families() -> None:
    drawing = drawn("foretell")
    rows = [tick.get_text() for tick in measured(drawing.figure)[0].get_yticklabels()]
    assert set(rows[:3]) == {"VIV", "LNC, 5 nearest", "LNC, 10 nearest"} and rows[-1] == "Spread of density"
    assert "CDS" not in rows and "Not measured: CDS, iFID as released, LDS, SEC above 0.25, SEC above 0.5 (" in notes(
        drawing
    )
    assert len(measured(drawing.figure)) == 3 * len(JUDGES)  # plain, aligned, pooled
    headings = [text.get_text() for text in drawing.figure.texts]
    assert headings.count("plain, n = 14") == headings.count("pooled, n = 29") == len(JUDGES)
    assert "Of fewer tokenizers: EQ error" not in notes(drawing)
    assert "gFID varies by 1% over repeats" in notes(drawing)


def test_a_predictor_that_some_tokenizers_lack_says_of_how_many_it_is() -> None:
    table = latents(**ALONE)
    table.loc[table["tokenizer"].isin(["rae-lite0", "f4d4"]), "eq_error"] = np.nan
    drawing = draw("foretell", table)
    assert "Of fewer tokenizers: EQ error of 13 (plain), EQ error of 27 (pooled)." in notes(drawing)


def test_published_correlations_are_grey_apart_and_have_their_source() -> None:
    drawing = drawn("foretell")
    apart = [ax for ax in drawing.figure.axes if ax.get_gid() == layout.PUBLISHED]
    assert len(apart) == len(JUDGES)

    def colors(ax):  # type: ignore[no-untyped-def]
        return [line.get_color() for line in ax.get_lines() if line.get_marker() not in ("None", "", None)]

    assert all(len(set(to_rgb(color))) == 1 for ax in apart for color in colors(ax))
    assert not any(len(set(to_rgb(color))) == 1 for ax in measured(drawing.figure) for color in colors(ax))
    assert "Published, not measured here (arXiv 2606.03578, " in notes(drawing)
    plotted = drawing.plotted
    own = plotted["source"] == ""
    assert set(plotted[own]["scope"]) == {"plain", "aligned", "pooled"} and set(plotted[~own]["scope"]) == {"published"}
    of_viv = plotted[~own & (plotted["diagnostic"] == "viv")].set_index("generator")["r"]
    assert of_viv["SiT-B"] == 0.87  # as expected, which is printed as -0.870


def test_each_width_is_compared_with_its_own_run_without_alignment() -> None:
    drawing = drawn("where_to_align")
    assert len(drawing.figure.axes) == 2 * len(JUDGES)
    labels = [[tick.get_text() for tick in ax.get_yticklabels()] for ax in drawing.figure.axes]
    ways = ["none", "REPA", "iREPA", "tokenizer", "tokenizer and REPA", "tokenizer and iREPA"]
    assert labels[0] == [f"d4: {way}" for way in ways] and labels[2] == [f"d16: {way}" for way in ways]
    assert "Confounded" not in notes(drawing)
    of_wide = drawing.data[(drawing.data["latent_channels"] == 16) & (drawing.data["extractor"] == "classifier")]
    assert of_wide.set_index("label")["changed"].to_dict() == {
        f"d16: {way}": "" if way == "none" else "alignment" for way in ways
    }
    vertical = [
        line for line in drawing.figure.axes[2].get_lines() if len(set(line.get_xdata())) == 1 < len(line.get_xdata())
    ]
    wide = drawing.data[(drawing.data["label"] == "d16: none") & (drawing.data["extractor"] == JUDGES[0][0])]
    assert wide["gfid"].item() in [line.get_xdata()[0] for line in vertical]


def test_a_width_that_has_no_result_yet_is_named() -> None:
    table = where_to_align(study(**ALONE))
    wide = (table["latent_channels"] == 16) & (table["kind"] == "generator")
    drawing = draw("where_to_align", table.assign(state=table["state"].mask(wide, "pending")))
    assert set(drawing.data["latent_channels"]) == {4}
    (missing,) = [text.get_text() for text in drawing.figure.texts if text.get_text().startswith("Missing: ")]
    assert "d16: none" in missing and "d4: none" not in missing
