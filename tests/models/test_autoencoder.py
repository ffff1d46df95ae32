import hashlib
import json

import pytest
import torch
from waves import fill, wave

from models.autoencoder import Autoencoder, Posterior, initialize
from models.configs import EXTERNAL_TOKENIZERS, AutoencoderConfig

SMALL = AutoencoderConfig(resolution=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=4)


@pytest.mark.parametrize(
    ("name", "tensors", "values", "digest"),
    [
        ("va-vae", 342, 69_836_067, "7832b1da0644cce3f7dfa0435ffeffd4"),
        ("mar-vae-f16d16", 312, 66_456_019, "1d4fb9513d24f47723fb13e557782596"),  # of the class with model_type marvae
    ],
)
def test_released_weights_would_load_strictly(name, tensors, values, digest):
    """Names and shapes, hashed from the reference class (hustvl/LightningDiT, tokenizer/autoencoder.py). With weights
    in MAR's form written by that class, moments and pictures agreed to 4e-7."""
    with torch.device("meta"):
        state = Autoencoder(EXTERNAL_TOKENIZERS[name].config).state_dict()
    layout = json.dumps(sorted((name, list(value.shape)) for name, value in state.items()))
    assert len(state) == tensors
    assert sum(v.numel() for v in state.values()) == values
    assert hashlib.sha256(layout.encode()).hexdigest().startswith(digest)


def test_values_of_the_reference():
    """Recorded from the reference implementation with these weights; both agreed to 1e-6."""
    autoencoder = Autoencoder(SMALL)
    fill(autoencoder)
    posterior = autoencoder.encode(wave(2, 3, 32, 32, k=0.013))
    at = [0, 77, 200, 511]
    assert posterior.mean.flatten()[at].tolist() == pytest.approx(
        [-0.047508, -0.040423, -0.035207, -0.035149], abs=2e-6
    )
    assert posterior.logvar.flatten()[at].tolist() == pytest.approx(
        [-0.043317, -0.008739, 0.026662, 0.026958], abs=2e-6
    )
    assert posterior.kl().tolist() == pytest.approx([0.313882, 0.314422], abs=1e-5)
    pixels = autoencoder.decode(wave(2, 4, 8, 8, k=0.23))
    assert pixels.flatten()[[0, 777, 2000, 6143]].tolist() == pytest.approx(
        [0.0453, 0.046463, 0.040846, 0.017308], abs=2e-6
    )


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_shapes_and_gradients(unshuffle):
    c = AutoencoderConfig(
        in_channels=1, resolution=16, ch=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,),
        z_channels=4, unshuffle=unshuffle, norm_groups=8,
    )  # fmt: skip
    autoencoder = Autoencoder(c)
    pixels = wave(2, 1, 16, 16, k=0.1)
    posterior = autoencoder.encode(pixels)
    assert posterior.mean.shape == (2, 4, c.grid, c.grid)
    decoded = autoencoder.decode(posterior.sample(wave(*posterior.mean.shape, k=0.7)))
    assert decoded.shape == pixels.shape
    decoded.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in autoencoder.quant_conv.parameters())
    assert autoencoder.encoder.conv_in.weight.grad.abs().sum() > 0


def test_the_memory_format_does_not_change_the_result():
    autoencoder = Autoencoder(SMALL)
    initialize(autoencoder, torch.Generator().manual_seed(0))
    pixels = wave(1, 3, 32, 32, k=0.05)
    plain = autoencoder.decode(autoencoder.encode(pixels).mean)
    autoencoder.to(memory_format=torch.channels_last)
    last = autoencoder.decode(autoencoder.encode(pixels.to(memory_format=torch.channels_last)).mean)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-4)  # a wrong layout is off by 0.1 and more


def test_posterior_by_hand():
    standard = Posterior(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))
    assert standard.kl().tolist() == [0, 0]
    shifted = Posterior(torch.full((1, 1, 1, 2), 2.0), torch.zeros(1, 1, 1, 2))
    assert shifted.kl().tolist() == [4.0]  # 2 cells of 2^2 / 2
    wide = Posterior(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2 * torch.log(torch.tensor(3.0))))
    assert wide.sample(torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(7.0)


def test_logvar_is_clamped():
    autoencoder = Autoencoder(SMALL)
    torch.nn.init.constant_(autoencoder.quant_conv.bias, 100.0)
    assert autoencoder.encode(torch.zeros(1, 3, 8, 8)).logvar.max() == 20


def test_initialisation_depends_on_its_seed_alone():
    states = []
    for global_seed, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(global_seed)
        autoencoder = Autoencoder(SMALL)
        initialize(autoencoder, torch.Generator().manual_seed(seed))
        states.append(torch.cat([p.detach().flatten() for p in autoencoder.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_wrong_shapes_are_named():
    autoencoder = Autoencoder(SMALL)
    with pytest.raises(ValueError, match="multiples of 4"):
        autoencoder.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\)"):
        autoencoder.decode(torch.zeros(1, 8, 8, 8))
