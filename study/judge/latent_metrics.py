"""Metrics of latents that need no generator: uniformity, spectrum, effective rank."""

from __future__ import annotations

import numpy as np
import torch

from study.judge.finite import MetricError, check_finite, checked
from study.judge.frechet import statistics

PERPLEXITY = 30  # of the t-SNE behind `uniformity`
MIN_POINTS = 3 * PERPLEXITY + 1  # t-SNE uses this many neighbours of a point, itself included


def uniformity(latents: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How evenly latent tokens are distributed (the paper's Table 6): the variation of their density on `density_map`.

    Returns density_cv, gini and normalized_entropy of the densities, see `unevenness`; raises what both raise.
    """
    return unevenness(density_map(latents, seed)[1])


def density_map(latents: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A two-dimensional map of latent tokens (t-SNE), and the density at each of them.

    t-SNE with perplexity PERPLEXITY, otherwise with scikit-learn's defaults (1,000 iterations from the principal
    components); then a Gaussian kernel density estimate at the points, with scipy's bandwidth (Scott's rule), each
    point's own kernel included. It runs on one thread, because several sum in varying order: on one type of processor,
    the same latents give the same numbers.

    The density shows that some regions hold more points than others. Clusters of equal size, far apart, count as even:
    t-SNE spreads each of them alike, and the bandwidth is that of the whole map.

    Args:
        latents: (N, d), normalised per channel, of independent images. The result depends on N.
        seed: of t-SNE.

    Returns:
        Places (N, 2) and densities (N,), float64.

    Raises:
        ValueError: fewer than MIN_POINTS points.
        MetricError: latents are not finite, or all on one line or in one point.
    """
    from scipy.stats import gaussian_kde
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if latents.ndim != 2 or len(latents) < MIN_POINTS:
        raise ValueError(
            f"uniformity needs at least {MIN_POINTS} latent tokens (perplexity {PERPLEXITY}), got {latents.shape}"
        )
    check_finite(torch.from_numpy(latents), "latents")
    if np.linalg.matrix_rank(latents - latents.mean(axis=0)) < 2:  # scikit-learn's t-SNE crashes on a single point
        raise MetricError("the latents lie on a line or in a point: there is no density in two dimensions")
    with threadpool_limits(1):
        places = TSNE(2, perplexity=PERPLEXITY, random_state=seed).fit_transform(latents).T.astype(np.float64)
        return places.T, gaussian_kde(places)(places)


def unevenness(weights: np.ndarray) -> dict[str, float]:
    """How unequal positive weights (N,) are.

    density_cv: standard deviation over mean; 0 if all are equal. gini: 0 if all are equal, 1 - 1/N if a single weight
    is not 0. normalized_entropy: of the weights as shares, over log N; 1 if all are equal, 0 if a single one is not 0.

    Raises:
        MetricError: a result is not finite.
    """
    count, share = len(weights), np.sort(weights) / weights.sum()
    rank = np.arange(1, count + 1)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    values = {
        "density_cv": float(weights.std() / weights.mean()),
        "gini": float((2 * rank - count - 1) @ share / count),
        "normalized_entropy": float(-(share @ logs) / np.log(count)),
    }
    return checked(values)


def spectrum(latents: np.ndarray) -> np.ndarray:
    """Eigenvalues (d,) float64 of the covariance of latent tokens (N, d), largest first.

    Raises:
        ValueError: fewer than 2 tokens.
        MetricError: latents are not finite.
    """
    sigma = statistics(torch.from_numpy(latents))["sigma"]
    return np.linalg.eigvalsh(np.atleast_2d(sigma))[::-1].clip(0)


def effective_rank(eigenvalues: np.ndarray) -> float:
    """exp of the entropy of the normalised eigenvalues: k when k of them are equal and the others 0.

    Roy and Vetterli 2007, The effective rank, equation 4, who use singular values.
    """
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return checked({"effective_rank": float(np.exp(-(share @ np.log(share))))})["effective_rank"]
