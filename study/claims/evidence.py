"""The evidence for claims in a results table: scored rows, and pairs of them that differ in one thing."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

import numpy as np

from models.configs import GENERATOR_SIZES, TokenizerName, parse_generator, parse_tokenizer
from results.convergence import speed_up
from results.published import IMAGENET_IMAGES, load_published
from results.ranks import rank_agreement
from results.runs import scored
from results.schema import HEADLINE, Row, measured_alike
from results.table import rows_in
from results.verdicts import Measure, Spread, measure, pooled, spreads
from study.claims.verdicts import Comparison, Evidence, RankCorrelation

if TYPE_CHECKING:
    import pandas as pd


SAME_IMAGES = 0.01  # relative difference that counts as equal: epochs differ if incomplete batches are dropped
SYSTEM = "LightningDiT-XL/1"
LADDER = "recipe"  # the ablation of Table 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """A finished row in the form that claims need.

    tokenizer: None for a tokenizer outside the studied family, also one with regularisers or a frozen encoder.
    foundation_model: empty for plain tokenizers. rung: its place in the ablation `recipe`; None outside of it.
    images: None if unstated. protocol: how the row was measured, judge included, as one text. spread: of the headline
    metric by this judge, over the study. published: not measured here.
    """

    tokenizer: TokenizerName | None
    spec: str
    foundation_model: str
    generator: str
    changes: Mapping[str, Any]
    ablations: tuple[str, ...]
    rung: int | None
    pretrained: bool
    published: bool
    imagenet: bool
    guided: bool
    samples: int | None
    images: int | None
    judge: str
    protocol: str
    protocol_without_solver: str
    repeat: tuple[int | None, int | None]
    fingerprint: str
    tokenizer_fingerprint: str
    run: str
    rfid: float | None
    gfid: float | None
    density_cv: float | None
    spread: Spread | None

    @property
    def value(self) -> float:
        """The headline metric: gFID of a generator, rFID of a tokenizer."""
        metric = self.gfid if self.generator else self.rfid
        assert metric is not None, f"{self.run} has no score"
        return metric


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a table: of tokenizers, of generators without guidance and of generators with guidance.

    rows: of the table, that have these scores; None where scores were chosen from it.
    """

    tokenizers: list[Score]
    generators: list[Score]
    guided: list[Score]
    rows: pd.DataFrame | None = None


def read_scores(table: pd.DataFrame) -> Scores:
    """The scored rows of a table, without those that are marked as not comparable."""
    rows = scored(table)
    rows = rows[rows["comparable"].fillna(True).astype(bool)]
    spread = spreads(table)
    scores = [_score(row, spread) for row in rows_in(rows)]
    generators = [score for score in scores if score.generator]
    return Scores(
        tokenizers=[score for score in scores if not score.generator],
        generators=[score for score in generators if not score.guided],
        guided=[score for score in generators if score.guided],
        rows=rows,
    )


def _score(row: Row, spread: Mapping[Measure, Spread | None]) -> Score:
    # stays None for tokenizers of other authors, as in the paper's Table 3, regularised ones and representation ones
    tokenizer = None
    with contextlib.suppress(ValueError):
        name = parse_tokenizer(row.tokenizer)
        tokenizer = None if name.external or name.regularisers or name.encoder else name
    protocol = measured_alike(vars(row))
    return Score(
        tokenizer=tokenizer,
        spec=row.tokenizer,
        foundation_model="" if row.foundation_model == "none" else row.foundation_model,
        generator=row.generator,
        changes=row.changes,
        ablations=row.ablations,
        rung=next((label.place for label in row.labels if label.ablation == LADDER), None),
        pretrained=bool(row.pretrained_weights),
        published=bool(row.source),
        imagenet="imagenet" in f"{row.data} {row.reference}".lower() and row.resolution == 256,
        guided=row.kind == "generator" and row.guidance_scale != 1,
        samples=row.samples,
        images=row.images_seen,
        judge=judge_of(row.extractor, row.extractor_size),
        protocol=repr(protocol),
        protocol_without_solver=repr({**protocol, "solver": "", "steps": None}),
        repeat=(row.tokenizer_seed, row.seed),
        fingerprint=row.fingerprint,
        tokenizer_fingerprint=row.tokenizer_fingerprint,
        run=row.run,
        rfid=row.rfid,
        gfid=row.gfid,
        density_cv=row.density_cv,
        spread=spread.get(measure(HEADLINE[row.kind], row.extractor, row.extractor_size)),
    )


