"""Tables of the page as data: runs, protocol, provenance, cost. Their text is not escaped: the templates do that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from figures import rows, wording
from results.numbers import count, duration, three_digits
from results.schema import COLUMNS, KINDS, PROTOCOL, PROVENANCE, TYPES
from study.plan.warnings import reconstruction_warnings

JUDGED = (  # a number per judge
    "rfid", "gfid", "sfid", "ifid", "ifid_released", "kid", "precision", "recall", "inception_score",
)  # fmt: skip
WITHOUT_JUDGE = (
    "psnr", "ssim", "perceptual", "colour_shift", "chroma_r2",
    "density_cv", "gini", "normalized_entropy", "effective_rank",
    "viv", "lnc_5", "lnc_10", "sec_25", "sec_50", "lds", "cds", "eq_error",
)  # fmt: skip
OF_JUDGE = ("extractor", "extractor_size", "reference", "reference_hash", "comparable", "protocol")
COUNTED = ("rfid", "gfid", "sfid", "ifid", "ifid_released", "kid")  # depend on the number of samples
HIGHER = (
    "psnr", "ssim", "chroma_r2", "precision", "recall", "inception_score", "normalized_entropy", "effective_rank",
    "lnc_5", "lnc_10", "lds", "cds",
)  # fmt: skip
NEUTRAL = ("effective_rank",)
NAMES = {"rfid": "rFID", "gfid": "gFID", "sfid": "sFID", "ifid": "iFID", "kid": "KID", "psnr": "PSNR, dB"} | {
    "colour_shift": "colour shift, 1/255", "chroma_r2": "chroma R²",
    "ssim": "SSIM", "density_cv": "density CV", "inception_score": "IS", "images_seen": "images seen",
    "ablations": "asked by", "ifid_released": "iFID as released", "viv": "VIV", "lnc_5": "LNC, 5", "lnc_10": "LNC, 10",
    "sec_25": "SEC, 0.25", "sec_50": "SEC, 0.5", "lds": "LDS", "cds": "CDS", "eq_error": "EQ error",
}  # fmt: skip
MEANING = {column.name: column.meaning for column in COLUMNS}


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table. It is sorted by the number `sort_by`, given as text, or else by its own text."""

    text: str = ""
    sort_by: str = ""
    comparable: bool = True  # False: with a mark


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a sortable table: the title on its button, the group's heading above it, and a cell for each row."""

    title: str
    group: str = ""
    better: str = ""  # ↑ or ↓, after the name of a metric: the group, or the title if there is no group
    numeric: bool = True
    cells: Sequence[Cell]


@dataclass(frozen=True)
class SortableTable:
    """Columns, the first of which names the rows, and for each row the data attributes by which the filters choose."""

    columns: Sequence[Column]
    row_data: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Filter:
    """A choice among the values of a column."""

    name: str
    title: str
    options: Sequence[str]


@dataclass(frozen=True)
class Unfinished:
    """A run without a result."""

    run: str
    kind: str
    marks: str  # numbers of images seen, after which a result is missing
    reason: str
    log: str


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs, a table for each kind, with what filters them."""

    unfinished: Sequence[Unfinished]
    warnings: Sequence[str]  # what is amiss with finished tokenizers
    filters: Sequence[Filter]
    several_marks: bool  # a generator was judged after several numbers of images
    tables: Mapping[str, SortableTable]  # by kind
    all_comparable: bool


@dataclass(frozen=True)
class Field:
    """A column of the results table, and its values in finished rows of each kind."""

    name: str
    meaning: str
    values: Sequence[Sequence[str]]


@dataclass(frozen=True)
class FieldTable:
    """Values of several columns of the results table, for each kind of run that has finished rows."""

    kinds: Sequence[str]
    fields: Sequence[Field]


@dataclass(frozen=True)
class Cost:
    """The cost of trainings and judgements: totals, and a row for each network."""

    training: str
    judging: str
    n_runs: int
    table: SortableTable


def words(name: str) -> str:
    """The readable name of a column of the results table."""
    return NAMES.get(name, name.replace("_", " "))


def asked_by(table: pd.DataFrame) -> list[str]:
    """Names of the ablations that asked for any of these rows."""
    return sorted({name for names in table["ablations"] for name in names})


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


def text(value: Any, name: str) -> str:
    """A value of a column as text; empty if it is missing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return (" " if name == "ablations" else "; ").join(map(str, value))
    return f"{value:,}" if TYPES[name] == "int" else str(value)


