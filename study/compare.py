"""Compare studies with each other and with published results: `python -m study.compare A B`.

Two studies of one scale and data set are compared run by run; others, and more than two, by their effects
(study/claims/effects.py).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro
from tyro.conf import arg

from results.files import atomic
from results.numbers import mean_and_range, relative_change
from results.published import load_study
from results.ranks import RankAgreement, rank_agreement
from results.runs import scored
from results.schema import HEADLINE, PROTOCOL, Row, measured_alike
from results.table import rows_in
from results.verdicts import Spread, Verdict, cells, decide, measure, pooled
from study.claims.effects import Shared, effects, shared
from study.claims.evidence import SAME_IMAGES
from study.claims.paper_claims import Judged, judge_claims, markdown
from study.core.paths import CHECKOUT

if TYPE_CHECKING:
    import pandas as pd


EFFECTS = (
    "Effects: relative changes by the mean of logarithms, with 90% intervals where there are three repeats or more. "
    "Signs agree where all judges of every study decide alike by the rule of claims, or indicate it; then: how many "
    "times the largest effect is the smallest."
)
FIELDS = ("data", "resolution", "train_precision", "images_seen")  # compared in addition to the protocol


class Judge(NamedTuple):
    """A feature extractor and its input size in pixels; None if unstated."""

    extractor: str
    size: int | None

    def same(self, other: Judge) -> bool:
        return self.extractor == other.extractor and _agree(self.size, other.size)

    def __str__(self) -> str:
        return self.extractor + (f" @ {self.size} px" if self.size else "")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement of a study: the values of its repeats and the rows that they come from."""

    kind: str
    run: str
    judge: Judge
    images: int | None
    samples: int | None
    values: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def published(self) -> bool:
        return bool(self.rows[0].source)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The points of both studies for one run, None if a study has none; the spread of their metric in both studies."""

    a: Point | None
    b: Point | None
    spread: Spread | None = None

    @property
    def point(self) -> Point:
        """The point of the first study, or of the second if the first has none."""
        point = self.a or self.b
        assert point is not None, "a line has a point"
        return point

    @property
    def difference(self) -> float | None:
        """Mean of the first study minus mean of the second; None across judges, whose numbers are not comparable."""
        if self.a is None or self.b is None or not self.a.judge.same(self.b.judge):
            return None
        return mean(self.a.values) - mean(self.b.values)

    @property
    def verdict(self) -> Verdict:
        """Whether the first study has the lower numbers; 'not measured' where there is no difference."""
        if self.difference is None:
            return "not measured"
        assert self.a is not None and self.b is not None
        return decide(self.a.values, self.b.values, self.spread, exact=(self.a.published, self.b.published)).verdict


@dataclass(frozen=True, kw_only=True)
class StudyComparison:
    """The comparison of two studies.

    lines: what both studies have. unmatched: what one of them has. ranks: per kind and pair of judges, how far the
    orders of the runs agree, over the last line of every run. differs: per kind and field, the values of both studies
    if they differ. claims: the verdicts of both.
    """

    names: tuple[str, str]
    lines: list[Line]
    unmatched: list[Line]
    ranks: list[tuple[str, str, RankAgreement]]
    differs: list[tuple[str, str, list[str], list[str]]]
    claims: list[tuple[Judged, Judged]]


def compare(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> StudyComparison:
    """Compare two results tables.

    Rows match by tokenizer, generator, the run's changes, guidance, and images seen if both tables state them; if no
    numbers of images are equal, the last rows of both are compared. If the studies share a judge, only rows of equal
    judges match; otherwise each judge of one study is paired with each of the other.

    Raises:
        ValueError: a table cannot be judged, see study/claims/paper_claims.py.
    """
    points = (_points(a), _points(b))
    repeats = [cells(table) for table in (a, b)]
    lines = []
    for line in _matched(*points):
        name = measure(HEADLINE[line.point.kind], *line.point.judge)
        lines.append(replace(line, spread=pooled(cell for study in repeats for cell in study.get(name, ()))))
    matched = {(line.point.kind, line.point.run) for line in lines}
    left, right = ([point for point in _last(side) if (point.kind, point.run) not in matched] for side in points)
    unmatched = [*(Line(a=point, b=None) for point in left), *(Line(a=None, b=point) for point in right)]
    last = {(line.point.run, line.point.kind, _judges(line)): line for line in lines}  # of several marks
    pairs = dict.fromkeys((kind, judges) for _, kind, judges in last)
    ranks = []
    for kind, judges in pairs:
        of_pair = [line for (_, k, j), line in last.items() if (k, j) == (kind, judges)]
        values = [[mean(point.values) for line in of_pair if (point := side(line))] for side in SIDES]
        ranks.append((kind, judges, rank_agreement(*values)))
    used = ([point for line in lines if (point := side(line))] for side in SIDES)
    return StudyComparison(
        names=names,
        lines=lines,
        unmatched=unmatched,
        ranks=ranks,
        differs=list(_differs(*(used if lines else points))),
        claims=list(zip(judge_claims(a), judge_claims(b), strict=True)),
    )


SIDES: tuple[Callable[[Line], Point | None], ...] = (lambda line: line.a, lambda line: line.b)


def _judges(line: Line) -> str:
    return " and ".join(dict.fromkeys(str(point.judge) for point in (line.a, line.b) if point))


def _agree(a: float | None, b: float | None, tolerance: float = 0.0) -> bool:
    """Whether two numbers are equal, up to a relative tolerance, or one of them is unstated."""
    return a is None or b is None or abs(a - b) <= tolerance * max(a, b)


def _points(table: pd.DataFrame) -> list[Point]:
    """The points of a table, narrow latents and few images first; repeats are one point."""
    order = ["kind", "latent_channels", "tokenizer", "generator", "images_seen"]
    rows = scored(table).sort_values(order, kind="stable")
    groups: dict[str, list[Row]] = {}
    for row in rows_in(rows):
        if getattr(row, HEADLINE[row.kind]) is not None:
            key = (row.kind, _run(row), row.images_seen, measured_alike(vars(row)))
            groups.setdefault(repr(key), []).append(row)
    return [
        Point(
            kind=group[0].kind,
            run=_run(group[0]),
            judge=Judge(group[0].extractor, group[0].extractor_size),
            images=group[0].images_seen,
            samples=group[0].samples,
            values=tuple(getattr(row, HEADLINE[row.kind]) for row in group),
            rows=tuple(group),
        )
        for group in groups.values()
    ]


def _run(row: Row) -> str:
    """A name that identifies a run in any study: without seed, fingerprint and pretrained weights."""
    parts = [row.tokenizer, row.generator, *(f"{name}={value}" for name, value in row.changes.items())]
    guided = row.kind == "generator" and row.guidance_scale != 1
    return " + ".join(filter(None, parts)) + (", guided" if guided else "")


def _matched(a: Sequence[Point], b: Sequence[Point]) -> Iterator[Line]:
    shared = any(one.judge.same(other.judge) for one in a for other in b)
    pairs = [
        (one, other)
        for one in a
        for other in b
        if (one.kind, one.run) == (other.kind, other.run) and (one.judge.same(other.judge) or not shared)
    ]
    groups: dict[tuple[str, str, Judge, Judge], list[tuple[Point, Point]]] = {}
    for one, other in pairs:
        groups.setdefault((one.kind, one.run, one.judge, other.judge), []).append((one, other))
    for group in groups.values():
        equal = [(p, q) for p, q in group if p.images and q.images and _agree(p.images, q.images, SAME_IMAGES)]
        unstated = [(p, q) for p, q in group if p.images is None or q.images is None]
        chosen = equal or [max(unstated or group, key=lambda pair: (pair[0].images or 0, pair[1].images or 0))]
        same_samples = [pair for pair in chosen if _agree(pair[0].samples, pair[1].samples)]
        yield from (Line(a=one, b=other) for one, other in same_samples or chosen)


def _last(points: Sequence[Point]) -> list[Point]:
    """The point with the most images seen, for every run and judge."""
    return list({(point.kind, point.run, point.judge, point.samples): point for point in points}.values())


def _differs(a: Sequence[Point], b: Sequence[Point]) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Kind, field and the values of both studies, for every field whose values differ."""
    for kind in HEADLINE:
        rows = [[row for point in side if point.kind == kind for row in point.rows] for side in (a, b)]
        for name in (*FIELDS, *PROTOCOL) if all(rows) else ():
            values = [{getattr(row, name) if getattr(row, name) != "" else None for row in side} for side in rows]
            if values[0] != values[1]:
                left, right = ([_cell(one) for one in sorted(side, key=_order)] for side in values)
                yield kind, name, left, right


