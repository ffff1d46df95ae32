"""Figures of labelled runs, and the dilemma: the order of labels, missing and confounded runs."""

from functools import cache, partial
from pathlib import Path

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from made_tables import BUDGETS, JUDGES, LABELLED, RUNGS, asked, budgets, labelled, study, with_labelled, without
from reading import measured, visible

import figures
from figures.drawing import Drawing, NotAsked, NothingToDraw
from results.schema import Label

FIGURE_OF = {name: "ladder" if name == "recipe" else name for name in LABELLED}


def draw(name: str, table: pd.DataFrame) -> Drawing:
    return figures.module(name).draw(table, Path("/nowhere"))


@cache
def drawn(name: str) -> Drawing:
    """The figure of the made study with all labelled runs, for tests that only look at it."""
    return draw(name, with_labelled(study()))


@cache
def repeated(name: str) -> Drawing:
    """The same with two seeds."""
    return draw(name, with_labelled(study(seeds=(0, 1))))


def texts(drawing: Drawing) -> list[str]:
    return [text.get_text() for text in drawing.figure.findobj(matplotlib.text.Text)]


def notes(drawing: Drawing) -> str:
    return " ".join(text.get_text() for text in drawing.figure.texts)


def lose(table: pd.DataFrame, label: str) -> pd.DataFrame:
    lost = table["run"].str.endswith(f" as {label}") & (table["kind"] == "generator")
    table.loc[lost, "gfid"], table.loc[lost, "state"], table.loc[lost, "reason"] = np.nan, "failed", "out of memory"
    return table


@pytest.mark.parametrize("ablation", LABELLED)
def test_every_label_has_its_line_in_the_order_that_it_was_asked_in(ablation: str) -> None:
    drawing = drawn(FIGURE_OF[ablation])
    wanted = [label for label, _ in LABELLED[ablation]]
    assert list(drawing.data[drawing.data["extractor"] == JUDGES[0][0]]["label"]) == wanted
    ticks = [tick.get_text().removesuffix(" †") for tick in drawing.figure.axes[0].get_yticklabels()]
    assert ticks == wanted


def test_only_the_rung_that_changes_two_things_is_marked() -> None:
    drawing = drawn("ladder")
    ticks = [tick.get_text() for ax in measured(drawing.figure) for tick in ax.get_yticklabels()]
    marked = [text for text in ticks if text.endswith(" †")]
    assert set(marked) == {f"{RUNGS[-1][0]} †"}
    assert "† Confounded" in notes(drawing)
    assert f"{RUNGS[-1][0]} changes foundation model and patch;" in notes(drawing)
    for name in ("foundation_models", "vf_loss"):
        assert "Confounded" not in notes(drawn(name))


@pytest.mark.parametrize(("ablation", "label"), [("recipe", "+ SwiGLU"), ("vf_loss", "without cosine part")])
def test_a_run_without_a_result_keeps_its_line_and_is_named(ablation: str, label: str, table: pd.DataFrame) -> None:
    drawing = draw(FIGURE_OF[ablation], lose(with_labelled(table), label))
    assert label in [tick.get_text() for tick in drawing.figure.axes[0].get_yticklabels()]
    assert label not in set(drawing.data["label"])
    assert "missing" in texts(drawing)
    assert f"Missing: {label} (failed: out of memory)." in notes(drawing)


def test_a_rung_that_is_sampled_otherwise_is_named_and_any_other_protocol_refused(table: pd.DataFrame) -> None:
    table = with_labelled(table, "recipe")
    first = table["run"].str.endswith(f" as {RUNGS[0][0]}")
    table.loc[first, "solver"] = "ddpm"
    found = notes(draw("ladder", table))
    assert f"Sampled by ddpm: {RUNGS[0][0]}." in found and "ddpm 50 steps or euler 50 steps" in found
    table.loc[first, "samples"] = 100
    with pytest.raises(ValueError, match="differ in samples"):
        draw("ladder", table)


def test_a_shared_row_has_the_name_that_each_ablation_gives_it(table: pd.DataFrame) -> None:
    """As at the desk scale: one run of the frontier is also the full VF loss and one of the foundation models."""
    models, parts = partial(Label, ablation="foundation_models"), partial(Label, ablation="vf_loss")
    model = ("foundation_model",)
    labels = {
        "f4d16": (models(place=0, text="none"), parts(place=0, text="none", changed=model)),
        "f4d16-lite0": (models(place=1, text="lite0", changed=model), parts(place=1, text="full")),
    }
    generators = table["kind"] == "generator"
    table["labels"] = [
        labels.get(name, ()) if yes else () for name, yes in zip(table["tokenizer"], generators, strict=True)
    ]
    assert set(draw("vf_loss", table).data["label"]) == {"none", "full"}
    drawing = draw("foundation_models", table)
    assert set(drawing.data["label"]) == {"none", "lite0"}
    assert "One model here, lite0" in notes(drawing)
    with pytest.raises(NotAsked):
        draw("ladder", table)


