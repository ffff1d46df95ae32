"""Tables of the page: runs, protocol, provenance, cost. All text from the results table is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from figures import rows, wording
from results.schema import COLUMNS, KINDS, PROTOCOL, PROVENANCE, TYPES
from study.report.amounts import duration, short_count

JUDGED = ("rfid", "gfid", "sfid", "ifid", "kid", "precision", "recall", "inception_score")  # a number per judge
WITHOUT_JUDGE = ("psnr", "ssim", "perceptual", "density_cv", "gini", "normalized_entropy", "effective_rank")
OF_JUDGE = ("extractor", "extractor_size", "reference", "reference_hash", "comparable", "protocol")
COUNTED = ("rfid", "gfid", "sfid", "ifid", "kid")  # depend on the number of samples
HIGHER = ("psnr", "ssim", "precision", "recall", "inception_score", "normalized_entropy", "effective_rank")
NEUTRAL = ("effective_rank",)
NAMES = {"rfid": "rFID", "gfid": "gFID", "sfid": "sFID", "ifid": "iFID", "kid": "KID", "psnr": "PSNR, dB"} | {
    "ssim": "SSIM", "density_cv": "density CV", "inception_score": "IS", "images_seen": "images seen",
}  # fmt: skip
WHOLE = 54  # characters: longer names of runs are broken into lines
MEANING = {column.name: column.meaning for column in COLUMNS}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of an HTML table: the title on its button, the group heading above it, and a cell for each row."""

    title: str
    group: str = ""
    numeric: bool = True
    cells: Sequence[str]  # <td> or <th>, escaped
    spoken: str = ""  # for a screen reader, if title and group are not enough