def runs(table: pd.DataFrame) -> Runs:
    """All runs of a study."""
    tables = {kind: _runs(table, kind) for kind in KINDS if (table["kind"] == kind).any()}
    cells = (cell for shown in tables.values() for column in shown.columns for cell in column.cells)
    generators = table[table["kind"] == "generator"]
    return Runs(
        unfinished=_unfinished(table),
        warnings=_warnings(table),
        filters=_filters(table),
        several_marks=bool(generators.groupby("fingerprint")["images_seen"].nunique().gt(1).any()),
        tables=tables,
        all_comparable=all(cell.comparable for cell in cells),
    )


def _unfinished(table: pd.DataFrame) -> list[Unfinished]:
    unfinished = ordered(table[table["state"] != "done"])
    found = []
    for _, group in unfinished.groupby(["fingerprint", "state", "reason", "log"], sort=False):
        row = group.iloc[0]
        state, reason = row["state"], row["reason"]
        why = reason if reason.startswith(state) else f"{state}: {reason}".removesuffix(": ")
        marks = sorted(set(group["images_seen"].dropna())) if row["kind"] == "generator" else []
        found.append(Unfinished(row["run"], row["kind"], ", ".join(f"{mark:,}" for mark in marks), why, row["log"]))
    return found


def _warnings(table: pd.DataFrame) -> list[str]:
    done = ordered(table[(table["kind"] == "tokenizer") & (table["state"] == "done")])
    lines = []
    for row in done.astype(object).where(done.notna(), None).to_dict("records"):
        pretrained = row["pretrained_weights"] != ""
        found = reconstruction_warnings(psnr=row["psnr"], colour_shift=row["colour_shift"], pretrained=pretrained)
        lines += [f"{row['run']}: {line}" for line in found]
    return list(dict.fromkeys(lines))  # the rows of all judges say the same


def _filters(table: pd.DataFrame) -> list[Filter]:
    """A filter for each of these columns that has several values."""
    values = {name: ordered(table)[name].drop_duplicates().tolist() for name in ("tokenizer", "generator", "state")}
    values["ablations"] = asked_by(table)
    options = {name: [value for value in found if value] for name, found in values.items()}
    return [Filter(name, words(name), found) for name, found in options.items() if len(found) > 1]


def _runs(table: pd.DataFrame, kind: str) -> SortableTable:
    found = places(table, kind)
    mine = table[table["kind"] == kind]
    first = [next(iter(place.values())) for place in found]
    columns = [Column(title=kind, numeric=False, cells=[Cell(row["run"]) for row in first])]
    if (mine["state"] != "done").any():
        states = [row["state"] + (f": {row['reason']}" if row["reason"] else "") for row in first]
        columns.append(Column(title="state", numeric=False, cells=[Cell(state) for state in states]))
    shown = ["ablations"] if mine["ablations"].nunique() > 1 else []
    shown += [name for name in ("labels", "pretrained_weights") if mine[name].map(bool).any()]
    for name in [*shown, "images_seen", *varied(mine)]:
        numeric = TYPES[name] in ("int", "float")
        columns.append(Column(title=words(name), numeric=numeric, cells=[_cell(row[name], name) for row in first]))
    for name in WITHOUT_JUDGE:
        if mine[name].notna().any():
            columns.append(Column(title=words(name), better=_better(name), cells=[_number(row[name]) for row in first]))
    judges = rows.judges(mine)
    for name in JUDGED:
        for judge in judges:
            scores = judge.of(mine)
            if scores[name].notna().any():
                samples = [int(n) for n in scores["samples"].dropna()] if name in COUNTED else []
                column = Column(
                    title=wording.judge(judge.extractor, judge.size),
                    group=wording.counted(words(name), samples),
                    better=_better(name),
                    cells=[_score(place.get(judge), name) for place in found],
                )
                columns.append(column)
    last = mine.groupby("fingerprint")["images_seen"].max().to_dict()
    return SortableTable(columns, [_row_data(row, last) for row in first])