def judge_of(extractor: str, size: int | None) -> str:
    """A judge by name; size in pixels, None or 0 where it has none."""
    return f"{extractor} @ {size} px" if size else extractor


# Pairs of runs that differ in one thing


def _unchanged_runs(scores: Iterable[Score]) -> list[Score]:
    """Runs with the settings of their scale, on tokenizers of the studied family."""
    return [score for score in scores if not score.changes and score.tokenizer is not None]


def frontier_runs(scores: Iterable[Score]) -> list[Score]:
    """The unchanged runs of the ablation `frontier`, the paper's Table 2; of all ablations if it has none."""
    unchanged = _unchanged_runs(scores)
    return [score for score in unchanged if "frontier" in score.ablations] or unchanged


def grouped(scores: Iterable[Score], key: Callable[[Score], Any]) -> dict[Any, list[Score]]:
    groups: dict[Any, list[Score]] = defaultdict(list)
    for score in scores:
        groups[key(score)].append(score)
    return dict(sorted(groups.items(), key=lambda item: str(item[0])))


def _protocol(score: Score) -> str:
    return score.protocol


def _generator_and_downsampling(score: Score) -> tuple[str, Any]:
    return score.generator, score.tokenizer and score.tokenizer.downsampling


def _value_per_repeat(scores: Iterable[Score]) -> dict[tuple[int | None, int | None], float]:
    """The headline metric of each repeat; ValueError if two runs are indistinguishable."""
    by_repeat: dict[tuple[int | None, int | None], Score] = {}
    for score in scores:
        first = by_repeat.setdefault(score.repeat, score)
        if first is not score:
            raise ValueError(
                f"claims cannot tell {score.run} ({score.fingerprint}) from {first.run} ({first.fingerprint}): same "
                "seeds, images seen and protocol; give one of them another study"
            )
    return {repeat: by_repeat[repeat].value for repeat in sorted(by_repeat, key=str)}


def _at_last_common_mark(
    low: Sequence[Score], high: Sequence[Score], protocol: Callable[[Score], str] = _protocol
) -> Iterator[tuple[str, list[Score], list[Score]]]:
    """Judge and scores of both sides, per protocol, at the largest number of images seen that both sides have."""
    high_groups = grouped(high, protocol)
    for key, low_group in grouped(low, protocol).items():
        marks = {score.images for score in low_group} & {score.images for score in high_groups.get(key, ())}
        if marks:
            last = max(marks, key=lambda images: images or 0)
            at_last = [[score for score in side if score.images == last] for side in (low_group, high_groups[key])]
            yield low_group[0].judge, at_last[0], at_last[1]


def compared(
    place: str,
    low: Sequence[Score],
    high: Sequence[Score],
    factor: float = 1.0,
    protocol: Callable[[Score], str] = _protocol,
) -> Iterator[Comparison]:
    """Per judge, the claim that the scores of `low` are below `factor` times those of `high`."""
    for judge, low_scores, high_scores in _at_last_common_mark(low, high, protocol):
        low_values, high_values = (tuple(_value_per_repeat(side).values()) for side in (low_scores, high_scores))
        yield Comparison(
            place=place,
            judge=judge,
            low=low_values,
            high=high_values,
            spread=low_scores[0].spread,
            factor=factor,
            exact=(low_scores[0].published, high_scores[0].published),
        )


def _aligned_pairs(scores: Iterable[Score]) -> Iterator[tuple[str, str, list[Score], list[Score]]]:
    """Generator ('' for tokenizers), aligned tokenizer, its scores, scores of the plain tokenizer of the same width.

    The narrowest width is left out if there are several: the claims are about wide latents.
    """
    for (generator, downsampling), group in grouped(frontier_runs(scores), _generator_and_downsampling).items():
        specs = grouped(group, lambda score: score.spec)
        widths = {group[0].tokenizer.channels for group in specs.values() if group[0].tokenizer}
        for spec, aligned in specs.items():
            name = aligned[0].tokenizer
            assert name is not None
            plain = f"f{downsampling}d{name.channels}"
            if name.foundation and plain in specs and (len(widths) == 1 or name.channels > min(widths)):
                yield generator, spec, aligned, specs[plain]


# The evidence


