"""The tokenizer in the form of diffusers: its class takes names and layout, and gives our values; ours come back."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from waves import fill, wave

from models.autoencoder import Autoencoder
from models.configs import EXTERNAL_TOKENIZERS, AutoencoderConfig
from models.diffusers_form import OLD_NAMES, diffusers_config, from_diffusers, to_diffusers
from models.released_checkpoints import load_tokenizer, stated_header

SMALL = AutoencoderConfig(
    resolution=16, ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(4,), z_channels=4, norm_groups=4
)
LAYOUTS = {
    "attention at the coarsest level": SMALL,
    "without attention at the levels": replace(SMALL, attn_resolutions=()),
    "attention at finer levels": replace(SMALL, attn_resolutions=(16, 8)),
    "a decoder with attention only in the middle": replace(SMALL, decoder_attention=False),
    "grey, more blocks, more levels": replace(SMALL, in_channels=1, num_res_blocks=2, ch_mult=(1, 1, 3, 2, 4)),
    "one level": replace(SMALL, ch_mult=(1,)),
}


def made(config):
    autoencoder = Autoencoder(config)
    fill(autoencoder)
    return autoencoder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_librarys_class_gives_our_values(layout):
    diffusers = pytest.importorskip("diffusers")
    ours = made(LAYOUTS[layout]).double()
    theirs = diffusers.AutoencoderKL(**diffusers_config(LAYOUTS[layout])).double().eval()
    theirs.load_state_dict(to_diffusers(ours.state_dict()), strict=True)
    pixels = wave(2, ours.config.in_channels, 16, 16, k=0.013).double()
    with torch.no_grad():
        expected, found = ours.encode(pixels), theirs.encode(pixels).latent_dist
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.logvar, expected.logvar, rtol=0, atol=1e-12)
        torch.testing.assert_close(theirs.decode(expected.mean).sample, ours.decode(expected.mean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [AutoencoderConfig(), EXTERNAL_TOKENIZERS["sd-vae-f8d4"].config])
def test_full_size_networks_have_the_librarys_parameters(config):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), diffusers.AutoencoderKL(**diffusers_config(config))
    renamed = to_diffusers(ours.state_dict())
    assert {name: value.shape for name, value in renamed.items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("old", [False, True])
def test_the_weights_come_back(layout, old, tmp_path):
    ours = made(LAYOUTS[layout])
    theirs = to_diffusers(ours.state_dict())
    if old:
        for before, now in OLD_NAMES.items():
            theirs = {name.replace(f".{now}.", f".{before}."): value for name, value in theirs.items()}
        assert "decoder.mid_block.attentions.0.proj_attn.bias" in theirs
    back = from_diffusers(theirs)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in ours.state_dict().items())
    save_file({n: v.contiguous() for n, v in theirs.items()}, tmp_path / "t.safetensors", stated_header(ours.config))
    found = load_tokenizer(f"f{ours.config.downsampling}d4", tmp_path / "t.safetensors").network.config
    assert (found.layout(), found.resolution) == (ours.config.layout(), 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unshuffle": 2}, r"folds 2 x 2 pixels into channels \(unshuffle 2\), for which AutoencoderKL has no layer"),
        ({"ch_mult": (2, 2)}, r"first convolution has 8 channels and its first level 16 \(ch_mult 2\)"),
        ({"frozen_encoder": "lite0"}, "its encoder is the frozen lite0"),
    ],
)
def test_what_the_class_cannot_express_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        diffusers_config(replace(SMALL, **changes))