def words(name: str) -> str:
    """The readable name of a column of the results table."""
    return NAMES.get(name, name.replace("_", " "))


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Sort rows: narrow latents first, plain before aligned, small generators before large, then by images seen."""
    aligned = table["foundation_model"] != "none"
    by = ["latent_channels", "aligned", "tokenizer", "parameters", "generator", "tokenizer_seed", "seed", "run"]
    return table.assign(aligned=aligned).sort_values([*by, "fingerprint", "images_seen", *PROTOCOL], kind="stable")


def varied(rows_: pd.DataFrame) -> list[str]:
    """The protocol columns in which rows of one kind differ, without those of judges and references."""
    names = [name for name in (*PROTOCOL, "sampling_seed") if name not in OF_JUDGE and name != "samples"]
    return [name for name in names if rows_[name].nunique() > 1]


def places(table: pd.DataFrame, kind: str) -> list[dict[rows.Judge, dict[Any, Any]]]:
    """Rows of one kind, grouped so that all judges of the same pictures are together; a missing cell is None."""
    chosen = ordered(table[table["kind"] == kind])
    if chosen.empty:
        return []
    key = ["fingerprint", "images_seen", "samples", *varied(chosen)]
    count = chosen.groupby([*key, "extractor", "extractor_size"], dropna=False).cumcount()  # > 0: another reference
    plain = chosen.astype(object).where(chosen.notna(), None)
    groups = []
    for _, group in plain.groupby([*(chosen[name] for name in key), count], dropna=False, sort=False):
        groups.append({rows.Judge(row["extractor"], row["extractor_size"]): row for row in group.to_dict("records")})
    return groups


def text(value: Any, name: str = "") -> str:
    """A cell as text, escaped; empty if it is missing."""
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if TYPES.get(name) == "int" else escape(str(value))


def number(value: float | None, comparable: bool | None = True) -> str:
    """A <td> with three digits, which is sorted by seven."""
    if value is None:
        return '<td class="n"></td>'
    mark = "" if comparable is not False else "†"
    return f'<td class="n" data-v="{value:.7g}">{wording.value(value)}{mark}</td>'


def runs(table: pd.DataFrame) -> str:
    """The form that filters and a sortable table for each kind of run."""
    tables = "".join(_runs(table, kind) for kind in KINDS)
    dagger = "<p class='small quiet'>† not comparable: fewer samples than twice the judge's feature width.</p>"
    return _controls(table) + tables + (dagger if "†" in tables else "")


def _controls(table: pd.DataFrame) -> str:
    parts = ['<label>Search<input type="search" name="words" placeholder="words of a row"></label>']
    for name, title in (("tokenizer",) * 2, ("generator",) * 2, ("state",) * 2, ("ablations", "asked by")):
        values = ordered(table)[name].drop_duplicates().tolist()
        if name == "ablations":
            values = sorted({one for cell in values for one in cell.split()})
        values = [value for value in values if value]
        if len(values) > 1:
            options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
            parts.append(f'<label>{title}<select name="{name}"><option value="">all</option>{options}</select></label>')
    if table[table["kind"] == "generator"].groupby("fingerprint")["images_seen"].nunique().gt(1).any():
        parts.append('<label class="box"><input type="checkbox" name="last">only after the last image</label>')
    parts.append('<button type="reset">Show all</button><output id="shown" class="small quiet"></output>')
    return f'<form id="filter" class="controls" aria-label="Filter the runs">{"".join(parts)}</form>'


def _runs(table: pd.DataFrame, kind: str) -> str:
    found = places(table, kind)
    if not found:
        return ""
    mine = table[table["kind"] == kind]
    first = [next(iter(place.values())) for place in found]
    names = [_name(row["run"]) for row in first]
    columns = [Column(title=kind, numeric=False, cells=names)]
    if (mine["state"] != "done").any():
        states = [text(row["state"]) + (f": {text(row['reason'])}" if row["reason"] else "") for row in first]
        columns.append(Column(title="state", numeric=False, cells=[f"<td>{state}</td>" for state in states]))
    shown = ["ablations"] if mine["ablations"].nunique() > 1 else []
    shown += [name for name in ("labels", "given_weights") if (mine[name] != "").any()]
    for name in [*shown, "images_seen", *varied(mine)]:
        cells = [_cell(row[name], name) for row in first]
        title = "asked by" if name == "ablations" else words(name)
        columns.append(Column(title=title, numeric=TYPES[name] in ("int", "float"), cells=cells))
    for name in WITHOUT_JUDGE:
        if mine[name].notna().any():
            columns.append(Column(title=_better(name, words(name)), cells=[number(row[name]) for row in first]))
    judges = rows.judges(mine)
    for name in JUDGED:
        for judge in judges:
            scores = judge.of(mine)
            if scores[name].notna().any():
                samples = [int(n) for n in scores["samples"].dropna()] if name in COUNTED else []
                metric = _better(name, wording.counted(words(name), samples))
                which = escape(wording.judge(judge.extractor, judge.size))
                cells = [_score(place.get(judge), name) for place in found]
                title = re.sub("(?<=@) | (?=px)", "&nbsp;", which)  # '@ 64 px' stays on one line
                columns.append(Column(title=title, group=metric, cells=cells, spoken=f"{metric}, {which}"))
    last = mine.groupby("fingerprint")["images_seen"].max().to_dict()
    heads = [_row_data(row, last) for row in first]
    return _table(kind.capitalize(), columns, heads, "filtered", "runs")


def _name(run: str) -> str:
    """The <th> of a row; only a long name of a run is broken into lines."""
    whole = ' class="whole"' if len(run) <= WHOLE else ""
    return f'<th scope="row"{whole}>{escape(run)}</th>'


def _row_data(row: dict[Any, Any], last: dict[Any, Any]) -> str:
    """Attributes that the form filters by."""
    names = ("tokenizer", "generator", "state", "ablations")
    data = "".join(f' data-{name}="{escape(str(row[name]))}"' for name in names if row[name])
    return data + (" data-last" if row["images_seen"] == last.get(row["fingerprint"]) else "")


def _score(row: dict[Any, Any] | None, name: str) -> str:
    return number(None) if row is None else number(row[name], row["comparable"])


def _cell(value: Any, name: str) -> str:
    if TYPES[name] not in ("int", "float"):
        return f"<td>{text(value, name)}</td>"
    return number(None) if value is None else f'<td class="n" data-v="{value}">{text(value, name)}</td>'


def _better(name: str, title: str) -> str:
    return title if name in NEUTRAL else f"{title}&nbsp;{'↑' if name in HIGHER else '↓'}"


def _table(caption: str, columns: Sequence[Column], heads: Sequence[str], kind: str, box: str) -> str:
    """A sortable table in a scrolling box, with a second line of headings if columns have groups."""
    top, below = [], []
    grouped = any(column.group for column in columns)
    for place, column in enumerate(columns):
        label = f' aria-label="sort by {column.spoken}"' if column.spoken else ""
        button = f'<button type="button" data-column="{place}"{label}>{column.title}</button>'
        begins = bool(column.group) and (not place or columns[place - 1].group != column.group)
        classes = " ".join(["n"] * column.numeric + ["group"] * begins + ["corner"] * (place == 0))
        head = f'<th scope="col" class="{classes}"{{}}>{button}</th>'
        if not column.group:
            top.append(head.format(' rowspan="2"' if grouped else ""))
            continue
        if begins:
            width = sum(other.group == column.group for other in columns)
            top.append(f'<th scope="colgroup" class="group" colspan="{width}">{column.group}</th>')
        below.append(head.format(""))
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in (top, below) if cells)
    body = "\n".join(f"<tr{head}>{''.join(column.cells[i] for column in columns)}</tr>" for i, head in enumerate(heads))
    return (
        f'<div class="scroll fits {box}" tabindex="0" role="region" aria-label="{caption or columns[0].title}s">\n'
        f'<table class="sortable {kind}">{f"<caption>{caption}s</caption>" if caption else ""}\n'
        f"<thead>{lines}</thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def missing(table: pd.DataFrame) -> list[str]:
    """A line for every run without a result and the cause, escaped."""
    unfinished = ordered(table[table["state"] != "done"])
    lines = []
    for _, group in unfinished.groupby(["fingerprint", "state", "reason", "log"], sort=False):
        row = group.iloc[0]
        state, reason = row["state"], row["reason"]
        why = escape(reason if reason.startswith(state) else f"{state}: {reason}".removesuffix(": "))
        marks = ", ".join(f"{mark:,}" for mark in sorted(set(group["images_seen"].dropna())))
        after = f" after {marks} images" if row["kind"] == "generator" and marks else ""
        where = f' <span class="quiet">Log: <code>{escape(row["log"])}</code></span>' if row["log"] else ""
        lines.append(f"{escape(row['run'])} ({row['kind']}){after}: <strong>{why}</strong>{where}")
    return lines


def protocol(table: pd.DataFrame) -> str:
    """The protocol of the numbers: the values of every field, for each kind of run."""
    return _facts(table, ("data", "resolution", *PROTOCOL))


def provenance(table: pd.DataFrame) -> str:
    """The provenance of the numbers: the values of every field, for each kind of run."""
    names = [name for name in PROVENANCE if name not in ("data", "resolution")]
    return _facts(table, ("tokenizer_seed", "seed", *names))


def _facts(table: pd.DataFrame, names: Iterable[str]) -> str:
    """A table of the values of finished rows; several values are listed in one cell."""
    done = table[table["state"] == "done"]
    kinds = [kind for kind in KINDS if (done["kind"] == kind).any()]
    body = []
    for name in names:
        values = [list(_values(done[done["kind"] == kind], name)) for kind in kinds]
        if any(values):
            cells = "".join(f'<td class="values">{"<br>".join(found)}</td>' for found in values)
            meaning = escape(MEANING[name])
            body.append(f'<tr><th scope="row">{words(name)}</th><td class="quiet">{meaning}</td>{cells}</tr>')
    if not body:
        return "<p>Nothing has been measured yet.</p>"
    heads = "".join(f'<th scope="col">{kind}s</th>' for kind in kinds)
    lines = "\n".join(body)
    return (
        '<div class="scroll fits" tabindex="0" role="region" aria-label="fields and values"><table>'
        f'<thead><tr><th scope="col">field</th><th scope="col">meaning</th>{heads}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _values(rows_: pd.DataFrame, name: str) -> Iterator[str]:
    found = rows_[name].drop_duplicates()
    for value in sorted(value for value in found if not pd.isna(value) and value != ""):
        yield text(value, name)


def cost(table: pd.DataFrame) -> str:
    """The cost of trainings and judgements: totals in a sentence, and a row for each network."""
    started = ordered(table[table["train_seconds"].notna() | table["evaluate_seconds"].notna()])
    if started.empty:
        return "<p>Nothing has been trained or judged here yet.</p>"
    trained = started.drop_duplicates("fingerprint")
    # the rows of all judges of the same pictures have the same seconds
    judged = started.drop_duplicates(["fingerprint", "images_seen", "samples", "sheet", "evaluate_seconds"])
    groups = [group for _, group in trained.groupby(["kind", "tokenizer", "generator"], sort=False)]
    first = [group.iloc[0] for group in groups]
    networks = [" + ".join(filter(None, (row["tokenizer"], row["generator"]))) for row in first]
    images = table.groupby("fingerprint")["images_seen"].max()
    flops = [group["flops_per_image"] * group["fingerprint"].map(images) for group in groups]
    seconds = judged.groupby("fingerprint")["evaluate_seconds"].sum(min_count=1)
    measured: list[tuple[str, list[float], Callable[[float], str]]] = [
        ("runs", [len(group) for group in groups], str),
        ("parameters", [group["parameters"].max() for group in groups], short_count),
        ("training FLOPs of one", [one.mean() for one in flops], short_count),
        ("training of one", [group["train_seconds"].mean() for group in groups], duration),
        ("images/s", [group["train_images_per_second"].mean() for group in groups], "{:,.0f}".format),
        ("peak memory, GiB", [group["peak_memory_gib"].max() for group in groups], "{:.2f}".format),
        ("judging of one", [group["fingerprint"].map(seconds).mean() for group in groups], duration),
    ]
    columns = [Column(title="network", numeric=False, cells=[_name(name) for name in networks])]
    for title, values, say in measured:
        columns.append(Column(title=title, cells=[_amount(value, say) for value in values]))
    training, judging = trained["train_seconds"].sum(), judged["evaluate_seconds"].sum()
    return (
        f"<p>Training took <strong>{duration(training)}</strong> and judging <strong>{duration(judging)}</strong>, "
        f"summed over {len(trained)} runs, several of which may have run at once. Encoding of latents, and what was "
        "cut off and done again, is not counted.</p>" + _table("", columns, [""] * len(groups), "", "runs")
    )


def _amount(value: Any, say: Callable[[float], str]) -> str:
    return number(None) if pd.isna(value) else f'<td class="n" data-v="{float(value):.7g}">{say(value)}</td>'
