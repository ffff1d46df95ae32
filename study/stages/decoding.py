"""Tokenizers in pieces: a whole chunk of large pictures at once would need tens of GB."""

from __future__ import annotations

import torch
from torch import Tensor

from models.autoencoder import Autoencoder

PIECE_PIXELS = 2**20  # pictures of 32 px: 1,024 at a time; of 256 px: 16, whose widest layers take 0.5 GB each


def piece(resolution: int) -> int:
    """How many pictures of this many pixels a side go through a tokenizer at once."""
    return max(1, PIECE_PIXELS // resolution**2)


def decoded(tokenizer: Autoencoder, latents: Tensor) -> Tensor:
    """Pictures uint8 (B, C, H, W), on the CPU, of raw latents (B, d, h, w)."""
    parts = []
    for part in latents.split(piece(tokenizer.config.resolution)):
        pixels = (tokenizer.decode(part) + 1) * 127.5
        parts.append(pixels.round_().clamp_(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts).contiguous()
