"""What a tokenizer's reconstructions say of it."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from study.data.datasets import load_images
from study.judge.metrics import summed_shift
from study.stages import reconstruct
from study.submit.jobs import run_stage

BIAS = (3.0, -1.0, 0.0)  # 1/255


class Biased:
    """A tokenizer whose decoder adds a constant to each colour."""

    config = SimpleNamespace(resolution=16)

    def encode(self, pixels):
        return SimpleNamespace(mean=pixels)

    def decode(self, latent):
        return latent + torch.tensor(BIAS)[:, None, None] / 127.5


def test_the_shift_of_a_biased_decoder_is_measured_by_channel_and_logged(tiny_plan, monkeypatch, caplog):
    monkeypatch.setattr(reconstruct, "trained_tokenizer", lambda stage: Biased())
    fit, stage, *_ = tiny_plan().jobs[0].stages
    run_stage(fit)
    with caplog.at_level(logging.WARNING):
        record = run_stage(stage)
    test = load_images(stage.spec.data, "test")
    images = test.images(np.arange(len(test.labels))).astype(float)
    changed = (images + np.array(BIAS)[:, None, None]).clip(0, 255)
    expected = (changed - images).mean(axis=(0, 2, 3))
    assert record["colour_shift"] == pytest.approx(expected, abs=1e-9)
    assert record["metrics"]["colour_shift"] == pytest.approx(expected[0])
    assert 0.9 < record["metrics"]["chroma_r2"] < 1
    assert "off in mean colour by 3.0/255 in a channel" in caplog.text


def test_errors_that_cancel_are_no_shift():
    image = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
    checked = image.clone()
    checked[:, :, ::2] += 20
    checked[:, :, 1::2] -= 20
    assert summed_shift(image, checked).tolist() == [0.0]
    assert summed_shift(image, image - 1).tolist() == [-32.0]
