"""A collapsed tokenizer is reported before anything is trained on its latents."""

import pytest
import torch

from study.core.files import load_tensors, save_tensors
from study.plan.stage import TOKENIZER_WEIGHTS
from study.stages import reconstruct
from study.submit.jobs import run_stage


@pytest.fixture
def collapsed(tiny_plan):
    """Function that changes a trained tokenizer's weights by `spoil(weights)`; returns the stages that read it."""

    def collapse(spoil):
        fit, reconstructed, encoded = tiny_plan().jobs[0].stages
        run_stage(fit)
        path = fit.folder / TOKENIZER_WEIGHTS
        weights = {name: tensor.clone() for name, tensor in load_tensors(path).items()}
        spoil(weights)
        save_tensors(path, weights)
        return reconstructed, encoded

    return collapse


def test_the_same_picture_for_every_image_fails_the_row(collapsed):
    def ignore_latent(weights):  # the decoder's input hardly depends on the latent
        weights["post_quant_conv.weight"] *= 1e-4

    reconstructed, encoded = collapsed(ignore_latent)
    with pytest.raises(ValueError, match="the tokenizer has collapsed"):
        run_stage(reconstructed)
    assert "nearly the same picture" in reconstructed.failure()["reason"]
    run_stage(encoded)  # its latents are fine


def test_a_latent_channel_that_shrank_to_nothing_fails_encoding(collapsed):
    def shrink(weights):
        mean, logvar = 2, 4 + 2  # rows of the third of four channels
        weights["quant_conv.weight"][[mean, logvar]] = 0
        weights["quant_conv.bias"][mean], weights["quant_conv.bias"][logvar] = 0.3, -50.0

    _, encoded = collapsed(shrink)
    with pytest.raises(ValueError, match="do not vary in some channel: the tokenizer has collapsed"):
        run_stage(encoded)
    assert encoded.failure()["state"] == "failed"


def test_poor_reconstructions_are_not_taken_for_collapsed():
    """Smoke's, after 256 images, have a third of the images' std; identical images may be reconstructed alike."""
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grey = images.float().mean(dim=0)
    for share, fine in ((0.05, True), (0.02, True), (0.001, False)):
        poor = (grey + share * (images - grey)).round().to(torch.uint8)
        if fine:
            reconstruct._check_not_collapsed(images, poor)
        else:
            with pytest.raises(ValueError, match="collapsed"):
                reconstruct._check_not_collapsed(images, poor)
    same = images[:1].expand(16, -1, -1, -1)
    reconstruct._check_not_collapsed(same, same)