def _order(value: Any) -> tuple[bool, Any]:
    return value is not None, value if value is not None else 0


def _cell(value: Any) -> str:
    return "not stated" if value is None else f"{value:,}" if type(value) is int else str(value)


# Output


def _images(line: Line) -> str:
    numbers = [f"{point.images:,}" for point in (line.a, line.b) if point and point.images is not None]
    return " | ".join(dict.fromkeys(numbers))


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, header and rows


def tables(comparison: StudyComparison) -> Iterator[Table]:
    """Title, header and rows of each table, as text."""
    a, b = comparison.names
    lines = []
    for line in comparison.lines:
        assert line.a and line.b
        left, right = mean(line.a.values), mean(line.b.values)
        change = (
            "" if line.difference is None else f"{line.difference:+.3g}{relative_change(left, right)}".replace("-", "−")
        )
        metric = HEADLINE[line.point.kind].replace("fid", "FID")
        numbers = (
            _images(line),
            mean_and_range(line.a.values),
            mean_and_range(line.b.values),
            change,
            _lower(line, a, b),
        )
        lines.append((line.point.run, metric, _judges(line), *numbers))
    if lines:
        yield "Rows of both", ("run", "metric", "judge", "images", a, b, f"{a} minus {b}", "lower"), lines
    ranks = [
        (f"{HEADLINE[kind]} by {judges}".replace("fid", "FID"), str(one)) for kind, judges, one in comparison.ranks
    ]
    if ranks:
        yield "Do they put the runs in the same order?", ("of", "agreement"), ranks
    measured = [(one, other) for one, other in comparison.claims if one.places or other.places]
    claims = [(one.claim.text, one.claim.where, _verdict(one), _verdict(other)) for one, other in measured]
    if claims:
        yield "The paper's claims", ("claim", "where", a, b), claims
    differs = [(kind, name, "; ".join(left), "; ".join(right)) for kind, name, left, right in comparison.differs]
    if differs:
        yield "Settings that differ", ("of", "field", a, b), differs


