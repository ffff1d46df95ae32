"""What is trained: tokenizers, the VF loss, generators, the flow and its samplers; plain PyTorch.

Conventions, stated once and kept everywhere:

- Time: t = 0 is noise, t = 1 is data, and velocity is data minus noise. Foreign weights with another
  convention are converted where they are loaded, nowhere else. Gaussian diffusion alone counts timesteps, the
  other way round, and `models.diffusion` keeps them to itself.
- Pixels: float NCHW in [-1, 1]. A decoder may overshoot; whoever needs uint8 clamps.
- `latent_raw` leaves the tokenizer, `latent` is normalised per channel and feeds the generator. Nothing in
  this package converts one to the other.
- Randomness: no forward draws any. Noise, times and label drops are arguments, so a batch decides nothing
  that its seeds do not. Initialisation takes a torch.Generator.
- Letters in shapes: B batch, C channels, H W height and width, N tokens, D width, M heads, E width per
  head.

`models.specs` holds names, sizes and costs without importing torch, so that planning a study starts at
once. What `models` itself offers, the loaders of `models.released`, is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.released import load_generator, load_latent_statistics, load_tokenizer

__all__ = ["load_generator", "load_latent_statistics", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("models.released"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
