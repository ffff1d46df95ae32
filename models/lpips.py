"""LPIPS with VGG16: the perceptual term of the paper's tokenizers, and the literature's perceptual distance.

Source: Zhang et al. 2018 (arXiv 1801.03924), as the `lpips` package computes it with its weights of version 0.1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.packages import lpips_heads_file
from models.perceptual import enlarged
from models.precision import widened, without_autocast
from models.weights import load_foreign

# widths of VGG16's convolutions, in the blocks between poolings; features are compared at the end of each block
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# the package subtracts and divides by these, for pixels in [-1, 1]: rounded mean and std of ImageNet
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """(B,) float32 >= 0 from two batches of pixels (B, 1 or 3, H, W) in [-1, 1]; 0 for equal images.

    Features of five layers of VGG16 are scaled to unit length per cell; their squared differences are weighted per
    channel by the learned heads, averaged over cells and summed over layers. Smaller images are enlarged to
    input_size first (bilinear). Differentiable in both arguments; the weights are frozen. The network runs in float32,
    also under autocast.

    Args:
        vgg: file of torchvision's VGG16 (`vgg16-397923af.pth`), whose convolutions are used; None gives random
            weights, only for tests of shapes.
        input_size: pixels.

    Raises:
        ValueError: weights that do not fit, or batches that differ in shape.
        ValueError: the `lpips` package, which contains the heads, is not installed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: Path | None, *, input_size: int = 64) -> None:
        super().__init__()
        self.input_size = input_size
        blocks = vgg16_blocks()
        heads = [nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in BLOCKS]
        if vgg is not None:
            load_weights(blocks, heads, vgg, lpips_heads_file())
        else:
            for head in heads:
                nn.init.constant_(head.weight, 1.0)  # so that distances are not negative
        self.stages, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)
        for name, values in (
            ("shift", SHIFT),
            ("scale", SCALE),
        ):  # constants of a step make a GPU wait
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> LPIPS:
        """Keeps evaluation mode for any `mode`: the heads' dropout is for training them."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape:
            raise ValueError(f"the two batches differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
        a, b = widened(a), widened(b)
        total = a.new_zeros(len(a))
        with without_autocast(a):
            for head, fa, fb in zip(self.heads, self.features(a), self.features(b), strict=True):
                total = total + head((fa - fb).square()).mean(dim=(1, 2, 3))
        return total

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Unit-length features (B, C, h, w) of each layer, finest first."""
        x = (enlarged(pixels, self.input_size) - self.shift) / self.scale
        found = []
        for stage in self.stages:
            x = stage(x)
            length = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # its gradient is 0, not NaN, for a cell of zeros
            found.append(x / (length + 1e-10))
        return found


def vgg16_blocks() -> list[nn.Sequential]:
    """The convolutional part of VGG16 in five blocks, each ending with an activation."""
    blocks, c_in = [], 3
    for i, widths in enumerate(BLOCKS):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
        for c_out in widths:
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
            c_in = c_out
        blocks.append(nn.Sequential(*layers))
    return blocks


def load_weights(blocks: list[nn.Sequential], heads: list[nn.Conv2d], vgg: Path, learned: Path) -> None:
    """Load torchvision's VGG16 and the package's heads. Raises ValueError for files that hold something else."""
    tensors, weights = load_foreign(vgg), load_foreign(learned)
    layers = [layer for block in blocks for layer in block]  # numbered as in torchvision's `features`
    try:
        for number, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                layer.load_state_dict({name: tensors[f"features.{number}.{name}"] for name in ("weight", "bias")})
        for i, head in enumerate(heads):
            head.load_state_dict({"weight": weights[f"lin{i}.model.1.weight"]})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{vgg} does not hold torchvision's VGG16, or {learned} LPIPS's heads: {error}") from error
