"""One step of the paper's aligned tokenizer in full size, with random weights: checks gradients only."""

import pytest
import torch
from made_up import COMPUTE

from models import autoencoder, discriminator
from models.autoencoder import Autoencoder
from models.discriminator import Discriminator, hinge_discriminator_loss
from models.foundation import foundation_model
from models.lpips import LPIPS
from models.vf_loss import projection
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.networks import autoencoder_config
from study.plan.scales import SCALES
from study.stages.fit_tokenizer import Networks, gradients


@pytest.mark.slow
def test_a_whole_step_at_256_px_reaches_every_parameter_and_no_frozen_one():
    scale, rng = SCALES["imagenet256"](), torch.Generator().manual_seed(0)
    foundation = foundation_model("dinov2", pretrained=False)
    networks = Networks(
        tokenizer=Autoencoder(autoencoder_config("f16d32-dinov2", scale, GIVEN_AS_FOLDER["imagenet"])),
        linear_proj=projection(32, foundation.width),
        discriminator=Discriminator(3, width=scale.tokenizer.gan_width),
        perceptual=LPIPS(None, input_size=scale.tokenizer.perceptual_size),
    )
    autoencoder.initialize(networks.tokenizer, rng)
    discriminator.initialize(networks.discriminator, rng)
    pixels = torch.rand(1, 3, 256, 256, generator=rng) * 2 - 1

    features = foundation(pixels)
    noise = torch.randn(1, 32, 16, 16, generator=rng)
    terms, reconstruction, _ = gradients(networks, scale.tokenizer, COMPUTE, pixels, noise, features, gan_on=True)
    assert reconstruction.shape == pixels.shape
    assert set(terms) == {"rec", "perceptual", "gan", "gan_adaptive", "vf", "vf_adaptive", "kl"}
    assert all(torch.isfinite(term) for term in terms.values())
    trained = [*networks.tokenizer.named_parameters(), *networks.linear_proj.named_parameters(prefix="linear_proj")]

    networks.discriminator.zero_grad(set_to_none=True)
    hinge_discriminator_loss(networks.discriminator(pixels), networks.discriminator(reconstruction)).backward()
    trained += networks.discriminator.named_parameters(prefix="discriminator")
    for name, parameter in trained:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # a bias before a softmax over keys, or before a batch norm, has no effect
        assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name
    for frozen in (foundation, networks.perceptual):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
