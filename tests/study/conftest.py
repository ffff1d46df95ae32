"""A study small enough to run inside a test: made pictures, tiny networks, the real stages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from study.compute import Compute
from study.data import resolve
from study.judges import JudgeSpec
from study.plan import make_plan
from study.scales import smoke

COMPUTE = Compute(device="cpu", precision="float32", threads=1)


def draw_pictures(folder, *, classes=3, per_class=24, side=16):
    """Pictures that differ by class: stripes of another width and colour in each, with noise."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(per_class):
            x = np.arange(side)[None, :, None] + rng.integers(side)
            stripes = ((x // (label + 1)) % 2) * np.array([200, 80 * label, 255 - 80 * label])
            pixels = np.broadcast_to(stripes, (side, side, 3)) + rng.integers(0, 40, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"class{label}" / f"{number:03}.png")
    return folder


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "pictures")


@pytest.fixture
def tiny_scale():
    """Smoke, smaller still and without any pretrained network or judge."""
    scale = smoke()
    return dataclasses.replace(
        scale,
        train_images=48,
        foundation_models=(),
        judges=(),
        autoencoder=dataclasses.replace(scale.autoencoder, ch=8, ch_mult=(1, 1), norm_groups=4),
        tokenizer=dataclasses.replace(scale.tokenizer, budget_images=64, batch_images=8),
        generator=dataclasses.replace(
            scale.generator, budget_images=64, snapshot_images=(32, 64), batch_images=8
        ),
        sampling=dataclasses.replace(scale.sampling, samples=10, chunk=4, steps=2),
    )


@pytest.fixture
def tiny_plan(tiny_scale, pictures):
    """Plan of one tokenizer and one generator on made pictures; `plan(changed scale)` for another."""
    import ablations.frontier

    def plan(scale=tiny_scale, resolution=16):
        data = resolve(str(pictures), resolution)
        return make_plan("frontier", ablations.frontier, scale, data, COMPUTE, "test")

    return plan


__all__ = ["COMPUTE", "JudgeSpec", "draw_pictures"]
