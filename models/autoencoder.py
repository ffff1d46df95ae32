"""The tokenizer: the convolutional KL autoencoder of latent diffusion.

Source: Rombach et al. 2022 (arXiv 2112.10752), as used by VA-VAE (arXiv 2501.01423; `hustvl/LightningDiT`,
tokenizer/autoencoder.py). Parameter names are the released ones, so released weights load strictly at
unshuffle = 1. Deviations: noise is an argument; unshuffle > 1 and norm_groups other than 32 are ours, for
small budgets.

Every operation keeps the memory format of its input. On a CPU, channels_last made a training step of a small network
2% faster, which is within noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import attend
from models.configs import AutoencoderConfig
from models.precision import widened, without_autocast


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over `latent_raw`: mean and logvar, each (B, C, h, w); logvar lies in [-30, 20]."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """latent_raw for standard normal noise of the mean's shape."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over each image: (B,)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class Autoencoder(nn.Module):
    """Pixels (B, in_channels, H, W) in [-1, 1] to latent_raw (B, z_channels, H/f, W/f) and back; f is downsampling."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, pixels: Tensor) -> Posterior:
        """The posterior of each image. ValueError unless height and width are multiples of the downsampling."""
        f = self.config.downsampling
        if pixels.ndim != 4 or pixels.shape[1] != self.config.in_channels or any(s % f for s in pixels.shape[2:]):
            raise ValueError(
                f"encode takes (B, {self.config.in_channels}, H, W) with H and W multiples of {f}, "
                f"got {tuple(pixels.shape)}"
            )
        return self.posterior(self.encoder(pixels))

    def posterior(self, moments: Tensor) -> Posterior:
        """The posterior in float32, also under autocast, from the encoder's output (B, 2 * z_channels, h, w)."""
        with without_autocast(moments):
            mean, logvar = self.quant_conv(widened(moments)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latent_raw: Tensor) -> Tensor:
        """Pixels, not clamped: values can leave [-1, 1] a little. ValueError if the channels do not fit."""
        if latent_raw.ndim != 4 or latent_raw.shape[1] != self.config.z_channels:
            raise ValueError(f"decode takes (B, {self.config.z_channels}, h, w), got {tuple(latent_raw.shape)}")
        return self.decoder(self.post_quant_conv(latent_raw))


def initialize(autoencoder: Autoencoder, rng: torch.Generator) -> None:
    """Draw all weights from `rng`: convolutions uniform within 1/sqrt(fan-in), norms at identity.

    These are PyTorch's defaults, which the released code uses too, drawn from the global generator.
    """
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound, generator=rng)
            assert module.bias is not None
            nn.init.uniform_(module.bias, -bound, bound, generator=rng)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if configured, then a change of resolution."""

    downsample: Downsample  # set on the encoder's levels but the last
    upsample: Upsample  # set on the decoder's levels but the finest

    def __init__(self, c_in: int, c_out: int, blocks: int, *, attention: bool, groups: int) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * blocks
        self.block = nn.ModuleList(ResnetBlock(widths[i], c_out, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(c_out, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Pixels to the two moments of the latent, before quant_conv: (B, 2 * z_channels, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        groups, sides = config.norm_groups, config.level_sides()
        c = config.ch
        self.conv_in = nn.Conv2d(config.in_channels * config.unshuffle**2, c, 3, padding=1)
        self.down = nn.ModuleList()
        for i, mult in enumerate(config.ch_mult):
            c_out = config.ch * mult
            attention = sides[i] in config.attn_resolutions
            level = Level(c, c_out, config.num_res_blocks, attention=attention, groups=groups)
            if i + 1 < len(sides):
                level.downsample = Downsample(c_out)
            self.down.append(level)
            c = c_out
        self.mid = Middle(c, groups)
        self.norm_out = nn.GroupNorm(groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, 2 * config.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(pixels, self.unshuffle) if self.unshuffle > 1 else pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """latent_raw after post_quant_conv to pixels: the mirrored encoder, with one more block per level."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        groups, sides = config.norm_groups, config.level_sides()
        c = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, c, 3, padding=1)
        self.mid = Middle(c, groups)
        levels: list[Level] = []
        for i in reversed(range(len(sides))):
            c_out = config.ch * config.ch_mult[i]
            attention = config.decoder_attention and sides[i] in config.attn_resolutions
            level = Level(c, c_out, config.num_res_blocks + 1, attention=attention, groups=groups)
            if i > 0:
                level.upsample = Upsample(c_out)
            levels.insert(0, level)  # released weights number the levels finest first
            c = c_out
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, config.in_channels * config.unshuffle**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.unshuffle) if self.unshuffle > 1 else x


class Middle(nn.Module):
    """Two residual blocks around attention at the coarsest resolution."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(c, c, groups)
        self.attn_1 = AttnBlock(c, groups)
        self.block_2 = ResnetBlock(c, c, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the shortcut if the width changes."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells, added to the input."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.q = nn.Conv2d(c, c, 1)
        self.k = nn.Conv2d(c, c, 1)
        self.v = nn.Conv2d(c, c, 1)
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))  # (B, 1, HW, C)
        h = attend(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Half the resolution. The padding is on the right and bottom only, as in the TensorFlow original."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
