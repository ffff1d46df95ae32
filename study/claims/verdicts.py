"""When numbers support a claim: the rule, and the numbers it was applied to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Literal, Protocol

from results.ranks import RankAgreement

Verdict = Literal["holds", "fails", "undecided", "not measured"]
MARGIN = 0.03  # by which single runs must differ: about what another seed does to a FID
CHANCE = 1 / 6  # what ranks may owe to chance: the bar of two against two repeats whose ranges do not overlap
RANKS = 0.5  # the least rank correlation that counts as going together


class Evidence(Protocol):
    """Numbers of one judge, at one place: a pair of tokenizers under one generator, for instance."""

    @property
    def place(self) -> str: ...
    @property
    def judge(self) -> str: ...
    @property
    def repeats(self) -> int: ...
    @property
    def strength(self) -> float:
        """Orders the evidence of a claim: more speaks more for it."""

    def verdict(self) -> Verdict: ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`low` is claimed to lie below `times` times `high`, by one judge at one place; both have a value per repeat."""

    place: str
    judge: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    times: float = 1.0

    @property
    def repeats(self) -> int:
        return min(len(self.low), len(self.high))

    @property
    def strength(self) -> float:
        return -mean(self.low) / (self.times * mean(self.high)) if mean(self.high) > 0 else -math.inf

    def verdict(self) -> Verdict:
        """Ranges of repeats decide where they do not overlap; means that differ by MARGIN where there is one run."""
        limits = [self.times * value for value in self.high]
        if min(limits) <= 0:
            return "undecided"  # a gap that was none cannot close
        if self.repeats > 1:
            below, above = max(self.low) < min(limits), min(self.low) > max(limits)
        else:
            limit = self.times * mean(self.high)
            below, above = mean(self.low) <= limit * (1 - MARGIN), mean(self.low) >= limit * (1 + MARGIN)
        return "holds" if below else "fails" if above else "undecided"

    def __str__(self) -> str:
        change = relative_change(mean(self.low), mean(self.high))
        return f"{mean_and_range(self.low)} against {mean_and_range(self.high)}{change}"


@dataclass(frozen=True, kw_only=True)
class Together:
    """Two measurements are claimed to rise together, by one judge at one place."""

    place: str
    judge: str
    agreement: RankAgreement
    repeats: int

    @property
    def strength(self) -> float:
        return self.agreement.rho or 0.0

    def verdict(self) -> Verdict:
        """RANKS or more, and at most CHANCE likely without a relation, decide; the other way round likewise."""
        rho, chance = self.agreement.rho, self.agreement.chance
        if rho is None or chance is None:
            return "undecided"
        if rho >= RANKS and chance <= CHANCE:
            return "holds"
        return "fails" if rho <= -RANKS and chance >= 1 - CHANCE else "undecided"

    def __str__(self) -> str:
        return str(self.agreement)


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of judges at one place: theirs where all agree."""
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of all places: a claim fails with one of them, and holds in all of them."""
    if not verdicts:
        return "not measured"
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"


def mean_and_range(values: Sequence[float]) -> str:
    """Mean, and in brackets the range where there are several that differ."""
    low, high = number(min(values)), number(max(values))
    return number(mean(values)) + (f" ({low}–{high})" if low != high else "")


def relative_change(value: float, of: float) -> str:
    """', −35%': how far a value lies from another; empty where that is no size."""
    return f", {value / of - 1:+.1%}".replace("-", "−").replace(".0%", "%") if of > 0 and value < math.inf else ""


def number(value: float) -> str:
    """Three digits, and no more decimals than published FIDs have: 992, 25.4, 2.11."""
    if value == math.inf:
        return "never"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 30 else f"{value:.2f}"
