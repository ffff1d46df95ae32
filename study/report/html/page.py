"""Write a study's report from its table, figures and picture sheets; the same inputs give the same bytes."""

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
HEADLINES = ("frontier", "dilemma")  # candidates for the headline figure; the first that exists is shown
SIGNS = {"holds": "✓", "fails": "✗", "undecided": "?", "not measured": "–"}


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
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def page(study: Path, drawn: Path, not_drawn: Mapping[str, str]) -> str:
    """The page as text; see `write_page`."""
    table = load(study / "table.csv")
    trials = of_searches(table)  # not listed: they are many and alike, and shown in their own figures
    n_trials, table = int(trials.sum()), table[~trials]
    paths = _figures(drawn)
    headline = next((name for name in HEADLINES if name in paths), next(iter(paths), ""))
    others = [name for name in paths if name != headline]
    blocks = {name: _figure(path, name, study.name) for name, path in paths.items()}
    rest = "".join(blocks[name] for name in others)
    absent = [f"{escape(name)}: {escape(reason)}" for name, reason in not_drawn.items()]
    digest = hashlib.sha256((study / "table.csv").read_bytes()).hexdigest()
    sections = {  # anchor: heading, content
        "headline": ("Headline", blocks.get(headline, "<p>No figure has been drawn.</p>")),
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
    sections = {anchor: section for anchor, section in sections.items() if section[1]}
    return SKELETON.substitute(
        title=f"Study {escape(study.name)}",
        head=_head(table),
        links="\n".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, (title, _) in sections.items()),
        body="\n".join(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n<h2 id="{anchor}-title">{title}</h2>\n'
            f"{content}\n</section>"
            for anchor, (title, content) in sections.items()
        ),
    )


def _head(table: pd.DataFrame) -> str:
    """The head of the page: ablations, data, scale, and how many rows have which state."""
    ablations = sorted({name for cell in table["ablations"] for name in cell.split()})
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
    return (
        f"<p>{escape('; '.join(filter(None, facts)) or 'Nothing was asked')}.</p>\n"
        f'<p class="quiet">{" and ".join(counts) or "No runs"}; rows of the table: {escape(states) or "none"}.</p>'
    )


def _figures(drawn: Path) -> dict[str, Path]:
    """Every PNG under a folder by its path without suffix: figures of FIGURES in their order, then others by name."""
    paths = {path.relative_to(drawn).with_suffix("").as_posix(): path for path in drawn.rglob("*.png")}
    order = {name: position for position, name in enumerate(figures.FIGURES)}
    return {name: paths[name] for name in sorted(paths, key=lambda name: (order.get(name, len(order)), name))}


def _figure(path: Path, name: str, study: str) -> str:
    caption = escape(_caption(path.stem))
    files = [file for file in (path, path.with_suffix(".pdf"), path.with_suffix(".csv")) if file.exists()]
    stem = escape(f"figures/{study}/{name}")
    file_names = ", ".join(f"<code>{stem if n == 0 else ''}{file.suffix}</code>" for n, file in enumerate(files))
    try:
        image = f'<div class="card">{images.figure(path, f"{escape(name)}: {caption}")}</div>'
    except images.Unreadable as error:
        image = f"<p>{escape(str(error))}.</p>"
    anchor = escape(f"figure-{name}").replace(" ", "-")
    return f'<figure id="{anchor}">{image}<figcaption>{caption} Files: {file_names}.</figcaption></figure>\n'


def _caption(stem: str) -> str:
    """A figure's caption: the first paragraph of its module's docstring, or the figure's name if it has no module."""
    module = stem.partition("-")[0]  # search-sampling is drawn by search
    if module.isidentifier() and find_spec(f"figures.{module}"):
        words = (import_module(f"figures.{module}").__doc__ or "").split("\n\n")[0]
        return " ".join(words.split())
    return f"{stem.replace('_', ' ').replace('-', ' ')}."


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h3>{title}</h3>\n<ul class='small'>{''.join(f'<li>{line}</li>' for line in lines)}</ul>\n"


def _trials(count: int, study: str) -> str:
    """A sentence on where to find the rows that belong only to searches."""
    if not count:
        return ""
    folder = f"<code>results/{escape(study)}/search/</code>"
    return f"<p class='small quiet'>{count} rows of searches are in the table alone; of trials see {folder}.</p>\n"


def _missing(table: pd.DataFrame) -> str:
    return _list("Without a result", tables.missing(table))


def _claims(table: pd.DataFrame) -> str:
    try:
        judged = judge_claims(table)
    except ValueError as error:
        return f"<p>Not judged: {escape(str(error))}.</p>"
    measured = [claim for claim in judged if claim.places]
    unmeasured: dict[str, list[str]] = {}
    for claim in judged:
        if not claim.places:
            unmeasured.setdefault(escape(claim.claim.where.split(",")[0]), []).append(escape(claim.claim.text))
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


def _claim(judged: Judged) -> str:
    numbers = "".join(f"<p>{escape(line)}</p>" for line in judged.numbers())
    sign = f'<span aria-hidden="true">{SIGNS[judged.verdict]}</span> {judged.verdict}'
    return (
        f'<tr><td class="verdict {judged.verdict.split()[0]}">{sign}</td>'
        f'<td class="text">{escape(judged.claim.text)} <span class="quiet">({escape(judged.claim.where)})</span></td>'
        f'<td class="numbers">{numbers}</td><td>{judged.repeats}</td></tr>'
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
        settings = [f"{name} {first[name]}" for name in differs if first[name] is not None]
        mark = ", ".join(filter(None, [wording.count(first["images_seen"] or 0), *map(tables.words, settings)]))
        scores = " · ".join(wording.value(place[judge]["gfid"]) for judge in judges if judge in place)
        try:
            image = images.strip(sheets, first["sheet"], escape(f"samples of {first['run']} after {mark} images"))
        except images.Unreadable as error:
            image = f"<span>{escape(str(error))}</span>"
        strip = f'<div class="strip"><span class="mark">{escape(mark)}</span>{image}<span>{scores}</span></div>'
        group = by_generator.setdefault(first["generator"], {})
        group.setdefault((first["run"], first["fingerprint"]), []).append(strip)
    blocks = []
    for generator, by_run in by_generator.items():
        cards = "\n".join(
            f'<figure class="samples"><figcaption>{escape(run)}</figcaption>{"".join(strips)}</figure>'
            for (run, _), strips in by_run.items()
        )
        blocks.append(f'<h3>{escape(generator)}</h3>\n<div class="runs-of-samples">{cards}</div>')
    names = escape(" · ".join(wording.judge(judge.extractor, judge.size) for judge in judges))
    return (
        f"<p>The first {images.COLUMNS} samples of each run: left, images seen in training; right, gFID by {names}. "
        "Samples in one column have the same label, and within a run start from the same noise.</p>" + "\n".join(blocks)
    )
