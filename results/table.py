"""The results table: one row per (fingerprint, images seen, protocol hash), including planned runs.

A missing number is an empty cell: NaN in float columns, <NA> in int and bool columns, '' in text columns.
"""

import csv
import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from results.files import replacing
from results.schema import (
    ADDED,
    DIAGNOSTICS,
    FOREIGN,
    KEY,
    KINDS,
    METRICS,
    NAMES,
    PROTOCOL,
    PROVENANCE,
    PUBLISHED,
    STATES,
    TYPES,
    Type,
)

__all__ = [
    "PROTOCOL",
    "PROVENANCE",
    "ProtocolError",
    "check_protocol",
    "from_records",
    "load",
    "merge",
    "mixed_provenance",
    "write",
]

HEADLINE = {"tokenizer": "rfid", "generator": "gfid"}  # the metric that every done row has
DTYPES = {"text": pd.StringDtype("python"), "int": "Int64", "float": "float64", "bool": "boolean"}


class ProtocolError(ValueError):
    """Numbers that would share an axis were measured in different ways."""


def from_records(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A checked table from one mapping per row; a name that is absent or None is an empty cell.

    Raises ValueError for an unknown column, a value of the wrong type, a number that is not finite (a computed NaN is a
    failed run, not a missing number), and for everything that `write` refuses.
    """
    records = list(records)
    for record in records:
        _check_names(record, "a row")
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{_where(record)}: {name} is {value}; leave out what is missing")
    columns = {name: [record.get(name) for record in records] for name in NAMES}
    return _checked(pd.DataFrame(columns, dtype=object))


def load(path: Path) -> pd.DataFrame:
    """Read the table in a CSV file, with exact types and the declared order of columns.

    Columns of ADDED may be missing in the file and are then empty. Raises ValueError for a missing, repeated or unknown
    column, an invalid cell, or a duplicate key.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table of comma-separated text: {error}") from error
    if not lines:
        raise ValueError(f"{path} is empty: a table has at least its line of column names")
    header, cells = lines[0], lines[1:]
    _check_names(header, str(path))
    missing = [name for name in NAMES if name not in (*header, *ADDED)]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; found {', '.join(header)}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has a column twice: {', '.join(n for n in NAMES if header.count(n) > 1)}")
    records = []
    for row, values in enumerate(cells, start=1):
        if len(values) != len(header):
            raise ValueError(f"{path}, row {row}: {len(values)} cells for {len(header)} columns")
        try:
            records.append({name: _parse(text, name) for name, text in zip(header, values, strict=True)})
        except ValueError as error:
            raise ValueError(f"{path}, row {row}: {error}") from None
    try:
        return from_records(records)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the table atomically, sorted by key; the same table always gives the same bytes.

    Raises ValueError for a missing or unknown column, a wrong type, an empty or duplicate key, an unknown
    kind or state, an infinite number, or a done row without its headline metric (rfid or gfid).
    """
    table = _checked(table)
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        columns = [[_format(cell, TYPES[name]) for cell in table[name]] for name in NAMES]
        writer.writerows(zip(*columns, strict=True))


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows of both tables; if both have a key, the new row, so that a result replaces its pending row."""
    old, new = _checked(old), _checked(new)
    replaced = pd.MultiIndex.from_frame(old[list(KEY)]).isin(pd.MultiIndex.from_frame(new[list(KEY)]))
    parts = [part for part in (old[~replaced], new) if len(part)]
    return _checked(pd.concat(parts, ignore_index=True)) if parts else new


def check_protocol(rows: pd.DataFrame, varies: Iterable[str] = ()) -> None:
    """Raise ProtocolError if the done rows mix a protocol field other than those in `varies`."""
    varies = set(varies)
    unknown = varies - set(PROTOCOL)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} is no protocol field; the fields are {', '.join(PROTOCOL)}")
    done = rows[rows["state"] == "done"]
    for name in PROTOCOL:
        values = _values(done[name])
        if name not in varies and len(values) > 1:
            raise ProtocolError(
                f"rows that would share an axis differ in {name}: {', '.join(values)}; "
                f"evaluate them with one {name}, or draw them in separate figures"
            )


