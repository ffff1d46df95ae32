"""The kinds of evidence that a claim can have; the rule that they are judged by is in results/verdicts.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean as mean
from typing import Protocol

from results.foretell import Estimate
from results.numbers import mean_and_range, percent, relative_change
from results.ranks import RankAgreement
from results.verdicts import LEVEL, Decision, Spread, decide

MIN_RHO = 0.5  # smallest rank correlation that counts as a relation
NO_RHO = 0.3  # rank correlations up to this one count as none


class Evidence(Protocol):
    """Numbers of one judge at one place: what is compared, for instance two tokenizers under one generator."""

    @property
    def place(self) -> str: ...
    @property
    def judge(self) -> str: ...
    @property
    def repeats(self) -> int:
        """The smallest number of repeats on a side; 0 if all numbers are published."""

    @property
    def strength(self) -> float:
        """Orders the evidence of a claim: a larger value supports it more."""

    @property
    def decision(self) -> Decision: ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The claim that `low` is below `factor` times `high`, by one judge at one place; both have a value per repeat.

    spread, relative, exact: as `decide` of results/verdicts.py has them.
    """

    place: str
    judge: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    spread: Spread | None = None
    factor: float = 1.0
    relative: bool = True
    exact: tuple[bool, bool] = (False, False)

    @property
    def repeats(self) -> int:
        sides = zip((self.low, self.high), self.exact, strict=True)
        return min((len(values) for values, exact in sides if not exact), default=0)

    @property
    def strength(self) -> float:
        return -mean(self.low) / (self.factor * mean(self.high)) if mean(self.high) > 0 else -math.inf

    @cached_property
    def decision(self) -> Decision:
        return decide(self.low, self.high, self.spread, factor=self.factor, relative=self.relative, exact=self.exact)

    def __str__(self) -> str:
        change = relative_change(mean(self.low), mean(self.high))
        ends = self.decision.interval
        interval = f" [{percent(ends[0])}, {percent(ends[1])}]" if ends else ""
        return f"{mean_and_range(self.low)} against {mean_and_range(self.high)}{change}{interval}"


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """The claim that two measurements rise together, by one judge at one place."""

    place: str
    judge: str
    agreement: RankAgreement
    repeats: int

    @property
    def strength(self) -> float:
        return self.agreement.rho or 0.0

    @property
    def decision(self) -> Decision:
        """Holds with a rho of at least MIN_RHO and a probability by chance of at most LEVEL; fails if mirrored."""
        rho, chance, against = self.agreement.rho, self.agreement.chance, self.agreement.chance_against
        if rho is None or chance is None or against is None:
            return Decision(verdict="undecided")
        if rho >= MIN_RHO and chance <= LEVEL:
            return Decision(verdict="holds")
        if rho <= -MIN_RHO and against <= LEVEL:
            return Decision(verdict="fails", against=against)
        return Decision(verdict="undecided")

    def __str__(self) -> str:
        return str(self.agreement)


@dataclass(frozen=True, kw_only=True)
class OverTokenizers:
    """A claim on rank correlations with gFID over a family of tokenizers, by one judge.

    text: the correlations. n: tokenizers. repeats: the fewest of a tokenizer.
    """

    place: str
    judge: str
    text: str
    n: int
    found: Estimate
    repeats: int

    def __str__(self) -> str:
        low, high = self.found.interval
        return f"{self.text} [{low:.2f}, {high:.2f}], n = {self.n}".replace("-", "−")


class Foretells(OverTokenizers):
    """The claim that one predictor has a larger correlation than another; found is the difference."""

    @property
    def strength(self) -> float:
        return self.found.value

    @property
    def decision(self) -> Decision:
        """Holds where the 90% interval lies above 0, fails where it lies below."""
        low, high = self.found.interval
        if low > 0:
            return Decision(verdict="holds")
        if high < 0:
            return Decision(verdict="fails", against=self.found.share_up_to(0.0, side=-1))
        return Decision(verdict="undecided")


class ForetellsNothing(OverTokenizers):
    """The claim that a predictor has no correlation; found is the correlation."""

    @property
    def strength(self) -> float:
        return -abs(self.found.value)

    @property
    def decision(self) -> Decision:
        """Holds where the 90% interval lies within NO_RHO around 0, fails where it lies beyond, on one side."""
        side = -1 if self.found.value < 0 else 1
        low, high = sorted(side * end for end in self.found.interval)
        if low > -NO_RHO and high < NO_RHO:
            return Decision(verdict="holds")
        if low > NO_RHO:
            return Decision(verdict="fails", against=self.found.share_up_to(NO_RHO, side))
        return Decision(verdict="undecided")
