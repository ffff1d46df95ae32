"""Stable Diffusion's tokenizer (SD-VAE), built from the diffusers library, which is imported when one is built.

The network is that of models/autoencoder.py in another implementation (`AutoencoderKL` of diffusers): the same four
modules under other parameter names (models/diffusers_form.py), which are those of published weights. Its scaling_factor
of 0.18215 is not applied: latents are normalised per channel by their own statistics, as for all tokenizers here. The
format is tested with the library's class at random weights; the published file has not been loaded yet.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from models.autoencoder import Autoencoder
from models.configs import AutoencoderConfig
from models.diffusers_form import diffusers_config


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
        theirs: Any = AutoencoderKL(**diffusers_config(config))
        self.encoder, self.decoder = theirs.encoder, theirs.decoder
        self.quant_conv, self.post_quant_conv = theirs.quant_conv, theirs.post_quant_conv
