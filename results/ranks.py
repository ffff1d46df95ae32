"""Whether two measurements put the same things in the same order."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEW = 10  # pairs below which an interval says little
EXACT = 8  # pairs up to which every order is counted
DRAWS = 10_000
FEWEST = 3  # pairs: two always rank the same or the other way round
FEWEST_FOR_INTERVAL = 5
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """Spearman's rank correlation of n pairs, ties at their mean rank.

    rho: None below three pairs or where one side is constant. chance: share of orders of one side that agree at least
    as well (one-sided, exact up to EXACT pairs). low, high: 95% bootstrap interval over pairs, None below five.
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
    """Spearman's correlation of two equally long sequences, with what chance gives and a bootstrap interval.

    The same input gives the same result: what is drawn is drawn with a fixed seed.
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
        orders[0] = np.arange(n)  # the one that was found: chance is never 0
    chance = float((_correlation(a, b[orders]) >= rho - 1e-12).mean())
    if n < FEWEST_FOR_INTERVAL:
        return RankAgreement(n=n, rho=rho, chance=chance)
    drawn = rng.integers(n, size=(DRAWS // n, n))
    low, high = np.nanpercentile(_correlation(_ranks(a[drawn]), _ranks(b[drawn])), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return RankAgreement(n=n, rho=rho, chance=chance, low=float(low), high=float(high))


def by_chance(n: int) -> float | None:
    """The smallest absolute rank correlation that at most 1 - LEVEL of random orders of n reach, without ties.

    None where even a perfect order is more frequent than that, as for n = 4. Of 2 DRAWS random orders, fixed seed.
    """
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (2 * DRAWS, 1)), axis=1)
    found = np.abs(_correlation(orders, np.arange(n))).round(9)
    values, counts = np.unique(found, return_counts=True)
    reached = counts[::-1].cumsum()[::-1] / counts.sum()  # share of orders with at least this value
    beyond = values[reached <= 1 - LEVEL]
    return float(beyond[0]) if len(beyond) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis from 1, ties at their mean."""
    own, others = values[..., :, None], values[..., None, :]
    return (others < own).sum(-1) + ((others == own).sum(-1) + 1) / 2


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN where a side is constant."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
