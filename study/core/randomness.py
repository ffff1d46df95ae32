"""Every random number is a function of (seed, purpose, position), so no random state has to be saved."""

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


def make_rng(seed: int, purpose: str, position: int) -> torch.Generator:
    """A new random generator for this seed, purpose and position, on the CPU: a GPU's would give other numbers."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, position))


def batch_indices(seed: int, count: int, images_seen: int, batch: int) -> np.ndarray:
    """Indices, out of `count` images, of the batch that starts after `images_seen` images: (batch,) int64.

    Each epoch is a permutation and epochs follow one another without a gap, so each image occurs once per epoch and a
    batch may span two epochs.
    """
    chunks, position = [], images_seen
    while position < images_seen + batch:
        epoch, offset = divmod(position, count)
        take = min(count - offset, images_seen + batch - position)
        chunks.append(_permutation(seed, count, epoch)[offset : offset + take])
        position += take
    return np.concatenate(chunks)


_cached: tuple[tuple[int, int, int], np.ndarray] | None = None  # key and permutation of the epoch used last


def _permutation(seed: int, count: int, epoch: int) -> np.ndarray:
    global _cached
    key = (seed, count, epoch)
    if _cached is None or _cached[0] != key:  # one epoch at a time is enough: for ImageNet it takes 10 MB
        _cached = (key, np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(count))
    return _cached[1]