def wider_against_narrower(scores: Sequence[Score], rises: bool) -> Iterator[Evidence]:
    """Of every two widths of plain tokenizers, the wider one's score is above (`rises`) or below the other's."""
    plain = [score for score in frontier_runs(scores) if not score.foundation_model]
    for (generator, _), group in grouped(plain, _generator_and_downsampling).items():
        widths = grouped(group, lambda score: score.tokenizer and score.tokenizer.channels)
        for narrow, wide in combinations(sorted(widths), 2):
            low, high = (narrow, wide) if rises else (wide, narrow)
            place = _place(widths[low][0].spec, widths[high][0].spec, generator)
            yield from compared(place, widths[low], widths[high])


def aligned_against_plain(scores: Sequence[Score], factor: float = 1.0) -> Iterator[Evidence]:
    """Every aligned tokenizer's score is below `factor` times that of its plain counterpart."""
    for generator, spec, aligned, plain in _aligned_pairs(scores):
        yield from compared(_place(spec, plain[0].spec, generator), aligned, plain, factor)


def images_to_plain_gfid(scores: Scores, factor: float) -> Iterator[Comparison]:
    """Per repeat, the aligned run reaches the plain run's last gFID with `factor` times fewer images.

    The spread is of these numbers of images, without the pairs of which a repeat never got there.
    """
    import pandas as pd

    found = []
    trained = [score for score in scores.generators if not score.pretrained and score.images is not None]
    for generator, spec, aligned, plain in _aligned_pairs(trained):
        plain_groups = grouped(plain, _protocol)
        for protocol, aligned_group in grouped(aligned, _protocol).items():
            needed, spent = [], []
            aligned_repeats = grouped(aligned_group, lambda score: score.repeat)
            for repeat, plain_repeat in grouped(plain_groups.get(protocol, ()), lambda score: score.repeat).items():
                curves = [_gfid_by_mark(plain_repeat), _gfid_by_mark(aligned_repeats.get(repeat, ()))]
                if min(map(len, curves)) > 1:
                    gain = speed_up(pd.Series(curves[0]), pd.Series(curves[1]))
                    needed.append(float("inf") if gain.images is None else gain.images)
                    spent.append(float(max(curves[0])))
            if needed:
                found.append(
                    Comparison(
                        place=f"images, {_place(spec, plain[0].spec, generator)}",
                        judge=aligned_group[0].judge,
                        low=tuple(needed),
                        high=tuple(spent),
                        factor=1 / factor,
                        exact=(False, True),
                    )
                )
    yield from with_pooled_spread(found, np.log)


def with_pooled_spread(comparisons: Sequence[Comparison], scale: Callable[[Any], Any]) -> Iterator[Comparison]:
    """The comparisons with the spread over all of their cells of one judge, each cell once, on a scale such as log."""
    for one in comparisons:
        alike = [other for other in comparisons if other.judge == one.judge]
        sides = {
            side
            for other in alike
            for side, exact in zip((other.low, other.high), other.exact, strict=True)
            if not exact
        }
        yield replace(one, spread=pooled(scale(side) for side in sorted(sides)))


def _place(low: str, high: str, generator: str = "") -> str:
    return f"{low} against {high}" + (f", {generator}" if generator else "")


def _gfid_by_mark(scores: Iterable[Score]) -> dict[int, float]:
    marks = grouped(scores, lambda score: score.images)
    return {images: next(iter(_value_per_repeat(marks[images]).values())) for images in sorted(marks)}


def gap_against_smaller_generator(scores: Scores) -> Iterator[Evidence]:
    """Per repeat, the gap in gFID from aligned to plain is smaller than under the next smaller generator."""
    gaps: dict[tuple[str, str, str, bool], dict[str, tuple[float, ...]]] = defaultdict(dict)
    for generator, spec, aligned, plain in _aligned_pairs(scores.generators):
        for judge, low, high in _at_last_common_mark(aligned, plain):
            low_values, high_values = _value_per_repeat(low), _value_per_repeat(high)
            shared = [repeat for repeat in low_values if repeat in high_values]
            if shared:
                differences = tuple(high_values[repeat] - low_values[repeat] for repeat in shared)
                gaps[spec, judge, low[0].protocol, low[0].published][generator] = differences
    found = []
    for (spec, judge, _, published), by_generator in gaps.items():
        for smaller, larger in pairwise(sorted(by_generator, key=_size_order)):
            if parse_generator(smaller)[::2] == parse_generator(larger)[::2]:  # family and patch
                place = f"gap at {spec}, {_place(larger, smaller)}"
                found.append(
                    Comparison(
                        place=place,
                        judge=judge,
                        low=by_generator[larger],
                        high=by_generator[smaller],
                        relative=False,
                        exact=(published, published),
                    )
                )
    yield from with_pooled_spread(found, np.asarray)


