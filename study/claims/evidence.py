"""The numbers of a table that speak for or against a claim: scored rows, and pairs of them that differ in one thing."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

from models.specs import GENERATOR_SIZES, TokenizerName, parse_generator, parse_tokenizer
from results.convergence import speed_up
from results.published import IMAGENET_IMAGES, load_published
from results.ranks import rank_agreement
from results.runs import changes_of, scored
from results.schema import PROTOCOL
from study.claims.verdicts import Comparison, Evidence, Together

if TYPE_CHECKING:
    import pandas as pd


SAME_IMAGES = 0.01  # relative: an epoch more or less of batches that are not full
HEADLINE = "LightningDiT-XL/1"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A finished row as claims read it. images: None where nobody says. way: how it was measured, judge included."""

    tokenizer: TokenizerName | None
    spec: str
    aligned: str
    generator: str
    changes: dict[str, Any]
    ablations: tuple[str, ...]
    given: bool
    imagenet: bool
    guided: bool
    samples: int | None
    images: int | None
    judge: str
    way: str
    way_but_solver: str
    repeat: tuple[int | None, int | None]
    fingerprint: str
    tokenizer_fingerprint: str
    run: str
    rfid: float | None
    gfid: float | None
    density_cv: float | None

    @property
    def value(self) -> float:
        """The headline metric: gFID of a generator, rFID of a tokenizer."""
        found = self.gfid if self.generator else self.rfid
        assert found is not None, f"{self.run} has no score"
        return found


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a table has: of tokenizers, and of generators without and with guidance."""

    tokenizers: list[Score]
    generators: list[Score]
    guided: list[Score]


def read_scores(table: pd.DataFrame) -> Scores:
    """The scored rows, but for those that are not comparable."""
    rows = scored(table)
    rows = rows[rows["comparable"].fillna(True).astype(bool)]
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    found = [_score({str(name): cell for name, cell in row.items()}) for row in records]
    generators = [one for one in found if one.generator]
    return Scores(
        tokenizers=[one for one in found if not one.generator],
        generators=[one for one in generators if not one.guided],
        guided=[one for one in generators if one.guided],
    )


def _score(row: dict[str, Any]) -> Score:

    tokenizer = None  # somebody else's, as in the paper's Table 3
    with contextlib.suppress(ValueError):
        name = parse_tokenizer(row["tokenizer"])
        tokenizer = None if name.external else name
    size = f" @ {row['extractor_size']} px" if row["extractor_size"] else ""
    return Score(
        tokenizer=tokenizer,
        spec=row["tokenizer"],
        aligned="" if row["foundation_model"] == "none" else row["foundation_model"],
        generator=row["generator"],
        changes=changes_of(row["run"]),
        ablations=tuple(row["ablations"].split()),
        given=bool(row["given_weights"]),
        imagenet="imagenet" in f"{row['data']} {row['reference']}".lower() and row["resolution"] == 256,
        guided=row["kind"] == "generator" and row["guidance_scale"] != 1,
        samples=row["samples"],
        images=row["images_seen"],
        judge=f"{row['extractor']}{size}",
        way=repr([row[name] for name in PROTOCOL]),
        way_but_solver=repr([row[name] for name in PROTOCOL if name not in ("solver", "steps")]),
        repeat=(row["tokenizer_seed"], row["seed"]),
        fingerprint=row["fingerprint"],
        tokenizer_fingerprint=row["tokenizer_fingerprint"],
        run=row["run"],
        rfid=row["rfid"],
        gfid=row["gfid"],
        density_cv=row["density_cv"],
    )


# Pairs of what differs in one thing


def _plain_runs(scores: Iterable[Score]) -> list[Score]:
    """Runs that train as their scale says, on tokenizers of the studied family."""
    return [one for one in scores if not one.changes and one.tokenizer is not None]


def _frontier(scores: Iterable[Score]) -> list[Score]:
    """Those of the ablation `frontier`, the paper's Table 2; where it was not asked, of all."""
    found = _plain_runs(scores)
    return [one for one in found if "frontier" in one.ablations] or found


def _by(scores: Iterable[Score], key: Callable[[Score], Any]) -> dict[Any, list[Score]]:
    found: dict[Any, list[Score]] = defaultdict(list)
    for one in scores:
        found[key(one)].append(one)
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def _values(scores: Iterable[Score]) -> dict[tuple[int | None, int | None], float]:
    """Per repeat the score; ValueError for two runs that nothing tells apart."""
    found: dict[tuple[int | None, int | None], Score] = {}
    for one in scores:
        other = found.setdefault(one.repeat, one)
        if other is not one:
            raise ValueError(
                f"claims cannot tell {one.run} ({one.fingerprint}) from {other.run} ({other.fingerprint}): same "
                "seeds, images seen and protocol; give one of them another study"
            )
    return {repeat: found[repeat].value for repeat in sorted(found, key=str)}


