"""The one rule for when the numbers of repeats support a statement, used by claims, comparisons, searches and captions.

Differences are of logarithms, so that they are relative; gaps, which may be negative, differ as they are. An interval
of the mean difference has two estimates of its error, and the stricter of both counts:

- Student's, with the spread of a cell (one run with all of its repeats) pooled over the cells of a study;
- Welch's (Biometrika 34, 1947), with the spreads of the two cells alone, and degrees of freedom by Satterthwaite
  (Biometrics Bulletin 2, 1946), rounded down: where cells differ in spread, the pooled one alone lets equal things pass
  far too often.

Repeats with the same seeds are not paired: a pair leaves half the degrees of freedom, and runs of one seed are hardly
more alike than others. tests/results/test_verdicts.py measures how often equal things pass, and how often a real
difference is found.

scipy.stats is imported where it is used: that takes most of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from results.runs import scored
from results.schema import HEADLINE

Verdict = Literal["holds", "fails", "equal", "indicated", "indicated against", "undecided", "not measured"]
DECIDED = ("holds", "fails", "equal")

LEVEL = 0.05  # on each side: the intervals are two-sided of 90%
MARGIN = 0.03  # relative difference within which two things are equal, about what another seed changes in a FID
FEWEST = 3  # repeats that decide; fewer only indicate
MOST = 50  # repeats up to which their number is looked for


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviation of repeats, pooled over cells (float, or an array for as many studies), degrees of freedom."""

    sd: Any
    df: int


def pooled(cells: Iterable[Sequence[float] | np.ndarray]) -> Spread | None:
    """The spread within cells, from all with at least two finite values; None if there is no such cell."""
    repeated = [cell for cell in map(np.asarray, cells) if len(cell) > 1 and np.isfinite(cell).all()]
    if not repeated:
        return None
    df = sum(len(cell) - 1 for cell in repeated)
    return Spread(sd=math.sqrt(sum(((cell - cell.mean()) ** 2).sum() for cell in repeated) / df), df=df)


Measure = tuple[str, str, int | None]  # metric, extractor and its input size in pixels


def cells(table: pd.DataFrame) -> dict[Measure, list[np.ndarray]]:
    """The logarithms of every run's repeats at its last mark, by measure: marks of one training are no new evidence."""
    rows = scored(table)
    rows = rows[rows["comparable"].fillna(True).astype(bool)]
    found: dict[Measure, list[np.ndarray]] = {}
    for kind, metric in HEADLINE.items():
        mine = rows[(rows["kind"] == kind) & (rows[metric] > 0).fillna(False).astype(bool)]
        run = [mine["tokenizer"], mine["generator"], mine["changes"].map(repr), mine["protocol"]]
        mine = mine[mine["images_seen"].eq(mine.groupby(run)["images_seen"].transform("max")).fillna(True).astype(bool)]
        run = [column[mine.index] for column in run]
        for _, cell in mine.groupby(run):
            first = cell.iloc[0]
            found.setdefault(measure(metric, first["extractor"], first["extractor_size"]), []).append(
                np.log(cell[metric].to_numpy(float))
            )
    return found


def measure(metric: str, extractor: str, size: Any) -> Measure:
    """The key of a metric by a judge; `size` may be missing in the way of pandas."""
    return metric, extractor, None if pd.isna(size) else int(size)


def spreads(table: pd.DataFrame) -> dict[Measure, Spread | None]:
    """The pooled spread of every measure of a study."""
    return {name: pooled(repeats) for name, repeats in cells(table).items()}


class Difference(NamedTuple):
    """A mean difference, and estimates of its standard error with their degrees of freedom; arrays or numbers."""

    mean: Any
    errors: tuple[tuple[Any, Any], ...]

    def chance(self, limit: float = 0.0) -> Any:
        """The chance of a mean so far below `limit`, or further, if the true one lies at it: the larger of both."""
        from scipy import stats

        with np.errstate(divide="ignore", invalid="ignore"):
            tails = [np.nan_to_num(stats.t.cdf((self.mean - limit) / se, df), nan=1.0) for se, df in self.errors]
        return np.maximum.reduce(tails)

    def half_width(self) -> Any:
        """Half the width of the interval: the larger of both."""
        from scipy import stats

        return np.maximum.reduce([stats.t.isf(LEVEL, df) * se for se, df in self.errors])

    def reversed(self) -> Difference:
        """That of `high` and `low`, whose chance is that of the opposite."""
        return self._replace(mean=-self.mean)