def _lower(line: Line, a: str, b: str) -> str:
    """Which study has the lower numbers, in words."""
    assert line.a and line.b
    words: dict[Verdict, str] = {
        "holds": a, "fails": b, "indicated": f"{a}, indicated", "indicated against": f"{b}, indicated",
        "not measured": "",
    }  # fmt: skip
    word = words.get(line.verdict, line.verdict)
    return f"{word} (published, single)" if word and line.a.published and line.b.published else word


def alike(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether two tables share a data set, and a scale if both state one."""
    data = [set(zip(table["data"], table["resolution"].fillna(0), strict=True)) for table in (a, b)]
    scales = [set(table["scale"].dropna()) - {""} for table in (a, b)]
    return bool(data[0] & data[1]) and (not all(scales) or bool(scales[0] & scales[1]))


def effect_tables(lines: Sequence[Shared]) -> Iterator[Table]:
    """A table for every kind of change, with a row per contrast."""
    for kind in dict.fromkeys(line.contrast.kind for line in lines):
        rows = []
        for line in (line for line in lines if line.contrast.kind == kind):
            cells = [
                ("" if number else name, "" if number else effect.behind, effect.comparison.judge.split(" @ ")[0],
                 str(effect))
                for name, found in line.by_study.items()
                for number, effect in enumerate(found)
            ]  # fmt: skip
            texts = ("\n".join(column) for column in zip(*cells, strict=True))
            rows.append(("\n".join((*line.contrast.place.split(", ", 1), line.agreement)), *texts))
        yield kind, ("contrast", "study", "runs", "judge", "change"), rows


def without_counterpart(studies: Mapping[str, pd.DataFrame], compared: Set[tuple[str, str]], everything: bool) -> Table:
    """How many runs of each study are compared with none, or which, after the most images, by their first judge.

    compared: name of the study and of the run.
    """
    rows: list[Sequence[str]] = []
    for name, table in studies.items():
        points = [point for point in _last(_points(table)) if (name, point.run) not in compared]
        points.sort(key=lambda point: "=" in point.run)  # runs with changes, whose names are long, come last
        judges = {point.run: point.judge for point in reversed(points)}
        first = [point for point in points if point.judge == judges[point.run]]
        if everything:
            rows += [
                (name, point.run, point.judge.extractor, mean_and_range(point.values), _images_of(point))
                for point in first
            ]
        elif points:
            rows.append((name, f"{len(judges):,}"))
    title = "Runs without a counterpart" + ("" if everything else ", which --all lists")
    return title, ("study", "run", "judge", "FID", "images") if everything else ("study", "runs"), rows


def frame(lines: Sequence[Shared], studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The effects as figures/effects.py draws them: a row per contrast, study and judge."""
    import pandas as pd

    data = {name: next(iter(table["data"]), "") for name, table in studies.items()}
    return pd.DataFrame(
        [
            {
                "kind": line.contrast.kind,
                "contrast": line.contrast.place,
                "study": name,
                "data": data[name],
                "runs": effect.behind,
                "judge": effect.comparison.judge,
                "change": effect.change,
                "low": (effect.comparison.decision.interval or (None, None))[0],
                "high": (effect.comparison.decision.interval or (None, None))[1],
                "repeats": effect.comparison.repeats or None,
                "text": str(effect),
                "agreement": line.agreement,
            }
            for line in lines
            for name, found in line.by_study.items()
            for effect in found
        ]
    ).astype({"change": float, "low": float, "high": float, "repeats": "Int64"})


def _images_of(point: Point) -> str:
    return f"{point.images:,}" if point.images else ""


def _verdict(judged: Judged) -> str:
    enough = f"would decide: {judged.enough}" if judged.enough else ""
    facts = "; ".join(filter(None, (judged.repeats, enough)))
    return judged.verdict + (f" ({facts})" if facts else "")


def write_csv(comparison: StudyComparison, path: Path) -> None:
    """Write every line, unmatched ones included, with unrounded numbers."""
    header = ["kind", "run", "metric"]
    header += [f"{name}_{side}" for side in "ab" for name in ("study", "judge", "images", "mean", "min", "max", "runs")]
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, "difference"])
        for line in [*comparison.lines, *comparison.unmatched]:
            cells: list[Any] = [line.point.kind, line.point.run, HEADLINE[line.point.kind]]
            for name, side in zip(comparison.names, SIDES, strict=True):
                point = side(line)
                if point is None:
                    cells += [name, *[""] * 6]
                else:
                    values = point.values
                    cells += [name, point.judge, point.images, mean(values), min(values), max(values), len(values)]
            writer.writerow([*cells, line.difference])


