"""Labelled pictures in parquet files, as ImageNet and CIFAR-10 are on the Hugging Face hub; read in small batches.

Columns: `image` or `img`, a struct with the encoded picture in `bytes` and its file name in `path`; `label`, int64. The
names of files begin with their split: `train-00000-of-00294.parquet`, in the folder, or in its `data/` or the subfolder
of another name (`plain_text/` of CIFAR-10).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.data.image_folder import Pictures, file_digest, open_picture, require_two_each

FILE_NAME = re.compile(r"(train|validation|val|test)(-(\d+)-of-(\d+)(-\w+)?)?\.parquet")
HELD_OUT = ("validation", "val", "test")  # the first that exists: ImageNet's test split has no labels
IMAGE_COLUMNS = ("image", "img")
READ_BATCH = 256  # pictures
NATIVE_PARTS, NATIVE_PICTURES = 20, 100  # evenly spread runs of pictures whose size is read, and their length

ParquetFiles = dict[str, list[Path]]  # by split: its files in order


def parquet_files(folder: Path) -> ParquetFiles:
    """The parquet files of a folder: of train and of the first split of HELD_OUT; {} if there are none.

    They are in the folder itself, else in its data/, else in the only subfolder that has some.

    Raises:
        ValueError: there is no training split, some files of a split are missing, or several subfolders have some.
    """
    paths = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not paths:
        paths = sorted(path for path in folder.glob("*/*.parquet") if FILE_NAME.fullmatch(path.name))
        if len(folders := sorted({path.parent for path in paths})) > 1:
            raise ValueError(
                f"{folder} has parquet files in several subfolders ({', '.join(path.name for path in folders[:5])}); "
                "give one of these folders"
            )
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


def parquet_pictures(files: ParquetFiles) -> tuple[tuple[str, ...], Pictures]:
    """Class names in the order of their labels, and the pictures in the order of the files.

    A test split without labels (ImageNet's are -1) is never used.

    Raises:
        ValueError: pyarrow is not installed, a file is damaged or has other columns, a label has no class, or a class
            has a single picture where one is to be held out.
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
    if len(tables) == 1:
        require_two_each(train.labels, [f"class {name}" for name in classes])

    def encoded(start: int) -> Iterator[tuple[str, bytes]]:
        for table in tables.values():
            yield from table.pictures(np.arange(len(table.labels)) >= start)
            start -= len(table.labels)

    labels = np.concatenate([table.labels for table in tables.values()])
    return classes, Pictures(labels, len(train.labels) if len(tables) == 2 else None, encoded)


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
                image = _image_column(file)
                table = file.read(columns=[name for name in (f"{image}.path", "label") if name in _column_paths(file)])
                labels.append(table.column("label").to_numpy().astype(np.int64))
                names = [None] * len(table)
                if image in table.column_names:
                    names = table.column(image).combine_chunks().field("path").to_pylist()
                paths += [name or str(row) for row, name in enumerate(names, len(paths))]
        return _Table(files, np.concatenate(labels), paths)

    def pictures(self, wanted: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """Names and encoded pictures of the rows where `wanted` (N,) bool, in the order of the files."""
        row = 0
        for path in self.files:
            with _opened(path) as file:
                image = _image_column(file)
                for group in range(file.num_row_groups):
                    end = row + file.metadata.row_group(group).num_rows
                    if not wanted[row:end].any():
                        row = end
                        continue
                    for batch in file.iter_batches(READ_BATCH, row_groups=[group], columns=[f"{image}.bytes"]):
                        for content in batch.column(image).field("bytes"):
                            if wanted[row]:
                                name = f"{path} ({self.paths[row]})"
                                if not content.is_valid:
                                    raise ValueError(f"{name} holds no bytes; its pictures are not in the file")
                                yield name, content.as_py()
                            row += 1


def parquet_resolution(files: ParquetFiles) -> int:
    """Median short side, in pixels, of the training pictures (of 2,000 at most, evenly spread)."""
    table = _Table.read(files["train"])
    count = len(table.labels)
    wanted = np.zeros(count, bool)
    for start in np.linspace(0, count - 1, NATIVE_PARTS).astype(int):
        wanted[start : start + NATIVE_PICTURES] = True
    sides = []
    for name, content in table.pictures(wanted):
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


def _image_column(file: Any) -> str:
    """The name of the column of pictures; that of ImageNet's where there is none."""
    return next((name for name in IMAGE_COLUMNS if f"{name}.bytes" in _column_paths(file)), IMAGE_COLUMNS[0])


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
            if missing := {f"{_image_column(file)}.bytes", "label"} - columns:
                raise ValueError(
                    f"{path} has the columns {', '.join(sorted(columns))}, but not {', '.join(sorted(missing))}"
                )
            if not pyarrow.types.is_integer(file.schema_arrow.field("label").type):
                raise ValueError(f"{path} has labels of type {file.schema_arrow.field('label').type}, not numbers")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); fetch it again") from error
