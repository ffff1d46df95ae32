"""Every figure is drawn from a small table, reproducibly, and says what is missing."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import matplotlib.text
import pandas as pd
import pytest
from made_tables import (
    JUDGES,
    LABELLED,
    asked,
    budgets,
    guided,
    labelled,
    latents,
    study,
    where_to_align,
    without,
    write_sheets,
    write_study,
)
from matplotlib.figure import Figure
from reading import measured, visible

import figures
from figures import rows, style, uniformity
from figures.drawing import Drawing, NothingToDraw
from figures.render import render
from results.runs import asked_by
from results.schema import DIAGNOSTICS
from results.table import ProtocolError

CHARTS = ("frontier", "convergence", "scaling")


def texts(drawing: Drawing) -> str:
    """All text of a figure, its wrapped lines joined."""
    return " ".join(text.get_text() for text in drawing.figure.findobj(matplotlib.text.Text))


def draw(name: str, table: pd.DataFrame, folder: Path = Path("/nowhere")) -> Drawing:
    return figures.module(name).draw(table, folder)


@cache
def drawn(name: str) -> Drawing:
    """The figure of the table that tests start from, for those that only look at it."""
    return draw(name, study())


@pytest.mark.slow
def test_all_figures_are_drawn_with_the_same_bytes_twice(tmp_path: Path, table: pd.DataFrame) -> None:
    labels = [labelled(table, name) for name in LABELLED]
    of_latents = [latents(), where_to_align(table)]
    asked = pd.concat([guided(table), *labels, budgets(table), *of_latents], ignore_index=True)
    folder = write_study(asked, tmp_path / "results")
    first = render(folder, tmp_path / "a")
    second = render(folder, tmp_path / "b")
    assert first.skipped == first.refused == {}
    assert [path.name for path in first.written] == [
        f"{name}.{suffix}" for name in figures.FIGURES for suffix in ("png", "pdf", "csv")
    ]
    for a, b in zip(first.written, second.written, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    assert b"/Type /Font\n/Subtype /Type3" not in first.written[1].read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in first.written}


def test_user_settings_do_not_move_a_figure(tmp_path: Path, table: pd.DataFrame) -> None:
    folder = write_study(table, tmp_path / "results")
    a = render(folder, tmp_path / "a", ["scaling"]).written[0].read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "savefig.bbox": "tight"}):
        b = render(folder, tmp_path / "b", ["scaling"]).written[0].read_bytes()
    assert a == b


@pytest.mark.parametrize("name", CHARTS)
def test_a_missing_run_is_named_with_its_reason(name: str, table: pd.DataFrame) -> None:
    drawing = draw(name, without(table, "f4d16", "failed", "out of memory"))
    assert "Missing: f4d16 (failed: out of memory)" in texts(drawing)
    assert set(drawing.data["tokenizer"]) == {"f4d4", "f4d4-lite0", "f4d16-lite0"}


def test_a_failed_tokenizer_is_named_once(table: pd.DataFrame) -> None:
    table = without(table, "f4d16", "failed", "out of memory", kind="tokenizer")
    found = texts(draw("frontier", without(table, "f4d16", "blocked", "blocked by f4d16")))
    assert "Missing: f4d16 tokenizer (failed: out of memory)." in found


def test_a_stopped_run_moves_the_frontier_to_the_last_common_mark(table: pd.DataFrame) -> None:
    late = (table["tokenizer"] == "f4d4") & (table["images_seen"] > 32_000) & (table["kind"] == "generator")
    table.loc[late, "gfid"], table.loc[late, "state"], table.loc[late, "reason"] = (
        float("nan"),
        "diverged",
        "",
    )
    drawing = draw("frontier", table)
    assert set(drawing.data["images_seen"]) == {32_000}
    assert "last mark common to all" in texts(drawing)
    assert "f4d4 after 32k images (diverged)" in texts(drawing)


@pytest.mark.parametrize("name", CHARTS)
def test_a_mixed_protocol_is_refused_by_its_field(name: str, table: pd.DataFrame) -> None:
    table.loc[(table["tokenizer"] == "f4d4") & (table["kind"] == "generator"), "steps"] = 250
    with pytest.raises(ProtocolError, match="differ in steps: 50, 250"):
        draw(name, table)


def test_one_judge_with_two_references_is_refused(table: pd.DataFrame) -> None:
    table.loc[(table["tokenizer"] == "f4d4") & (table["kind"] == "generator"), "reference_hash"] = "other"
    with pytest.raises(ProtocolError, match="reference_hash"):
        draw("convergence", table)


def test_two_runs_that_look_the_same_are_refused(table: pd.DataFrame) -> None:
    one = asked(table, "recipe")
    twin = one.assign(fingerprint=table["fingerprint"] + "x")
    both = pd.concat([one, twin], ignore_index=True)
    with pytest.raises(ValueError, match="cannot tell"):
        draw("convergence", both)
    beside = pd.concat([table, twin], ignore_index=True)  # the frontier's own rows are unambiguous
    assert len(draw("convergence", beside).data) == len(drawn("convergence").data)


@pytest.mark.parametrize("name", CHARTS)
def test_each_judge_has_its_panel_and_its_axis_says_so(name: str) -> None:
    labels = [ax.get_ylabel() for ax in measured(drawn(name).figure)]
    assert labels == [
        "gFID-5K (↓ lower is better)\nEfficientNet-Lite2 @ 96 px",
        "gFID-5K (↓ lower is better)\ntrained classifier @ 32 px",
    ]


@pytest.mark.parametrize("name", CHARTS)
def test_seeds_are_averaged_and_their_range_is_kept(name: str) -> None:
    drawing = draw(name, study(seeds=(0, 1), judges=JUDGES[:1]))
    assert set(drawing.data["gfid_runs"]) == {2}
    assert (drawing.data["gfid_min"] < drawing.data["gfid"]).all()
    assert (drawing.data["gfid"] * 2 - drawing.data["gfid_min"] - drawing.data["gfid_max"]).abs().max() < 1e-9
    found = texts(drawing)
    assert "Mean of 2 seeds" in found
    assert "Seeds: tokenizers 0; generators 0, 1." in found and "Mixed" not in found


def test_labels_of_ranges_end_before_the_pictures_begin(tmp_path: Path, table: pd.DataFrame) -> None:
    again = table[table["kind"] == "tokenizer"].assign(tokenizer_seed=1, seed=1)
    again["fingerprint"] += "-again"
    again[["rfid", "psnr"]] *= 1.04
    write_sheets(table, tmp_path)
    figure = draw("reconstructions", pd.concat([table, again], ignore_index=True), tmp_path).figure
    figure.draw_without_rendering()
    left = min(ax.get_window_extent().x0 for ax in figure.axes)
    labels = [text for text in figure.texts if "rFID" in text.get_text() and "\n" in text.get_text()]
    assert len(labels) == 4 and all(text.get_text().count("–") == 3 for text in labels)
    assert max(label.get_window_extent().x1 for label in labels) < left


def test_headings_of_neighbouring_panels_do_not_meet() -> None:
    table = study(widths=(4, 8, 16), sizes={"LightningDiT-XXS/2": 1_000_000}, seeds=(0, 1, 2))
    aligned = (table["foundation_model"] == "lite0") & (table["kind"] == "generator")
    table.loc[aligned & (table["latent_channels"] == 4), "gfid"] *= 3
    table = table[~(aligned & (table["latent_channels"] == 8) & (table["seed"] > 0))]
    figure = draw("frontier", table).figure
    figure.draw_without_rendering()
    headings = [text for text in visible(figure) if text.get_text().startswith("Lower gFID with alignment in")]
    assert len(headings) == len(JUDGES)
    assert headings[0].get_text().count(",") == 1
    boxes = sorted((heading.get_window_extent() for heading in headings), key=lambda box: box.x0)
    assert boxes[0].x1 < boxes[1].x0 and boxes[1].x1 <= figure.bbox.x1
    assert min(heading.get_fontsize() for heading in headings) >= 6.5


def test_alignment_counts_only_where_three_seeds_agree() -> None:
    once, twice, table = (study(widths=(16,), seeds=range(n), judges=JUDGES[:1]) for n in (1, 2, 3))
    assert "Lower gFID with alignment indicated in 1 of 1" in texts(draw("frontier", once))
    assert "Lower gFID with alignment indicated in 1 of 1" in texts(draw("frontier", twice))
    assert "Lower gFID with alignment in 1 of 1" in texts(draw("frontier", table))
    unlucky = (table["foundation_model"] == "lite0") & (table["seed"] == 1) & (table["kind"] == "generator")
    table.loc[unlucky, "gfid"] = table["gfid"].max()
    assert "Lower gFID with alignment in 0 of 1 (1 undecided)" in texts(draw("frontier", table))


def test_the_speed_up_of_each_seed_is_kept() -> None:
    drawing = draw("convergence", study(widths=(16,), seeds=(0, 1), judges=JUDGES[:1]))
    aligned = drawing.data[drawing.data["foundation_model"] == "lite0"]
    (each,) = set(aligned["speed_up_of_each_seed"])
    assert each.count("×") == 2
    assert set(drawing.data.loc[drawing.data["foundation_model"] == "none", "speed_up_of_each_seed"]) == {""}


def test_too_few_samples_and_mixed_provenance_are_said(table: pd.DataFrame) -> None:
    small = study(samples=500, comparable=False)
    small.loc[small["tokenizer"] == "f4d4", "commit"] = "9f8e7d6"
    drawing = draw("frontier", small)
    assert "gFID-500, not comparable" in drawing.figure.axes[0].get_ylabel()
    assert "commit 1a2b3c4, 9f8e7d6" in texts(drawing)
    assert "Not comparable: fewer samples" in texts(drawing)
    some = small.assign(comparable=(small["kind"] == "generator") | (small["extractor"] != "efficientnet_lite2"))
    assert "Not comparable (rFID by EfficientNet-Lite2): fewer samples" in texts(draw("frontier", some))


def test_one_size_says_that_it_shows_no_slope() -> None:
    assert "one size shows no slope" in texts(drawn("scaling"))


@pytest.mark.parametrize("case", ["nearly equal", "wide range", "three by three", "one"])
@pytest.mark.parametrize("name", [*CHARTS, "uniformity"])
def test_no_text_is_cut_off_or_small_and_labels_do_not_overlap(name: str, case: str) -> None:
    drawing = draw(name, _case(case))
    figure = drawing.figure
    figure.draw_without_rendering()
    boxes = []
    for text in visible(figure):
        assert text.get_fontsize() >= 6.5
        box = text.get_window_extent()
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= figure.bbox.x1 + 1, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.y1 <= figure.bbox.y1, text.get_text()
        if text.get_text().split()[0] in set(drawing.data["tokenizer"]):
            boxes.append((text.get_text(), box))
    assert boxes
    for i, (a, box) in enumerate(boxes):
        for b, other in boxes[:i]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            up = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 1 or up <= 3, (a, b)  # pixels of 200 an inch: descenders may meet


def _case(case: str) -> pd.DataFrame:
    if case == "one":
        return study(widths=(4,), models=("none",), judges=JUDGES[:1])
    if case == "three by three":
        sizes = {"LightningDiT-B/1": 130_000_000, "LightningDiT-XL/1": 675_000_000}
        return study((16, 32, 64), ("none", "dinov2", "mae"), sizes, judges=JUDGES[:1], stride=16, floor=6)
    table = study((8, 16, 32), judges=JUDGES[:1])
    if case == "wide range":
        table.loc[table["latent_channels"] == 32, "gfid"] *= 40
        return table
    rank = table["tokenizer"].rank(method="dense")
    table["rfid"] = (10.1 + 0.04 * rank).where(table["kind"] == "tokenizer")
    table["gfid"] = (60 + 0.2 * rank).where(table["kind"] == "generator")
    return table


def test_each_diagnostic_has_a_panel_per_judge_with_its_rank_correlation(table: pd.DataFrame) -> None:
    drawing = draw("uniformity", table)
    assert len(measured(drawing.figure)) == 5 * len(JUDGES)
    found = texts(drawing)
    assert "Spread of density: ρ = 0.80 (" in found and "Entropy of density: ρ = −0.80 (" in found
    assert "), n = 4" in found and "Latents: 1,500 tokens" in found and "no |ρ| where n = 4" in found
    assert "Not measured" not in found
    assert set(drawing.data["diagnostic"]) == {"rfid", *uniformity.SHORT}  # rFID to compare with
    assert set(drawing.data["images_seen"]) == {128_000}


def test_a_diagnostic_that_is_missing_is_a_named_gap(table: pd.DataFrame) -> None:
    table.loc[table["tokenizer"] == "f4d16", [*DIAGNOSTICS, "diagnostic_points"]] = pd.NA
    table["ifid"] = float("nan")
    drawing = draw("uniformity", table)
    found = texts(drawing)
    assert "Gini of density, Entropy of density, Effective rank of f4d16; iFID of all (python" in found
    assert len(measured(drawing.figure)) == 4 * len(JUDGES) and "), n = 3" in found
    lost = drawing.data[drawing.data["tokenizer"] == "f4d16"].set_index("diagnostic")["value"]
    assert lost.drop("rfid").isna().all() and lost["rfid"].notna().all()
    assert "n = 1, too few to rank" in texts(draw("uniformity", study(widths=(4,), models=("none",))))
    with pytest.raises(NothingToDraw, match="brings them"):
        draw("uniformity", table.assign(**dict.fromkeys(DIAGNOSTICS, float("nan"))))


def test_the_largest_generator_is_drawn_and_the_others_are_in_the_data() -> None:
    drawing = draw("uniformity", study(sizes={"LightningDiT-XXS/2": 1_250_000, "LightningDiT-XS/2": 5_500_000}))
    assert "LightningDiT-XS/2 at 128k images seen. Other sizes are in the CSV." in texts(drawing)
    assert set(drawing.data["generator"]) == {"LightningDiT-XXS/2", "LightningDiT-XS/2"}


def test_guidance_rings_what_was_chosen_and_not_what_scored_best(table: pd.DataFrame) -> None:
    drawing = draw("guidance", guided(table, lucky=0.9))
    ringed = drawing.data[drawing.data["best_of_runs"] > 0]
    assert set(ringed["guidance_scale"]) == {2.0} and set(ringed["seed_is_for"]) == {"scoring"}
    assert len(ringed) == 4 * len(JUDGES)
    by = ["extractor", "tokenizer"]
    scored = drawing.data[drawing.data["seed_is_for"] == "scoring"]
    lowest = scored.loc[scored.groupby(by)["gfid"].idxmin()]
    assert set(lowest["guidance_scale"]) == {1.5}
    found = texts(drawing)
    assert "LightningDiT-XXS/2 after 128k images" in found and "guidance as drawn for t in 0 to 1" in found
    assert [ax.get_xlabel() for ax in drawing.figure.axes] == ["scale of guidance (1 is none)"] * 2


def test_guidance_waits_for_all_that_choose(table: pd.DataFrame) -> None:
    table = guided(table)
    lost = (table["guidance_scale"] == 4) & (table["sampling_seed"] > 0) & (table["tokenizer"] == "f4d16")
    table.loc[lost, "gfid"], table.loc[lost, "state"], table.loc[lost, "reason"] = float("nan"), "failed", "no room"
    drawing = draw("guidance", table)
    assert set(drawing.data[drawing.data["best_of_runs"] > 0]["tokenizer"]) == {"f4d4", "f4d4-lite0", "f4d16-lite0"}
    assert "f4d16 after 128k images (failed: no room)" in texts(drawing)


@pytest.mark.parametrize("name", CHARTS)
def test_a_sweep_over_guidance_moves_no_other_figure(name: str, table: pd.DataFrame) -> None:
    before, after = drawn(name), draw(name, guided(table))
    pd.testing.assert_frame_equal(before.data, after.data)
    assert texts(before) == texts(after)
    # in a study of its own, its unguided scores are drawn
    alone = guided(table)
    own = asked_by(alone, "guidance") | (alone["kind"] == "tokenizer")
    alone["ablations"] = [("guidance",) if yes else () for yes in own]
    last = before.data[before.data["images_seen"] == before.data["images_seen"].max()]
    unguided = draw(name, alone)
    assert unguided.data["gfid"].tolist() == last["gfid"].tolist()
    assert "no guidance" in texts(unguided)


def test_a_figure_of_an_ablation_that_nobody_asked_for_is_not_missed(tmp_path: Path, table: pd.DataFrame) -> None:
    result = render(write_study(table, tmp_path / "results"), tmp_path / "out", ["guidance"])
    assert result == ([], {}, {})


def test_nothing_to_draw_is_said_and_old_files_go(tmp_path: Path, table: pd.DataFrame) -> None:
    generators = table["kind"] == "generator"
    table.loc[generators, "state"], table.loc[generators, "gfid"] = "pending", float("nan")
    folder, out = write_study(table, tmp_path / "results"), tmp_path / "out"
    out.mkdir()
    (out / "frontier.png").write_bytes(b"of an earlier table")
    result = render(folder, out, ["frontier"])
    assert result == ([], {"frontier": "no generator has finished"}, {})
    assert not list(out.iterdir())
    with pytest.raises(NothingToDraw, match="asked for by an ablation"):
        draw("frontier", asked(table))


def test_a_refused_figure_does_not_stop_the_others(tmp_path: Path, table: pd.DataFrame) -> None:
    table.loc[(table["tokenizer"] == "f4d4") & (table["kind"] == "generator"), "steps"] = 250
    result = render(write_study(table, tmp_path / "results"), tmp_path / "out", ["scaling", "reconstructions"])
    assert list(result.refused) == ["scaling"]
    assert len(result.written) == 3


def test_a_figure_that_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = write_study(table, tmp_path / "results"), tmp_path / "out"
    render(study, out, ["scaling"])
    save = style.save

    def broken(figure: Figure, stem: Path) -> list[Path]:
        if stem.name == "scaling":
            raise StopIteration
        return save(figure, stem)

    monkeypatch.setattr(style, "save", broken)
    result = render(study, out, ["scaling", "reconstructions"])
    assert result.refused == {"scaling": "StopIteration: "} and len(result.written) == 3
    assert not list(out.glob("scaling.*"))  # nor is the earlier one left


def test_an_unknown_figure_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no figure 'frontiers'; nearest: frontier"):
        figures.module("frontiers")


@pytest.mark.slow  # seconds, but among the longest
def test_the_command(tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    from study.figures import main

    write_study(study(models=("none",), widths=(4,), judges=JUDGES[:1]), tmp_path / "results" / "desk")
    assert main(out=tmp_path) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "figures" / "desk" / "frontier.pdf") in printed
    assert str(report := tmp_path / "results" / "desk" / "report.html") in printed
    assert 'id="figure-frontier"' in report.read_text()
    assert main("dsk", tmp_path) == 2
    assert "no study 'dsk'" in (error := capsys.readouterr().err)
    assert error.endswith("nearest: desk\n")
    assert error.count("\n") == 1


def test_help_does_not_wait_for_matplotlib() -> None:
    code = "import sys, study.figures; sys.exit('matplotlib' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_what_reads_the_state_of_a_study_does_not_wait_for_seaborn() -> None:
    code = "import sys, study.report.refresh; sys.exit('seaborn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_tokenizers_with_regularisers_are_lines_of_their_own(table: pd.DataFrame) -> None:
    regularised = table.assign(
        tokenizer=table["tokenizer"] + "+noise+eq",
        fingerprint="r-" + table["fingerprint"],
        tokenizer_fingerprint="r-" + table["tokenizer_fingerprint"],
        rfid=2 * table["rfid"],
    )
    names = regularised["tokenizer"].str.replace("+noise", "+spectrum+local+prefix+mask+noise+scale")
    longest = pd.concat([table, regularised.assign(tokenizer=names)], ignore_index=True)
    assert "mask + noise + scale + eq" in texts(draw("dilemma", longest))  # widens its panels
    both = pd.concat([table, regularised], ignore_index=True)
    dilemma = draw("dilemma", both)
    assert all(name in texts(dilemma) for name in ("plain + noise + eq", "aligned (lite0) + noise + eq"))
    shown, own = (found.data.groupby("tokenizer")["rfid"].apply(list) for found in (dilemma, drawn("dilemma")))
    assert shown["f4d4"] == own["f4d4"]
    assert shown["f4d4+noise+eq"] == [2 * rfid for rfid in own["f4d4"]]
    assert "f4d16-lite0+noise+eq" in texts(draw("frontier", both))


def test_a_representation_autoencoder_is_neither_plain_nor_aligned(table: pd.DataFrame) -> None:
    own = study(widths=(112,), models=("rae-lite0",))
    own["tokenizer"] = "rae-lite0"
    both = pd.concat([table, own], ignore_index=True)
    dilemma = texts(draw("dilemma", both))
    assert "rae-lite0" in dilemma and "aligned (rae" not in dilemma
    assert "rae-lite0" in texts(draw("frontier", both))
    assert rows.pairs(both) == rows.pairs(table)
    assert draw("convergence", both) and draw("uniformity", both)
