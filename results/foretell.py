"""How well a number of a tokenizer foretells gFID, before a generator is trained on it: rank correlations.

Few tokenizers say little: six in random order have a rank correlation beyond 0.8, one way or the other, in one case of
seventeen. So every correlation comes with their number, and `by_chance` of results/ranks.py says what it has to beat.
"""

import pandas as pd

from results.ranks import rank_agreement
from results.schema import DIAGNOSTICS
from results.table import ProtocolError

FORETELLERS = ("rfid", *DIAGNOSTICS)  # rfid is what the others have to beat
BY = ["extractor", "extractor_size", "generator"]
PLACE = ["tokenizer", "foundation_model", "latent_channels"]


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
    last = tokenizers.sort_values("images_seen", kind="stable").drop_duplicates(["fingerprint", *judge], keep="last")
    points = sorted(set(last["diagnostic_points"].dropna()))
    if len(points) > 1:
        raise ProtocolError(
            f"tokenizers that would share an axis differ in diagnostic_points: {', '.join(map(str, points))}; "
            f"describe all with python -m study.diagnose --points {points[0]}"
        )
    of = ["tokenizer_fingerprint", *judge]
    numbers = last[["fingerprint", *judge, *FORETELLERS]].set_axis([*of, *FORETELLERS], axis=1)
    rows = generators.drop(columns=list(FORETELLERS)).merge(numbers, on=of, how="left")
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
        found = rank_agreement(both["value"].tolist(), both["gfid"].tolist())
        rows.append((*place, found.n, found.rho, found.low, found.high))
    found_for = [*BY, "diagnostic", "n", "rho", "rho_low", "rho_high"]
    types = {**{name: points[name].dtype for name in BY}, **{name: float for name in found_for[-3:]}}
    return pd.DataFrame(rows, columns=found_for).astype(types)
