"""The Frechet distance between two sets of features, by two formulas that must agree.

A matrix square root can be wrong without raising an error.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from study.judge.finite import MetricError, check_finite

RELATIVE_TOLERANCE = 1e-3  # between the two formulas
# Also between them, relative to the sum of both traces: eigenvalues of a product of singular covariances are 0 up to
# rounding, about 1e-16 of the largest, and their square roots, about 1e-8, add up over the features. Measured: up to
# 2e-7 of the traces.
TRACE_TOLERANCE = 1e-5

# mu float64 (D,), sigma float64 (D, D), and optionally root, the square root of sigma
Statistics = Mapping[str, np.ndarray]


def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance, both float64, of features (N, D). Raises MetricError when some are not finite."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    check_finite(features, "features")
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)}")
    return fid_features_to_statistics(features.double().cpu())


def square_root(sigma: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance, float64; eigenvalues below 0 are rounding and count as 0."""
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(stats_a: Statistics, stats_b: Statistics) -> float:
    """Squared Frechet distance between two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    torch-fidelity's value, from the eigenvalues of the product of the covariances S_a S_b; checked against
    those of the symmetric root(S_b) S_a root(S_b), which are real and not negative. It may be slightly negative due
    to rounding.

    Args:
        stats_a, stats_b: see Statistics; if stats_b has its root, it is not computed again.

    Raises:
        MetricError: a value is not finite, or the formulas differ by more than RELATIVE_TOLERANCE of the
            distance and TRACE_TOLERANCE of the covariances' traces.
    """
    self_test()
    return _frechet(stats_a, stats_b)


def _frechet(stats_a: Statistics, stats_b: Statistics) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    for stats in (stats_a, stats_b):
        for name in ("mu", "sigma"):
            if not np.isfinite(stats[name]).all():
                raise MetricError(f"the statistics are not finite: {name}")
    a, b = ({name: stats[name] for name in ("mu", "sigma")} for stats in (stats_a, stats_b))
    distance = fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]
    root = stats_b["root"] if "root" in stats_b else square_root(b["sigma"])
    shared = np.sqrt(np.linalg.eigvalsh(root @ a["sigma"] @ root).clip(0)).sum()
    traces = float(np.trace(a["sigma"]) + np.trace(b["sigma"]))
    check = float(np.square(a["mu"] - b["mu"]).sum() + traces - 2 * shared)
    allowed = RELATIVE_TOLERANCE * max(abs(distance), abs(check)) + TRACE_TOLERANCE * traces
    if not abs(distance - check) <= allowed:  # also when one of them is not a number
        raise MetricError(f"two formulas of the Frechet distance disagree: {distance:.6g} and {check:.6g}")
    return distance


@functools.cache
def self_test() -> None:
    """Check two Gaussians of known distance |m_a - m_b|^2 + sum (s_a - s_b)^2, one of them singular. Runs once.

    Raises:
        MetricError: the linear algebra of this machine gives another number.
    """
    rng = np.random.default_rng(0)
    std_a, std_b = rng.uniform(0.5, 2, 32), rng.uniform(0.5, 2, 32)
    std_a[20:] = 0
    rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0]  # the distance is the same in any orthogonal frame
    mean_a, mean_b = rng.normal(size=32), rng.normal(size=32)
    expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
    a, b = (
        {"mu": rotation @ mean, "sigma": (rotation * std**2) @ rotation.T}
        for mean, std in ((mean_a, std_a), (mean_b, std_b))
    )
    distance = _frechet(a, b)
    if not abs(distance - expected) <= 1e-5 * expected:
        raise MetricError(f"the Frechet distance fails its self-test: {distance!r}, expected {expected!r}")
