"""Diagnostics of latents: closed forms, reproducibility, and their way from a stage's folder into the table."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import COMPUTE, draw_pictures
from PIL import Image

from figures.render import Rendered
from results import table as results
from results.schema import DIAGNOSTICS, latents_file
from study import diagnose
from study.core.files import write_json
from study.data import latents as stored_latents
from study.data.datasets import ImageSet, resolve_data
from study.judge.frechet import MetricError
from study.judge.latent_diagnostics import PREDICTORS, describe_latents, picture_latents, points_for, tokens
from study.judge.latent_metrics import effective_rank, spectrum, unevenness, uniformity
from study.plan.resolve import make_plan
from study.plan.stage import DIAGNOSTICS as FILE
from study.plan.stage import LATENT_MAP, LATENT_PICTURES, Stage
from study.report import refresh
from study.report.table_rows import update_table
from study.stages import reconstruct
from study.submit.launches import note_sweep
from study.submit.options import Sweep


def test_equal_weights_are_even_and_a_single_one_is_not():
    assert unevenness(np.full(50, 3.0)) == pytest.approx({"density_cv": 0, "gini": 0, "normalized_entropy": 1})
    alone = unevenness(np.eye(50)[7])
    assert alone == pytest.approx({"density_cv": 7, "gini": 1 - 1 / 50, "normalized_entropy": 0})  # sqrt(50 - 1)


def test_an_unevenness_that_is_not_finite_is_an_error():
    with pytest.raises(MetricError, match="density_cv is not finite"):
        unevenness(np.array([1.0, np.nan]))


def test_weights_by_hand():
    found = unevenness(np.array([3.0, 1.0]))
    assert found["density_cv"] == pytest.approx(0.5)  # spread 1 over mean 2
    assert found["gini"] == pytest.approx(0.25)  # |3 - 1| twice, over 2 * 4 pairs of mean 2
    assert found["normalized_entropy"] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


@pytest.fixture(scope="module")
def maps():
    """Latents of one normal cloud, and of a large cluster among small ones."""
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(240, 4))
    clusters = np.concatenate([8 * rng.normal(size=4) + 0.3 * rng.normal(size=(n, 4)) for n in (180, *[6] * 10)])
    return cloud.astype(np.float32), (clusters / clusters.std(axis=0)).astype(np.float32)


def test_clusters_of_unequal_size_are_less_even_than_one_cloud_and_reproducibly_so(maps):
    even, clustered = map(uniformity, maps)
    assert clustered["density_cv"] > 1.1 * even["density_cv"]
    assert clustered["gini"] > 1.1 * even["gini"]
    assert clustered["normalized_entropy"] < even["normalized_entropy"] < 1
    assert uniformity(maps[0]) == even


def test_a_map_needs_points_that_are_numbers_and_differ(maps):
    with pytest.raises(ValueError, match=r"at least 91 latent tokens \(perplexity 30\), got \(90, 4\)"):
        uniformity(maps[0][:90])
    with pytest.raises(MetricError, match="not finite"):
        uniformity(np.full_like(maps[0], np.nan))
    for flat in (np.full((120, 4), 3.7), np.outer(np.arange(120), [1, 2, 3, 4])):
        with pytest.raises(MetricError, match="on a line or in a point"):
            uniformity(flat.astype(np.float32))


def test_the_effective_rank_of_k_equal_eigenvalues_is_k():
    for k in (1, 3, 8):
        assert effective_rank(np.array([2.5] * k + [0.0] * 4)) == pytest.approx(k)
    latents = np.concatenate([np.eye(3), -np.eye(3)]) @ np.eye(3, 5)  # three directions of five, alike
    values = spectrum(latents)
    assert values == pytest.approx([0.4, 0.4, 0.4, 0, 0])  # 2 of 6 points at distance 1, over 6 - 1
    assert effective_rank(values) == pytest.approx(3)


def test_the_nearest_other_point():
    points = torch.tensor([[0.0, 0], [1, 0], [10, 0], [12, 0], [0, 0.5]])
    assert reconstruct.nearest(points).tolist() == [4, 0, 3, 2, 0]
    many = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))  # more than a batch
    distances = torch.cdist(many.double(), many.double()).fill_diagonal_(torch.inf)
    assert torch.equal(reconstruct.nearest(many), distances.argmin(dim=1))


def test_halfway_on_an_arc_to_the_nearest_direction_by_hand():
    """The only neighbour is the nearest of one: a vector twice as long, at a right angle, or opposite."""
    point = torch.tensor([[3.0, 0.0]])
    assert reconstruct.toward_neighbours(point, 2 * point) == pytest.approx(torch.tensor([[4.5, 0]]))
    turned = reconstruct.toward_neighbours(point, torch.tensor([[0.0, 4.0]]))
    assert turned == pytest.approx(torch.tensor([[3, 4]]) / 2**0.5)  # both lengths times 1 / (2 cos 45 degrees)
    assert reconstruct.toward_neighbours(point, -point) == pytest.approx(torch.zeros(1, 2))


def test_neighbours_are_near_in_direction_and_the_close_ones_of_them_are_drawn(monkeypatch):
    points = torch.tensor([[1.0, 0, 0]]).expand(4000, 3)
    others = torch.tensor([[1.0, 0.1, 0], [1, 0, 0.1], [3, 0, 0.1], [1, 0.9, 0], [0.9, 1, 0]])
    monkeypatch.setattr(reconstruct, "NEAREST", 3)
    moved = reconstruct.toward_neighbours(points, others)
    drawn = [
        (moved[:, 0] > 1.5).float().mean().item(),
        *((moved[:, axis] > 0.02).float().mean().item() for axis in (1, 2)),
    ]
    # mean squared differences 0.01 / 3 (twice) and 4.01 / 3; the last two are not among the nearest three
    far = np.exp(-4 / 3) / (2 + np.exp(-4 / 3))
    assert drawn == pytest.approx([far, (1 - far) / 2, (1 + far) / 2], abs=0.03)
    assert torch.equal(moved, reconstruct.toward_neighbours(points, others))
    few = reconstruct.toward_neighbours(points[:2], others[:2])  # fewer than the nearest
    assert few.shape == (2, 3)


def test_number_of_points_of_a_data_set():
    assert [points_for(images) for images in (64, 9_600, 1_281_167)] == [64, 1_500, 10_000]


@pytest.fixture
def plan(tiny_scale, tmp_path):
    """One tokenizer and one generator on enough pictures to describe, judged by a classifier."""
    import ablations.frontier

    data = resolve_data(str(draw_pictures(tmp_path / "many", per_class=48)), 16)
    scale = dataclasses.replace(tiny_scale, judges=(("classifier", 0),), train_images=110)
    return make_plan("frontier", ablations.frontier, scale, data, COMPUTE, "test")


@pytest.fixture
def stages(plan, run_or_copy) -> dict[str, Stage]:
    """The finished stages of the tokenizer's job, by kind."""
    run_or_copy(plan.jobs[0].stages)
    return {stage.kind: stage for stage in plan.jobs[0].stages}


