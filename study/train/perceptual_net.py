"""The perceptual net that a recipe or an evaluation names, with its pretrained weights."""

from __future__ import annotations

from models.lpips import LPIPS
from models.perceptual import PerceptualDistance
from study.plan.weight_files import require_weights


def perceptual_net(name: str, input_size: int) -> PerceptualDistance | LPIPS:
    """`lite0`, `lite2` (see PerceptualDistance) or `vgg` (LPIPS), frozen.

    Raises:
        ValueError: an unknown name, or weights that are missing or damaged.
    """
    if name == "vgg":
        return LPIPS(require_weights("vgg"), input_size=input_size)
    return PerceptualDistance(name, input_size=input_size)
