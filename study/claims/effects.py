"""Effects: the relative change of a metric by one change of a run, named so that studies of other scales have it too.

Widths and sizes of generators are named by their rank, narrowest or smallest first: FIDs of two studies cannot be
compared where data or judges differ, but what a wider latent or an alignment changes in them can.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean as mean
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

from models.configs import GENERATOR_SIZES, parse_generator
from results.numbers import percent
from results.published import SPEED_UPS, SPEED_UPS_RUN
from results.verdicts import Verdict
from study.claims.evidence import (
    Score,
    Scores,
    compared,
    frontier_runs,
    images_to_plain_gfid,
    read_scores,
    with_pooled_spread,
)
from study.claims.verdicts import Comparison

if TYPE_CHECKING:
    import pandas as pd

Of = TypeVar("Of", int, str)
Sign = Literal["falls", "rises", "equal", "unclear"]

KINDS = (
    "Wider plain latent: rFID",
    "Wider plain latent: gFID",
    "Alignment: rFID",
    "Alignment: gFID",
    "Alignment: images that it takes to the plain run's last gFID",
    "Larger generator: gFID",
)
SIGNS: dict[Verdict, Sign] = {
    "holds": "falls", "indicated": "falls", "fails": "rises", "indicated against": "rises", "equal": "equal",
}  # fmt: skip
ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
FOUNDATION = "dinov2"  # the one that counts as the alignment of a study that has several: the paper's own


class Contrast(NamedTuple):
    """What is changed, one of KINDS, and where: ranks of width and generator as words."""

    kind: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A contrast in one study by one judge; `low` of the comparison is the changed run, `high` the other.

    behind: widths and generators with their own names. runs: the names of both runs.
    """

    contrast: Contrast
    behind: str
    runs: frozenset[str]
    comparison: Comparison

    @property
    def change(self) -> float | None:
        """The relative change, by the mean of logarithms; None if a repeat never got there."""
        values = [*self.comparison.low, *self.comparison.high]
        if not all(0 < value < math.inf for value in values):
            return None
        return math.expm1(mean(map(math.log, self.comparison.low)) - mean(map(math.log, self.comparison.high)))

    @property
    def sign(self) -> Sign:
        return SIGNS.get(self.comparison.decision.verdict, "unclear")

    def __str__(self) -> str:
        if self.change is None:
            never = sum(not 0 < value < math.inf for value in self.comparison.low)
            return f"never in {never} of {len(self.comparison.low)}"
        text, ends, repeats = _whole(self.change), self.comparison.decision.interval, self.comparison.repeats
        if ends:
            return f"{text} [{_whole(ends[0])}, {_whole(ends[1])}]"
        return f"{text}, " + ("published" if not repeats else "single run" if repeats == 1 else f"{repeats} repeats")