def difference(low: Any, high: Any, spread: Spread | None, exact: tuple[bool, bool] = (False, False)) -> Difference:
    """The mean of `low` minus that of `high`, repeats along the last axis (..., n).

    exact: which of both is a number that no seed moves. The others have at least two repeats.
    """
    sides = [np.asarray(low, dtype=float), np.asarray(high, dtype=float)]
    mean = sides[0].mean(-1) - sides[1].mean(-1)
    moved = [side for side, fixed in zip(sides, exact, strict=True) if not fixed]
    dfs = [side.shape[-1] - 1 for side in moved]
    own = [side.var(-1, ddof=1) / side.shape[-1] for side in moved]
    variance = np.asarray(sum(own))
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / sum(part**2 / one for part, one in zip(own, dfs, strict=True))
    df = np.where(variance > 0, np.floor(np.nan_to_num(df) + 1e-9), min(dfs))
    errors = [(np.sqrt(variance), np.maximum(df, min(dfs)))]
    if spread is not None:
        errors.append((spread.sd * math.sqrt(sum(1 / side.shape[-1] for side in moved)), spread.df))
    return Difference(mean, tuple(errors))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the numbers of one judge say about a statement at one place.

    against: the chance of numbers that are so far on the other side if there is no difference; 1 where they are not.
    expected: the verdict that more repeats would lead to if means and spread stay. enough: how many repeats, MOST + 1
    if more than MOST; None where no spread is known or no number of repeats would do. interval: ends of the relative
    difference.
    """

    verdict: Verdict
    against: float = 1.0
    expected: Verdict = "undecided"
    enough: int | None = None
    interval: tuple[float, float] | None = None


def decide(
    low: Sequence[float],
    high: Sequence[float],
    spread: Spread | None,
    *,
    factor: float = 1.0,
    relative: bool = True,
    exact: tuple[bool, bool] = (False, False),
) -> Decision:
    """Whether `low` lies below `factor` times `high`, which both have a value per repeat.

    Holds if the interval lies below the bound, and without a factor the mean below the margin too; fails if both lie
    above. Equal if the interval lies within the margin, without a factor. Fewer than FEWEST repeats only indicate, by a
    mean beyond the margin around the bound.

    Args:
        spread: of one repeat, of logarithms; of the values themselves if not `relative`. None if unknown.
        relative: compare by ratios; if not, by differences, whose margin is MARGIN of the mean of `high`.
        exact: which of both is a number that no seed moves, such as a published one or a budget. If both are, the
            margin alone decides.
    """
    values = np.array([*low, *high], dtype=float)
    if not np.isfinite(values).all() or (values.min() <= 0 if relative else np.mean(high) <= 0):
        return Decision(verdict="undecided")  # never reached, or without a gap that could narrow
    unit = 1.0 if relative else float(np.mean(high))
    bound, margin = (math.log(factor), math.log1p(MARGIN)) if relative else (0.0, MARGIN * unit)
    sides = [np.log(side) if relative else np.asarray(side, dtype=float) for side in (low, high)]
    mean = float(sides[0].mean() - sides[1].mean())
    beyond = abs(mean - bound) > margin
    side: Verdict = "holds" if mean < bound else "fails"
    if all(exact):
        verdict: Verdict = side if beyond else "undecided"
        return Decision(verdict=verdict, expected=verdict, against=float(verdict != "fails"))
    bounded = factor != 1
    expected: Verdict = side if bounded or beyond else "equal"
    repeats = min(len(values) for values, fixed in zip(sides, exact, strict=True) if not fixed)
    enough = _enough(sides, spread, mean - bound, None if bounded else margin, exact)
    if repeats < FEWEST:
        indicated: Verdict = "indicated" if side == "holds" else "indicated against"
        return Decision(verdict=indicated if beyond else "undecided", expected=expected, enough=enough)
    found = difference(sides[0], sides[1], spread, exact)
    half = float(found.half_width())
    ends = [float(np.expm1(end)) if relative else end / unit for end in (mean - half, mean + half)]
    against = float(found.reversed().chance(-bound)) if side == expected == "fails" else 1.0
    if bounded or beyond:
        supported = found.chance(bound) if side == "holds" else against
        verdict = side if supported <= LEVEL else "undecided"
    else:
        verdict = "equal" if abs(mean) + half <= margin else "undecided"
    return Decision(verdict=verdict, against=against, expected=expected, enough=enough, interval=(ends[0], ends[1]))


def _enough(
    sides: Sequence[np.ndarray], spread: Spread | None, distance: float, margin: float | None, exact: tuple[bool, bool]
) -> int | None:
    """The fewest repeats of each side whose interval decides, at the spreads found.

    distance: of the mean from the bound. Cells without repeats have the pooled spread.
    """
    moved = [side for side, fixed in zip(sides, exact, strict=True) if not fixed]
    if min(map(len, moved)) > 1:
        variances = [float(side.var(ddof=1)) for side in moved]
    elif spread is not None:
        variances = [float(spread.sd) ** 2] * len(moved)
    else:
        return None
    repeats = np.arange(FEWEST, MOST + 1)
    total, squares = sum(variances), sum(variance**2 for variance in variances)
    alike = total**2 / squares if squares else len(moved)  # cells of equal spreads with as many degrees of freedom
    errors = [(np.sqrt(total / repeats), np.floor(alike * (repeats - 1) + 1e-9))]
    if spread is not None:
        errors.append((spread.sd * np.sqrt(len(moved) / repeats), spread.df))
    half = Difference(distance, tuple(errors)).half_width()
    apart = margin is None or abs(distance) > margin
    decides = half < abs(distance) if apart else abs(distance) + half <= (margin or 0.0)
    return int(repeats[decides][0]) if decides.any() else MOST + 1


def at_places(places: Sequence[Sequence[Decision]]) -> list[Verdict]:
    """The verdict at each place from the decisions of its judges, undecided unless all agree.

    That places fail is corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979); that all hold
    needs no correction.
    """
    verdicts: list[Verdict] = []
    for decisions in places:
        found = {decision.verdict for decision in decisions}
        verdicts.append(found.pop() if len(found) == 1 else "undecided")
    chances = [max(decision.against for decision in decisions) for decisions in places]
    rejected = True
    for rank, place in enumerate(sorted(range(len(places)), key=lambda place: chances[place])):
        rejected &= chances[place] <= LEVEL / (len(places) - rank)
        if verdicts[place] == "fails" and not rejected:
            verdicts[place] = "undecided"
    return verdicts


def over_places(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim from those of its places: it holds where all hold, and fails where one fails."""
    found = set(verdicts)
    if not found:
        return "not measured"
    if "fails" in found:
        return "fails"
    if found <= {"holds", "indicated"}:
        return "indicated" if "indicated" in found else "holds"
    return found.pop() if len(found) == 1 else "undecided"