def _together(
    low: Sequence[Score], high: Sequence[Score], way: Callable[[Score], str] = lambda one: one.way
) -> Iterator[tuple[str, list[Score], list[Score]]]:
    """Per judge the scores of both at the last number of images that both have seen."""
    theirs = _by(high, way)
    for measured, mine in _by(low, way).items():
        marks = {one.images for one in mine} & {one.images for one in theirs.get(measured, ())}
        if marks:
            last = max(marks, key=lambda images: images or 0)
            at = [[one for one in side if one.images == last] for side in (mine, theirs[measured])]
            yield mine[0].judge, at[0], at[1]


def _below(
    place: str,
    low: Sequence[Score],
    high: Sequence[Score],
    times: float = 1.0,
    way: Callable[[Score], str] = lambda one: one.way,
) -> Iterator[Comparison]:
    """Per judge: the scores of `low` lie below `times` those of `high`."""
    for judge, mine, theirs in _together(low, high, way):
        values = [tuple(_values(side).values()) for side in (mine, theirs)]
        yield Comparison(place=place, judge=judge, low=values[0], high=values[1], times=times)


def _aligned_pairs(scores: Iterable[Score]) -> Iterator[tuple[str, str, list[Score], list[Score]]]:
    """Generator ('' for tokenizers), tokenizer, its scores, those of the plain tokenizer of its width.

    Of widths above the narrowest where there are several: the claims are about wide latents.
    """
    for (generator, downsampling), group in _by(
        _frontier(scores), lambda one: (one.generator, one.tokenizer and one.tokenizer.downsampling)
    ).items():
        specs = _by(group, lambda one: one.spec)
        widths = {found[0].tokenizer.channels for found in specs.values() if found[0].tokenizer}
        for spec, found in specs.items():
            name = found[0].tokenizer
            assert name is not None
            plain = f"f{downsampling}d{name.channels}"
            if name.foundation and plain in specs and (len(widths) == 1 or name.channels > min(widths)):
                yield generator, spec, found, specs[plain]


# The evidence


def width(scores: Sequence[Score], rises: bool) -> Iterator[Evidence]:
    """Every two widths of plain tokenizers: the wider one's score is above (rises) or below the narrower one's."""
    plain = [one for one in _frontier(scores) if not one.aligned]
    for (generator, _), group in _by(
        plain, lambda one: (one.generator, one.tokenizer and one.tokenizer.downsampling)
    ).items():
        widths = _by(group, lambda one: one.tokenizer and one.tokenizer.channels)
        for narrow, wide in combinations(sorted(widths), 2):
            low, high = (narrow, wide) if rises else (wide, narrow)
            place = _place(widths[low][0].spec, widths[high][0].spec, generator)
            yield from _below(place, widths[low], widths[high])


def aligned_below(scores: Sequence[Score], times: float = 1.0) -> Iterator[Evidence]:
    """Every aligned tokenizer's score is below `times` that of its plain counterpart."""
    for generator, spec, mine, plain in _aligned_pairs(scores):
        yield from _below(_place(spec, plain[0].spec, generator), mine, plain, times)


def aligned_learns_faster(scores: Scores, factor: float) -> Iterator[Evidence]:
    """Images to the plain one's last gFID, per repeat, against the images that the plain one took."""
    import pandas as pd

    trained = [one for one in scores.generators if not one.given and one.images is not None]
    for generator, spec, mine, plain in _aligned_pairs(trained):
        theirs = _by(plain, lambda one: one.way)
        for way, curve in _by(mine, lambda one: one.way).items():
            needed, spent = [], []
            repeats = _by(curve, lambda one: one.repeat)
            for repeat, group in _by(theirs.get(way, ()), lambda one: one.repeat).items():
                curves = [_curve(group), _curve(repeats.get(repeat, ()))]
                if min(map(len, curves)) > 1:
                    gain = speed_up(pd.Series(curves[0]), pd.Series(curves[1]))
                    needed.append(float("inf") if gain.images is None else gain.images)
                    spent.append(float(max(curves[0])))
            if needed:
                yield Comparison(
                    place=f"images, {_place(spec, plain[0].spec, generator)}",
                    judge=curve[0].judge,
                    low=tuple(needed),
                    high=tuple(spent),
                    times=1 / factor,
                )


def _place(low: str, high: str, generator: str = "") -> str:
    return f"{low} against {high}" + (f", {generator}" if generator else "")


def _curve(scores: Iterable[Score]) -> dict[int, float]:
    marks = _by(scores, lambda one: one.images)
    return {images: next(iter(_values(marks[images]).values())) for images in sorted(marks)}


def gap_closes(scores: Scores) -> Iterator[Evidence]:
    """The gap in gFID between plain and aligned, per repeat, under each generator and the next larger one."""
    gaps: dict[tuple[str, str, str], dict[str, tuple[float, ...]]] = defaultdict(dict)
    for generator, spec, mine, plain in _aligned_pairs(scores.generators):
        for judge, low, high in _together(mine, plain):
            low_values, high_values = _values(low), _values(high)
            shared = [repeat for repeat in low_values if repeat in high_values]
            if shared:
                differences = tuple(high_values[repeat] - low_values[repeat] for repeat in shared)
                gaps[spec, judge, low[0].way][generator] = differences
    for (spec, judge, _), sizes in gaps.items():
        for smaller, larger in pairwise(sorted(sizes, key=_size)):
            if parse_generator(smaller)[::2] == parse_generator(larger)[::2]:  # family and patch
                place = f"gap at {spec}, {_place(larger, smaller)}"
                yield Comparison(place=place, judge=judge, low=sizes[larger], high=sizes[smaller])


