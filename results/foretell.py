"""How well a measure of a tokenizer predicts gFID before a generator is trained on it: correlations over tokenizers.

With few tokenizers a correlation means little: six in random order have an absolute rank correlation above 0.8 in one
of seventeen cases. So every correlation comes with its number of tokenizers, and `by_chance` of results/ranks.py gives
the value that it has to exceed.

The ablation `latents` has many tokenizers, of two families, plain and aligned. Over both together a correlation is
partly the distance between two clusters, so each family has its own; they come with bootstrap intervals over
tokenizers (percentiles, Efron and Tibshirani 1993, chapter 13), whose random draws have a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from results.ranks import FEWEST, FEWEST_FOR_INTERVAL, pearson, rank_agreement
from results.runs import labels_of
from results.schema import DIAGNOSTICS
from results.table import ProtocolError, check_protocol
from results.verdicts import LEVEL, pooled

PREDICTORS = ("rfid", *DIAGNOSTICS)  # rfid is the baseline of the others
NAMES = {
    "rfid": "rFID", "density_cv": "Spread of density", "gini": "Gini of density",
    "normalized_entropy": "Entropy of density", "effective_rank": "Effective rank", "viv": "VIV",
    "lnc_5": "LNC, 5 nearest", "lnc_10": "LNC, 10 nearest", "sec_25": "SEC above 0.25", "sec_50": "SEC above 0.5",
    "lds": "LDS", "cds": "CDS", "eq_error": "EQ error", "ifid": "iFID", "ifid_released": "iFID as released",
}  # fmt: skip
MORE_IS_BETTER = {"normalized_entropy", "effective_rank", "lnc_5", "lnc_10", "lds", "cds"}  # as their authors say
BY = ["extractor", "extractor_size", "generator"]
PLACE = ["tokenizer", "foundation_model", "latent_channels"]

ABLATION = "latents"
FAMILIES = ("plain", "aligned")
POOLED = "pooled"  # both, and representation autoencoders
RESAMPLES = 2_000


def predictor_points(tokenizers: pd.DataFrame, generators: pd.DataFrame, also_by: Sequence[str] = ()) -> pd.DataFrame:
    """The points to correlate: a row per judge, generator, tokenizer and diagnostic.

    Args:
        tokenizers: finished rows; for each tokenizer the last one is used.
        generators: finished rows at one number of images seen.
        also_by: columns of `generators` that tell tokenizers of one spec apart.

    Returns:
        Columns BY, PLACE, also_by, diagnostic, `value` (of the diagnostic) and gfid. The last two are means over
        repeats, with columns `_min`, `_max` and `_runs` (their number). A missing value is NaN with 0 runs.

    Raises:
        ProtocolError: the diagnostics of the tokenizers were computed from different numbers of points.
    """
    judge = ["extractor", "extractor_size"]
    last = tokenizers.sort_values("images_seen", kind="stable").drop_duplicates(["fingerprint", *judge], keep="last")
    points = sorted(set(last["diagnostic_points"].dropna()))
    if len(points) > 1:
        raise ProtocolError(
            f"tokenizers that would share an axis differ in diagnostic_points: {', '.join(map(str, points))}; "
            f"describe all with python -m study.diagnose --points {points[0]}"
        )
    key = ["tokenizer_fingerprint", *judge]
    values = last[["fingerprint", *judge, *PREDICTORS]].set_axis([*key, *PREDICTORS], axis=1)
    rows = generators.drop(columns=list(PREDICTORS)).merge(values, on=key, how="left")
    place = [*BY, *PLACE, *also_by]
    once = rows.drop_duplicates([*place, "tokenizer_fingerprint"])  # several generators may share a tokenizer
    gfid = _over_repeats(rows, place, "gfid", "gfid")
    by_diagnostic = [
        gfid.merge(_over_repeats(once, place, name, "value"), on=place).assign(diagnostic=name) for name in PREDICTORS
    ]
    return pd.concat(by_diagnostic, ignore_index=True)


def _over_repeats(rows: pd.DataFrame, by: list[str], column: str, name: str) -> pd.DataFrame:
    table = rows.groupby(by, dropna=False)[column].agg(["mean", "min", "max", "count"]).reset_index()
    return table.rename(columns={"mean": name, "min": f"{name}_min", "max": f"{name}_max", "count": f"{name}_runs"})


def correlations(points: pd.DataFrame) -> pd.DataFrame:
    """The rank correlation of every diagnostic with gFID over the tokenizers that have both, per judge and generator.

    Args:
        points: from `predictor_points`.

    Returns:
        Columns BY, diagnostic, n, rho, rho_low, rho_high; NaN if there is no correlation.
    """
    rows = []
    for place, group in points.groupby([*BY, "diagnostic"], dropna=False, sort=False):
        complete = group.dropna(subset=["value", "gfid"])
        agreement = rank_agreement(complete["value"].tolist(), complete["gfid"].tolist())
        rows.append((*place, agreement.n, agreement.rho, agreement.low, agreement.high))
    columns = [*BY, "diagnostic", "n", "rho", "rho_low", "rho_high"]
    types = {**{name: points[name].dtype for name in BY}, **{name: float for name in columns[-3:]}}
    return pd.DataFrame(rows, columns=columns).astype(types)


# The ablation `latents`: many tokenizers, by family


def family(foundation_model: str) -> str:
    """One of FAMILIES; of a representation autoencoder "neither"."""
    return "neither" if foundation_model.startswith("rae-") else FAMILIES[foundation_model != "none"]


def latent_points(table: pd.DataFrame) -> pd.DataFrame:
    """A row per judge, generator and tokenizer of the ablation `latents`, at the last mark: numbers that may foretell
    gFID, and gFID. Means over repeats; a tokenizer without a result at that mark is left out.

    Returns:
        Columns BY, PLACE, label, family, PREDICTORS, gfid, gfid_runs (repeats) and images_seen.

    Raises:
        ProtocolError: numbers that would be correlated were measured in different ways.
    """
    tokenizers, generators = latent_rows(table)
    if generators.empty:
        return pd.DataFrame(columns=[*BY, *PLACE, "label", "gfid", "gfid_runs", *PREDICTORS, "family", "images_seen"])
    points = predictor_points(tokenizers, generators, ("label",))
    place = [*BY, *PLACE, "label", "gfid", "gfid_runs"]
    wide = points.set_index([*place, "diagnostic"])["value"].unstack().reset_index().rename_axis(columns=None)
    wide = wide.astype({name: points[name].dtype for name in place})  # the index had none for integers
    return wide.assign(family=wide["foundation_model"].map(family), images_seen=generators["images_seen"].max())


def latent_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Finished rows of the ablation `latents`, with its `label`: of tokenizers, and of generators at the last mark."""
    rows = table.assign(label=labels_of(table, ABLATION))
    rows = rows[rows["state"] == "done"]
    generators = rows[(rows["kind"] == "generator") & (rows["label"] != "")]
    generators = generators[generators["images_seen"] == generators["images_seen"].max()]
    used = rows["tokenizer_fingerprint"].isin(generators["tokenizer_fingerprint"])
    tokenizers = rows[(rows["kind"] == "tokenizer") & used]
    for kind in (tokenizers, generators):
        for _, judged in kind.groupby(["extractor", "extractor_size"], dropna=False):
            check_protocol(judged)
    return tokenizers, generators


