"""The results table: one row per (fingerprint, images seen, protocol hash), including planned runs.

In a file, what is not stated is an empty cell. In a data frame it is NaN in float columns, <NA> in int and bool
columns, '' in text columns, and () or {} in columns that the file has as JSON.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from models.names import nearest
from results.files import atomic
from results.schema import KEY, NAMES, PROTOCOL, PROVENANCE, TYPES, Label, Row, Source

__all__ = [
    "PROTOCOL",
    "PROVENANCE",
    "ProtocolError",
    "check_protocol",
    "load",
    "merge",
    "mixed_provenance",
    "read",
    "rows_in",
    "table_of",
    "write",
    "write_rows",
]

Key = tuple[str, int | None, str]
DTYPES: dict[str, Any] = {
    "text": pd.StringDtype("python"),
    "int": "Int64",
    "float": "float64",
    "bool": "boolean",
    "JSON": "object",
}
TRAINED = ("train_device", "train_threads", "processes", "microbatch_images", "checkpointing", "compile", "resumed")
SEEDS = ("tokenizer_seed", "seed")
EMPTY = "empty"  # a missing value in a message or a caption
PARTS = {"labels": Label, "source": Source}  # what the objects in a JSON column are


class ProtocolError(ValueError):
    """Numbers that would share an axis were measured in different ways."""


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """A table of these rows, sorted by key, with the declared columns; ValueError if two rows share a key."""
    keyed = sorted(by_key(rows).values(), key=_order)
    columns = {name: [getattr(row, name) for row in keyed] for name in NAMES}
    return pd.DataFrame({name: _series(cells, TYPES[name]) for name, cells in columns.items()})


def rows_in(table: pd.DataFrame) -> list[Row]:
    """The rows of a table, in its order; columns that are not declared are left out.

    Raises ValueError for a missing column and for all that a Row refuses.
    """
    missing = [name for name in NAMES if name not in table.columns]
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}")
    columns = {name: [None if _missing(cell) else cell for cell in table[name].tolist()] for name in NAMES}
    return [_row(dict(zip(NAMES, cells, strict=True))) for cells in zip(*columns.values(), strict=True)]


def by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    """The rows by their key, in order; ValueError if two share one."""
    found: dict[Key, Row] = {}
    for row in rows:
        if found.setdefault(row.key, row) is not row:
            key = ", ".join(f"{name} {cell}" for name, cell in zip(KEY, row.key, strict=True))
            raise ValueError(f"two rows share the key {key}: {found[row.key].where} and {row.where}")
    return found


def load(path: Path) -> pd.DataFrame:
    """Read the table in a CSV file, with exact types and the declared order of columns.

    Raises ValueError for a duplicate key, and for all that `read` refuses.
    """
    rows = read(path)
    try:
        return table_of(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read(path: Path) -> list[Row]:
    """The rows in a CSV file, in its order.

    Raises ValueError for a missing, repeated or unknown column, or an invalid cell.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table of comma-separated text: {error}") from error
    if not lines:
        raise ValueError(f"{path} is empty: a table has at least its line of column names")
    header, *cells = lines
    _check_header(header, path)
    for number, line in enumerate(cells, start=1):
        if len(line) != len(header):  # pandas would fill a short line up
            raise ValueError(f"{path}, row {number}: {len(line)} cells for {len(header)} columns")
    _check_numbers(pd.DataFrame(cells, columns=header, dtype="str"), path)
    table = pd.read_csv(  # type: ignore[call-overload]
        io.StringIO(text, newline=""),
        dtype={name: DTYPES["text" if TYPES[name] == "JSON" else TYPES[name]] for name in NAMES},
        keep_default_na=False,  # in text, 'nan' is a word
        na_values={name: [""] for name in NAMES if TYPES[name] not in ("text", "JSON")},
    )
    try:
        for name in NAMES:
            if TYPES[name] == "JSON":
                table[name] = _series([_read_json(cell, name) for cell in table[name]], "JSON")
        return rows_in(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the table atomically, sorted by key; the same table always gives the same bytes.

    Raises ValueError for a missing or unknown column, a duplicate key, and for all that a Row refuses.
    """
    unknown = [str(name) for name in table.columns if name not in TYPES]
    if unknown:
        raise ValueError(f"the table has the unknown columns {', '.join(unknown)}; {nearest(unknown[0], NAMES)}")
    write_rows(rows_in(table), path)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """As `write`, of rows; ValueError if two share a key."""
    table = table_of(rows)
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        writer.writerows(zip(*([_text(cell) for cell in table[name].tolist()] for name in NAMES), strict=True))


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows of both tables; if both have a key, the new row, so that a result replaces its pending row."""
    return table_of({**by_key(rows_in(old)), **by_key(rows_in(new))}.values())


def check_protocol(rows: pd.DataFrame, varies: Iterable[str] = ()) -> None:
    """Raise ProtocolError if the done rows mix a protocol field other than those in `varies`."""
    varies = set(varies)
    unknown = varies - set(PROTOCOL)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} is no protocol field; the fields are {', '.join(PROTOCOL)}")
    done = rows["state"] == "done"
    hashes = set(rows["reference_hash"][done])
    for name in PROTOCOL:
        if name in varies or (name == "reference" and len(hashes) == 1 and "" not in hashes):
            continue  # a reference's hash is the same: the same data under two names
        values = _values(rows[name][done])
        if len(values) > 1:
            raise ProtocolError(
                f"rows that would share an axis differ in {name}: {', '.join(values)}; "
                f"evaluate them with one {name}, or draw them in separate figures"
            )