def main(
    studies: Annotated[list[str], tyro.conf.Positional, arg(metavar="STUDY STUDY [STUDY ...]", help_behavior_hint="")],
    markdown_: Annotated[bool, arg(name="markdown")] = False,
    csv_: Annotated[Path | None, arg(name="csv", metavar="FILE", help_behavior_hint="")] = None,
    figure: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    all_: Annotated[bool, arg(name="all")] = False,
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT,
) -> int:
    """Compare studies.

    Two of one scale and data set: their numbers, the order of their runs, the claims, and the settings that differ.
    Two of other scales or data sets: also their effects, such as what alignment changes at each width, in percent with
    intervals. More than two: their effects.

    Args:
        studies: Folders of results/ that hold a table.csv; paper: its published tables; since: systems published later.
        markdown_: Print Markdown.
        csv_: Also write every row of two studies, with unrounded numbers, to this file.
        figure: Also draw the effects: effects.png, effects.pdf and effects.csv in this folder.
        all_: List the runs that have no counterpart; otherwise they are counted.
        out: Folder that holds results/. Default: the checkout.
    """
    try:
        if len(set(studies)) < max(len(studies), 2):
            raise ValueError("name two studies or more, each once")
        if csv_ is not None and len(studies) > 2:
            raise ValueError("--csv takes two studies; --figure writes the effects of several")
        loaded = {name: load_study(name, out / "results") for name in studies}
        message, found = _compared(loaded, csv_, figure, all_)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if markdown_:
        texts = [f"**{title}**\n\n{markdown(header, rows)}" for title, header, rows in found]
        print("\n\n".join([*message, *texts]))
        return 0

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for sentence in message:
        console.print(sentence, markup=False)
    for title, header, rows in found:
        grid = Table(*map(escape, header), box=None, pad_edge=False)
        for number, row in enumerate(rows):
            lines = list(zip_longest(*(cell.split("\n") for cell in row), fillvalue=""))
            for line in lines:  # a row each: what wraps in one column must not shift what stands beside it
                grid.add_row(*map(escape, line))
            if len(lines) > 1 and number < len(rows) - 1:
                grid.add_row()
        console.print(escape(title), style="table.title")  # as a title of the grid it would wrap at its width
        console.print(grid, "")
    return 0


