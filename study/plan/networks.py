"""The tokenizer's network for a scale and an image size."""

from __future__ import annotations

import dataclasses

from models.configs import EXTERNAL_TOKENIZERS, LITE0_WIDTHS, TRANSFORMERS, AutoencoderConfig, parse_tokenizer
from study.plan.data_spec import DataSpec
from study.plan.scales import AutoencoderShape, Scale


def network_config(
    shape: AutoencoderShape, *, channels: int, resolution: int, latent_channels: int
) -> AutoencoderConfig:
    """The tokenizer's network with the shape of a scale, for images of this size."""
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
    """The network of this tokenizer spec; ValueError when it does not match the scale or the image size."""
    name = parse_tokenizer(spec)
    if name.external:
        external = EXTERNAL_TOKENIZERS[spec].config
        attention = tuple(side * data.resolution // external.resolution for side in external.attn_resolutions)
        return dataclasses.replace(
            external, in_channels=data.channels, resolution=data.resolution, attn_resolutions=attention
        )
    model = TRANSFORMERS.get(name.encoder or "")
    width = model.width if model else LITE0_WIDTHS[scale.foundation.stride]
    config = network_config(
        scale.autoencoder,
        channels=data.channels,
        resolution=data.resolution,
        latent_channels=width if name.encoder else name.channels,
    )
    if name.encoder:
        side = config.resolution if model is None or model.resize is None else model.resize
        if model is not None and side != model.patch * config.grid:
            raise ValueError(
                f"{spec}: {name.encoder} cuts pictures of {side} px into patches of {model.patch}, and scale "
                f"{scale.name} builds latents of {config.grid} x {config.grid} cells, which must be as many: ask for "
                "rae-lite0, which fits every grid"
            )
        return dataclasses.replace(config, frozen_encoder=name.encoder)
    if config.downsampling != name.downsampling:
        raise ValueError(
            f"{spec} downsamples {name.downsampling} times, but scale {scale.name} builds tokenizers that "
            f"downsample {config.downsampling} times: ask for f{config.downsampling}d{name.channels}"
        )
    return config
