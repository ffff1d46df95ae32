"""A perceptual distance from early features of a pretrained EfficientNet-Lite.

Similar to LPIPS (Zhang et al. 2018, arXiv 1801.03924), but with another network, no learned weights per channel and
its own scale: its values can only be compared with each other.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.foundation import efficientnet_lite, folded, lite_trunk, three_channels
from models.precision import widened, without_autocast


class PerceptualDistance(nn.Module):
    """(B,) float32 >= 0 from two batches of pixels (B, 1 or 3, H, W) in [-1, 1]; 0 for equal images.

    The network runs in float32, also under autocast. At each stride the features are scaled to unit length per cell;
    their squared differences are summed over channels, averaged over cells, then over strides. Smaller images are
    enlarged to input_size first (bilinear); larger ones keep their size. Differentiable in both arguments; a batch that
    needs no gradient costs no backward pass. network: 'lite2' as a metric, 'lite0' as a loss, so that no network is
    both loss and metric. Raises ValueError for unknown networks or strides, missing weights, or batches that differ in
    shape.
    """

    def __init__(
        self,
        network: str = "lite2",
        *,
        input_size: int = 64,
        strides: tuple[int, ...] = (2, 4, 8),
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides)):
            raise ValueError(f"strides must increase, got {strides}")
        self.input_size = input_size
        full = efficientnet_lite(network, pretrained=pretrained)
        ends = [len(lite_trunk(full, stride)[0]) for stride in strides]
        layers = list(folded(lite_trunk(full, strides[-1])[0]).children())
        self.stages = nn.ModuleList(nn.Sequential(*layers[a:b]) for a, b in pairwise([0, *ends]))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Keeps evaluation mode for any `mode`."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape:
            raise ValueError(f"the two batches differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
        with without_autocast(a):
            distances = [
                (fa - fb).square().sum(1).mean(dim=(1, 2))
                for fa, fb in zip(self.features(widened(a)), self.features(widened(b)), strict=True)
            ]
        return sum(distances[1:], distances[0]) / len(distances)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Unit-length features (B, C, h, w) at each stride, finest first."""
        x = enlarged(pixels, self.input_size)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(F.normalize(x, dim=1, eps=1e-6))
        return found


def enlarged(pixels: Tensor, input_size: int) -> Tensor:
    """(B, 1 or 3, H, W) as (B, 3, S, S), bilinear, S being the largest of input_size, H and W."""
    x = three_channels(pixels)
    size = max(input_size, *x.shape[2:])
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x
