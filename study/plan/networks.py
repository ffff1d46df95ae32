"""The tokenizer's network that a scale and the size of the pictures ask for."""

from __future__ import annotations

import dataclasses

from models.specs import EXTERNAL_TOKENIZERS, AutoencoderConfig, parse_tokenizer
from study.plan.data_spec import DataSpec
from study.plan.scales import AutoencoderShape, Scale


def network_config(
    shape: AutoencoderShape, *, channels: int, resolution: int, latent_channels: int
) -> AutoencoderConfig:
    """The tokenizer's network of a scale for pictures of this size."""
    return AutoencoderConfig(
        in_channels=channels,
        resolution=resolution,
        ch=shape.ch,
        ch_mult=shape.ch_mult,
        num_res_blocks=shape.num_res_blocks,
        attn_resolutions=shape.attention_grids,
        z_channels=latent_channels,
        unshuffle=shape.unshuffle,
        norm_groups=shape.norm_groups,
    )


def autoencoder_config(spec: str, scale: Scale, data: DataSpec) -> AutoencoderConfig:
    """The network of this tokenizer spec; ValueError when the scale or the picture size does not fit it."""
    name = parse_tokenizer(spec)
    if name.external:
        theirs = EXTERNAL_TOKENIZERS[spec].config
        attended = tuple(side * data.resolution // theirs.resolution for side in theirs.attn_resolutions)
        return dataclasses.replace(
            theirs, in_channels=data.channels, resolution=data.resolution, attn_resolutions=attended
        )
    config = network_config(
        scale.autoencoder, channels=data.channels, resolution=data.resolution, latent_channels=name.channels
    )
    if config.downsampling != name.downsampling:
        raise ValueError(
            f"{spec} downsamples {name.downsampling} times, but scale {scale.name} builds tokenizers that "
            f"downsample {config.downsampling} times: ask for f{config.downsampling}d{name.channels}"
        )
    return config