def test_diagnostics_go_from_the_stage_into_the_table_and_missing_ones_are_computed(
    plan, stages, tmp_path, monkeypatch, capsys
):
    latents = stored_latents.read_latents(stages["encode"])
    chosen = tokens(latents, 110)
    assert chosen.shape == (110, 4) and np.abs(chosen.mean(axis=0)).max() < 0.5
    np.testing.assert_array_equal(tokens(latents, 110), chosen)
    found = stages["encode"].diagnostics()
    assert found["diagnostic_points"] == 110 and len(found["eigenvalues"]) == 4
    assert 1 <= found["effective_rank"] <= 4 and found.keys() >= set(PREDICTORS)
    assert "density_cv" not in stages["encode"].record()  # in another file, so that no result depends on them
    kept = {name: (stages["encode"].folder / name).read_bytes() for name in (LATENT_MAP, LATENT_PICTURES)}
    density = pd.read_csv(stages["encode"].folder / LATENT_MAP)["density"]  # the map shows what was measured
    assert len(density) == 110 and density.mean() == pytest.approx(1, rel=1e-3)
    assert density.std(ddof=0) == pytest.approx(found["density_cv"], rel=1e-3)

    row = load(update_table(plan, tmp_path))
    sheets = tmp_path / "results" / "test" / "sheets"
    copied = {name: sheets / latents_file(row["fingerprint"], Path(name).suffix) for name in kept}
    assert {name: path.read_bytes() for name, path in copied.items()} == kept
    assert row["density_cv"] == found["density_cv"] and row["diagnostic_points"] == 110
    assert row[["ifid", "ifid_released"]].isna().all()  # no sweep computes them

    for name in ("diagnostics.json", *kept):  # as in an older stage
        (stages["encode"].folder / name).unlink()
    row = load(update_table(plan, tmp_path))
    assert row[[*DIAGNOSTICS]].isna().all() and row["rfid"] > 0
    note_sweep(Sweep(study="test", out=tmp_path), plan, starts=True)
    with monkeypatch.context() as patch:  # figures are drawn by the last of these commands alone
        patch.setattr(refresh, "render", lambda study, out: Rendered([], {}, {}))
        assert diagnose.main(["test"]) == 0
    assert stages["encode"].diagnostics() == found
    assert {name: (stages["encode"].folder / name).read_bytes() for name in kept} == kept  # the same bytes
    row = load(tmp_path / "results" / "test" / "table.csv")
    assert row[[*DIAGNOSTICS]].notna().all()
    printed = capsys.readouterr().out
    assert "f4d4: density_cv" in printed and "of 110 latents" in printed and "(classifier)" in printed

    older = {name: value for name, value in found.items() if name not in PREDICTORS}
    write_json(stages["encode"].folder / FILE, older)
    write_json(stages["reconstruct"].folder / FILE, {"ifid": {"classifier": 1.5}})
    with monkeypatch.context() as patch:
        patch.setattr(refresh, "render", lambda study, out: Rendered([], {}, {}))
        assert diagnose.main(["test", "--points", "100"]) == 0
    added = load(tmp_path / "results" / "test" / "table.csv")
    assert added["diagnostic_points"] == 100
    assert added[[*PREDICTORS, "ifid_released"]].equals(row[[*PREDICTORS, "ifid_released"]])  # what came later is added
    assert added["ifid"] == 1.5  # and the rest kept
    for computed in ("interpolated_distances", "predictors"):
        monkeypatch.setattr(f"study.report.fill_diagnostics.{computed}", None)  # existing ones are not computed again
    assert diagnose.main(["test", "--points", "50"]) == 2
    assert capsys.readouterr().err == "study.diagnose: --points 50: t-SNE needs at least 91\n"
    elsewhere = tmp_path / "elsewhere"
    assert diagnose.main(["--study", "test", "--out", str(elsewhere)]) == 0
    written = elsewhere / "results" / "test" / "table.csv"
    assert written.read_bytes() == (tmp_path / "results" / "test" / "table.csv").read_bytes()
    assert (elsewhere / "figures" / "test" / "latent_maps.png").exists()
    assert diagnose.main(["test", "--study", "other"]) == 2
    assert "'test' and --study 'other'" in capsys.readouterr().err


