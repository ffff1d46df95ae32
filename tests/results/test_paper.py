"""Published numbers: copied completely, and never confused with measured ones."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from models.configs import generator_config
from models.costs import generator_parameters
from results import table as results
from results.foretell import PREDICTORS
from results.published import FOLDER, load_correlations, load_published, load_study
from results.runs import asked_by
from results.schema import PUBLISHED_STUDIES, Source
from study import figures
from study.plan.checks import check_study

PAPER = load_published("paper")
GENERATORS = PAPER[PAPER["kind"] == "generator"]
TOKENIZERS = PAPER[PAPER["kind"] == "tokenizer"].set_index("run")


def test_the_ladder_of_table_1() -> None:
    ladder = GENERATORS[asked_by(GENERATORS, "recipe")].sort_values("fingerprint")
    assert ladder["gfid"].tolist() == [19.50, 17.20, 16.59, 16.61, 13.99, 12.52, 10.10, 9.25, 7.13, 4.29]
    assert set(ladder["images_seen"]) == {102_400_000}
    assert set(ladder["samples"]) == {50_000}


def test_the_grid_of_table_2() -> None:
    grid = GENERATORS[asked_by(GENERATORS, "frontier")]
    gfid = grid.pivot_table("gfid", "tokenizer", "generator")
    assert gfid.shape == (9, 3)
    assert gfid.loc["f16d64"].tolist() == [36.83, 20.73, 17.24]  # B, L, XL
    assert gfid.loc["f16d32-dinov2"].tolist() == [15.82, 9.82, 8.22]
    assert gfid.loc["f16d16-mae"].tolist() == [16.86, 10.93, 9.19]
    assert grid["images_seen"].isna().all()  # the paper does not say
    reconstruction = TOKENIZERS.loc["f16d64-dinov2", ["rfid", "psnr", "perceptual", "ssim"]]
    assert reconstruction.tolist() == [0.14, 30.71, 0.055, 0.87]


def test_the_systems_of_table_3() -> None:
    systems = GENERATORS[asked_by(GENERATORS, "system")]
    ours = systems[systems["generator"] == "LightningDiT-XL/1"].set_index(["images_seen", "guidance_scale"])["gfid"]
    assert ours.to_dict() == {
        (81_994_688, 1.0): 5.14,
        (81_994_688, 10.0): 2.11,
        (1_024_933_600, 1.0): 2.17,
        (1_024_933_600, 6.7): 1.35,
    }
    assert len(systems) == 25  # 12 without guidance, 13 with
    assert systems["guidance_scale"].isna().sum() == 11  # guided, and nobody says how much


def test_the_parts_of_table_5_and_the_densities_of_table_6() -> None:
    changed = GENERATORS[asked_by(GENERATORS, "vf_loss") & ~asked_by(GENERATORS, "frontier")]
    without = [(set(changes), gfid) for changes, gfid in zip(changed["changes"], changed["gfid"], strict=True)]
    assert sorted(without, key=lambda part: part[1]) == [
        ({"tokenizer.vf_distance_weight"}, 17.74),
        ({"tokenizer.vf_cosine_margin", "tokenizer.vf_distance_margin"}, 17.77),
        ({"tokenizer.vf_cosine_weight"}, 21.87),
    ]
    assert TOKENIZERS["density_cv"].dropna().to_dict() == {
        "f16d32": 0.263, "f16d32-dinov2": 0.178, "f16d32-mae": 0.193,
        "f16d64": 0.296, "f16d64-dinov2": 0.251, "f16d64-mae": 0.256,
    }  # fmt: skip


def test_published_correlations_say_where_they_are_from_and_how_sure_they_are() -> None:
    found = load_correlations()
    assert found.notna().all(axis=None) and set(found["publication"]) == {"arXiv 2606.03578"}
    assert set(found["predictor"]) <= set(PREDICTORS)
    assert set(found["confidence"]) == {"text", "two readings", "one reading"}
    of_sit = found[found["generator"] == "SiT-B"].set_index("printed_as")["r"]
    assert of_sit["-VIV"] == -0.87 and of_sit["LNC"] == -0.794
    assert found["r"].between(-1, 0).all()  # as printed: what is better lowers gFID
    assert not {"latents"} & {name for names in PAPER["ablations"] for name in names}


def test_what_several_tables_print_is_one_row_with_all_its_sources() -> None:
    (row,) = GENERATORS[GENERATORS["run"] == "f16d32 + LightningDiT-B/1"].to_dict("records")
    assert row["gfid"] == 22.62
    assert set(row["ablations"]) == {"frontier", "foundation_models", "vf_loss", "uniformity"}
    paper = "arXiv 2501.01423"
    assert row["source"] == tuple(Source(publication=paper, table=f"Table {n}") for n in (2, 4, 5, 6))


@pytest.mark.parametrize("study", PUBLISHED_STUDIES)
def test_no_row_can_be_taken_for_a_measured_one(study: str) -> None:
    table = load_published(study)
    assert len(table)
    assert set(table["study"]) == {study}
    assert table["source"].map(bool).all()
    for name in ("commit", "versions", "device", "sheet"):
        assert (table[name] == "").all()
    for name in ("seed", "tokenizer_seed", "train_seconds", "threads"):
        assert table[name].isna().all()
    with pytest.raises(ValueError, match=f"other than .*'{study}'"):
        check_study(study)


def test_only_the_paper_has_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main("since") == 2
    assert "no study 'since'" in capsys.readouterr().err


def test_sizes_of_generators_are_those_of_the_networks() -> None:
    """The paper's Figure 4 (c) has them on its axis, rounded."""
    known = GENERATORS[asked_by(GENERATORS, "frontier")]
    for row in known.drop_duplicates(["generator", "latent_channels"]).to_dict("records"):
        config = generator_config(row["generator"], grid=16, in_channels=row["latent_channels"], num_classes=1000)
        assert row["parameters"] == generator_parameters(config)