Statistic = Callable[..., np.ndarray]  # of arrays (..., n), to (...)


@dataclass(frozen=True)
class Estimate:
    """A statistic over n tokenizers, and what it is when they are drawn again with replacement, RESAMPLES times.

    value is NaN where it is not defined, draws is empty where n is too small for an interval.
    """

    value: float
    draws: np.ndarray

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Two-sided, of 90%; NaN without draws."""
        if not len(self.draws):
            return math.nan, math.nan
        low, high = np.quantile(self.draws, [LEVEL, 1 - LEVEL])
        return float(low), float(high)

    def share_up_to(self, limit: float, side: int = 1) -> float:
        """Of the draws, or with side -1 of the negative ones; one is added here, so that it is never 0."""
        return float((np.sum(side * self.draws <= limit) + 1) / (len(self.draws) + 1))


def estimate(statistic: Statistic, *columns: np.ndarray, ranked: bool = True) -> Estimate:
    """A statistic of columns (n,), or of their ranks, and its bootstrap over rows: the same draws for the same n."""
    n = len(columns[0])
    if n < FEWEST:
        return Estimate(math.nan, np.empty(0))
    whole = np.arange(n)[None]
    taken = _ranks if ranked else np.take
    value = float(statistic(*(taken(column, whole) for column in columns))[0])
    if n < FEWEST_FOR_INTERVAL or math.isnan(value):
        return Estimate(value, np.empty(0))
    chosen = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    draws = statistic(*(taken(column, chosen) for column in columns))
    return Estimate(value, draws[np.isfinite(draws)])  # a draw of one tokenizer alone has no correlation


def _ranks(column: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Ranks (R, n) within every draw of a column, ties at their mean rank; scipy's take three times as long."""
    values, of_row = np.unique(column, return_inverse=True)
    drawn = of_row[chosen]
    rows = np.arange(len(chosen))[:, None] * len(values)
    counts = np.bincount((rows + drawn).ravel(), minlength=len(chosen) * len(values)).reshape(len(chosen), -1)
    return np.take_along_axis(counts.cumsum(axis=1) - (counts - 1) / 2, drawn, axis=1)


