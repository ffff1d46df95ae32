"""Histories of trainings: every step once, also after interruptions, and nothing depends on them."""

import dataclasses

import pytest
import torch
from interrupting import (
    Counting,
    aligned_with_everything,
    checkpoint_after_every_step,
    forget,
    interrupted_after,
    run_in_pieces,
    weights,
)

from study.submit.jobs import run_stage
from study.train import history
from study.train.loop import _log_steps

CLOCKS = ("time", "images_per_second")


def measured(folder):
    """The points without the values of clocks."""
    return [{k: v for k, v in point.items() if k not in CLOCKS} for point in history.read_history(folder)]


def test_a_training_logs_every_loss_term_its_learning_rate_and_its_gradient(tiny_plan, tiny_scale):
    plan = tiny_plan(aligned_with_everything(tiny_scale), 32)
    for stage in plan.stages:
        if stage.kind in ("fit_tokenizer", "encode", "fit_generator"):
            run_stage(stage)
    (stage,) = [s for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation]
    points = history.read_history(stage.folder)
    assert [point["images_seen"] for point in points] == list(range(8, 65, 8))
    always = {"loss", "rec", "perceptual", "vf", "vf_adaptive", "kl", "learning_rate", "gradient_norm", *CLOCKS}
    assert set(points[0]) == {"images_seen", *always}
    assert set(points[-1]) == {"images_seen", *always, "gan", "gan_adaptive"}  # the GAN starts at 24 images
    assert {point["learning_rate"] for point in points} == {stage.spec.recipe.learning_rate}
    assert all(point["loss"] == point["rec"] > 0 and point["images_per_second"] > 0 for point in points)
    assert points[-1]["loss"] == stage.record()["cost"]["final_loss"]
    generator = next(s for s in plan.stages if s.kind == "fit_generator")
    last = history.read_history(generator.folder)[-1]
    assert set(last) == {"images_seen", "loss", "learning_rate", "gradient_norm", *CLOCKS}
    assert (last["images_seen"], last["loss"]) == (64, generator.record()["cost"]["final_loss"])


def test_a_training_interrupted_repeatedly_logs_each_step_once(tiny_plan, monkeypatch):
    stage = tiny_plan().stages[0]
    run_stage(stage)
    whole = measured(stage.folder)
    assert len(whole) == 8
    forget(stage)
    with (stage.folder / history.FILE).open("ab") as file:  # lines damaged by a kill, and by a disk
        file.write(b'\xff\x00\n12\n{}\n{"images_seen": 72, "lo')
    interrupted_after(monkeypatch, 16)
    run_in_pieces(stage)
    assert measured(stage.folder) == whole


def test_a_fall_back_deletes_the_points_after_the_checkpoint(tmp_path, monkeypatch):
    checkpoint_after_every_step(monkeypatch)
    Counting(lambda seen, attempt: 40 <= seen <= 64 and attempt == 1).train(tmp_path)
    points = history.read_history(tmp_path)
    assert [point["images_seen"] for point in points] == list(range(8, 161, 8))
    assert {point["loss"] for point in points} == {1.0}


def test_a_loss_that_is_not_finite_is_empty(tmp_path):
    Counting(lambda seen, attempt: seen == 16).train(tmp_path)
    assert [p["images_seen"] for p in history.read_history(tmp_path) if p["loss"] is None] == [24]


def test_a_training_continues_when_its_history_cannot_be_written(tiny_plan, monkeypatch):
    stage = tiny_plan().stages[0]
    run_stage(stage)
    whole = weights(stage.folder)
    other = dataclasses.replace(stage)
    for path in stage.folder.glob("*.*"):
        path.unlink()
    (stage.folder / history.FILE).mkdir()
    run_stage(other)
    assert weights(stage.folder) == whole
    assert history.read_history(stage.folder) == []


@pytest.mark.parametrize(("steps", "device", "interval"), [(8, "cpu", 1), (1001, "cpu", 2), (8, "cuda", 50)])
def test_a_history_has_at_most_a_thousand_points_where_the_loss_is_read_anyway(steps, device, interval):
    assert _log_steps(steps, device) == interval
    assert _log_steps(200_000, "cuda") == 200


def test_a_value_of_a_step_needs_no_process_group(tmp_path):
    history.History(tmp_path, 0).log(8, {"loss": torch.tensor(0.5, dtype=torch.bfloat16), "rate": 1e-3}, "cpu")
    (point,) = history.read_history(tmp_path)
    assert (point["images_seen"], point["loss"], point["rate"]) == (8, 0.5, 1e-3)