@pytest.mark.parametrize(("ablation", "count"), [("recipe", 10), ("foundation_models", 5), ("vf_loss", 5)])
def test_rows_of_labelled_ablations_have_their_place(ablation: str, count: int) -> None:
    places = [label.place for labels in GENERATORS["labels"] for label in labels if label.ablation == ablation]
    assert sorted(places) == list(range(count))
    full = GENERATORS[GENERATORS["run"] == "f16d32-dinov2 + LightningDiT-B/1"]["labels"].iloc[0]
    assert {label.ablation: label.text for label in full} == {
        "foundation_models": "dinov2", "vf_loss": "full",
    }  # fmt: skip


def test_tables_that_disagree_are_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "paper")
    path = tmp_path / "paper" / "table4_foundation_models.csv"
    path.write_text(path.read_text().replace("22.62", "22.26"))
    with pytest.raises(ValueError, match=r"f16d32 \+ LightningDiT-B/1 has gfid 22.26, another table 22.62"):
        load_published("paper", tmp_path / "paper")


def test_a_measured_row_among_them_is_refused(tmp_path: Path) -> None:
    table = results.load(FOLDER / "table1_recipe.csv").assign(study="desk")
    results.write(table, tmp_path / "mine.csv")
    with pytest.raises(ValueError, match="is of study 'desk'"):
        load_published("paper", tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": ""}, "without a number or its source"),
        ({"gfid": float("nan")}, "without a number or its source"),
        ({"fingerprint": "0123"}, "does not begin with published-"),
    ],
)
def test_a_published_row_has_a_number_and_a_source(changed: dict, message: str, tmp_path: Path) -> None:
    one = results.load(FOLDER / "table1_recipe.csv").iloc[:1]
    with pytest.raises(ValueError, match=message):
        results.write(one.assign(**changed), tmp_path / "table.csv")


def test_studies_are_found_by_name(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(load_study("paper", tmp_path), PAPER)
    results.write(PAPER.iloc[:3], tmp_path / "mine" / "table.csv")
    assert len(load_study("mine", tmp_path)) == 3
    with pytest.raises(ValueError, match=r"no study 'mime' in .*; nearest: mine"):
        load_study("mime", tmp_path)