def _size_order(generator: str) -> tuple[int, str]:
    return list(GENERATOR_SIZES).index(parse_generator(generator)[1]), generator


def dinov2_against_others(scores: Scores) -> Iterator[Evidence]:
    """gFID is lower with DINOv2 than with each other foundation model, where the most models were tried."""
    aligned = [score for score in _unchanged_runs(scores.generators) if score.foundation_model]
    groups = grouped(aligned, lambda score: (score.generator, score.tokenizer and score.tokenizer.channels))
    by_model = {key: grouped(group, lambda score: score.foundation_model) for key, group in groups.items()}
    most = max(map(len, by_model.values()), default=0)
    for (generator, _), models in by_model.items():
        dinov2 = models.get("dinov2", [])
        for name, other in models.items():
            if dinov2 and name != "dinov2" and len(models) == most:
                yield from compared(_place(dinov2[0].spec, other[0].spec, generator), dinov2, other)


def full_vf_loss_against_part(scores: Scores, *without: str) -> Iterator[Evidence]:
    """The gFID with the full VF loss is below that with the named settings at 0, on the same tokenizer."""
    full = grouped(_unchanged_runs(scores.generators), lambda score: (score.spec, score.generator))
    settings = {f"tokenizer.vf_{name}": 0 for name in without}
    changed = [score for score in scores.generators if score.changes == settings]
    for key, part in grouped(changed, lambda score: (score.spec, score.generator)).items():
        yield from compared(_place(key[0], "without", key[1]), full.get(key, []), part)


def rung_against_previous(scores: Scores, rung: int) -> Iterator[Evidence]:
    """The gFID of a rung of the recipe is below that of the previous one."""
    rungs = grouped(scores.generators, lambda score: score.rung)
    # solvers may differ: DiT's ancestral sampler cannot sample from a flow
    yield from compared(
        "", rungs.get(rung, []), rungs.get(rung - 1, []), protocol=lambda score: score.protocol_without_solver
    )


def density_cv_against_gfid(scores: Scores) -> Iterator[Evidence]:
    """Over tokenizers, gFID rises with the unevenness of the latents (`density_cv`); both are means of the repeats."""
    density_cv = {s.tokenizer_fingerprint: s.density_cv for s in scores.tokenizers if s.density_cv is not None}
    scored = [score for score in _unchanged_runs(scores.generators) if score.tokenizer_fingerprint in density_cv]
    for (generator, _), group in grouped(scored, lambda score: (score.generator, score.protocol)).items():
        tokenizers = grouped(group, lambda score: score.spec)
        marks = set.intersection(*({score.images for score in repeats} for repeats in tokenizers.values()))
        if len(tokenizers) < 3 or not marks:
            continue
        last = max(marks, key=lambda images: images or 0)
        points = [[score for score in repeats if score.images == last] for repeats in tokenizers.values()]
        gfids = [mean(_value_per_repeat(repeats).values()) for repeats in points]
        unevenness = [mean(density_cv[score.tokenizer_fingerprint] for score in repeats) for repeats in points]
        yield RankCorrelation(
            place=generator,
            judge=group[0].judge,
            agreement=rank_agreement(unevenness, gfids),
            repeats=0 if group[0].published else min(map(len, points)),
        )


@cache
def _published_systems() -> list[Score]:
    """The guided systems of the paper."""
    return read_scores(load_published("paper")).guided


def system_against_published(scores: Scores, epochs: int, rivals: Callable[[Score], bool]) -> Iterator[Evidence]:
    """The guided system after some epochs is below the best of the paper's other systems; sampled as in the paper."""
    images = epochs * IMAGENET_IMAGES
    ours = [
        score
        for score in _unchanged_runs(scores.guided)
        if score.generator == SYSTEM and score.foundation_model
        if score.imagenet and score.judge.startswith("inception")
        if score.samples == 50_000 and score.images and abs(score.images / images - 1) <= SAME_IMAGES
    ]
    if not ours:
        return
    others = [score for score in _published_systems() if score.generator != SYSTEM and rivals(score)]
    best = min(others, key=lambda score: score.value)
    for group in grouped(ours, lambda score: (score.spec, score.protocol)).values():
        values = tuple(_value_per_repeat(group).values())
        place = _place(group[0].spec, f"{best.run} (published)")
        yield Comparison(
            place=place,
            judge=group[0].judge,
            low=values,
            high=(best.value,),
            spread=group[0].spread,
            exact=(group[0].published, True),
        )
