"""Labelled pictures in parquet files, the format of ImageNet on the Hugging Face hub; read in small batches.

Columns: `image`, a struct with the encoded picture in `bytes` and its file name in `path`; `label`, int64. The names of
files begin with their split: `train-00000-of-00294.parquet`, in the folder or in its `data/`.
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

FILE_NAME = re.compile(r"(train|validation|val|test)(-(\d+)-of-(\d+)(-\w+)?)?\.parquet")
HELD_OUT = {"validation": "val", "val": "val", "test": "test"}  # the first that exists; values: names as subfolders
READ_BATCH = 256  # pictures
NATIVE_PARTS, NATIVE_PICTURES = 20, 100  # evenly spread runs of pictures whose size is read, and their length

ParquetFiles = dict[str, list[Path]]  # by split: its files in order


def parquet_files(folder: Path) -> ParquetFiles:
    """The parquet files in a folder or its data/: of train and of the first split of HELD_OUT; {} if there are none.

    Raises:
        ValueError: there is no training split, or some files of a split are missing.
    """
    paths = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    by_split: ParquetFiles = {}
    for path in paths:
        if match := FILE_NAME.fullmatch(path.name):
            by_split.setdefault(match[1], []).append(path)
    if paths and "train" not in by_split:
        raise ValueError(f"{paths[0].parent} has no train-*.parquet; its files are called {paths[0].name} and so on")
    splits = [*filter(by_split.__contains__, ("train", *HELD_OUT))][:2]
    by_split = {split: by_split[split] for split in splits}
    for split, files in by_split.items():
        numbers = [(int(m[3]), int(m[4])) for file in files if (m := FILE_NAME.fullmatch(file.name)) and m[2]]
        expected = [(number, total) for total in {total for _, total in numbers} for number in range(total)]
        if missing := sorted(set(expected) - set(numbers)):
            names = ", ".join(f"{split}-{number:05d}-of-{total:05d}.parquet" for number, total in missing[:3])
            raise ValueError(
                f"{files[0].parent} has {len(numbers)} of {len(expected)} files of {split}; missing: {names}"
                + (" and others" if len(missing) > 3 else "")
            )
    return by_split


def parquet_digest(files: ParquetFiles) -> str:
    """Hash that changes when a file is added, removed, renamed or rewritten; reads names, sizes and times only."""
    return file_digest((path.name, path.stat()) for paths in files.values() for path in paths)


def parquet_splits(files: ParquetFiles) -> tuple[tuple[str, ...], dict[str, PictureSplit]]:
    """Class names and the pictures of 'train' and 'test'.

    A test split without labels (ImageNet's are -1) is never used. The order of pictures, and the choice of held-out
    ones if there is no second split, are those of a folder with a subfolder per class and files of these names, so that
    the same pictures give the same content hash.

    Raises:
        ValueError: pyarrow is not installed, a file is damaged or has other columns, or a label has no class.
    """
    tables = {split: _Table.read(paths) for split, paths in files.items()}
    train = tables["train"]
    classes = _class_names(files["train"][0]) or tuple(map(str, range(int(train.labels.max(initial=0)) + 1)))
    tables = {split: table for split, table in tables.items() if split == "train" or (table.labels >= 0).all()}
    for split, table in tables.items():
        if len(wrong := table.labels[(table.labels < 0) | (table.labels >= len(classes))]):
            raise ValueError(
                f"{files[split][0].parent} has the label {wrong[0]} in {split}; its classes are 0 to {len(classes) - 1}"
            )
    if len(tables) == 2:
        both = (
            table.split(range(len(table.labels)), classes, f"{HELD_OUT.get(split, split)}/")
            for split, table in tables.items()
        )
        return classes, dict(zip(("train", "test"), both, strict=True))
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        if members := np.flatnonzero(train.labels == label).tolist():
            training, held_out = hold_out(members, lambda row: train.key(row, classes), f"class {name}")
            rows["train"] += training
            rows["test"] += held_out
    return classes, {split: train.split(members, classes) for split, members in rows.items()}


@dataclass(frozen=True)
class _Table:
    """The files of one split, with the labels and file names of all their rows."""

    files: list[Path]
    labels: np.ndarray  # (N,) int64
    paths: list[str]  # file names of the pictures, or row numbers where these are missing

    @staticmethod
    def read(files: list[Path]) -> _Table:
        labels: list[np.ndarray] = []
        paths: list[str] = []
        for path in files:
            with _opened(path) as file:
                columns = [name for name in ("image.path", "label") if name in _column_paths(file)]
                table = file.read(columns=columns)
                labels.append(table.column("label").to_numpy().astype(np.int64))
                names = [None] * len(table)
                if "image" in table.column_names:
                    names = table.column("image").combine_chunks().field("path").to_pylist()
                paths += [name or str(row) for row, name in enumerate(names, len(paths))]
        return _Table(files, np.concatenate(labels), paths)

    def key(self, row: int, classes: Sequence[str], prefix: str = "") -> str:
        return picture_key(f"{prefix}{classes[self.labels[row]]}/{self.paths[row]}")

    def split(self, rows: Sequence[int], classes: Sequence[str], prefix: str = "") -> PictureSplit:
        """These rows in mixed order; pictures are read in file order, each with its position in the split."""
        mixed = np.array(sorted(rows, key=lambda row: self.key(row, classes, prefix)), np.int64)
        position = np.full(len(self.labels), -1)
        position[mixed] = np.arange(len(mixed))
        return PictureSplit(self.labels[mixed], lambda start: self._pictures(position, start))

    def _pictures(self, position: np.ndarray, start: int) -> Iterator[tuple[int, str, bytes]]:
        """Pictures of the rows whose position is not -1, without the first `start`, in the order of the files."""
        wanted = position >= 0
        wanted[np.flatnonzero(wanted)[:start]] = False
        row = 0
        for path in self.files:
            with _opened(path) as file:
                for group in range(file.num_row_groups):
                    end = row + file.metadata.row_group(group).num_rows
                    if not wanted[row:end].any():
                        row = end
                        continue
                    for batch in file.iter_batches(READ_BATCH, row_groups=[group], columns=["image.bytes"]):
                        for content in batch.column("image").field("bytes"):
                            if wanted[row]:
                                name = f"{path} ({self.paths[row]})"
                                if not content.is_valid:
                                    raise ValueError(f"{name} holds no bytes; its pictures are not in the file")
                                yield int(position[row]), name, content.as_py()
                            row += 1


def parquet_resolution(files: ParquetFiles) -> int:
    """Median short side, in pixels, of the training pictures (of 2,000 at most, evenly spread)."""
    table = _Table.read(files["train"])
    count = len(table.labels)
    position = np.full(count, -1)
    for start in np.linspace(0, count - 1, NATIVE_PARTS).astype(int):
        position[start : start + NATIVE_PICTURES] = 0
    sides = []
    for _, name, content in table._pictures(position, 0):
        with open_picture(io.BytesIO(content), name=name) as picture:
            sides.append(min(picture.size))
    return statistics.median_low(sides)


def _class_names(path: Path) -> tuple[str, ...]:
    """Class names that the library `datasets` writes into the schema; () when it did not write the file."""
    with _opened(path) as file:
        text = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return tuple(map(str, json.loads(text)["info"]["features"]["label"]["names"]))
    except (ValueError, KeyError, TypeError):
        return ()


def _column_paths(file: Any) -> set[str]:
    return {file.schema.column(number).path for number in range(len(file.schema))}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open parquet file with the columns above; ValueError if they are missing or the file cannot be read."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow: pip install 'pyarrow>=15'") from None
    try:
        with ParquetFile(path) as file:
            columns = _column_paths(file)
            if missing := {"image.bytes", "label"} - columns:
                raise ValueError(
                    f"{path} has the columns {', '.join(sorted(columns))}, but not {', '.join(sorted(missing))}"
                )
            if not pyarrow.types.is_integer(file.schema_arrow.field("label").type):
                raise ValueError(f"{path} has labels of type {file.schema_arrow.field('label').type}, not numbers")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); fetch it again") from error
