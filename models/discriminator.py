"""The tokenizer's adversary: a PatchGAN trained with the hinge loss.

Source: Isola et al. 2017 (arXiv 1611.07004) and Esser et al. 2021 (`CompVis/taming-transformers`,
taming/modules/discriminator/model.py); the layers keep their places in `main`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Pixels (B, in_channels, H, W) in [-1, 1] to logits (B, 1, h, w), one per overlapping patch; positive
    is real.

    `layers` halvings of the resolution, width doubling with each up to 8 * width. Normalises by batch
    statistics in training, so real and fake batches see different ones, as in the source.
    """

    def __init__(self, in_channels: int = 3, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"the discriminator needs at least one layer, got {layers}")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            main += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*main, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.main(pixels)


def initialize(discriminator: Discriminator, rng: torch.Generator) -> None:
    """Draw all weights from `rng`: convolutions N(0, 0.02), norm scales N(1, 0.02), biases 0.

    Deviation: the source leaves the two biased convolutions' biases at PyTorch's default.
    """
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02, generator=rng)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02, generator=rng)
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Scalar from logits of any shape: the mean of relu(1 - real) and relu(1 + fake), 0 once both are
    beyond 1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """What the tokenizer minimises: -mean(fake)."""
    return -fake.mean()