def test_figures_of_no_ablation_leave_them_alone(table: pd.DataFrame) -> None:
    """In a study of the VF loss alone there is no frontier; with another ablation, only that one is drawn."""
    alone = labelled(table, "vf_loss")
    for name in ("dilemma", "frontier", "convergence", "samples"):
        with pytest.raises(NotAsked, match="vf_loss"):
            draw(name, alone)
    beside = with_labelled(asked(table, "uniformity"), "vf_loss")
    assert len(draw("frontier", beside).data) == len(draw("frontier", table).data)


@pytest.mark.parametrize("ablation", LABELLED)
def test_repeats_are_a_mean_with_their_range(ablation: str) -> None:
    drawing = repeated(FIGURE_OF[ablation])
    assert set(drawing.data["gfid_runs"]) == {2}
    assert (drawing.data["gfid_min"] < drawing.data["gfid"]).all()


def test_of_tokenizers_in_training_each_budget_is_a_place(table: pd.DataFrame) -> None:
    drawing = draw("tokenizer_budget", pd.concat([table, budgets(table)], ignore_index=True))
    plain = drawing.data[(drawing.data["tokenizer"] == "f4d16") & (drawing.data["extractor"] == JUDGES[0][0])]
    assert plain["tokenizer_images"].tolist() == list(BUDGETS)
    assert plain["gfid"].is_monotonic_decreasing and plain["rfid"].is_monotonic_decreasing
    assert plain["chroma_r2"].tolist() == pytest.approx([0.7, 0.8, 0.9])
    labels = [ax.get_ylabel() for ax in measured(drawing.figure)]
    assert len(labels) == 6 and labels[4].startswith("effective rank") and labels[5].startswith("share of chroma")
    grey = budgets(table).assign(chroma_r2=np.nan)
    assert [ax.get_ylabel() for ax in measured(draw("tokenizer_budget", grey).figure)][5].startswith("PSNR")


def test_a_tokenizer_that_is_judged_after_its_generator_is_missing_until_then(table: pd.DataFrame) -> None:
    table = budgets(table)
    late = (table["kind"] == "tokenizer") & (table["images_seen"] == BUDGETS[1])
    table.loc[late, ["rfid", "psnr", "state"]] = np.nan, np.nan, "pending"
    drawing = draw("tokenizer_budget", table)
    assert set(drawing.data["tokenizer_images"]) == {BUDGETS[0], BUDGETS[2]} and "Missing: " in notes(drawing)
    drawing.figure.draw_without_rendering()
    with pytest.raises(NothingToDraw, match="no tokenizer has finished"):
        draw("tokenizer_budget", table.assign(state=table["state"].mask(table["kind"] == "tokenizer", "pending")))


@pytest.mark.parametrize("name", ["dilemma", *FIGURE_OF.values()])
def test_no_text_is_cut_off_or_small(name: str) -> None:
    figure = repeated(name).figure
    figure.draw_without_rendering()
    for text in visible(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 6.5
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text


def test_the_dilemma_has_rfid_and_gfid_of_the_smallest_generator_by_every_judge() -> None:
    sizes = {"LightningDiT-XXS/2": 1_250_000, "LightningDiT-XS/2": 5_500_000}
    drawing = draw("dilemma", study(sizes=sizes))
    assert set(drawing.data["generator"]) == {"LightningDiT-XXS/2"}
    assert [ax.get_ylabel().split()[0] for ax in measured(drawing.figure)] == ["rFID-5K", "gFID-5K"] * 2
    plain = drawing.data[(drawing.data["foundation_model"] == "none") & (drawing.data["extractor"] == JUDGES[0][0])]
    plain = plain.sort_values("latent_channels")
    assert plain["rfid"].is_monotonic_decreasing and plain["gfid"].is_monotonic_increasing


def test_the_dilemma_draws_no_line_through_two_tokenizers_of_one_width(table: pd.DataFrame) -> None:
    own = table[table["tokenizer"] == "f4d16"]
    other = own.assign(tokenizer="mar-vae-f16d16", fingerprint=own["fingerprint"] + "-other")
    with pytest.raises(NothingToDraw, match="f4d16 and mar-vae-f16d16 are all plain, 16 channels wide"):
        draw("dilemma", pd.concat([table, other], ignore_index=True))


def test_the_dilemma_keeps_the_rfid_of_a_tokenizer_whose_generator_failed(table: pd.DataFrame) -> None:
    drawing = draw("dilemma", without(table, "f4d16", "failed", "out of memory"))
    lost = drawing.data[drawing.data["tokenizer"] == "f4d16"]
    assert lost["gfid"].isna().all() and lost["rfid"].notna().all()
    assert "Missing: f4d16 (failed: out of memory)." in notes(drawing)
