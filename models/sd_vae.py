"""Stable Diffusion's tokenizer (SD-VAE), built from the diffusers library, which is imported when one is built.

The network is that of models/autoencoder.py in another implementation (`AutoencoderKL` of diffusers): the same four
modules under other parameter names, which are those of published weights. Its scaling_factor of 0.18215 is not applied:
latents are normalised per channel by their own statistics, as for all tokenizers here. The format is tested with the
library's class at random weights; the published file has not been loaded yet.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from models.autoencoder import Autoencoder
from models.configs import AutoencoderConfig

# names of attention parameters in files of 2022; the library renames them too when it loads such a file
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class SDVAE(Autoencoder):
    """The library's network with the interface of Autoencoder. ValueError if diffusers is not installed."""

    def __init__(self, config: AutoencoderConfig) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ValueError(
                "SD-VAE's network is in the package diffusers, which is not installed: pip install diffusers (the "
                "extra sd)"
            ) from error
        nn.Module.__init__(self)
        self.config = config
        levels = len(config.ch_mult)
        theirs: Any = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.ch * mult for mult in config.ch_mult),
            layers_per_block=config.num_res_blocks,
            latent_channels=config.z_channels,
            norm_num_groups=config.norm_groups,
            sample_size=config.resolution,
        )
        self.encoder, self.decoder = theirs.encoder, theirs.decoder
        self.quant_conv, self.post_quant_conv = theirs.quant_conv, theirs.post_quant_conv


def modern_name(name: str) -> str:
    """Current name in the library of a parameter with this name in a file."""
    words = name.split(".")
    return ".".join(OLD_NAMES.get(word, word) for word in words) if "attentions" in words else name
