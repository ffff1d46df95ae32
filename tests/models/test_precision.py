"""Losses and posteriors are float32 under autocast: as close to those without it as float32 is."""

import pytest
import torch
from waves import fill, wave

from models.autoencoder import Autoencoder
from models.configs import AutoencoderConfig
from models.discriminator import hinge_discriminator_loss, hinge_generator_loss
from models.lpips import LPIPS
from models.perceptual import PerceptualDistance
from models.sd_vae import SDVAE
from models.vf_loss import vf_loss

SMALL = AutoencoderConfig(resolution=32, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4)


def alignment(projected, features):
    return vf_loss(projected, features, cosine_margin=0.5, distance_margin=0.25).total


def value_and_gradients(loss, inputs, autocast):
    inputs = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(*inputs).sum()
    assert value.dtype == torch.float32
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: alignment, [wave(2, 6, 4, 4, k=0.9), wave(2, 6, 4, 4, k=0.31) + 0.2]),
        (lambda: PerceptualDistance("lite0", pretrained=False), [wave(2, 3, 32, 32, k=0.3), wave(2, 3, 32, 32, k=0.7)]),
        (lambda: LPIPS(None), [wave(2, 3, 32, 32, k=0.3), wave(2, 3, 32, 32, k=0.7)]),
    ],
    ids=["vf", "lite0", "vgg"],
)
def test_a_loss_of_float32_inputs_is_not_rounded_by_autocast(build, inputs):
    torch.manual_seed(0)
    loss = build()
    for found, expected in zip(*(value_and_gradients(loss, inputs, on) for on in (True, False)), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("loss", [hinge_discriminator_loss, lambda fake, _: hinge_generator_loss(fake)])
def test_a_hinge_of_bfloat16_logits_is_that_of_their_values_in_float32(loss, autocast):
    logits = [wave(3, 1, 6, 6, k=k).bfloat16() for k in (0.9, 0.31)]
    expected = loss(*(x.float() for x in logits))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = loss(*logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("network", [Autoencoder, SDVAE])
def test_a_posterior_leaves_quant_conv_in_float32_under_autocast(network):
    if network is SDVAE:
        pytest.importorskip("diffusers")
    tokenizer, pixels = network(SMALL), wave(2, 3, 32, 32, k=0.013)
    fill(tokenizer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        moments, posterior = tokenizer.encoder(pixels), tokenizer.encode(pixels)
    assert moments.dtype == torch.bfloat16
    with torch.no_grad():
        mean, logvar = tokenizer.quant_conv(moments.float()).chunk(2, dim=1)
    assert mean.std() > 0 and logvar.abs().max() < 20
    for found, expected in ((posterior.mean, mean), (posterior.logvar, logvar)):
        assert found.dtype == torch.float32 and torch.equal(found, expected)