def load(path):
    """The tokenizer's row."""
    table = results.load(path)
    (row,) = (row for _, row in table[table["kind"] == "tokenizer"].iterrows())
    return row


def test_failed_diagnostics_do_not_make_latents_unusable(tmp_path, caplog):
    few = stored_latents.Latents(
        ({"sample": torch.zeros(20, 1, 4, 2, 2, dtype=torch.float16)},),
        torch.zeros(20, dtype=torch.int64),
        torch.zeros(4, 1, 1),
        torch.ones(4, 1, 1),
    )
    assert describe_latents(few, tmp_path) == {}
    assert "too few images for latent diagnostics: 20" in caplog.text
    assert not (tmp_path / LATENT_MAP).exists()


def test_pictures_of_latents_show_their_principal_components(tmp_path):
    """Latents with a horizontal step in one channel and a vertical step in another are drawn so."""
    side = torch.tensor([-1.0, 1.0])
    sample = torch.zeros(9, 1, 4, 2, 2)
    sample[:, 0, 0] = 5 * side  # the strongest: red
    sample[:, 0, 1] = 2 * side[:, None]  # green
    latents = stored_latents.Latents(
        ({"sample": sample.half()},), torch.zeros(9, dtype=torch.int64), torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
    )
    pixels = np.full((9, 1, 8, 8), 200, np.uint8)
    images = ImageSet(packed=pixels, order=np.arange(9), labels=np.zeros(9, np.int64))
    picture_latents(latents, images, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / LATENT_PICTURES))
    assert sheet.shape == (16, 64, 3) and (sheet[:8] == 200).all()
    drawn = sheet[8:].reshape(8, 8, 8, 3).swapaxes(0, 1)  # (picture, y, x, channel)
    assert (drawn == drawn[0]).all()
    assert (drawn[0, :, :4, 0] == 0).all() and (drawn[0, :, 4:, 0] == 255).all()
    assert (drawn[0, :4, :, 1] == 0).all() and (drawn[0, 4:, :, 1] == 255).all()

    two = stored_latents.Latents(
        ({"sample": sample[:, :, :2].half()},), latents.labels, torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    )
    picture_latents(two, images, tmp_path)  # a missing component is grey
    assert (np.asarray(Image.open(tmp_path / LATENT_PICTURES))[8:, :, 2] == 128).all()


def test_halfway_between_equal_latents_nothing_moves(stages, monkeypatch):
    """With every latent its own neighbour, the interpolated FID is the rFID."""
    monkeypatch.setattr(reconstruct, "nearest", lambda points: torch.arange(len(points)))
    found = reconstruct.interpolated_distances(stages["reconstruct"], [stages["judge"].spec.judge], "ifid")
    rfid = stages["judge"].record()["metrics"]["rfid"]
    assert found == {"classifier": pytest.approx(rfid, rel=1e-3)}
