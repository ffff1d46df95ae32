"""Write a study's report from its table, its figures and its picture sheets; the same of these give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

import figures
from figures import rows, wording
from results.files import replacing
from results.runs import of_searches, scored
from results.schema import KINDS
from results.table import load
from study.claims.paper_claims import RULE, Judged, judge_claims
from study.report.html import images, tables
from study.report.html.skeleton import SKELETON

NAME = "report.html"
HEADLINES = ("frontier", "dilemma")  # figures that stand first, the first that there is
SIGNS = {"holds": "✓", "fails": "✗", "undecided": "?", "not measured": "–"}


def write_page(study: Path, drawn: Path, not_drawn: Mapping[str, str] | None = None) -> Path:
    """Write `study`/report.html and return its path.

    Args:
        study: results/<study>, with table.csv and, in so far as they are there, sheets/.
        drawn: folder of the figures as PNG, beside each its CSV and PDF.
        not_drawn: why a figure is not there, by its name.

    Raises:
        ValueError: the table cannot be read.
    """
    path = study / NAME
    text = page(study, drawn, not_drawn or {})
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def page(study: Path, drawn: Path, not_drawn: Mapping[str, str]) -> str:
    """The page as text; see `write_page`."""
    table = load(study / "table.csv")
    trials = of_searches(table)  # so many, and so alike, that their figures say more
    n_trials, table = int(trials.sum()), table[~trials]
    found = _figures(drawn)
    headline = next((name for name in HEADLINES if name in found), next(iter(found), ""))
    others = [name for name in found if name != headline]
    shown = {name: _figure(path, name, study.name) for name, path in found.items()}
    rest = "".join(shown[name] for name in others)
    absent = [f"{escape(name)}: {escape(reason)}" for name, reason in not_drawn.items()]
    digest = hashlib.sha256((study / "table.csv").read_bytes()).hexdigest()
    parts = {  # anchor: heading, content
        "headline": ("Headline", shown.get(headline, "<p>No figure has been drawn.</p>")),
        "claims": ("The paper's claims", _claims(table)),
        "runs": ("Runs", _missing(table) + tables.runs(table) + _trials(n_trials, study.name)),
        "figures": ("Figures", (f'<div class="figures">{rest}</div>' if rest else "") + _list("Not drawn", absent)),
        "samples": ("Samples over training", _samples(table, study / "sheets")),
        "protocol": ("Protocol", tables.protocol(table)),
        "provenance": (
            "Provenance",
            f"<p>Of <code>results/{escape(study.name)}/table.csv</code>, SHA-256 <code>{digest}</code>.</p>"
            + tables.provenance(table),
        ),
        "cost": ("Cost", tables.cost(table)),
    }
    parts = {anchor: part for anchor, part in parts.items() if part[1]}
    return SKELETON.substitute(
        title=f"Study {escape(study.name)}",
        head=_head(table),
        links="\n".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, (title, _) in parts.items()),
        body="\n".join(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n<h2 id="{anchor}-title">{title}</h2>\n'
            f"{content}\n</section>"
            for anchor, (title, content) in parts.items()
        ),
    )


def _head(table: pd.DataFrame) -> str:
    """What was asked of what, and how far it is."""
    asked = sorted({name for cell in table["ablations"] for name in cell.split()})
    sizes = sorted(set(table["resolution"].dropna()))
    data = [wording.DATA.get(name, name) for name in sorted(set(table["data"]) - {""})]
    scales = sorted(set(table["scale"]) - {""})
    facts = [
        f"Ablation{'s' * (len(asked) > 1)} {', '.join(asked)}" if asked else "",
        " and ".join(data) + (f" at {' and '.join(map(str, sizes))} px" if data and sizes else ""),
        f"scale {', '.join(scales)}" if scales else "",
    ]
    counts = [
        f"{table[table['kind'] == kind]['fingerprint'].nunique()} {kind}s"
        for kind in KINDS
        if (table["kind"] == kind).any()
    ]
    states = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts().sort_index().items())
    return (
        f"<p>{escape('; '.join(filter(None, facts)) or 'Nothing was asked')}.</p>\n"
        f'<p class="quiet">{" and ".join(counts) or "No runs"}; rows of the table: {escape(states) or "none"}.</p>'
    )


def _figures(drawn: Path) -> dict[str, Path]:
    """Every PNG under a folder by its place there: figures of the house in their order, then others by name."""
    found = {path.relative_to(drawn).with_suffix("").as_posix(): path for path in drawn.rglob("*.png")}
    house = {name: place for place, name in enumerate(figures.FIGURES)}
    return {name: found[name] for name in sorted(found, key=lambda name: (house.get(name, len(house)), name))}


def _figure(path: Path, name: str, study: str) -> str:
    about = escape(_about(path.stem))
    files = [one for one in (path, path.with_suffix(".pdf"), path.with_suffix(".csv")) if one.exists()]
    place = escape(f"figures/{study}/{name}")
    named = ", ".join(f"<code>{place if n == 0 else ''}{one.suffix}</code>" for n, one in enumerate(files))
    try:
        image = f'<div class="card">{images.figure(path, f"{escape(name)}: {about}")}</div>'
    except images.Unreadable as error:
        image = f"<p>{escape(str(error))}.</p>"
    anchor = escape(f"figure-{name}").replace(" ", "-")
    return f'<figure id="{anchor}">{image}<figcaption>{about} Files: {named}.</figcaption></figure>\n'


def _about(stem: str) -> str:
    """A figure's caption: the first sentence of its module, or its name where it has none of its own."""
    module = stem.partition("-")[0]  # search-sampling: of one space
    if module.isidentifier() and find_spec(f"figures.{module}"):
        words = (import_module(f"figures.{module}").__doc__ or "").split("\n\n")[0]
        return " ".join(words.split())
    return f"{stem.replace('_', ' ').replace('-', ' ')}."


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h3>{title}</h3>\n<ul class='small'>{''.join(f'<li>{line}</li>' for line in lines)}</ul>\n"


