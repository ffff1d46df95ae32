"""The evidence of the ablations `latents` and `where_to_align`: what foretells gFID, and whether to align twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from results.foretell import BY, FAMILIES, NAMES, columns_of, estimate, gap, latent_points
from results.ranks import FEW, pearson
from study.claims.evidence import Score, Scores, compared, grouped, judge_of
from study.claims.verdicts import Evidence, Foretells, ForetellsNothing

if TYPE_CHECKING:
    import numpy as np

WAYS = {"repa": "REPA", "irepa": "iREPA"}  # of aligning a generator, as changes have them


def foretells_better(scores: Scores, predictor: str, than: str) -> Iterator[Evidence]:
    """Over the tokenizers of each family, gFID has a larger rank correlation with one predictor than with another."""
    for place, judge, repeats, (value, other, gfid) in _families(scores, (predictor, than)):
        both = [estimate(pearson, one, gfid).value for one in (value, other)]
        text = f"{NAMES[predictor]} {both[0]:.2f}, {NAMES[than]} {both[1]:.2f}, difference {both[0] - both[1]:.2f}"
        found = estimate(gap, value, other, gfid)
        yield Foretells(place=place, judge=judge, text=text, n=len(gfid), found=found, repeats=repeats)


def foretells_nothing(scores: Scores, predictor: str) -> Iterator[Evidence]:
    """Over the tokenizers of each family, a predictor has no rank correlation with gFID."""
    for place, judge, repeats, (value, gfid) in _families(scores, (predictor,)):
        found = estimate(pearson, value, gfid)
        text = f"{NAMES[predictor]} {found.value:.2f}"
        yield ForetellsNothing(place=place, judge=judge, text=text, n=len(gfid), found=found, repeats=repeats)


def _families(scores: Scores, predictors: tuple[str, ...]) -> Iterator[tuple[str, str, int, list[np.ndarray]]]:
    """Place, judge, fewest repeats, and columns of predictors and gFID, of families with at least FEW tokenizers."""
    points = pd.DataFrame() if scores.rows is None else latent_points(scores.rows)
    for _, of_judge in points.groupby(BY, dropna=False) if len(points) else ():
        first = of_judge.iloc[0]
        judge = judge_of(first["extractor"], None if pd.isna(first["extractor_size"]) else int(first["extractor_size"]))
        for family in FAMILIES:
            here = of_judge[of_judge["family"] == family]
            columns = columns_of(here, predictors)
            if len(columns[0]) >= FEW:
                yield f"{family} tokenizers, {first['generator']}", judge, int(here["gfid_runs"].min()), columns


def both_against_one(scores: Scores) -> Iterator[Evidence]:
    """gFID with tokenizer and generator aligned is below that with either alone, by REPA and by iREPA."""
    asked = [score for score in scores.generators if {"repa", "where_to_align"} & set(score.ablations)]
    runs = [score for score in asked if score.tokenizer and score.changes.keys() <= {"generator.repa"}]
    for (generator, plain), group in grouped(runs, _generator_and_width).items():
        cells = grouped(group, lambda score: (score.spec, score.changes.get("generator.repa")))
        for spec, way in cells:
            if spec != plain and way:
                for one, name in (((spec, None), "the tokenizer alone"), ((plain, way), "the generator alone")):
                    place = f"{spec} and {WAYS[way]} against {name}, {generator}"
                    yield from compared(place, cells[spec, way], cells.get(one, []))


def _generator_and_width(score: Score) -> tuple[str, str]:
    """Generator, and the plain tokenizer of this width."""
    assert score.tokenizer is not None
    return score.generator, f"f{score.tokenizer.downsampling}d{score.tokenizer.channels}"
