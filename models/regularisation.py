"""Names and strengths of the regularisers of a latent; standard library only, so that planning starts in milliseconds.

What each does, and where it is published, is said by the function of its name in models/regularisers.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SpectrumMatching:
    weight: float = 0.01  # of the divergence, beside a reconstruction error that is averaged over an image's values
    tilt: float = 1.0  # the image's power is multiplied by frequency to this power; 0 matches its own spectrum
    bins: int = 16  # of radial frequency


@dataclass(frozen=True, kw_only=True)
class LocalCorrelation:
    weight: float = 0.002  # times the adaptive weight
    threshold: float = 0.75  # of the mean correlation of neighbours, above which nothing pulls


@dataclass(frozen=True, kw_only=True)
class ChannelPrefix:
    fewest: float = 0.125  # share of the channels that is always kept; 1 keeps all


@dataclass(frozen=True, kw_only=True)
class LatentMask:
    ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)  # shares of an image's cells, one of which is masked
    probabilities: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)  # of the ratios


@dataclass(frozen=True, kw_only=True)
class LatentNoise:
    strength: float = 0.8  # largest standard deviation of the noise
    interpolate: bool = False  # towards the noise, instead of adding it; published with strength 3


@dataclass(frozen=True, kw_only=True)
class ScaleEquivariance:
    weight: float = 0.25  # of the reconstruction of smaller images
    factors: tuple[int, ...] = (2, 4)  # by which they are smaller, one drawn in each step


@dataclass(frozen=True, kw_only=True)
class Equivariance:
    probability: float = 0.5  # of a step that resizes and turns latents
    shrink_probability: float = 0.25  # of another step to shrink images before they are encoded
    smallest: float = 0.25  # share of the side to which both shrink at most; never below two cells

    def smallest_side(self, grid: int) -> int:
        """Cells to which the side of a grid shrinks at most."""
        return max(2, math.ceil(self.smallest * grid))


# A regulariser that a tokenizer's name lacks is None and part of no fingerprint (study/core/settings.py), so that a new
# one leaves the tokenizers that others have trained as they are
UNLESS_NONE = {"identity": "unless None"}


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """The regularisers, in the order in which a tokenizer is named after them and in which they act."""

    spectrum: SpectrumMatching | None = field(default=SpectrumMatching(), metadata=UNLESS_NONE)
    local: LocalCorrelation | None = field(default=LocalCorrelation(), metadata=UNLESS_NONE)
    prefix: ChannelPrefix | None = field(default=ChannelPrefix(), metadata=UNLESS_NONE)
    mask: LatentMask | None = field(default=LatentMask(), metadata=UNLESS_NONE)
    noise: LatentNoise | None = field(default=LatentNoise(), metadata=UNLESS_NONE)
    scale: ScaleEquivariance | None = field(default=ScaleEquivariance(), metadata=UNLESS_NONE)
    eq: Equivariance | None = field(default=Equivariance(), metadata=UNLESS_NONE)

    def only(self, names: Collection[str]) -> Regularisation | None:
        """The strengths of these regularisers, None in place of the others; None without any."""
        others = {name: None for name in REGULARISERS if name not in names}
        return None if len(others) == len(REGULARISERS) else dataclasses.replace(self, **others)

    def used(self) -> dict[str, Any]:
        """The strengths that are there, by name, in order."""
        strengths = {name: getattr(self, name) for name in REGULARISERS}
        return {name: value for name, value in strengths.items() if value is not None}


REGULARISERS = tuple(each.name for each in dataclasses.fields(Regularisation))