def _whole(change: float) -> str:
    """A percentage without decimals where it has two digits or more."""
    return percent(round(change, 2) if abs(change) >= 0.1 else change)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The runs of a study by rank, of the downsampling and the family of generators that have the most of both.

    widths, generators: by rank, in order. runs: by generator ('' for tokenizers), width, and whether aligned.
    """

    widths: dict[str, int]
    generators: dict[str, str]
    foundation: str
    runs: dict[tuple[str, int, bool], list[Score]]


def ranks(values: Sequence[Of], first: str, last: str) -> dict[str, Of]:
    """Values by the names of their ranks: the first, 'second' ..., the last."""
    names = [first, *ORDINALS[: max(len(values) - 2, 0)], last]
    return dict(zip(names, values, strict=False))


def ranked(scores: Scores) -> Ranked:
    """The unguided, unchanged runs of a study by rank."""
    chosen = [*frontier_runs(scores.tokenizers), *frontier_runs(scores.generators)]
    widths: dict[int, set[int]] = defaultdict(set)
    sizes: dict[tuple[str, int], set[str]] = defaultdict(set)
    for score in chosen:
        assert score.tokenizer is not None
        widths[score.tokenizer.downsampling].add(score.tokenizer.channels)
        if score.generator:
            family, _, patch = parse_generator(score.generator)
            sizes[family, patch].add(score.generator)
    downsampling = max(sorted(widths), key=lambda one: len(widths[one]), default=0)
    family_and_patch = max(sorted(sizes), key=lambda one: len(sizes[one]), default=("", 0))
    generators = sorted(sizes[family_and_patch], key=lambda one: list(GENERATOR_SIZES).index(parse_generator(one)[1]))
    models = sorted({score.foundation_model for score in chosen} - {""})
    foundation = FOUNDATION if FOUNDATION in models else next(iter(models), "")
    runs: dict[tuple[str, int, bool], list[Score]] = defaultdict(list)
    for score in chosen:
        assert score.tokenizer is not None
        at_place = score.tokenizer.downsampling == downsampling and score.generator in ("", *generators)
        if at_place and score.foundation_model in ("", foundation):
            runs[score.generator, score.tokenizer.channels, bool(score.foundation_model)].append(score)
    return Ranked(
        widths=ranks(sorted(widths[downsampling]), "narrowest", "widest"),
        generators=ranks(generators, "smallest", "largest"),
        foundation=foundation,
        runs=dict(runs),
    )


def effects(table: pd.DataFrame) -> list[Effect]:
    """Every contrast of a results table, in the order of KINDS, by judge.

    Narrowest to every wider plain latent; plain to aligned at every width; smallest to every larger generator; and the
    images that the aligned run needs for the last gFID of the plain one, which the paper prints as factors.

    Raises:
        ValueError: two runs of the table are indistinguishable.
    """
    study = ranked(read_scores(table))
    return sorted(_effects(study), key=lambda effect: KINDS.index(effect.contrast.kind))


def _effects(study: Ranked) -> Iterator[Effect]:
    def between(
        kind: str, place: str, behind: str, low: tuple[str, int, bool], high: tuple[str, int, bool]
    ) -> Iterator[Effect]:
        sides = study.runs.get(low, []), study.runs.get(high, [])
        for one in compared(place, *sides):
            yield Effect(contrast=Contrast(kind, place), behind=behind, runs=_runs(*sides), comparison=one)

    narrowest, smallest = next(iter(study.widths.values()), 0), next(iter(study.generators.values()), "")
    for size, generator in {"": "", **study.generators}.items():
        metric, at = ("gFID", f", {size} generator") if generator else ("rFID", "")
        short = f", {_size(generator)}" if generator else ""
        for rank, width in list(study.widths.items())[1:]:
            yield from between(
                f"Wider plain latent: {metric}", f"narrowest to {rank}{at}", f"d{narrowest} to d{width}{short}",
                (generator, width, False), (generator, narrowest, False),
            )  # fmt: skip
        for rank, width in study.widths.items():
            yield from between(
                f"Alignment: {metric}", f"{rank} latent{at}", f"d{width} to d{width}-{study.foundation}{short}",
                (generator, width, True), (generator, width, False),
            )  # fmt: skip
    for aligned, name in ((False, "plain"), (True, "aligned")):
        for rank, width in study.widths.items():
            for size, generator in list(study.generators.items())[1:]:
                spec = f"d{width}" + (f"-{study.foundation}" if aligned else "")
                yield from between(
                    "Larger generator: gFID", f"{rank} latent, {name}, smallest to {size}",
                    f"{spec}, {_size(smallest)} to {_size(generator)}",
                    (generator, width, aligned), (smallest, width, aligned),
                )  # fmt: skip
    yield from _images(study)


def _images(study: Ranked) -> Iterator[Effect]:
    found: list[Effect] = []
    for size, generator in study.generators.items():
        for rank, width in study.widths.items():
            aligned, plain = (study.runs.get((generator, width, one), []) for one in (True, False))
            contrast = Contrast(KINDS[4], f"{rank} latent, {size} generator")
            behind = f"d{width} to d{width}-{study.foundation}, {_size(generator)}"
            pair = Scores(tokenizers=[], generators=[*aligned, *plain], guided=[])
            comparisons = [*images_to_plain_gfid(pair, 1.0), *_published_images(generator, aligned, plain)]
            found += (
                Effect(contrast=contrast, behind=behind, runs=_runs(aligned, plain), comparison=one)
                for one in comparisons
            )
    pooled = with_pooled_spread([effect.comparison for effect in found], np.log)  # over all places of the study
    yield from (replace(effect, comparison=one) for effect, one in zip(found, pooled, strict=True))


def _published_images(generator: str, aligned: Sequence[Score], plain: Sequence[Score]) -> Iterator[Comparison]:
    """The paper's factor, if these are the two published runs that it is printed for."""
    own = all(score.published for score in (*aligned, *plain)) and SPEED_UPS_RUN.startswith(generator)
    if own and aligned and plain and plain[0].spec in SPEED_UPS:
        yield Comparison(
            place="",
            judge=plain[0].judge,
            low=(1 / SPEED_UPS[plain[0].spec],),
            high=(1.0,),
            exact=(True, True),
        )


def _size(generator: str) -> str:
    return parse_generator(generator)[1]


def _runs(*sides: Iterable[Score]) -> frozenset[str]:
    return frozenset(" + ".join(filter(None, (score.spec, score.generator))) for side in sides for score in side)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A contrast that several studies have: its effects by study, a judge each."""

    contrast: Contrast
    by_study: dict[str, list[Effect]]

    @property
    def agreement(self) -> str:
        """Whether the studies agree in sign, where all judges of each do, and the ratio of the largest to the smallest.

        Sizes are means over judges, as logarithms.
        """
        signs = {_sign(found) for found in self.by_study.values()}
        if {"falls", "rises"} <= signs:
            return "signs differ"
        if signs == {"equal"}:
            return "no change"
        if len(signs) > 1 or "unclear" in signs:
            return "sign unclear"
        sizes = [
            abs(mean(math.log1p(one.change) for one in found if one.change is not None))
            for found in self.by_study.values()
        ]
        return f"same sign, {max(sizes) / min(sizes):.1f} times"


def _judge_order(effect: Effect) -> tuple[bool, str]:
    """A classifier trained for the study comes last."""
    judge = effect.comparison.judge
    return judge.startswith("classifier"), judge


def _sign(found: Sequence[Effect]) -> Sign:
    signs = {effect.sign for effect in found}
    return signs.pop() if len(signs) == 1 else "unclear"


def shared(studies: dict[str, list[Effect]]) -> list[Shared]:
    """The contrasts that at least two studies have, by kind."""
    most_first = sorted(studies.values(), key=len, reverse=True)  # whose order has the others' contrasts in place
    contrasts = dict.fromkeys(effect.contrast for found in most_first for effect in found)
    lines = []
    for contrast in sorted(contrasts, key=lambda one: KINDS.index(one.kind)):
        by_study = {
            name: sorted((one for one in found if one.contrast == contrast), key=_judge_order)
            for name, found in studies.items()
        }
        having = {name: found for name, found in by_study.items() if found}
        if len(having) > 1:
            lines.append(Shared(contrast=contrast, by_study=having))
    return lines
