"""The representation autoencoder (RAE): a frozen foundation model encodes, only the decoder is trained.

Source: Zheng et al. 2025 (arXiv 2510.11690); `bytetriper/RAE`, src/stage1/rae.py. Its decoder is a vision transformer;
here it is that of the tokenizer (models/autoencoder.py), so that rFID differs by the latent alone.

Noise in the decoder's training is the regulariser `noise` (models/regularisers.py), of the released form and strength.
Deviation: it is added to normalised latents. The released code adds it to the encoder's output, which is then a
layer norm's and of variance one; features of other networks have any scale, and one strength must mean the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder, Decoder, Posterior
from models.configs import AutoencoderConfig

EPS = 1e-5  # added to variances, as released


class RepresentationAutoencoder(Autoencoder):
    """Pixels (B, in_channels, resolution, resolution) in [-1, 1] to latent_raw (B, z_channels, grid, grid) and back.

    A latent is the features of the frozen encoder, each of its values normalised by mean and standard deviation over
    images: per channel and place, as released (src/calculate_stat.py). They are buffers beside the decoder's weights;
    the encoder is not part of the module. features: the encoder, pixels to (B, z_channels, grid, grid), float32,
    without gradient; called by `encode` alone, so that a decoder needs none.
    """

    latent_mean: Tensor  # (z_channels, grid, grid)
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig, features: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.features = features
        self.decoder = Decoder(config)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)
        shape = (config.z_channels, config.grid, config.grid)
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))

    def normalise_by(self, mean: Tensor, variance: Tensor) -> None:
        """Set the statistics of the features, each (z_channels, grid, grid). ValueError for another shape."""
        if not mean.shape == variance.shape == self.latent_mean.shape:
            raise ValueError(
                f"features are {tuple(self.latent_mean.shape)}, got a mean {tuple(mean.shape)} and a variance "
                f"{tuple(variance.shape)}"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_((variance + EPS).sqrt())

    def encode(self, pixels: Tensor) -> Posterior:
        """The latent of each image, as a posterior without spread: standard deviation 0, no divergence.

        ValueError for pictures of another size than those in training, whose places have no statistics.
        """
        side = self.config.resolution
        if pixels.shape[1:] != (self.config.in_channels, side, side):
            raise ValueError(
                f"encode takes (B, {self.config.in_channels}, {side}, {side}), the size of the pictures whose features "
                f"were measured, got {tuple(pixels.shape)}"
            )
        latent = (self.features(pixels) - self.latent_mean) / self.latent_std
        return Posterior(latent, torch.full_like(latent, -torch.inf))
