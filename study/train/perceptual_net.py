"""The perceptual net that a recipe or an evaluation names, with its pretrained weights."""

from __future__ import annotations

from models.lpips import LPIPS
from models.perceptual import PerceptualDistance
from study.plan.weight_files import network_hash, require_planned, require_weights


def perceptual_net(name: str, input_size: int, planned: str | None = None) -> PerceptualDistance | LPIPS:
    """`lite0`, `lite2` (see PerceptualDistance) or `vgg` (LPIPS), frozen.

    Args:
        planned: SHA-256 of its weights in the plan, see `network_hash`; None: any weights.

    Raises:
        ValueError: an unknown name, or weights that are missing, damaged or not those of the plan.
    """
    vgg = require_weights("vgg") if name == "vgg" else None
    if planned is not None:
        require_planned(f"the perceptual net {name!r}", network_hash(name), planned)
    if vgg is not None:
        return LPIPS(vgg, input_size=input_size)
    return PerceptualDistance(name, input_size=input_size)
