"""Labelled pictures in parquet files, as the hub gives ImageNet: read a few at a time, never a whole file.

Columns `image`, a struct with the encoded picture in `bytes` and its file name in `path`, and `label`, int64. A split's
files are called by its name: `train-00000-of-00294.parquet`, in the folder or in its `data/`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.data.image_folder import PictureSplit, file_digest, hold_out, open_picture, picture_key

PARTS = re.compile(r"(train|validation|val|test)(-(\d+)-of-(\d+)(-\w+)?)?\.parquet")
HELD_OUT = {"validation": "val", "val": "val", "test": "test"}  # the first that is there; as a folder would call it
READ = 256  # pictures at a time
NATIVE_PARTS, NATIVE_PICTURES = 20, 100  # evenly spread, looked at for their size

Found = dict[str, list[Path]]  # by split: its files in order


def parquet_files(folder: Path) -> Found:
    """The parquet files of a folder, or of its data/: of train, and of the first of HELD_OUT that is there; empty when
    there are none.

    Raises:
        ValueError: none of them is of a training split, or some files of a split are not here.
    """
    every = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    found: Found = {}
    for path in every:
        if match := PARTS.fullmatch(path.name):
            found.setdefault(match[1], []).append(path)
    if every and "train" not in found:
        raise ValueError(f"{every[0].parent} has no train-*.parquet; its files are called {every[0].name} and so on")
    splits = [*filter(found.__contains__, ("train", *HELD_OUT))][:2]
    found = {split: found[split] for split in splits}
    for split, paths in found.items():
        numbers = [(int(m[3]), int(m[4])) for path in paths if (m := PARTS.fullmatch(path.name)) and m[2]]
        expected = [(number, total) for total in {total for _, total in numbers} for number in range(total)]
        if lacking := sorted(set(expected) - set(numbers)):
            names = ", ".join(f"{split}-{number:05d}-of-{total:05d}.parquet" for number, total in lacking[:3])
            raise ValueError(
                f"{paths[0].parent} has {len(numbers)} of {len(expected)} files of {split}; missing: {names}"
                + (" and others" if len(lacking) > 3 else "")
            )
    return found


def parquet_digest(found: Found) -> str:
    """Changes when a file is added, removed, renamed or rewritten; reads names, sizes and times only."""
    return file_digest((path.name, path.stat()) for paths in found.values() for path in paths)


def parquet_splits(found: Found) -> tuple[tuple[str, ...], dict[str, PictureSplit]]:
    """Class names and the pictures of 'train' and 'test'.

    A test split without labels (ImageNet's are -1) is never used. Order, and what is held out where there is no other
    split, are those of a folder with a subfolder per class and files of these names: so the same pictures have the
    same content.

    Raises:
        ValueError: pyarrow is not installed, a file is damaged or has other columns, or a label is not of a class.
    """
    tables = {split: _Table.read(paths) for split, paths in found.items()}
    train = tables["train"]
    classes = _class_names(found["train"][0]) or tuple(map(str, range(int(train.labels.max(initial=0)) + 1)))
    tables = {split: table for split, table in tables.items() if split == "train" or (table.labels >= 0).all()}
    for split, table in tables.items():
        if len(wrong := table.labels[(table.labels < 0) | (table.labels >= len(classes))]):
            raise ValueError(
                f"{found[split][0].parent} has the label {wrong[0]} in {split}; its classes are 0 to {len(classes) - 1}"
            )
    if len(tables) == 2:
        every = (
            table.split(range(len(table.labels)), classes, f"{HELD_OUT.get(split, split)}/")
            for split, table in tables.items()
        )
        return classes, dict(zip(("train", "test"), every, strict=True))
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        if members := np.flatnonzero(train.labels == label).tolist():
            kept, out = hold_out(members, lambda row: train.key(row, classes), f"class {name}")
            rows["train"] += kept
            rows["test"] += out
    return classes, {split: train.split(some, classes) for split, some in rows.items()}


@dataclass(frozen=True)
class _Table:
    """The files of one split, with what is small of all their rows."""

    files: list[Path]
    labels: np.ndarray  # (N,) int64
    paths: list[str]  # file names of the pictures; their numbers where these are not given

    @staticmethod
    def read(files: list[Path]) -> _Table:
        labels: list[np.ndarray] = []
        paths: list[str] = []
        for path in files:
            with _reading(path) as file:
                columns = [name for name in ("image.path", "label") if name in _leaves(file)]
                table = file.read(columns=columns)
                labels.append(table.column("label").to_numpy().astype(np.int64))
                names = [None] * len(table)
                if "image" in table.column_names:
                    names = table.column("image").combine_chunks().field("path").to_pylist()
                paths += [name or str(row) for row, name in enumerate(names, len(paths))]
        return _Table(files, np.concatenate(labels), paths)

    def key(self, row: int, classes: Sequence[str], above: str = "") -> str:
        return picture_key(f"{above}{classes[self.labels[row]]}/{self.paths[row]}")

    def split(self, rows: Sequence[int], classes: Sequence[str], above: str = "") -> PictureSplit:
        """These rows, in mixed order; they are read in the order of the files, and each is told its place."""
        mixed = np.array(sorted(rows, key=lambda row: self.key(row, classes, above)), np.int64)
        place = np.full(len(self.labels), -1)
        place[mixed] = np.arange(len(mixed))
        return PictureSplit(self.labels[mixed], lambda start: self._pictures(place, start))

    def _pictures(self, place: np.ndarray, start: int) -> Iterator[tuple[int, str, bytes]]:
        wanted = place >= 0
        wanted[np.flatnonzero(wanted)[:start]] = False
        row = 0
        for path in self.files:
            with _reading(path) as file:
                for group in range(file.num_row_groups):
                    end = row + file.metadata.row_group(group).num_rows
                    if not wanted[row:end].any():
                        row = end
                        continue
                    for batch in file.iter_batches(READ, row_groups=[group], columns=["image.bytes"]):
                        for content in batch.column("image").field("bytes"):
                            if wanted[row]:
                                name = f"{path} ({self.paths[row]})"
                                if not content.is_valid:
                                    raise ValueError(f"{name} holds no bytes; its pictures are elsewhere")
                                yield int(place[row]), name, content.as_py()
                            row += 1


def parquet_resolution(found: Found) -> int:
    """Median short side, in pixels, of the training pictures (of 2,000 at most, evenly spread)."""
    table = _Table.read(found["train"])
    count = len(table.labels)
    place = np.full(count, -1)
    for start in np.linspace(0, count - 1, NATIVE_PARTS).astype(int):
        place[start : start + NATIVE_PICTURES] = 0
    sides = []
    for _, name, content in table._pictures(place, 0):
        with open_picture(io.BytesIO(content), name=name) as picture:
            sides.append(min(picture.size))
    return statistics.median_low(sides)


def _class_names(path: Path) -> tuple[str, ...]:
    """As the hub's library leaves them in the schema; empty when it did not write the file."""
    with _reading(path) as file:
        text = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return tuple(map(str, json.loads(text)["info"]["features"]["label"]["names"]))
    except (ValueError, KeyError, TypeError):
        return ()


def _leaves(file: Any) -> set[str]:
    return {file.schema.column(number).path for number in range(len(file.schema))}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """An open parquet file with the columns of pictures; ValueError for another, and when it cannot be read."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install 'pyarrow>=15'") from None
    try:
        with ParquetFile(path) as file:
            if lacking := {"image.bytes", "label"} - _leaves(file):
                raise ValueError(
                    f"{path} has the columns {', '.join(sorted(_leaves(file)))}, but not {', '.join(sorted(lacking))}"
                )
            if not pyarrow.types.is_integer(file.schema_arrow.field("label").type):
                raise ValueError(f"{path} has labels of type {file.schema_arrow.field('label').type}, not numbers")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); fetch it again") from error
