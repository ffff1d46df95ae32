"""Generators aligned with a foundation model: the whole way, what a step computes, and interrupted trainings."""

import dataclasses

import numpy as np
import pytest
import torch
from interrupting import same_in_pieces
from made_up import COMPUTE, Asking

from models.repa import mean_cosine, spatially_normalised
from study.core.files import load_tensors
from study.core.settings import change
from study.data import latents as stored_latents
from study.data.datasets import load_images, resolve_data
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.specs import REPA
from study.plan.stage import snapshot_file, state_files
from study.report.table_rows import rows_of
from study.stages import fit_generator
from study.submit.jobs import run_stage
from study.train import foundation_features
from study.train.foundation_features import generator_features
from study.train.history import read_history

PLAIN = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
ALIGNED = {name: dataclasses.replace(PLAIN, changes={"generator.repa": name}) for name in REPA}


@pytest.fixture
def planned(tiny_scale, pictures):
    """`planned(run, ...)`: the plan of these runs on made pictures, features of which have a grid of their own."""

    def plan(*runs, **changes):
        scale = dataclasses.replace(tiny_scale, foundation_models=("lite0",), judges=(("classifier", 0),))
        scale = change(scale, "foundation.input_size", 48)  # 3 x 3 features for 4 x 4 tokens
        for field, value in changes.items():
            scale = change(scale, field.replace("__", "."), value)
        return make_plan("asked", Asking(*runs), scale, resolve_data(str(pictures), 32), COMPUTE, "test")

    return plan


@pytest.fixture
def encoded(planned, run_or_copy):
    """`encoded(run, ...)`: the stage of a run's generator, with all that it needs."""

    def stage(run, **changes):
        plan = planned(run, **changes)
        needed = [stage for stage in plan.jobs[0].stages if stage.kind in ("fit_tokenizer", "encode")]
        run_or_copy(stage for stage in needed if stage.record() is None)
        return plan.jobs[1].stages[0]

    return stage


def started(stage):
    """The state of a training before its first step, and the function that makes one."""
    state, scalars = fit_generator.build(stage.spec), {}
    features = generator_features(stage.spec, stage.inputs["latents"].spec)
    latents = stored_latents.read_latents(stage.inputs["latents"])
    return state, fit_generator.step_function(stage.spec, state, latents, scalars, features), scalars


def test_it_trains_generates_and_is_judged_beside_the_plain_one(planned, tmp_path):
    plan = planned(PLAIN, *ALIGNED.values(), generator__snapshot_images=64)
    for stage in plan.stages:
        run_stage(stage)
    rows = [row for row in rows_of(plan, tmp_path) if row.kind == "generator"]
    assert [row.state for row in rows] == ["done"] * 3
    assert [row.changes for row in rows] == [{}, {"generator.repa": "repa"}, {"generator.repa": "irepa"}]
    assert len({row.gfid for row in rows}) == 3
    assert len({row.parameters for row in rows}) == 1  # of the network that draws
    for run in ALIGNED.values():
        (fit,) = (job.stages[0] for job in plan.jobs if job.title == run.name)
        assert not any("projector" in key for key in load_tensors(snapshot_file(fit.folder, "raw", 64)))
        (state,) = state_files(fit.folder).values()
        assert any(key.startswith("projector/") for key in load_tensors(state))
        cosines = [point["repa_cosine"] for point in read_history(fit.folder)]
        assert len(cosines) == 8 and cosines[-1] > cosines[0]


def test_weights_and_the_first_loss_are_those_of_the_plain_training_and_the_gradients_are_not(encoded):
    (plain, step, _), (aligned, aligned_step, scalars) = map(started, map(encoded, (PLAIN, ALIGNED["repa"])))
    for state in (plain, aligned):
        state["generator"].final_layer.linear.weight.data.fill_(0.01)  # 0 at first, which hides the blocks
    assert all(map(torch.equal, plain["generator"].parameters(), aligned["generator"].parameters()))
    assert torch.equal(step(0), aligned_step(0))
    assert -1 < scalars["repa_cosine"] < 1
    first = [state["generator"].blocks[0].adaLN_modulation[1].weight.grad for state in (plain, aligned)]
    assert not torch.allclose(*first, rtol=0.01)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", REPA)
def test_features_are_of_the_images_and_the_views_behind_the_latents(name, cached, encoded, monkeypatch):
    """What a step compares with equals the model's features of what was encoded, resized and normalised."""
    if not cached:
        monkeypatch.setattr(foundation_features, "CACHE_GIB", 0.0)
    stage = encoded(ALIGNED[name])
    compared, drawn = [], []
    monkeypatch.setattr(
        fit_generator, "mean_cosine", lambda found, target: compared.append(target) or mean_cosine(found, target)
    )
    original = stored_latents.Latents.stored
    monkeypatch.setattr(
        stored_latents.Latents, "stored",
        lambda self, indices, views: drawn.append((indices, views)) or original(self, indices, views),
    )  # fmt: skip
    _, step, _ = started(stage)
    step(0)
    ((indices, views),) = drawn
    assert set(views.tolist()) == {0, 1}
    data = stage.inputs["latents"].spec.data
    pixels = load_images(data, "train").pixels(np.asarray(indices))
    pixels = torch.stack([image.flip(2) if view else image for image, view in zip(pixels, views, strict=True)])
    features = generator_features(stage.spec, stage.inputs["latents"].spec)
    expected = features.batch(pixels, 4)
    if name == "irepa":
        expected = spatially_normalised(expected, 0.6)
    assert compared[0].shape == expected.shape == (8, 112, 4, 4)
    assert (compared[0] - expected).abs().max() < 0.1 * expected.std()  # rounded to bfloat16 in other batches
    others = features.batch(pixels.flip(3), 4)
    assert (compared[0] - others).abs().max() > expected.std()


def test_a_tokenizer_and_a_generator_share_features_of_one_recipe(encoded, study_root):
    folder = study_root / "assets" / "foundation-features"
    for run in (dataclasses.replace(ALIGNED["repa"], tokenizer="f4d4-lite0"), ALIGNED["irepa"]):
        started(encoded(run))
        assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", REPA)
def test_an_interrupted_training_ends_with_the_same_bits(name, encoded, monkeypatch):
    stage = encoded(ALIGNED[name])
    same_in_pieces(stage, monkeypatch, 16, 4)


def test_diffusion_can_be_aligned_and_in_bfloat16_the_cosine_is_not_rounded(encoded):
    changes = {"generator__objective": "gaussian-diffusion", "sampling__solver": "ddpm"}
    stage = encoded(ALIGNED["irepa"], **changes)
    halves = dataclasses.replace(COMPUTE, precision="bfloat16")
    stage = dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, compute=halves))
    _, step, scalars = started(stage)
    assert step(0).isfinite()
    assert scalars["repa_cosine"].dtype == torch.float32