def _compared(
    studies: Mapping[str, pd.DataFrame], csv_: Path | None, figure: Path | None, everything: bool
) -> tuple[list[str], list[Table]]:
    """Sentences and tables on the studies; writes the files that are asked for."""
    message: list[str] = []
    found: list[Table] = []
    used: set[tuple[str, str]] = set()
    names, two = list(studies), len(studies) == 2
    comparison = compare(studies[names[0]], studies[names[1]], (names[0], names[1])) if two else None
    if comparison is not None and csv_ is not None:
        write_csv(comparison, csv_)
    if comparison is not None:
        used |= {(name, line.point.run) for line in comparison.lines for name in names}
        if not comparison.lines:
            message.append(f"No run of {names[0]} matches one of {names[1]}: there are no differences to show.")
    if figure is not None or not two or not alike(studies[names[0]], studies[names[1]]):
        lines = shared({name: effects(table) for name, table in studies.items()})
        used |= {
            (name, run) for line in lines for name, own in line.by_study.items() for one in own for run in one.runs
        }
        message.append(EFFECTS if lines else f"{' and '.join(names)} have no effect in common.")
        found += effect_tables(lines)
        if figure is not None:
            if not lines:
                raise ValueError(message[-1])
            _draw(lines, studies, figure)
    found += tables(comparison) if comparison is not None else ()
    left = without_counterpart(studies, used, everything)
    return message, [*found, *([left] if left[-1] else [])]


def _draw(lines: Sequence[Shared], studies: Mapping[str, pd.DataFrame], folder: Path) -> None:
    from figures import effects as figure
    from figures.render import write

    folder.mkdir(parents=True, exist_ok=True)
    write(figure.draw(frame(lines, studies), list(studies)), folder / figure.NAME)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m study.compare", config=(tyro.conf.FlagCreatePairsOff,)))