def _trials(count: int, study: str) -> str:
    """Where the rows are that searches alone asked for."""
    if not count:
        return ""
    place = f"<code>results/{escape(study)}/search/</code>"
    return f"<p class='small quiet'>{count} rows of searches are in the table alone; of trials see {place}.</p>\n"


def _missing(table: pd.DataFrame) -> str:
    return _list("Without a result", tables.missing(table))


def _claims(table: pd.DataFrame) -> str:
    try:
        judged = judge_claims(table)
    except ValueError as error:
        return f"<p>Not judged: {escape(str(error))}.</p>"
    measured = [one for one in judged if one.places]
    unmeasured: dict[str, list[str]] = {}
    for one in judged:
        if not one.places:
            unmeasured.setdefault(escape(one.claim.where.split(",")[0]), []).append(escape(one.claim.text))
    left = _list("Not measured here", [f"{where}: {'; '.join(texts)}." for where, texts in unmeasured.items()])
    if not measured:
        return f"<p>No claim can be judged by what has been measured.</p>\n{left}"
    body = "\n".join(map(_claim, measured))
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("verdict", "claim", "numbers", "runs"))
    return (
        '<div class="scroll fits claims" tabindex="0" role="region" aria-label="claims">'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
        f'<p class="small quiet">{escape(RULE)}</p>\n{left}'
    )


def _claim(one: Judged) -> str:
    numbers = "".join(f"<p>{escape(line)}</p>" for line in one.numbers())
    sign = f'<span aria-hidden="true">{SIGNS[one.verdict]}</span> {one.verdict}'
    return (
        f'<tr><td class="verdict {one.verdict.split()[0]}">{sign}</td>'
        f'<td class="text">{escape(one.claim.text)} <span class="quiet">({escape(one.claim.where)})</span></td>'
        f'<td class="numbers">{numbers}</td><td>{one.repeats}</td></tr>'
    )


def _samples(table: pd.DataFrame, sheets: Path) -> str:
    """The first samples of every generator, a strip for each number of images seen, with its gFID."""
    rows_ = scored(table)
    drawn = rows_[(rows_["kind"] == "generator") & (rows_["sheet"] != "")]
    if drawn.empty:
        return "<p>No generator has drawn samples yet.</p>"
    if not sheets.is_dir():
        return (
            f"<p>The picture sheets are not here: results/{escape(sheets.parent.name)}/sheets/ is gone. "
            "The last samples of each generator are in the figure samples, where it has been drawn.</p>"
        )
    judges = rows.judges(drawn)
    differs = tables.varied(drawn)
    by_generator: dict[str, dict[tuple[str, str], list[str]]] = {}
    for place in tables.places(drawn, "generator"):
        first = next(iter(place.values()))
        what = [f"{name} {first[name]}" for name in differs if first[name] is not None]
        mark = ", ".join(filter(None, [wording.count(first["images_seen"] or 0), *map(tables.words, what)]))
        scores = " · ".join(wording.value(place[judge]["gfid"]) for judge in judges if judge in place)
        try:
            image = images.strip(sheets, first["sheet"], escape(f"samples of {first['run']} after {mark} images"))
        except images.Unreadable as error:
            image = f"<span>{escape(str(error))}</span>"
        strip = f'<div class="strip"><span class="mark">{escape(mark)}</span>{image}<span>{scores}</span></div>'
        group = by_generator.setdefault(first["generator"], {})
        group.setdefault((first["run"], first["fingerprint"]), []).append(strip)
    parts = []
    for generator, strips in by_generator.items():
        cards = "\n".join(
            f'<figure class="samples"><figcaption>{escape(run)}</figcaption>{"".join(found)}</figure>'
            for (run, _), found in strips.items()
        )
        parts.append(f'<h3>{escape(generator)}</h3>\n<div class="runs-of-samples">{cards}</div>')
    said = escape(" · ".join(wording.judge(judge.extractor, judge.size) for judge in judges))
    return (
        f"<p>The first {images.COLUMNS} samples of each run: left, images seen in training; right, gFID by {said}. "
        "Samples in one column have the same label, and within a run start from the same noise.</p>" + "\n".join(parts)
    )
