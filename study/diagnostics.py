"""Numbers that may foretell how well a tokenizer's latents can be generated, before a generator is trained on them.

Kept beside a stage's record, never in it: no result rests on them, so they may come later, be missing, or be made anew
without a stage losing its name. The stage `encode` leaves those of its latents; study/diagnose.py brings what is
missing, and the interpolated FID, which costs as much as a reconstruction.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from study.files import write_json
from study.metrics import FEWEST_POINTS, MetricError, effective_rank, spectrum, uniformity
from study.randomness import derive, generator
from study.specs import DIAGNOSTICS

if TYPE_CHECKING:
    from study.stages.encode import Latents

log = logging.getLogger(__name__)

POINTS = 10_000  # latent tokens, as the paper has them: more than a minute of t-SNE
FEW_POINTS = 1_500  # on data sets of fewer than MANY_IMAGES: under 10 seconds
MANY_IMAGES = 100_000
BATCH = 128


def points_for(images: int) -> int:
    """How many latent tokens describe the latents of so many images."""
    return min(images, POINTS if images >= MANY_IMAGES else FEW_POINTS)


def tokens(latents: Latents, count: int) -> np.ndarray:
    """Latent tokens (count, d) float32, normalised per channel: one of each of `count` images, at a place of its own.

    Images, places and, where posteriors are kept, the noise of their samples are drawn with a fixed seed.
    """
    draw = np.random.default_rng(derive(0, "diagnostics", 0))
    images = draw.permutation(len(latents.labels))[:count]
    places = torch.from_numpy(draw.integers(np.prod(latents.shape[1:]), size=count))
    parts = []
    for start in range(0, count, BATCH):
        rows = images[start : start + BATCH]
        noise = torch.randn(len(rows), *latents.shape, generator=generator(0, "diagnostics", start))
        batch = latents.sample(rows, torch.zeros(len(rows), dtype=torch.int64), noise).flatten(2)  # (B, d, N)
        parts.append(batch[torch.arange(len(rows)), :, places[start : start + BATCH]])
    return torch.cat(parts).numpy()


def describe_latents(latents: Latents, folder: Path, points: int | None = None) -> dict[str, Any]:
    """Write how the latents of an encode stage lie, and return it: diagnostic_points; effective_rank and eigenvalues,
    largest first, of the covariance of the normalised tokens; density_cv, gini and normalized_entropy (`uniformity`).

    Args:
        folder: the stage's.
        points: tokens; default: `points_for` the images. At most the images there are.

    What cannot be told is left out, with a line in the log: it must not cost anyone the latents themselves.
    """
    count = min(points or points_for(len(latents.labels)), len(latents.labels))
    found: dict[str, Any] = {}
    try:
        if count < FEWEST_POINTS:
            raise ValueError(f"too few images to tell how latents lie: {count}, and {FEWEST_POINTS} are needed")
        chosen = tokens(latents, count)
        eigenvalues = spectrum(chosen)
        found = {
            "diagnostic_points": count,
            "effective_rank": effective_rank(eigenvalues),
            "eigenvalues": eigenvalues.tolist(),
        }
        found |= uniformity(chosen)
    except (ValueError, MetricError) as error:
        log.warning("no latent diagnostics in %s: %s", folder, error)
    write_json(folder / DIAGNOSTICS, found)
    return found