def _size(generator: str) -> tuple[int, str]:
    return list(GENERATOR_SIZES).index(parse_generator(generator)[1]), generator


def best_foundation(scores: Scores) -> Iterator[Evidence]:
    """DINOv2 against each other model, at the widths and generators where most models were tried."""
    aligned = [one for one in _plain_runs(scores.generators) if one.aligned]
    tried = _by(aligned, lambda one: (one.generator, one.tokenizer and one.tokenizer.channels))
    models = {place: _by(group, lambda one: one.aligned) for place, group in tried.items()}
    most = max(map(len, models.values()), default=0)
    for (generator, _), found in models.items():
        best = found.get("dinov2", [])
        for other, theirs in found.items():
            if best and other != "dinov2" and len(found) == most:
                yield from _below(_place(best[0].spec, theirs[0].spec, generator), best, theirs)


def part_helps(scores: Scores, *without: str) -> Iterator[Evidence]:
    """The full VF loss against the same tokenizer where some of its settings are 0."""
    whole = _by(_plain_runs(scores.generators), lambda one: (one.spec, one.generator))
    settings = {f"tokenizer.vf_{name}": 0 for name in without}
    part = [one for one in scores.generators if one.changes == settings]
    for key, theirs in _by(part, lambda one: (one.spec, one.generator)).items():
        yield from _below(_place(key[0], "without", key[1]), whole.get(key, []), theirs)


def rung_of(generator: str, aligned: bool, changes: dict[str, Any]) -> int:
    """Which rung of ablations/recipe.py a run is, by what it has not yet (rungs 0 to 4) or has."""
    lacks = ("objective", "batch_images", "betas", "logit_normal", "direction_weight")
    for rung, name in enumerate(lacks):
        if f"generator.{name}" in changes:
            return rung
    if generator.startswith("DiT-"):
        return 7 if "rms_norm" in changes else 6 if "swiglu" in changes else 5
    return 9 if aligned else 8


def rung_helps(scores: Scores, rung: int) -> Iterator[Evidence]:
    ladder = [one for one in scores.generators if "recipe" in one.ablations]
    rungs = _by(ladder, lambda one: rung_of(one.generator, bool(one.aligned), one.changes))
    # DiT's ancestral sampler cannot draw from a flow
    yield from _below("", rungs.get(rung, []), rungs.get(rung - 1, []), way=lambda one: one.way_but_solver)


def uniformity(scores: Scores) -> Iterator[Evidence]:
    """Unevenness of latents (`density_cv`) and gFID over tokenizers, each the mean of its repeats."""
    spread = {one.tokenizer_fingerprint: one.density_cv for one in scores.tokenizers if one.density_cv is not None}
    scored = [one for one in _plain_runs(scores.generators) if one.tokenizer_fingerprint in spread]
    for (generator, _), group in _by(scored, lambda one: (one.generator, one.way)).items():
        tokenizers = _by(group, lambda one: one.spec)
        marks = set.intersection(*({one.images for one in found} for found in tokenizers.values()))
        if len(tokenizers) < 3 or not marks:
            continue
        last = max(marks, key=lambda images: images or 0)
        points = [[one for one in found if one.images == last] for found in tokenizers.values()]
        means = [mean(_values(found).values()) for found in points]
        uneven = [mean(spread[one.tokenizer_fingerprint] for one in found) for found in points]
        yield Together(
            place=generator,
            judge=group[0].judge,
            agreement=rank_agreement(uneven, means),
            repeats=min(map(len, points)),
        )


def headline(scores: Scores, epochs: int, rivals: Callable[[Score], bool]) -> Iterator[Evidence]:
    """The guided system after some epochs, as the paper samples it, against the best of the paper's other systems."""
    images = epochs * IMAGENET_IMAGES
    ours = [
        one
        for one in _plain_runs(scores.guided)
        if one.generator == HEADLINE and one.aligned and one.imagenet and one.judge.startswith("inception")
        if one.samples == 50_000 and one.images and abs(one.images / images - 1) <= SAME_IMAGES
    ]
    if not ours:
        return
    published = read_scores(load_published("paper")).guided
    others = [one for one in published if one.generator != HEADLINE and rivals(one)]
    best = min(others, key=lambda one: one.value)
    for group in _by(ours, lambda one: (one.spec, one.way)).values():
        values = tuple(_values(group).values())
        place = _place(group[0].spec, f"{best.run} (published)")
        yield Comparison(place=place, judge=group[0].judge, low=values, high=(best.value,))
