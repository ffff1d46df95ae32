"""Numbers that describe latents before anything is generated from them: uniformity, spectrum, effective rank."""

from __future__ import annotations

import numpy as np
import torch

from study.judge.finite import MetricError, check_finite, checked
from study.judge.frechet import statistics

PERPLEXITY = 30  # of the t-SNE behind `uniformity`
FEWEST_POINTS = 3 * PERPLEXITY + 1  # t-SNE looks at so many neighbours, itself included


def uniformity(latents: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How evenly latent tokens lie (the paper's Table 6): how much their density varies on `density_map`.

    Returns density_cv, gini and normalized_entropy of the densities, see `unevenness`; raises as both do.
    """
    return unevenness(density_map(latents, seed)[1])


def density_map(latents: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latent tokens on a map in two dimensions, and how densely they lie there.

    t-SNE with perplexity PERPLEXITY, otherwise as scikit-learn has it (1,000 iterations from the principal components);
    then a Gaussian kernel density at the points, with scipy's bandwidth (Scott's rule) and each point's own kernel.
    On one thread, because several add up in any order: the same latents give the same numbers, on one processor.

    What it sees is that some places hold more than others. Clusters of one size, far apart, look even to it: t-SNE
    spreads each of them alike, and the bandwidth is that of the whole map.

    Args:
        latents: (N, d), normalised per channel; of independent images. The numbers depend on N.
        seed: of t-SNE.

    Returns:
        Places (N, 2) and densities (N,), float64.

    Raises:
        ValueError: fewer than FEWEST_POINTS points.
        MetricError: latents that are not finite, or that lie on a line or in a point.
    """
    from scipy.stats import gaussian_kde
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if latents.ndim != 2 or len(latents) < FEWEST_POINTS:
        raise ValueError(
            f"uniformity needs at least {FEWEST_POINTS} latent tokens (perplexity {PERPLEXITY}), got {latents.shape}"
        )
    check_finite(torch.from_numpy(latents), "latents")
    if np.linalg.matrix_rank(latents - latents.mean(axis=0)) < 2:  # on one point scikit-learn's t-SNE ends the process
        raise MetricError("the latents lie on a line or in a point: there is no density in two dimensions")
    with threadpool_limits(1):
        places = TSNE(2, perplexity=PERPLEXITY, random_state=seed).fit_transform(latents).T.astype(np.float64)
        return places.T, gaussian_kde(places)(places)


def unevenness(weights: np.ndarray) -> dict[str, float]:
    """How far positive weights (N,) are from all equal.

    density_cv: spread over mean; 0 when equal. gini: 0 when equal, 1 - 1/N when one has everything.
    normalized_entropy: of the weights as shares, over log N; 1 when equal, 0 when one has everything.

    Raises:
        MetricError: one of them is not finite.
    """
    count, share = len(weights), np.sort(weights) / weights.sum()
    rank = np.arange(1, count + 1)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    found = {
        "density_cv": float(weights.std() / weights.mean()),
        "gini": float((2 * rank - count - 1) @ share / count),
        "normalized_entropy": float(-(share @ logs) / np.log(count)),
    }
    return checked(found)


def spectrum(latents: np.ndarray) -> np.ndarray:
    """Eigenvalues (d,) float64 of the covariance of latent tokens (N, d), largest first.

    Raises:
        ValueError: fewer than 2 tokens.
        MetricError: latents that are not finite.
    """
    sigma = statistics(torch.from_numpy(latents))["sigma"]
    return np.linalg.eigvalsh(np.atleast_2d(sigma))[::-1].clip(0)


def effective_rank(eigenvalues: np.ndarray) -> float:
    """exp of the entropy of eigenvalues as shares: k when k of them are equal and the others 0 (Roy and Vetterli 2007,
    The effective rank, equation 4; there of singular values)."""
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return checked({"effective_rank": float(np.exp(-(share @ np.log(share))))})["effective_rank"]
