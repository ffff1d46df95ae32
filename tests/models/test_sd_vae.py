"""SD-VAE: the tokenizer's interface on diffusers' class gives that class's values."""

import pytest
import torch
from safetensors.torch import save_file
from waves import fill, wave

from models import configs
from models.autoencoder import Autoencoder
from models.configs import EXTERNAL_TOKENIZERS, AutoencoderConfig, ExternalTokenizer
from models.costs import autoencoder_parameters
from models.diffusers_form import OLD_NAMES
from models.released_checkpoints import load_tokenizer
from models.sd_vae import SDVAE

diffusers = pytest.importorskip("diffusers")
SMALL = AutoencoderConfig(
    resolution=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4, library="diffusers"
)


@pytest.fixture
def theirs():
    """The library's class by its own configuration, as a config.json of SD-VAE's form would give it."""
    made = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, block_out_channels=[32, 64, 64], layers_per_block=1,
        act_fn="silu", latent_channels=4, norm_num_groups=32, sample_size=32, scaling_factor=0.18215,
    ).eval()  # fmt: skip
    fill(made)
    return made


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(configs.EXTERNAL_TOKENIZERS, "sd-vae-f8d4", ExternalTokenizer(config=SMALL))


@pytest.mark.parametrize("old", [False, True])
def test_a_file_gives_the_moments_and_the_pictures_of_the_librarys_class(old, theirs, small, tmp_path):
    state = theirs.state_dict()
    if old:
        for before, now in OLD_NAMES.items():
            state = {name.replace(f".{now}.", f".{before}."): value for name, value in state.items()}
        assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, tmp_path / "t.safetensors")
    network = load_tokenizer("sd-vae-f8d4", tmp_path / "t.safetensors").network
    pixels = wave(2, 3, 32, 32, k=0.013)
    with torch.no_grad():
        posterior, expected = network.encode(pixels), theirs.encode(pixels).latent_dist
        assert posterior.mean.shape == (2, 4, 8, 8) and posterior.mean.std() > 0
        assert torch.equal(posterior.mean, expected.mean)
        assert torch.equal(posterior.logvar, expected.logvar)
        noise = wave(2, 4, 8, 8, k=0.61)
        latent = posterior.sample(noise)
        torch.testing.assert_close(latent, expected.mean + expected.std * noise)
        assert torch.equal(network.decode(latent), theirs.decode(latent).sample)


def test_what_is_missing_in_a_file_is_named(theirs, small, tmp_path):
    state = theirs.state_dict()
    del state["decoder.conv_out.bias"]
    save_file(state, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match=r"is no sd-vae-f8d4: missing: decoder\.conv_out\.bias$"):
        load_tokenizer("sd-vae-f8d4", tmp_path / "t.safetensors")


def test_its_size_is_that_of_our_network():
    config = EXTERNAL_TOKENIZERS["sd-vae-f8d4"].config
    with torch.device("meta"):
        network, ours = SDVAE(config), Autoencoder(config)
    found = sum(p.numel() for p in network.parameters())
    assert found == 83_653_863 == autoencoder_parameters(config) == sum(p.numel() for p in ours.parameters())
    assert (config.downsampling, config.grid) == (8, 32)
