"""How well a measure of a tokenizer predicts gFID before a generator is trained on it: rank correlations.

With few tokenizers a correlation means little: six in random order have an absolute rank correlation above 0.8 in one
of seventeen cases. So every correlation comes with its number of tokenizers, and `by_chance` of results/ranks.py gives
the value that it has to exceed.
"""

import pandas as pd

from results.ranks import rank_agreement
from results.schema import DIAGNOSTICS
from results.table import ProtocolError

PREDICTORS = ("rfid", *DIAGNOSTICS)  # rfid is the baseline of the others
BY = ["extractor", "extractor_size", "generator"]
PLACE = ["tokenizer", "foundation_model", "latent_channels"]


def predictor_points(tokenizers: pd.DataFrame, generators: pd.DataFrame) -> pd.DataFrame:
    """The points to correlate: a row per judge, generator, tokenizer and diagnostic.

    Args:
        tokenizers: finished rows; for each tokenizer the last one is used.
        generators: finished rows at one number of images seen.

    Returns:
        Columns BY, PLACE, diagnostic, `value` (of the diagnostic) and gfid. The last two are means over repeats, with
        columns `_min`, `_max` and `_runs` (their number). A missing value is NaN with 0 runs.

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
    place = [*BY, *PLACE]
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