def mixed_provenance(rows: pd.DataFrame) -> list[str]:
    """Provenance columns in which the done rows differ, as text for a caption: 'commit: 1a2b, 3c4d'."""
    done = rows[rows["state"] == "done"]
    values = {name: _values(done[name]) for name in (*PROVENANCE, "tokenizer_seed", "seed")}
    values["sampling_seed"] = _values(done.loc[done["kind"] == "generator", "sampling_seed"])  # tokenizers have none
    return [f"{name}: {', '.join(texts)}" for name, texts in values.items() if len(texts) > 1]


def _values(column: pd.Series) -> list[str]:
    """The distinct values as sorted texts; a missing value is 'empty'."""
    cells = column.drop_duplicates().tolist()
    values = sorted(cell for cell in cells if not _missing(cell))
    texts = [str(cell).removesuffix(".0") for cell in values]
    return texts + ["empty"] * any(_missing(cell) for cell in cells)


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with the declared columns, order and types, sorted by key; ValueError if the table is invalid."""
    _check_names(table.columns, "the table")
    missing = [name for name in NAMES if name not in table.columns]
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}")
    checked = pd.DataFrame({name: _cast(table[name]) for name in NAMES})
    for _, row in checked.iterrows():
        _check_row(row)
    duplicates = checked[checked.duplicated(list(KEY), keep=False)]
    if len(duplicates):
        key = ", ".join(f"{name} {duplicates.iloc[0][name]}" for name in KEY)
        raise ValueError(f"{len(duplicates)} rows share one key or more, the first {key}: {_where(duplicates.iloc[0])}")
    return checked.sort_values(list(KEY), ignore_index=True)


def _check_row(row: pd.Series) -> None:
    for name in KEY:
        not_measured_here = str(row["fingerprint"]).startswith((FOREIGN, PUBLISHED))
        may_be_unknown = name == "images_seen" and not_measured_here
        if _missing(row[name]) and not may_be_unknown:
            raise ValueError(f"{_where(row)}: {name} is empty, and it is part of the row's key")
    for name, valid in (("kind", KINDS), ("state", STATES)):
        if row[name] not in valid:
            raise ValueError(f"{_where(row)}: {name} is {row[name]!r}; valid are {', '.join(valid)}")
    for name in METRICS:
        if math.isinf(row[name]):
            raise ValueError(f"{_where(row)}: {name} is {row[name]}; metrics are finite or missing")
    headline = HEADLINE[row["kind"]]
    if str(row["fingerprint"]).startswith(PUBLISHED):  # has only the numbers that its publication states
        if not row["source"] or all(_missing(row[name]) for name in (*METRICS, *DIAGNOSTICS)):
            raise ValueError(f"{_where(row)}: published, but without a number or its source")
    elif row["source"]:
        raise ValueError(f"{_where(row)}: has a source, but its fingerprint does not begin with {PUBLISHED}")
    elif row["state"] == "done" and _missing(row[headline]):
        raise ValueError(f"{_where(row)}: done, but {headline} is NaN or missing")


def _check_names(names: Iterable[str], what: str) -> None:
    unknown = [name for name in names if name not in TYPES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], NAMES, 3, 0)
        raise ValueError(f"{what} has the unknown columns {', '.join(unknown)}; nearest: {', '.join(near)}")


def _cast(column: pd.Series) -> pd.Series:
    name = str(column.name)
    type_ = TYPES[name]
    cells = [None if _missing(cell) else cell for cell in column.tolist()]
    try:
        if type_ == "text":
            cells = ["" if cell is None else " ".join(str(cell).split()) for cell in cells]
        elif type_ == "float":
            cells = [math.nan if cell is None else float(cell) for cell in cells]
        return pd.Series(cells, dtype=DTYPES[type_], index=column.index, name=name)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name} should hold {type_}: {error}") from None


def _parse(text: str, name: str) -> Any:
    if text == "":
        return None
    match TYPES[name]:
        case "text":
            return text
        case "bool" if text in ("True", "False"):
            return text == "True"
        case "int" | "float" as type_:
            try:
                return int(text) if type_ == "int" else float(text)
            except ValueError:
                pass
    raise ValueError(f"{name} should be {TYPES[name]}, found {text!r}")


def _format(cell: Any, type_: Type) -> str:
    if _missing(cell):
        return ""
    return repr(float(cell)) if type_ == "float" else str(cell)


def _missing(cell: Any) -> bool:
    return cell is None or cell is pd.NA or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _where(row: Mapping[str, Any] | pd.Series) -> str:
    return f"run {row.get('run') or '?'} at {row.get('images_seen')} images"
