"""Parts that are computed in float32 whatever autocast does around them: losses, and the moments of a latent."""

from __future__ import annotations

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> torch.autocast:
    """Context without autocast on this tensor's device.

    It is about forward passes. Backward passes belong outside autocast, as PyTorch asks: inside, the products in the
    backward of a float32 product run in bfloat16.
    """
    return torch.autocast(like.device.type, enabled=False)


def widened(x: Tensor) -> Tensor:
    """The same values in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
