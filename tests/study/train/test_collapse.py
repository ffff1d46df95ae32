"""A tokenizer that has collapsed is said to have, before anything is trained on its latents."""

import dataclasses

import pytest
import torch

from study.core.files import load_tensors, save_tensors
from study.plan.stage import TOKENIZER_WEIGHTS
from study.stages import reconstruct
from study.submit.jobs import run_stage


@pytest.fixture
def collapsed(tiny_plan, tiny_scale):
    """Function that lets `spoil(weights)` change the trained tokenizer of a plan; returns the stages that read it."""

    def made(spoil):
        fit, judged, encoded = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),))).jobs[0].stages
        run_stage(fit)
        path = fit.folder / TOKENIZER_WEIGHTS
        weights = {name: tensor.clone() for name, tensor in load_tensors(path).items()}
        spoil(weights)
        save_tensors(path, weights)
        return judged, encoded

    return made


def test_the_same_picture_for_every_image_fails_the_row(collapsed):
    def deaf(weights):  # what the decoder hears of the latent is nearly nothing
        weights["post_quant_conv.weight"] *= 1e-4

    judged, encoded = collapsed(deaf)
    with pytest.raises(ValueError, match="the tokenizer has collapsed"):
        run_stage(judged)
    assert "nearly the same picture" in judged.failure()["reason"]
    run_stage(encoded)  # its latents are sound


def test_a_latent_channel_that_shrank_to_nothing_fails_encoding(collapsed):
    def shrunk(weights):
        mean, logvar = 2, 4 + 2  # of the third of four channels
        weights["quant_conv.weight"][[mean, logvar]] = 0
        weights["quant_conv.bias"][mean], weights["quant_conv.bias"][logvar] = 0.3, -50.0

    _, encoded = collapsed(shrunk)
    with pytest.raises(ValueError, match="no spread in some channel: the tokenizer has collapsed"):
        run_stage(encoded)
    assert encoded.failure()["state"] == "failed"


def test_poor_reconstructions_are_not_taken_for_collapsed():
    """Smoke's, after 256 images, differ a third as much as the images; images that are all the same may be drawn so."""
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grey = images.float().mean(dim=0)
    for share, fine in ((0.05, True), (0.02, True), (0.001, False)):
        poor = (grey + share * (images - grey)).round().to(torch.uint8)
        if fine:
            reconstruct._check_spread(images, poor)
        else:
            with pytest.raises(ValueError, match="collapsed"):
                reconstruct._check_spread(images, poor)
    same = images[:1].expand(16, -1, -1, -1)
    reconstruct._check_spread(same, same)