def _row_data(row: dict[Any, Any], last: dict[Any, Any]) -> dict[str, str]:
    """What the filters choose by; `last` is there, without a value, after the last number of images."""
    data = {name: text(row[name], name) for name in ("tokenizer", "generator", "state", "ablations") if row[name]}
    return data | ({"last": ""} if row["images_seen"] == last.get(row["fingerprint"]) else {})


def _cell(value: Any, name: str) -> Cell:
    numeric = TYPES[name] in ("int", "float") and value is not None
    return Cell(text(value, name), str(value) if numeric else "")


def _score(row: dict[Any, Any] | None, name: str) -> Cell:
    return Cell() if row is None else _number(row[name], comparable=row["comparable"] is not False)


def _number(value: float | None, comparable: bool = True) -> Cell:
    """A metric with three digits, which is sorted by seven."""
    return Cell() if value is None else Cell(three_digits(value), f"{value:.7g}", comparable)


def _better(name: str) -> str:
    return "" if name in NEUTRAL else "↑" if name in HIGHER else "↓"


def protocol(table: pd.DataFrame) -> FieldTable:
    """The protocol of the numbers: the values of every field, for each kind of run."""
    return _field_table(table, ("data", "resolution", *PROTOCOL))


def provenance(table: pd.DataFrame) -> FieldTable:
    """The provenance of the numbers: the values of every field, for each kind of run."""
    names = [name for name in PROVENANCE if name not in ("data", "resolution")]
    return _field_table(table, ("tokenizer_seed", "seed", *names))


def _field_table(table: pd.DataFrame, names: Iterable[str]) -> FieldTable:
    done = table[table["state"] == "done"]
    kinds = [kind for kind in KINDS if (done["kind"] == kind).any()]
    fields = [
        Field(words(name), MEANING[name], [list(_values(done[done["kind"] == kind], name)) for kind in kinds])
        for name in names
    ]
    return FieldTable(kinds, [field for field in fields if any(field.values)])


def _values(rows_: pd.DataFrame, name: str) -> Iterator[str]:
    found = [value for value in rows_[name].dropna().drop_duplicates().tolist() if value not in ("", ())]
    for value in sorted(found, key=str if TYPES[name] == "JSON" else None):
        yield text(value, name)


def cost(table: pd.DataFrame) -> Cost | None:
    """The cost of trainings and judgements; None if there was none."""
    started = ordered(table[table["train_seconds"].notna() | table["evaluate_seconds"].notna()])
    if started.empty:
        return None
    seen = started["images_seen"].fillna(0)
    whole = started[seen == seen.groupby(started["fingerprint"]).transform("max")]  # costs are those up to each mark
    trained = whole.drop_duplicates("fingerprint")
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
        ("parameters", [group["parameters"].max() for group in groups], count),
        ("training FLOPs of one", [one.mean() for one in flops], count),
        ("training of one", [group["train_seconds"].mean() for group in groups], duration),
        ("images/s", [group["train_images_per_second"].mean() for group in groups], "{:,.0f}".format),
        ("peak memory, GiB", [group["peak_memory_gib"].max() for group in groups], "{:.2f}".format),
        ("judging of one", [group["fingerprint"].map(seconds).mean() for group in groups], duration),
    ]
    columns = [Column(title="network", numeric=False, cells=[Cell(name) for name in networks])]
    for title, values, say in measured:
        columns.append(Column(title=title, cells=[_amount(value, say) for value in values]))
    return Cost(
        training=duration(trained["train_seconds"].sum()),
        judging=duration(judged["evaluate_seconds"].sum()),
        n_runs=len(trained),
        table=SortableTable(columns, [{}] * len(groups)),
    )


def _amount(value: Any, say: Callable[[float], str]) -> Cell:
    return Cell() if pd.isna(value) else Cell(say(value), f"{float(value):.7g}")
