"""Networks, losses and samplers in plain PyTorch: tokenizers, the VF loss, generators, flow and diffusion.

Conventions of the whole package:

- Time: t = 0 is noise, t = 1 is data, and velocity is data minus noise. Weights with another convention are
  converted when they are loaded, nowhere else. Only Gaussian diffusion counts timesteps, in the opposite
  direction, and only `models.diffusion` uses them.
- Pixels: float NCHW in [-1, 1]. A decoder may exceed this range; code that needs uint8 clamps.
- `latent_raw` leaves the tokenizer, `latent` is normalised per channel and feeds the generator. Nothing in
  this package converts one to the other.
- Randomness: no forward method draws random numbers. Noise, times and label drops are arguments, so a batch depends
  on its seeds alone. Initialisation takes a torch.Generator.
- Letters in shapes: B batch, C channels, H W height and width, N tokens, D width, M heads, E width per
  head.

`models.configs` holds names and sizes, and `models.costs` computes costs, without importing torch, so that planning a
study starts quickly. `models` itself exports the loaders of `models.released_checkpoints`, which are imported on first
use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.released_checkpoints import load_generator, load_latent_statistics, load_tokenizer

__all__ = ["load_generator", "load_latent_statistics", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("models.released_checkpoints"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
