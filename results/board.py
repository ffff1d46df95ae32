"""The board: records of how low gFID gets within a budget, each tied to the measured rows that it is read from.

`results/board.csv` has a line per record, `results/board/NAME/rows.csv` the rows of its study's table that it stands
on: those of the generator at its last mark and of its tokenizers, of every repeat by every judge. Of a line only name,
track, date, command and what is new are stated; all else is derived from the rows, here and whenever the board is
read, so that a line that was edited is refused.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from models.names import nearest
from results.files import atomic
from results.runs import choosing
from results.schema import Row
from results.table import read, rows_in, table_of, write_rows
from results.verdicts import FEWEST, Spread, pooled

HELD_OUT = 1000  # seeds of trainings from here on are for records alone
STATED = ("name", "track", "date", "new", "command")
ALIKE = ("samples", "label_scheme", "reference_hash", "extractor_size", "decode_precision")  # in all records of a track
TRAINED = "classifier"  # this judge is trained wherever it judges, and its reference has the hash of its weights


@dataclass(frozen=True, kw_only=True)
class Track:
    """A budget and how it is scored.

    data, resolution: of the pictures, by the name and the pixels in the table. tokenizer_images, generator_images: that
    one training may see at most; None is not limited. cores: of a processor, that one training may use at most; 0 for a
    track on a GPU. minutes: that both trainings of a repeat may take together; None is not limited. judges: all that a
    record needs, the one that orders the track first. samples: that they judge.
    """

    title: str
    data: str
    resolution: int
    tokenizer_images: int | None
    generator_images: int | None
    cores: int
    minutes: float | None
    judges: tuple[str, ...]
    samples: int


JUDGES = ("efficientnet_lite2", "classifier")
TRACKS = {
    "two-cores": Track(
        title="Two cores, data and images of desk", data="fashion-mnist", resolution=32, tokenizer_images=9_600,
        generator_images=19_200, cores=2, minutes=None, judges=JUDGES, samples=5_000,
    ),
    "two-cores-cifar10": Track(
        title="Two cores, colour photographs, images of desk", data="cifar10", resolution=32, tokenizer_images=9_600,
        generator_images=19_200, cores=2, minutes=None, judges=JUDGES, samples=5_000,
    ),
    "gpu-hour": Track(
        title="One GPU, an hour", data="cifar10", resolution=32, tokenizer_images=None, generator_images=None,
        cores=0, minutes=60.0, judges=JUDGES, samples=5_000,
    ),
}  # fmt: skip


class BoardError(ValueError):
    """A record that does not stand; the message says why in one line."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line of the board.

    Judges are named as in Track. gfid: mean of the repeats. gfid_of_seeds: in the order of `seeds`, pairs of tokenizer
    and generator. wall_seconds: of one repeat in the mean, trainings, samples and judging. cores: that one training
    used.
    """

    name: str
    track: str
    date: str
    new: str
    run: str
    gfid: Mapping[str, float]
    gfid_of_seeds: Mapping[str, tuple[float, ...]]
    seeds: tuple[tuple[int, int], ...]
    tokenizer_images: int
    generator_images: int
    wall_seconds: float
    cores: int
    device: str
    commit: str
    protocol: Mapping[str, str]
    reference_hash: Mapping[str, str]
    command: str

    def cells(self) -> list[str]:
        """The line in the file, which has JSON where a field holds several values."""
        values = [getattr(self, name) for name in COLUMNS]
        return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]


COLUMNS = tuple(field.name for field in fields(Record))


def track(name: str) -> Track:
    """The track of this name; BoardError with the nearest names if there is none."""
    if name not in TRACKS:
        raise BoardError(f"no track {name!r}; {nearest(name, TRACKS)}")
    return TRACKS[name]


def evidence(table: pd.DataFrame) -> list[Row]:
    """The rows of a study's table that a record stands on.

    Raises:
        BoardError: a row is not done, there is no generator, or there are runs that differ in more than seeds.
    """
    undone = table[table["state"] != "done"]
    if len(undone):
        first = undone.iloc[0]
        reason = f" ({first['reason']})" if first["reason"] else ""
        raise BoardError(f"{len(undone)} of {len(table)} rows are not done, such as {first['run']}: "
                         f"{first['state']}{reason}")  # fmt: skip
    generators = table[(table["kind"] == "generator") & ~choosing(table)]
    if generators.empty:
        raise BoardError("no generator has a score")
    runs = generators["tokenizer"] + " + " + generators["generator"] + generators["changes"].map(_changes)
    if runs.nunique() > 1:
        raise BoardError(
            f"a record is one run with several seeds, and this study has {runs.nunique()}: "
            f"{', '.join(sorted(set(runs))[:3])}{', ...' if runs.nunique() > 3 else ''}; sweep one alone"
        )
    last = generators[generators["images_seen"] == generators["images_seen"].max()]
    under = set(last["tokenizer_fingerprint"])
    tokenizers = table[(table["kind"] == "tokenizer") & table["fingerprint"].isin(under)]
    return rows_in(table_of([*rows_in(tokenizers), *rows_in(last)]))


def _changes(changes: Mapping[str, Any]) -> str:
    return "".join(f" + {name}={value}" for name, value in changes.items())


def record_of(rows: Sequence[Row], *, name: str, track: str, date: str, new: str, command: str) -> Record:
    """The record that these rows are the evidence of.

    Raises:
        BoardError: the rows do not fulfil what the track asks.
    """
    about = TRACKS[track]
    by_judge = scores(rows, track)
    tokenizers = {row.fingerprint: row for row in rows if row.kind == "tokenizer"}
    first = by_judge[about.judges[0]]
    under = [tokenizers.get(row.tokenizer_fingerprint) for row in first]
    pairs = [(made, row) for made, row in zip(under, first, strict=True) if made is not None]
    if len(pairs) < len(first):
        raise BoardError("the rows of a tokenizer are missing")
    _check_budget(pairs, about, track)
    _check_seeds(first)
    commits = sorted({row.commit for row in rows})
    if len(commits) > 1 or not commits[0] or "+" in commits[0]:
        raise BoardError(
            f"judged by {' and '.join(commit or 'unknown code' for commit in commits)}: a record is of one commit, "
            "without changes"
        )
    seconds = [made.evaluate_seconds + row.evaluate_seconds + _training_seconds(made, row) for made, row in pairs]  # type: ignore[operator]
    shown = first[0]
    return Record(
        name=name,
        track=track,
        date=date,
        new=new,
        run=f"{shown.tokenizer} + {shown.generator}{_changes(shown.changes)}",
        gfid={judge: fmean(gfids(mine)) for judge, mine in by_judge.items()},
        gfid_of_seeds={judge: gfids(mine) for judge, mine in by_judge.items()},
        seeds=tuple(map(_seeds, first)),
        tokenizer_images=pairs[0][0].images_seen or 0,
        generator_images=shown.images_seen or 0,
        wall_seconds=round(fmean(seconds), 1),
        cores=max(_cores(row) for pair in pairs for row in pair),
        device=" and ".join(sorted({row.train_device for pair in pairs for row in pair})),
        commit=commits[0],
        protocol={judge: mine[0].protocol for judge, mine in by_judge.items()},
        reference_hash={judge: mine[0].reference_hash for judge, mine in by_judge.items()},
        command=command,
    )


def _seeds(row: Row) -> tuple[int, int]:
    return row.tokenizer_seed if row.tokenizer_seed is not None else -1, row.seed if row.seed is not None else -1


def gfids(rows: Sequence[Row]) -> tuple[float, ...]:
    """gFID of each row."""
    return tuple(row.gfid for row in rows if row.gfid is not None)


def _training_seconds(tokenizer: Row, generator: Row) -> float:
    return (tokenizer.train_seconds or 0.0) + (generator.train_seconds or 0.0)


def _cores(row: Row) -> int:
    return (row.train_threads or 1) * (row.processes or 1)


def scores(rows: Sequence[Row], track: str) -> dict[str, list[Row]]:
    """The generator's rows among the evidence of a record, by judge, in the order of their seeds.

    Raises:
        BoardError: a judge of the track is missing, or did not score all repeats in the track's way.
    """
    about = TRACKS[track]
    generators = sorted((row for row in rows if row.kind == "generator"), key=_seeds)
    by_judge = {judge: [row for row in generators if row.extractor == judge] for judge in about.judges}
    for judge, rows in by_judge.items():
        if not rows:
            raise BoardError(f"no score by {judge}; track {track} needs {' and '.join(about.judges)}")
        if [*map(_seeds, rows)] != [*map(_seeds, by_judge[about.judges[0]])]:
            protocols = {row.protocol for row in rows}
            mixed = " under several protocols" if len(protocols) > 1 else ""
            raise BoardError(f"scores by {judge}{mixed} are not of the same seeds as those by {about.judges[0]}")
        if len({row.protocol for row in rows}) > 1:
            raise BoardError(f"scores by {judge} mix several protocols")
        if any(row.samples != about.samples for row in rows):
            raise BoardError(f"gFID of {rows[0].samples:,} samples; track {track} scores {about.samples:,}")
        if not all(row.comparable for row in rows):
            raise BoardError(f"scores by {judge} are not comparable: too few samples for its features")
    return by_judge


def _check_seeds(rows: Sequence[Row]) -> None:
    pairs = [*map(_seeds, rows)]
    told = ", ".join(f"{tokenizer} and {generator}" for tokenizer, generator in pairs)
    if len(set(pairs)) < FEWEST:
        raise BoardError(f"a record needs {FEWEST} seeds of tokenizer and generator, found {len(set(pairs))}: {told}")
    for which, seeds in zip(("tokenizers", "generators"), zip(*pairs, strict=True), strict=True):
        if len(set(seeds)) < len(seeds):
            raise BoardError(f"seeds of {which} repeat, so that the repeats are not independent: {told}")
    if min(min(pair) for pair in pairs) < HELD_OUT:
        raise BoardError(f"seeds below {HELD_OUT} are for choosing settings, those of records begin there: {told}")


def _check_budget(pairs: Sequence[tuple[Row, Row]], about: Track, name: str) -> None:
    for row in (row for pair in pairs for row in pair):
        if row.pretrained_weights:
            raise BoardError(f"{row.run}: pretrained weights are in no budget")
        if (row.data, row.resolution) != (about.data, about.resolution):
            raise BoardError(
                f"trained on {row.data} at {row.resolution} px; track {name} is on {about.data} at {about.resolution}"
            )
        if row.train_seconds is None or row.evaluate_seconds is None:
            raise BoardError(f"{row.run}: how long it took is not known")
        if about.cores and _cores(row) > about.cores:
            raise BoardError(f"{row.run} was trained on {_cores(row)} cores; track {name} allows {about.cores}")
        limit = about.tokenizer_images if row.kind == "tokenizer" else about.generator_images
        if limit is not None and (row.images_seen or 0) > limit:
            raise BoardError(f"the {row.kind} saw {row.images_seen:,} images; track {name} allows {limit:,}")
    for pair in pairs:
        minutes = _training_seconds(*pair) / 60
        if about.minutes is not None and minutes > about.minutes:
            raise BoardError(f"a repeat trained for {minutes:.1f} minutes; track {name} allows {about.minutes:g}")


def check_alike(rows: Sequence[Row], others: Sequence[Row], track: str, name: str) -> None:
    """BoardError if two records of a track, given by their evidence, were scored in different ways.

    That the trained judge compared with the same images follows from the other judge's reference.

    Args:
        name: of the record that `others` belong to.
    """
    for judge in TRACKS[track].judges:
        mine, theirs = (
            next(row for row in side if row.kind == "generator" and row.extractor == judge) for side in (rows, others)
        )
        for field in ALIKE:
            if (judge, field) != (TRAINED, "reference_hash") and getattr(mine, field) != getattr(theirs, field):
                raise BoardError(
                    f"{field} by {judge} is {getattr(mine, field)}, and {getattr(theirs, field)} in record {name} of "
                    f"track {track}: their numbers cannot be compared"
                )


# Files


@dataclass(frozen=True)
class Entry:
    """A record with its evidence."""

    record: Record
    rows: tuple[Row, ...]


def load(folder: Path) -> list[Entry]:
    """The board in results/ (`folder`), as it was added; empty where there is none.

    Raises:
        BoardError: a line that says something else than its rows, a record without rows, or two that cannot be
            compared.
    """
    path = folder / "board.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file, strict=True)) or [[]]
    if tuple(header) != COLUMNS:
        raise BoardError(f"{path} has the columns {', '.join(header)}, not {', '.join(COLUMNS)}")
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        if len(line) != len(COLUMNS):
            raise BoardError(f"{path}, row {number}: {len(line)} cells for {len(COLUMNS)} columns")
        entries.append(_entry(folder, dict(zip(COLUMNS, line, strict=True)), entries))
    return entries


def _entry(folder: Path, line: Mapping[str, str], before: Sequence[Entry]) -> Entry:
    name, file = line["name"], _rows_file(folder, line["name"])
    if any(entry.record.name == name for entry in before):
        raise BoardError(f"two records are called {name}")
    track(line["track"])
    if not file.exists():
        raise BoardError(f"record {name} has no rows: there is no {file}")
    rows = tuple(read(file))
    try:
        record = record_of(rows, **{column: line[column] for column in STATED})
        for other in before:
            if other.record.track == record.track:
                check_alike(rows, other.rows, record.track, other.record.name)
                break
    except BoardError as error:
        raise BoardError(f"record {name}: {error}") from None
    for column, cell in zip(COLUMNS, record.cells(), strict=True):
        if cell != line[column]:
            raise BoardError(
                f"record {name} was edited: its {column} is {line[column]} in board.csv, and {cell} by its rows in "
                f"{file.relative_to(folder)}"
            )
    return Entry(record, rows)


def _rows_file(folder: Path, name: str) -> Path:
    return folder / "board" / name / "rows.csv"


def write(entries: Iterable[Entry], folder: Path) -> None:
    """Write the board into results/ (`folder`), evidence first, each file atomically."""
    entries = list(entries)
    for entry in entries:
        write_rows(entry.rows, _rows_file(folder, entry.record.name))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(entry.record.cells() for entry in entries)
    with atomic(folder / "board.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def of_track(records: Iterable[Record], name: str) -> list[Record]:
    """The records of a track, lowest gFID by its first judge first."""
    judge = TRACKS[name].judges[0]
    return sorted((one for one in records if one.track == name), key=lambda one: (one.gfid[judge], one.date, one.name))


def spread(runs: Iterable[Mapping[str, Sequence[float]]], judge: str) -> Spread | None:
    """The spread of the logarithms of repeats, pooled over runs, given as gfid_of_seeds of a record."""
    return pooled(np.log(run[judge]) for run in runs)


def used_elsewhere(seeds: Iterable[int], folder: Path, but: Iterable[str]) -> str:
    """Why seeds are not held out: the first study in results/ (`folder`) that trained with one; '' if none did.

    Args:
        but: names of studies that may have used them: those of records.
    """
    wanted, allowed = set(seeds), set(but)
    for path in sorted(folder.glob("*/table.csv")):
        if path.parent.name in allowed:
            continue
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                for seed in (line.get("tokenizer_seed"), line.get("seed")):
                    if seed and seed.isdecimal() and int(seed) in wanted:
                        return f"study {path.parent.name} trained with seed {seed}"
    return ""
