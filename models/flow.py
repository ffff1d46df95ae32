"""Rectified flow: the straight path from noise to data, and the generator's training loss.

Source: Liu et al. 2023 (arXiv 2209.03003); losses as in LightningDiT (arXiv 2501.01423, section 4;
`hustvl/LightningDiT`, transport/transport.py): velocity matching plus direction. t = 0 is noise, t = 1 is
data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FlowLoss:
    """Per image, (B,) float32: mean squared error of the velocity, and mean of 1 - cosine over channels."""

    mse: Tensor
    direction: Tensor


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = t data + (1 - t) noise. data, noise: (B, C, h, w); t: (B,) in [0, 1].

    Raises ValueError for shapes that do not match.
    """
    if data.shape != noise.shape or t.shape != data.shape[:1]:
        raise ValueError(
            "interpolate takes data and noise of one shape and one time per image, got "
            f"{tuple(data.shape)}, {tuple(noise.shape)} and t {tuple(t.shape)}"
        )
    return torch.lerp(noise, data, t.to(data.dtype).view(-1, *[1] * (data.ndim - 1)))


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """d x_t / dt = data - noise, the same at every t."""
    return data - noise


def flow_loss(prediction: Tensor, target: Tensor) -> FlowLoss:
    """Compare velocities (B, C, h, w); computed in float32 for inputs of any dtype.

    Raises ValueError if the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    prediction, target = prediction.float(), target.float()
    mse = (prediction - target).square().flatten(1).mean(1)
    direction = (1 - F.cosine_similarity(prediction, target, dim=1)).flatten(1).mean(1)
    return FlowLoss(mse, direction)


def rectified_flow_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    data: Tensor,
    noise: Tensor,
    times: Tensor,
    labels: Tensor,
    *,
    direction_weight: float,
) -> Tensor:
    """Loss per image, (B,) float32: mse + direction_weight * direction.

    network(x_t (B, C, h, w), times (B,), labels (B,)) -> velocity; data, noise: (B, C, h, w); times: (B,) in [0, 1].
    """
    terms = flow_loss(network(interpolate(data, noise, times), times, labels), velocity_target(data, noise))
    return terms.mse + direction_weight * terms.direction


def logit_normal_times(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times in (0, 1) from standard normal draws (B,): sigmoid(mean + std * normal). A larger mean is nearer to data.

    Esser et al. 2024 (arXiv 2403.03206), section 3.1. Raises ValueError unless std > 0.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    return torch.sigmoid(mean + std * normal)


def shifted_times(times: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] mapped by s t / (1 + (s - 1) t), as the time grid of sampling: below 1 toward noise.

    Esser et al. 2024 (arXiv 2403.03206), section 5.3.2. Raises ValueError unless shift > 0.
    """
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    return shift * times / (shift * times + (1 - times))
