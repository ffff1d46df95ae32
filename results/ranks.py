"""Rank agreement: whether two measurements put the same items in the same order."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

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

    rho: None with fewer than three pairs or if one side is constant. chance: share of the permutations of one side that
    agree at least as well (one-sided, exact up to EXACT pairs). low, high: 95% bootstrap interval over pairs, None with
    fewer than five.
    """

    n: int
    rho: float | None = None
    chance: float | None = None
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
    a, b = _ranks(np.asarray(x, float)), _ranks(np.asarray(y, float))
    n = len(a)
    if n < FEWEST or math.isnan(rho := float(_correlation(a, b))):
        return RankAgreement(n=n)
    rng = np.random.default_rng(0)
    if n <= EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = rng.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
        orders[0] = np.arange(n)  # include the observed order, so that chance is never 0
    chance = float((_correlation(a, b[orders]) >= rho - 1e-12).mean())
    if n < FEWEST_FOR_INTERVAL:
        return RankAgreement(n=n, rho=rho, chance=chance)
    drawn = rng.integers(n, size=(DRAWS // n, n))
    low, high = np.nanpercentile(_correlation(_ranks(a[drawn]), _ranks(b[drawn])), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return RankAgreement(n=n, rho=rho, chance=chance, low=float(low), high=float(high))


def by_chance(n: int) -> float | None:
    """The smallest absolute rank correlation that at most 1 - LEVEL of random orders of n items reach, without ties.

    None if even a perfect order is more frequent, as for n = 4. Estimated from 2 DRAWS random orders with a fixed seed.
    """
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (2 * DRAWS, 1)), axis=1)
    correlations = np.abs(_correlation(orders, np.arange(n))).round(9)
    values, counts = np.unique(correlations, return_counts=True)
    reached = counts[::-1].cumsum()[::-1] / counts.sum()  # share of orders with at least this value
    rare = values[reached <= 1 - LEVEL]
    return float(rare[0]) if len(rare) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, starting at 1, with ties at their mean rank."""
    own, others = values[..., :, None], values[..., None, :]
    return (others < own).sum(-1) + ((others == own).sum(-1) + 1) / 2


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN if a side is constant."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
