"""The rule for when numbers support a claim, and the kinds of evidence it is applied to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Literal, Protocol

from results.numbers import mean_and_range, relative_change
from results.ranks import RankAgreement

Verdict = Literal["holds", "fails", "undecided", "not measured"]
MARGIN = 0.03  # relative difference that single runs need: about what another seed changes in a FID
CHANCE = 1 / 6  # largest accepted probability by chance: that of two against two repeats with disjoint ranges
MIN_RHO = 0.5  # smallest rank correlation that counts as a relation


class Evidence(Protocol):
    """Numbers of one judge at one place: what is compared, for instance two tokenizers under one generator."""

    @property
    def place(self) -> str: ...
    @property
    def judge(self) -> str: ...
    @property
    def repeats(self) -> int: ...
    @property
    def strength(self) -> float:
        """Orders the evidence of a claim: a larger value supports it more."""

    def verdict(self) -> Verdict: ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The claim that `low` is below `factor` times `high`, by one judge at one place; both have a value per repeat."""

    place: str
    judge: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    factor: float = 1.0

    @property
    def repeats(self) -> int:
        return min(len(self.low), len(self.high))

    @property
    def strength(self) -> float:
        return -mean(self.low) / (self.factor * mean(self.high)) if mean(self.high) > 0 else -math.inf

    def verdict(self) -> Verdict:
        """Disjoint ranges decide if there are several repeats; a relative difference of MARGIN decides for one run."""
        limits = [self.factor * value for value in self.high]
        if min(limits) <= 0:
            return "undecided"  # without a gap there is nothing that could narrow
        if self.repeats > 1:
            below, above = max(self.low) < min(limits), min(self.low) > max(limits)
        else:
            limit = self.factor * mean(self.high)
            below, above = mean(self.low) <= limit * (1 - MARGIN), mean(self.low) >= limit * (1 + MARGIN)
        return "holds" if below else "fails" if above else "undecided"

    def __str__(self) -> str:
        change = relative_change(mean(self.low), mean(self.high))
        return f"{mean_and_range(self.low)} against {mean_and_range(self.high)}{change}"


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

    def verdict(self) -> Verdict:
        """Holds with a rho of at least MIN_RHO and a probability by chance of at most CHANCE; fails if mirrored."""
        rho, chance = self.agreement.rho, self.agreement.chance
        if rho is None or chance is None:
            return "undecided"
        if rho >= MIN_RHO and chance <= CHANCE:
            return "holds"
        return "fails" if rho <= -MIN_RHO and chance >= 1 - CHANCE else "undecided"

    def __str__(self) -> str:
        return str(self.agreement)


def verdict_at_place(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict at one place from its judges' verdicts: undecided unless all judges agree."""
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"


def verdict_over_places(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim from those of its places: it fails if one place fails, and holds if all places hold."""
    if not verdicts:
        return "not measured"
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"
