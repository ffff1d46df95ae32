"""Rank agreement: whether two measurements put the same items in the same order.

scipy.stats is imported where it is used: that takes most of a second, for which commands that rank nothing do not wait.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEW = 10  # pairs; with fewer, an interval is too wide to say much
EXACT = 8  # pairs up to which all permutations are enumerated
DRAWS = 10_000
FEWEST = 3  # pairs; two always have a correlation of 1 or -1
FEWEST_FOR_INTERVAL = 5
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """Spearman's rank correlation of n pairs, ties at their mean rank.

    rho: None with fewer than three pairs or if one side is constant. chance, chance_against: share of the permutations
    of one side that agree at least as well, or at most as well (one-sided, exact up to EXACT pairs). low, high: 95%
    bootstrap interval over pairs, None with fewer than five.
    """

    n: int
    rho: float | None = None
    chance: float | None = None
    chance_against: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.rho is None:
            return f"no rank correlation of {self.n} pairs"
        interval = "no interval" if self.low is None else f"95% interval {self.low:.2f} to {self.high:.2f}"
        few = ", few pairs" if self.n < FEW else ""
        return f"rank correlation {self.rho:.2f} ({interval}, by chance {self.chance:.2g}, n = {self.n}{few})"


def rank_agreement(x: Sequence[float], y: Sequence[float]) -> RankAgreement:
    """Spearman's correlation of two sequences of equal length, its probability by chance, and a bootstrap interval.

    The result is deterministic: random draws have a fixed seed.
    """
    from scipy import stats

    n = len(x)
    if n < FEWEST or math.isnan(rho := float(_spearman(np.asarray(x), np.asarray(y)))):
        return RankAgreement(n=n)
    chance, against = (float(_permuted(x, y, DRAWS, tail).pvalue) for tail in ("greater", "less"))
    if n < FEWEST_FOR_INTERVAL:
        return RankAgreement(n=n, rho=rho, chance=chance, chance_against=against)
    with warnings.catch_warnings():
        # a resample that repeats one pair has no correlation: scipy's own interval would be NaN, ours leaves it out
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled = stats.bootstrap(
            (x, y), _spearman, paired=True, n_resamples=DRAWS // n, method="percentile", rng=np.random.default_rng(0)
        ).bootstrap_distribution
    low, high = np.nanpercentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return RankAgreement(n=n, rho=rho, chance=chance, chance_against=against, low=float(low), high=float(high))


def by_chance(n: int) -> float | None:
    """The smallest absolute rank correlation that at most 1 - LEVEL of random orders of n items reach, without ties.

    None if even a perfect order is more frequent, as for n = 4. Exact up to EXACT items, else estimated from 2 DRAWS
    random orders with a fixed seed.
    """
    correlations = np.abs(_permuted(np.arange(n), np.arange(n), 2 * DRAWS).null_distribution).round(9)
    values, counts = np.unique(correlations, return_counts=True)
    reached = counts[::-1].cumsum()[::-1] / counts.sum()  # share of orders with at least this value
    rare = values[reached <= 1 - LEVEL]
    return float(rare[0]) if len(rare) else None


def _permuted(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, draws: int, tail: str = "greater"
) -> Any:
    """One-sided test against all permutations of y for up to EXACT pairs, against `draws` random ones for more."""
    from scipy import stats

    n, x_ranks = len(x), stats.rankdata(x)
    return stats.permutation_test(
        (stats.rankdata(y),),
        lambda y_ranks, axis: pearson(x_ranks, y_ranks),
        permutation_type="pairings",
        n_resamples=math.factorial(n) if n <= EXACT else draws,
        alternative=tail,
        rng=np.random.default_rng(0),
    )


def _spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation of the ranks along the last axis; NaN if a side is constant."""
    from scipy import stats

    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN if a side is constant.

    That of scipy would compute a p-value and warn of a constant side for every resample.
    """
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
