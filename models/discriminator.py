"""The tokenizer's adversary: a PatchGAN trained with the hinge loss.

Source: Isola et al. 2017 (arXiv 1611.07004) and Esser et al. 2021 (`CompVis/taming-transformers`,
taming/modules/discriminator/model.py); the layers keep their places in `main`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from models.precision import widened


class Discriminator(nn.Module):
    """Pixels (B, in_channels, H, W) in [-1, 1] to logits (B, 1, h, w), one per overlapping patch; positive is real.

    The resolution is halved `layers` times, and the width doubles each time, up to 8 * width. In training, batch
    statistics normalise, so real and fake batches are normalised differently, as in the source. Under autocast its
    convolutions run in bfloat16, as those of every trained network, and the logits are bfloat16; the hinge losses of
    given logits are computed in float32.
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
                BatchNorm(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*main, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.main(pixels)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes in training (torch.distributed), on any device.

    PyTorch's own SyncBatchNorm runs on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        values = x.numel() // x.shape[1] * distributed.get_world_size()
        wide = x.float()
        mean = _AllReduce.apply(wide.sum((0, 2, 3))) / values
        centred = wide - mean[:, None, None]
        variance = _AllReduce.apply(centred.square().sum((0, 2, 3))) / values
        with torch.no_grad():
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (values / (values - 1)), self.momentum)
        factor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * factor[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """Sum over processes; the gradient is summed too, so it is that of the sum of their losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient


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
    """Scalar from logits of any shape: the mean of relu(1 - real) and relu(1 + fake); 0 if real >= 1 and fake <= -1."""
    return 0.5 * (F.relu(1 - widened(real)).mean() + F.relu(1 + widened(fake)).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """The tokenizer's adversarial loss: -mean(fake)."""
    return -widened(fake).mean()
