"""The vision-foundation-model (VF) loss that aligns a tokenizer's latent, and the adaptive weight between two losses.

Source: Yao et al. 2025 (arXiv 2501.01423), section 3.2 (marginal cosine similarity loss, marginal distance
matrix similarity loss, adaptive weighting); `hustvl/LightningDiT`,
vavae/ldm/modules/losses/contperceptual.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import widened, without_autocast

VF_WEIGHT_LIMIT = 1e8  # as released, for the VF loss at the encoder's last convolution
GAN_WEIGHT_LIMIT = 1e4  # as released, for the adversarial loss at the decoder's last convolution


@dataclass(frozen=True)
class VFLoss:
    """Scalars: `total` is the weighted sum; `cosine` and `distance` are unweighted, exactly 0 if their weight is 0."""

    total: Tensor
    cosine: Tensor
    distance: Tensor


def projection(latent_channels: int, feature_width: int) -> nn.Conv2d:
    """The map from latent to feature width for vf_loss: 1x1, no bias; `linear_proj` in released weights."""
    return nn.Conv2d(latent_channels, feature_width, 1, bias=False)


def vf_loss(
    projected: Tensor,
    features: Tensor,
    *,
    cosine_margin: float,
    distance_margin: float,
    cosine_weight: float = 1.0,
    distance_weight: float = 1.0,
) -> VFLoss:
    """How far the projected latent is from the foundation model's features.

    projected, features: (B, D, h, w); the second is constant for the tokenizer. Computed in float32, also under
    autocast: steps of bfloat16 between cosines are 0.004, against margins of 0.25. The cosine part is
    mean relu(1 - margin - cos) over cells; the distance part is mean relu(|cos_ij(projected) -
    cos_ij(features)| - margin) over pairs of cells within each image. A larger margin makes both easier to meet.

    Raises ValueError if the shapes differ. Deviation: one normalisation (eps 1e-12) serves both parts,
    where the released code calls cosine_similarity (eps 1e-8) for the first; they differ only for vectors
    of length ~0.
    """
    if projected.shape != features.shape or projected.ndim != 4:
        raise ValueError(
            "vf_loss compares two (B, D, h, w) maps cell by cell, got "
            f"projected {tuple(projected.shape)} and features {tuple(features.shape)}; "
            "resize the features to the latent grid and project the latent to their width"
        )
    with without_autocast(projected):
        z = F.normalize(widened(projected).flatten(2), dim=1)  # (B, D, N)
        f = F.normalize(widened(features).flatten(2), dim=1)
        zero = z.new_zeros(())
        cosine = F.relu(1 - cosine_margin - (z * f).sum(1)).mean() if cosine_weight else zero
        distance = zero
        if distance_weight:
            gap = (z.transpose(1, 2) @ z - f.transpose(1, 2) @ f).abs()  # (B, N, N)
            distance = F.relu(gap - distance_margin).mean()
        return VFLoss(cosine_weight * cosine + distance_weight * distance, cosine, distance)


def gradient_norm_ratio(reference_grad: Tensor, other_grad: Tensor, limit: float) -> Tensor:
    """||reference|| / (||other|| + 1e-4), clamped to [0, limit] and detached; the norms in float32."""
    ratio = reference_grad.float().norm() / (other_grad.float().norm() + 1e-4)
    return ratio.clamp(0.0, limit).detach()


def adaptive_weight(
    reference_loss: Tensor, other_loss: Tensor, weight: Tensor, limit: float = VF_WEIGHT_LIMIT
) -> Tensor:
    """Factor that makes `other_loss` pull on `weight` as strongly as `reference_loss` does.

    weight is a parameter both losses depend on: the encoder's last convolution for the VF loss, the
    decoder's for the adversarial loss. Costs two partial backward passes (a step that already has the gradients
    calls gradient_norm_ratio); the graph is kept. Esser et al. 2021 (VQGAN), equation 7.
    """
    reference_grad, other_grad = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (reference_loss, other_loss)
    )
    return gradient_norm_ratio(reference_grad, other_grad, limit)
