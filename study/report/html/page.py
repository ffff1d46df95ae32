"""Write a study's report from its table, figures and picture sheets; the same inputs give the same bytes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import figures
from figures import rows, wording
from results.files import atomic
from results.numbers import count, three_digits
from results.runs import of_searches, scored
from results.schema import KINDS
from results.table import load
from study.claims.paper_claims import RULE, Judged, judge_claims
from study.report.html import images, tables

NAME = "report.html"
HEADLINES = ("frontier", "dilemma")  # candidates for the headline figure; the first that exists is shown
TEMPLATES = Path(__file__).with_name("templates")
ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The head of the page in two sentences."""

    asked: str  # ablations, data and scale
    counted: str  # how many runs there are of each kind, and how many rows have which state


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the study, by its path in the folder of figures, without suffix."""

    name: str
    caption: str
    files: Sequence[str]  # the path of the first, the suffixes of the others
    picture: images.Picture | None
    problem: str = ""  # why there is no picture


@dataclass(frozen=True)
class Claims:
    """The paper's claims: those that the study's numbers judge, and texts of the others by where they stand."""

    measured: Sequence[Judged] = ()
    not_measured: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problem: str = ""  # why none is judged


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The first samples of a generator after a number of images seen, and gFID by each judge."""

    mark: str
    picture: images.Picture | None
    problem: str = ""  # why there is no picture
    scores: Sequence[str]


@dataclass(frozen=True)
class Samples:
    """Strips of every run by generator, a run being its name and fingerprint; and names of the judges."""

    by_generator: Mapping[str, Mapping[tuple[str, str], Sequence[Strip]]] = field(default_factory=dict)
    judges: Sequence[str] = ()
    problem: str = ""  # why there are no strips


def write_page(study: Path, drawn: Path, not_drawn: Mapping[str, str] | None = None) -> Path:
    """Write `study`/report.html and return its path.

    Args:
        study: results/<study>, with table.csv and, if there are any, sheets/.
        drawn: folder of the figures as PNG, each with its CSV and PDF.
        not_drawn: figure name: why it was not drawn.

    Raises:
        ValueError: the table cannot be read.
    """
    path = study / NAME
    text = page(study, drawn, not_drawn or {})
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def page(study: Path, drawn: Path, not_drawn: Mapping[str, str]) -> str:
    """The page as text; see `write_page`."""
    table = load(study / "table.csv")
    trials = of_searches(table)  # not listed: they are many and alike, and shown in their own figures
    n_trials, table = int(trials.sum()), table[~trials]
    shown = {name: _figure(path, name, study.name) for name, path in _figures(drawn).items()}
    headline = next((name for name in HEADLINES if name in shown), next(iter(shown), ""))
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    return ENVIRONMENT.get_template("page.html").render(
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        study=study.name,
        summary=_summary(table),
        headline=shown.pop(headline, None),
        claims=_claims(table),
        rule=RULE,
        runs=tables.runs(table),
        n_trials=n_trials,
        figures=list(shown.values()),
        not_drawn=not_drawn,
        samples=_samples(table, study / "sheets"),
        strip_length=images.COLUMNS,
        protocol=tables.protocol(table),
        digest=hashlib.sha256((study / "table.csv").read_bytes()).hexdigest(),
        provenance=tables.provenance(table),
        cost=tables.cost(table),
    )


