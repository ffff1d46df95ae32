"""Diagnostics that may predict how well a tokenizer's latents can be generated, before a generator is trained on them.

They are in files next to a stage's record, not in it: no result depends on them, so they may be missing, added later
or recomputed while the stage keeps its fingerprint. The stage `encode` writes those of its latents; missing ones, and
the interpolated FIDs, which cost as much as a reconstruction each, are added by study/report/fill_diagnostics.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results.files import atomic
from study.core.randomness import derive_seed, make_rng
from study.data.datasets import ImageSet
from study.data.latents import Latents
from study.judge.diffusability import eq_error, lds_and_cds, lnc, sec, viv
from study.judge.finite import MetricError, check_finite
from study.judge.latent_metrics import MIN_POINTS, density_map, effective_rank, spectrum, unevenness
from study.judge.references import balanced_choice
from study.judge.sheets import save_sheet
from study.plan.stage import LATENT_MAP, LATENT_PICTURES

log = logging.getLogger(__name__)

# What a diagnostic may end with and the latents are still good; torch's error is no ValueError, unlike NumPy's
NOT_COMPUTED = (ValueError, MetricError, torch.linalg.LinAlgError)

POINTS = 10_000  # latent tokens, as in the paper: more than a minute of t-SNE
FEW_POINTS = 1_500  # on data sets of fewer than MANY_IMAGES: under 10 seconds
MANY_IMAGES = 100_000
PREDICTORS = ("viv", "lnc_5", "lnc_10", "sec_25", "sec_50", "lds", "cds", "eq_error")
PREDICTOR_IMAGES = 10_000  # at most, behind PREDICTORS
PREDICTOR_CLASSES = 100  # at most, which these images are of: VIV needs many of a class
EQ_IMAGES = 500  # at most, of these: the EQ error encodes each four times and once at half the size
BATCH = 128
PICTURES = 8  # columns of a sheet
COLOUR_RANGE = (0.01, 0.99)  # quantiles of a component that are drawn as 0 and as 255


def points_for(images: int) -> int:
    """Number of latent tokens for the diagnostics of a data set with this number of images."""
    return min(images, POINTS if images >= MANY_IMAGES else FEW_POINTS)


def tokens(latents: Latents, count: int) -> np.ndarray:
    """Latent tokens (count, d) float32, normalised per channel: one from each of `count` images, at a random position.

    Images, positions and, if posteriors are stored, the noise of their samples are drawn with a fixed seed.
    """
    draw = np.random.default_rng(derive_seed(0, "diagnostics", 0))
    images = draw.permutation(len(latents.labels))[:count]
    positions = torch.from_numpy(draw.integers(np.prod(latents.shape[1:]), size=count))
    parts = []
    for start in range(0, count, BATCH):
        rows = images[start : start + BATCH]
        noise = torch.randn(len(rows), *latents.shape, generator=make_rng(0, "diagnostics", start))
        batch = latents.sample(rows, torch.zeros(len(rows), dtype=torch.int64), noise).flatten(2)  # (B, d, N)
        parts.append(batch[torch.arange(len(rows)), :, positions[start : start + BATCH]])
    return torch.cat(parts).numpy()


def describe_latents(latents: Latents, folder: Path, points: int | None = None) -> dict[str, Any]:
    """The diagnostics of how an encode stage's latent tokens are distributed; writes their map.

    These are diagnostic_points; effective_rank and eigenvalues, largest first, of the covariance of the normalised
    tokens; density_cv, gini and normalized_entropy (`uniformity`). The map behind the last three is written to its own
    file: x, y, and density over its mean, one line per token.

    Args:
        folder: of the stage.
        points: number of tokens, at most the number of images; default: `points_for` the images.

    What cannot be computed is left out and logged: a failed diagnostic must not make the latents unusable.
    """
    count = min(points or points_for(len(latents.labels)), len(latents.labels))
    values: dict[str, Any] = {}
    try:
        if count < MIN_POINTS:
            raise ValueError(f"too few images for latent diagnostics: {count}, and {MIN_POINTS} are needed")
        chosen = tokens(latents, count)
        eigenvalues = spectrum(chosen)
        values = {
            "diagnostic_points": count,
            "effective_rank": effective_rank(eigenvalues),
            "eigenvalues": eigenvalues.tolist(),
        }
        places, density = density_map(chosen)
        values |= unevenness(density)
        with atomic(folder / LATENT_MAP) as temporary:
            lines = np.column_stack([places, density / density.mean()])
            np.savetxt(temporary, lines, "%.5g", ",", header="x,y,density", comments="")
    except NOT_COMPUTED as error:
        log.warning("no latent diagnostics in %s: %s", folder, error)
        (folder / LATENT_MAP).unlink(missing_ok=True)
    return values


def predictors(latents: Latents, images: ImageSet, encode: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    """PREDICTORS of an encode stage's latents, see study/judge/diffusability.py.

    They are of a fixed, class-balanced choice of at most PREDICTOR_IMAGES training images (`chosen_images`), and the
    normalised sample of each posterior that a fixed seed draws; the EQ error is of the first EQ_IMAGES of them.
    On one core all but the EQ error take 2 seconds for 10,000 latents (16, 8, 8) and 13 for 10,000 (32, 16, 16), most
    of them for VIV; the EQ error takes one second with a tokenizer of the desk scales.

    Args:
        images: the training images.
        encode: pixels float32 (B, C, H, W) to posterior means (B, d, h, w), both on the CPU.

    What cannot be computed is left out and logged.
    """
    rows = chosen_images(latents.labels.numpy())
    labels = latents.labels[torch.from_numpy(rows)]
    parts = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        noise = torch.randn(len(batch), *latents.shape, generator=make_rng(0, "predictors", start))
        parts.append(latents.sample(batch, torch.zeros(len(batch), dtype=torch.int64), noise))
    chosen, first = torch.cat(parts), rows[:EQ_IMAGES]
    pixels = (images.pixels(first[start : start + BATCH]) for start in range(0, len(first), BATCH))
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "viv": lambda: {"viv": viv(chosen, labels)},
        "lnc_5": lambda: {"lnc_5": lnc(chosen, labels, 5)},
        "lnc_10": lambda: {"lnc_10": lnc(chosen, labels, 10)},
        "sec": lambda: {"sec_25": sec(chosen, 0.25), "sec_50": sec(chosen, 0.5)},
        "lds and cds": lambda: lds_and_cds(chosen),
        "eq_error": lambda: {"eq_error": eq_error(encode, pixels, latents.channel_std)},
    }
    values: dict[str, float] = {}
    try:
        check_finite(chosen.flatten(1), "latents")
    except MetricError as error:
        log.warning("no predictors: %s", error)
        return values
    for name, measure in measures.items():
        try:
            values |= measure()
        except NOT_COMPUTED as error:
            log.warning("no %s: %s", name, error)
    return values


def chosen_images(labels: np.ndarray) -> np.ndarray:
    """Indices of at most PREDICTOR_IMAGES images, balanced over at most PREDICTOR_CLASSES classes, for labels (N,).

    With more classes, a fixed seed draws which.
    """
    classes = np.unique(labels)
    if len(classes) > PREDICTOR_CLASSES:
        classes = np.random.default_rng(derive_seed(0, "predictors", 0)).permutation(classes)[:PREDICTOR_CLASSES]
    rows = np.flatnonzero(np.isin(labels, classes))
    return rows[balanced_choice(labels[rows], min(PREDICTOR_IMAGES, len(rows)))]


def picture_latents(latents: Latents, images: ImageSet, folder: Path) -> None:
    """Write a sheet of PICTURES training images, the same for every tokenizer, and below each image its latent.

    A latent is drawn as the first three principal components of these latents (posterior means) in red, green and blue,
    each scaled to its own range. With fewer images, or latents that are not finite, no sheet is written; with fewer
    than three channels, missing components are grey.
    """
    if len(latents.labels) < PICTURES:
        return
    rows = np.random.default_rng(derive_seed(0, "diagnostics", 0)).permutation(len(latents.labels))[:PICTURES]
    no_noise = torch.zeros(PICTURES, *latents.shape)
    latent = latents.sample(rows, torch.zeros(PICTURES, dtype=torch.int64), no_noise).double()  # (8, d, h, w)
    if not latent.isfinite().all():
        return
    shades = _principal(latent.movedim(1, -1).flatten(0, 2)).unflatten(0, (PICTURES, *latent.shape[2:]))
    pictures = torch.from_numpy(images.images(rows))
    cell = pictures.shape[-1] // latent.shape[-1]
    drawn = (shades.movedim(-1, 1) * 255).round().byte().repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    save_sheet(folder / LATENT_PICTURES, torch.cat([pictures.expand(-1, 3, -1, -1), drawn]), columns=PICTURES)


def _principal(points: torch.Tensor) -> torch.Tensor:
    """The first three principal components of points (N, d), each in [0, 1] over COLOUR_RANGE: (N, 3)."""
    points = points - points.mean(dim=0)
    axes = torch.linalg.eigh(points.T @ points).eigenvectors.flip(1)[:, :3]  # (d, 3)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()  # fixes the arbitrary sign of an axis
    components = points @ axes
    low, high = (torch.quantile(components, share, dim=0) for share in COLOUR_RANGE)
    components = ((components - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return torch.nn.functional.pad(components, (0, 3 - components.shape[1]), value=0.5)