def mixed_provenance(rows: pd.DataFrame) -> list[str]:
    """Provenance columns but `source` in which the done rows differ, as text for a caption: 'commit: 1a2b, 3c4d'.

    What differed between the attempts of a single training (`resumed`) is named too. A scale has a precision for
    tokenizers and one for generators, so only different ones of one kind are mixed.
    """
    done = rows[rows["state"] == "done"]
    generators, trained = done["kind"] == "generator", done["train_device"] != ""  # pretrained weights: not trained
    of = {"sampling_seed": generators, "attention": generators & trained} | dict.fromkeys(TRAINED, trained)
    names = [name for name in (*PROVENANCE, *SEEDS) if name != "source"]  # publications are named anyway
    texts = {name: _values(done[of[name]][name] if name in of else done[name]) for name in names}
    several = {
        name: found for name, found in texts.items() if len(found) > 1 or (name == "resumed" and set(found) - {EMPTY})
    }
    if (done.groupby("kind")["train_precision"].nunique() <= 1).all():
        several.pop("train_precision", None)
    return [f"{name}: {', '.join(found)}" for name, found in several.items()]


def _values(column: pd.Series) -> list[str]:
    """The distinct values as sorted texts; a missing value is 'empty'."""
    cells = column.drop_duplicates().tolist()
    values = sorted(cell for cell in cells if not _missing(cell))
    texts = [str(cell).removesuffix(".0") for cell in values]
    return texts + [EMPTY] * any(_missing(cell) for cell in cells)


def _order(row: Row) -> tuple[Any, ...]:
    return row.fingerprint, row.images_seen is None, row.images_seen or 0, row.protocol


def _series(cells: list[Any], type_: str) -> pd.Series:
    return pd.Series(cells, dtype=DTYPES[type_])  # type: ignore[call-overload]


def _row(cells: dict[str, Any]) -> Row:
    return Row(**{name: cell for name, cell in cells.items() if cell is not None})


def _check_header(header: list[str], path: Path) -> None:
    unknown = [name for name in header if name not in TYPES]
    if unknown:
        raise ValueError(f"{path} has the unknown columns {', '.join(unknown)}; {nearest(unknown[0], NAMES)}")
    if missing := [name for name in NAMES if name not in header]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; found {', '.join(header)}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has a column twice: {', '.join(n for n in NAMES if header.count(n) > 1)}")


def _check_numbers(texts: pd.DataFrame, path: Path) -> None:
    """Raise ValueError for the first cell that is not of its column's type: pandas says neither row nor column."""
    for name, type_ in TYPES.items():
        cells = texts[name][texts[name] != ""]
        if cells.empty:
            continue
        if type_ == "bool":
            wrong = ~cells.isin(["True", "False"])
        elif type_ in ("int", "float"):
            numbers = pd.to_numeric(cells, errors="coerce")
            wrong = ~numbers.abs().lt(float("inf"))  # so is what is no number
            if type_ == "int":
                wrong |= ~cells.str.fullmatch(r"-?\d+")
        else:
            continue
        if wrong.any():
            row = int(wrong.idxmax())  # type: ignore[call-overload]
            raise ValueError(f"{path}, row {row + 1}: {name} should be {type_}, found {cells[row]!r}")


def _read_json(text: str, name: str) -> Any:
    """The content of a cell, lists as tuples, its objects as what the column holds; None if the cell is empty."""
    if not text:
        return None
    try:
        content = _tuples(json.loads(text))
        return tuple(PARTS[name](**part) for part in content) if name in PARTS else content
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} should be JSON of its form, found {text!r}: {error}") from None


def _tuples(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _tuples(value) for key, value in content.items()}
    return tuple(map(_tuples, content)) if isinstance(content, list) else content


def _text(cell: Any) -> str:
    """A cell of the file."""
    if _missing(cell):
        return ""
    if isinstance(cell, (tuple, Mapping)):
        parts = [dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for one in cell]  # type: ignore[arg-type]
        return json.dumps(cell if isinstance(cell, Mapping) else parts, ensure_ascii=False, allow_nan=False)
    return repr(cell) if isinstance(cell, float) else str(cell)


def _missing(cell: Any) -> bool:
    """Whether a cell of a data frame holds nothing."""
    if isinstance(cell, (str, tuple, Mapping)):
        return not cell
    return cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell))
