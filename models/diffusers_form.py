"""The tokenizer in the form of diffusers: the configuration and the parameter names of its `AutoencoderKL`.

Source: diffusers 0.42.1, models/autoencoders/autoencoder_kl.py and vae.py, models/unets/unet_2d_blocks.py. That class
is the network of models/autoencoder.py under other names. The library itself is not imported here.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from models.configs import AutoencoderConfig

# Parts of parameter names here and there, in the order in which they are replaced, either way. The decoder's levels are
# numbered in opposite order.
PARTS = (
    ("encoder.down.", "encoder.down_blocks."),
    ("decoder.up.", "decoder.up_blocks."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".block.", ".resnets."),
    (".attn.", ".attentions."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
    (".norm.", ".group_norm."),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    (".proj_out.", ".to_out.0."),
)
PROJECTION = re.compile(r"\.(q|k|v|proj_out)\.weight")  # of attention: 1 x 1 convolutions here, linear layers there

# names of attention parameters in files of 2022; the library renames them too when it loads such a file
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def diffusers_config(config: AutoencoderConfig) -> dict[str, Any]:
    """The arguments of AutoencoderKL that build this network.

    Raises ValueError, with what it is that the class has no argument for, for pixels that are folded into channels, a
    first level of another width than the first convolution, and a frozen encoder.
    """
    if config.frozen_encoder:
        raise ValueError(f"its encoder is the frozen {config.frozen_encoder}, and AutoencoderKL has one of its own")
    if config.unshuffle != 1:
        raise ValueError(
            f"it folds {config.unshuffle} x {config.unshuffle} pixels into channels (unshuffle {config.unshuffle}), "
            "for which AutoencoderKL has no layer"
        )
    if config.ch_mult[0] != 1:
        raise ValueError(
            f"its first convolution has {config.ch} channels and its first level {config.ch * config.ch_mult[0]} "
            f"(ch_mult {config.ch_mult[0]}), which are one number in AutoencoderKL"
        )
    attention = [side in config.attn_resolutions for side in config.level_sides()]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": [f"{'Attn' if level else ''}DownEncoderBlock2D" for level in attention],
        "up_block_types": [
            f"{'Attn' if level and config.decoder_attention else ''}UpDecoderBlock2D" for level in reversed(attention)
        ],
        "block_out_channels": [config.ch * mult for mult in config.ch_mult],
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": config.resolution,
    }


def to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an Autoencoder under the names, and in the shapes, of AutoencoderKL."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("decoder.up.")})
    found = {}
    for name, tensor in tensors.items():
        theirs = _finest_last(name, "decoder.up.", levels)
        for here, there in PARTS:
            theirs = theirs.replace(here, there)
        found[theirs] = tensor[:, :, 0, 0] if PROJECTION.search(name) else tensor
    return found


def from_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of AutoencoderKL, also under the names of 2022, as those of an Autoencoder; what belongs to neither
    keeps its name."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("decoder.up_blocks.")})
    found = {}
    for name, tensor in tensors.items():
        ours = modern_name(name)
        for here, there in PARTS:
            ours = ours.replace(there, here)
        linear = PROJECTION.search(ours) and tensor.ndim == 2
        found[_finest_last(ours, "decoder.up.", levels)] = tensor[:, :, None, None] if linear else tensor
    return found


def modern_name(name: str) -> str:
    """Current name in the library of a parameter with this name in a file."""
    words = name.split(".")
    return ".".join(OLD_NAMES.get(word, word) for word in words) if "attentions" in words else name


def _finest_last(name: str, prefix: str, levels: int) -> str:
    """The name with the number of its level counted from the other end, if it has one."""
    return re.sub(rf"^{re.escape(prefix)}(\d+)", lambda found: f"{prefix}{levels - 1 - int(found[1])}", name)