def _hash(text: str) -> str:
    """SHA-256 as the page's security policy names a style or a script that it allows."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _summary(table: pd.DataFrame) -> Summary:
    ablations = tables.asked_by(table)
    sizes = sorted(set(table["resolution"].dropna()))
    data = [wording.DATA.get(name, name) for name in sorted(set(table["data"]) - {""})]
    scales = sorted(set(table["scale"]) - {""})
    facts = [
        f"Ablation{'s' * (len(ablations) > 1)} {', '.join(ablations)}" if ablations else "",
        " and ".join(data) + (f" at {' and '.join(map(str, sizes))} px" if data and sizes else ""),
        f"scale {', '.join(scales)}" if scales else "",
    ]
    counts = [
        f"{table[table['kind'] == kind]['fingerprint'].nunique()} {kind}s"
        for kind in KINDS
        if (table["kind"] == kind).any()
    ]
    states = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts().sort_index().items())
    return Summary(
        asked=f"{'; '.join(filter(None, facts)) or 'Nothing was asked'}.",
        counted=f"{' and '.join(counts) or 'No runs'}; rows of the table: {states or 'none'}.",
    )


def _figures(drawn: Path) -> dict[str, Path]:
    """Every PNG under a folder by its path without suffix: figures of FIGURES in their order, then others by name."""
    paths = {path.relative_to(drawn).with_suffix("").as_posix(): path for path in drawn.rglob("*.png")}
    order = {name: position for position, name in enumerate(figures.FIGURES)}
    return {name: paths[name] for name in sorted(paths, key=lambda name: (order.get(name, len(order)), name))}


def _figure(path: Path, name: str, study: str) -> Figure:
    suffixes = [file.suffix for file in (path, path.with_suffix(".pdf"), path.with_suffix(".csv")) if file.exists()]
    files = [f"figures/{study}/{name}{suffixes[0]}", *suffixes[1:]]
    try:
        return Figure(name=name, caption=_caption(path.stem), files=files, picture=images.figure(path))
    except images.Unreadable as error:
        return Figure(name=name, caption=_caption(path.stem), files=files, picture=None, problem=str(error))


def _caption(stem: str) -> str:
    """A figure's caption: the first paragraph of its module's docstring, or the figure's name if it has no module."""
    module = stem.partition("-")[0]  # search-sampling is drawn by search
    if module.isidentifier() and find_spec(f"figures.{module}"):
        words = (import_module(f"figures.{module}").__doc__ or "").split("\n\n")[0]
        return " ".join(words.split())
    return f"{stem.replace('_', ' ').replace('-', ' ')}."


def _claims(table: pd.DataFrame) -> Claims:
    try:
        judged = judge_claims(table)
    except ValueError as error:
        return Claims(problem=f"Not judged: {error}.")
    not_measured: dict[str, list[str]] = {}
    for one in judged:
        if not one.places:
            not_measured.setdefault(one.claim.where.split(",")[0], []).append(one.claim.text)
    return Claims([one for one in judged if one.places], not_measured)


def _samples(table: pd.DataFrame, sheets: Path) -> Samples:
    """The first samples of every generator, a strip for each number of images seen."""
    rows_ = scored(table)
    drawn = rows_[(rows_["kind"] == "generator") & (rows_["sheet"] != "")]
    if drawn.empty:
        return Samples(problem="No generator has drawn samples yet.")
    if not sheets.is_dir():
        return Samples(
            problem=f"The picture sheets are not here: results/{sheets.parent.name}/sheets/ is gone. "
            "The last samples of each generator are in the figure samples, where it has been drawn."
        )
    judges = rows.judges(drawn)
    differs = tables.varied(drawn)
    by_generator: dict[str, dict[tuple[str, str], list[Strip]]] = {}
    for place in tables.places(drawn, "generator"):
        first = next(iter(place.values()))
        settings = [f"{name} {first[name]}" for name in differs if first[name] is not None]
        mark = ", ".join(filter(None, [count(first["images_seen"] or 0), *map(tables.words, settings)]))
        scores = [three_digits(place[judge]["gfid"]) for judge in judges if judge in place]
        try:
            strip = Strip(mark=mark, picture=images.strip(sheets, first["sheet"]), scores=scores)
        except images.Unreadable as error:
            strip = Strip(mark=mark, picture=None, problem=str(error), scores=scores)
        by_run = by_generator.setdefault(first["generator"], {})
        by_run.setdefault((first["run"], first["fingerprint"]), []).append(strip)
    return Samples(by_generator, [wording.judge(judge.extractor, judge.size) for judge in judges])
