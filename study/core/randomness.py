"""Every random number is a function of (seed, purpose, position): no generator has a state to be saved."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, position: int) -> int:
    """A 63-bit seed that differs for every seed, purpose and position."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_rng(seed: int, purpose: str, position: int, device: str = "cpu") -> torch.Generator:
    """A fresh generator at this seed, purpose and position; each kind of device draws numbers of its own."""
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, position))


def batch_indices(seed: int, count: int, images_seen: int, batch: int) -> np.ndarray:
    """Which of `count` images form the batch that starts after `images_seen` images: (batch,) int64.

    Epochs are permutations that follow one another without a gap, so each image comes once an epoch and a
    batch may span two.
    """
    parts, position = [], images_seen
    while position < images_seen + batch:
        epoch, offset = divmod(position, count)
        take = min(count - offset, images_seen + batch - position)
        parts.append(_permutation(seed, count, epoch)[offset : offset + take])
        position += take
    return np.concatenate(parts)


_last: tuple[tuple[int, int, int], np.ndarray] | None = None


def _permutation(seed: int, count: int, epoch: int) -> np.ndarray:
    global _last
    key = (seed, count, epoch)
    if _last is None or _last[0] != key:  # one epoch at a time is enough, and the whole of ImageNet is 10 MB
        _last = (key, np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(count))
    return _last[1]
