"""Representation alignment of a generator (REPA), and its variant for spatial structure (iREPA).

While a generator is trained, its hidden tokens behind one of the first blocks are projected to the features that a
foundation model has of the same image without noise, and pulled towards them:
L - weight * (mean cosine over tokens and images).

Source: REPA, Yu et al. 2024 (arXiv 2410.06940; `sihyun-yu/REPA`, loss.py, models/sit.py, train.py): weight 0.5, an MLP
of three layers 2048 wide with SiLU, hidden state behind block 8 of L and XL (24 and 28 blocks) and 4 of B (12). iREPA,
Singh et al. 2025 (arXiv 2512.10794; `End2End-Diffusion/iREPA`, ldm/utils.py, ldm/models/sit.py, ldm/configs): weight 1,
one 3 x 3 convolution, features normalised over the cells of each image with 0.6 of their mean. Deviations: the MLP of a
generator narrower than B is narrower in proportion (models/costs.py); the convolution's bias is 0 at first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.costs import projector_width
from models.lightningdit import LightningDiT
from models.precision import widened, without_autocast

EPS = 1e-6  # added to the standard deviation, as released


class Projector(nn.Module):
    """Hidden tokens (B, N, D) of a square grid to the width of features, (B, F, side, side).

    kind: "mlp", for each token alone, or "conv", over neighbouring ones. Weights are drawn from `rng`.
    """

    def __init__(self, kind: str, width: int, features: int, rng: torch.Generator) -> None:
        super().__init__()
        hidden = projector_width(width)
        self.layers: nn.Module
        if kind == "conv":
            self.layers = nn.Conv2d(width, features, 3, padding=1)
        else:
            self.layers = nn.Sequential(
                nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features)
            )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=rng)
            elif isinstance(layer, nn.Conv2d):  # as PyTorch draws it
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=rng)
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        if isinstance(self.layers, nn.Conv2d):
            return self.layers(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return self.layers(tokens).transpose(1, 2).unflatten(2, (side, side))


class ProjectedGenerator(nn.Module):
    """A generator and the projector of its tokens behind `depth` blocks, as one module for the training."""

    def __init__(self, generator: LightningDiT, projector: Projector, depth: int) -> None:
        super().__init__()
        self.generator, self.projector, self.depth = generator, projector, depth

    def forward(self, latent: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What LightningDiT gives, and its projected tokens (B, F, side, side)."""
        velocity, tokens = self.generator.velocity_and_tokens(latent, t, labels, self.depth)
        return velocity, self.projector(tokens)


def spatially_normalised(features: Tensor, share: float) -> Tensor:
    """(y - share * mean) / (std + 1e-6) of features y (B, F, h, w), mean and std over the cells of each image and
    channel; the std is that of a sample, so there must be at least two cells."""
    std, mean = torch.std_mean(features, dim=(2, 3), keepdim=True)
    return (features - share * mean) / (std + EPS)


def mean_cosine(projected: Tensor, features: Tensor) -> Tensor:
    """Mean over images and cells of the cosine between two (B, F, h, w) along F; float32, also under autocast.

    Raises ValueError if the shapes differ.
    """
    if projected.shape != features.shape or projected.ndim != 4:
        raise ValueError(
            "mean_cosine compares two (B, F, h, w) maps cell by cell, got "
            f"projected {tuple(projected.shape)} and features {tuple(features.shape)}"
        )
    with without_autocast(projected):
        return (F.normalize(widened(projected), dim=1) * F.normalize(widened(features), dim=1)).sum(1).mean()
