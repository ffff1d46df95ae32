"""How well a number of a tokenizer foretells gFID, before a generator is trained on it: rank correlations.

Few tokenizers say little: six in random order have a rank correlation beyond 0.8, one way or the other, in one case of
seventeen. So every correlation comes with their number, and `by_chance` says what it has to beat.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from results.schema import DIAGNOSTICS
from results.table import ProtocolError

FORETELLERS = ("rfid", *DIAGNOSTICS)  # rfid is what the others have to beat
FEWEST = 3  # tokenizers: two always rank the same or the other way round
RESAMPLES = 2_000
LEVEL = 0.95
BY = ["extractor", "extractor_size", "generator"]
PLACE = ["tokenizer", "foundation_model", "latent_channels"]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over n tokenizers, from -1 to 1; None where it has no meaning.

    low and high: percentile interval of LEVEL over RESAMPLES bootstrap samples of the tokenizers, fixed seed.
    """

    n: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None


def foretelling(tokenizers: pd.DataFrame, generators: pd.DataFrame) -> pd.DataFrame:
    """What there is to correlate: a row per judge, generator, tokenizer and diagnostic.

    Args:
        tokenizers: finished rows; of each tokenizer the last.
        generators: finished rows of one number of images seen.

    Returns:
        Columns BY, PLACE, diagnostic; `value`, that of the diagnostic, and gfid: each the mean over repeats, with
        `_min`, `_max` and number of `_runs`. A value that is missing is NaN, of 0 runs.

    Raises:
        ProtocolError: tokenizers were described with different numbers of points.
    """
    judge = ["extractor", "extractor_size"]
    last = tokenizers.sort_values("images_seen").drop_duplicates(["fingerprint", *judge], keep="last")
    points = sorted(set(last["diagnostic_points"].dropna()))
    if len(points) > 1:
        raise ProtocolError(
            f"tokenizers that would share an axis differ in diagnostic_points: {', '.join(map(str, points))}; "
            f"describe all with python -m study.diagnose --points {points[0]}"
        )
    numbers = last.set_index(["fingerprint", *judge])[list(FORETELLERS)]
    rows = generators.drop(columns=list(FORETELLERS)).join(numbers, on=["tokenizer_fingerprint", *judge])
    place = [*BY, *PLACE]
    once = rows.drop_duplicates([*place, "tokenizer_fingerprint"])  # generators that share a tokenizer
    gfid = _over_repeats(rows, place, "gfid", "gfid")
    parts = [
        gfid.merge(_over_repeats(once, place, name, "value"), on=place).assign(diagnostic=name) for name in FORETELLERS
    ]
    return pd.concat(parts, ignore_index=True)


def _over_repeats(rows: pd.DataFrame, by: list[str], column: str, name: str) -> pd.DataFrame:
    found = rows.groupby(by, dropna=False)[column].agg(["mean", "min", "max", "count"]).reset_index()
    return found.rename(columns={"mean": name, "min": f"{name}_min", "max": f"{name}_max", "count": f"{name}_runs"})


def spearman(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation:
    """Rank correlation of pairs (n,) without missing values, with its interval.

    Below FEWEST pairs, or when one side is constant, there is none. Bootstrap samples in which one side is constant
    say nothing and are left out.
    """
    n = len(x)
    if n < FEWEST:
        return Correlation(n)
    rho = float(_ranked(x[None], y[None])[0])
    if np.isnan(rho):
        return Correlation(n)
    chosen = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    values = _ranked(x[chosen], y[chosen])
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Correlation(n, rho, float(low), float(high))


def by_chance(n: int, seed: int = 0) -> float | None:
    """The smallest absolute rank correlation that at most 1 - LEVEL of random orders of n reach, without ties.

    None where even a perfect order is more frequent than that, as for n = 4. Of 10 RESAMPLES random orders, fixed seed.
    """
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (10 * RESAMPLES, 1)), axis=1)
    found = np.abs(_ranked(orders, np.broadcast_to(np.arange(n), orders.shape))).round(9)
    values, counts = np.unique(found, return_counts=True)
    reached = counts[::-1].cumsum()[::-1] / counts.sum()  # share of orders with at least this value
    beyond = values[reached <= 1 - LEVEL]
    return float(beyond[0]) if len(beyond) else None


def _ranked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of ranks along the last axis, ties at their mean rank; NaN where a side is constant."""
    a, b = (rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (x, y))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, where=scale > 0, out=np.full(len(a), np.nan))


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """The rank correlation of every diagnostic with gFID over the tokenizers that have it, per judge and generator.

    Args:
        points: of `foretelling`.

    Returns:
        Columns BY, diagnostic, n, rho, rho_low, rho_high; NaN where there is none.
    """
    rows = []
    for place, group in points.groupby([*BY, "diagnostic"], dropna=False, sort=False):
        both = group.dropna(subset=["value", "gfid"])
        found = spearman(both["value"].to_numpy(float), both["gfid"].to_numpy(float))
        rows.append((*place, found.n, found.rho, found.low, found.high))
    found_for = [*BY, "diagnostic", "n", "rho", "rho_low", "rho_high"]
    return pd.DataFrame(rows, columns=found_for).astype({name: float for name in found_for[-3:]})