def partial(x: np.ndarray, given: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The correlation of x and y, each without what is linear in `given`; NaN where nothing is left."""
    of_x, of_y = pearson(x, given), pearson(y, given)
    left = np.sqrt(np.clip(1 - of_x**2, 0, None) * np.clip(1 - of_y**2, 0, None))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left > 1e-9, (pearson(x, y) - of_x * of_y) / left, np.nan)


def gap(x: np.ndarray, other: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By how much the correlation of x with y is above that of another predictor."""
    return pearson(x, y) - pearson(other, y)


def oriented(name: str, values: np.ndarray) -> np.ndarray:
    """Values of a predictor, turned so that a low one shall mean a low gFID."""
    return -values if name in MORE_IS_BETTER else values


def scopes(points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The points of each family, and of all tokenizers together."""
    return {**{name: points[points["family"] == name] for name in FAMILIES}, POOLED: points}


def columns_of(points: pd.DataFrame, names: Sequence[str]) -> list[np.ndarray]:
    """Predictors (n,), oriented, and gFID last, of the tokenizers that have all of them; by one judge and generator."""
    complete = points[[*names, "gfid"]].dropna()
    return [oriented(name, complete[name].to_numpy(float)) for name in [*names, "gfid"]]


# by name: the statistic, whether of ranks, and what is given
STATISTICS: dict[str, tuple[Statistic, bool, tuple[str, ...]]] = {
    "rho": (pearson, True, ()), "r": (pearson, False, ()), "rho_given_rfid": (partial, True, ("rfid",)),
    "r_given_rfid": (partial, False, ("rfid",)),
}  # fmt: skip


def foretold(points: pd.DataFrame) -> pd.DataFrame:
    """Every predictor's correlations with gFID, per judge and generator, in each family and pooled.

    Args:
        points: from `latent_points`.

    Returns:
        Columns BY, scope, diagnostic, n (tokenizers), and those of STATISTICS, each with `_low` and `_high` of its 90%
        interval. Predictors are oriented: 1 foretells gFID as its authors say, -1 the reverse. NaN where there is none.
    """
    found = []
    for place, of_place in points.groupby(BY, dropna=False, sort=False):
        for scope, here in scopes(of_place).items():
            for name in PREDICTORS:
                row = {**dict(zip(BY, place, strict=True)), "scope": scope, "diagnostic": name}
                row["n"] = len(columns_of(here, (name,))[0])
                for key, (statistic, ranked, given) in STATISTICS.items():
                    if name in given:
                        row |= dict.fromkeys((key, f"{key}_low", f"{key}_high"), math.nan)
                        continue
                    one = estimate(statistic, *columns_of(here, (name, *given)), ranked=ranked)
                    row |= {key: one.value, f"{key}_low": one.interval[0], f"{key}_high": one.interval[1]}
                found.append(row)
    return pd.DataFrame(found).astype({name: points[name].dtype for name in BY})


@dataclass(frozen=True)
class Noise:
    """Relative spread of gFID over repeats, and over a scope's tokenizers; the correlation that the first leaves room
    for (Spearman, American Journal of Psychology 15, 1904): of a predictor that is perfect but for the repeats."""

    repeats: float
    tokenizers: float
    ceiling: float


def noise(generators: pd.DataFrame) -> dict[str, Noise]:
    """By scope, of generator rows by one judge with `label`; empty where no tokenizer has repeats."""
    runs = [(family(str(model)), np.log(of["gfid"].to_numpy(float)))
            for (_, model), of in generators.groupby(["label", "foundation_model"])]  # fmt: skip
    spread = pooled(values for _, values in runs)
    if spread is None:
        return {}
    found = {}
    for scope in (*FAMILIES, POOLED):
        cells = [values for name, values in runs if scope in (name, POOLED)]
        if len(cells) > 1:
            of_means = float(np.std([cell.mean() for cell in cells], ddof=1))
            error = spread.sd**2 * np.mean([1 / len(cell) for cell in cells])
            share = max(0.0, 1 - error / of_means**2) if of_means else 0.0
            found[scope] = Noise(spread.sd, of_means, math.sqrt(share))
    return found
