"""Reports what of a data folder is not used as it is, so that nothing of a user's is ignored or changed silently."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from study.data import external_images, image_folder
from study.data.datasets import packing_notes
from study.data.image_folder import own_split, walk
from study.data.named_datasets import NAMED_DATASETS
from study.data.parquet import FILE_NAME, ParquetFiles, parquet_files
from study.plan.data_spec import GIVEN_AS_FOLDER, DataSpec

LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # of operating systems; hidden files are always skipped
KINDS = 6  # that are named, at most


def data_notes(source: str, spec: DataSpec) -> list[str]:
    """Lines about what a folder holds and its data set does not: files that are not read, pixels that were changed."""
    return left_out_of_data(source) + packing_notes(source, spec)


def left_out_of_data(source: str) -> list[str]:
    """Lines about files in a folder that are not part of its data set; none for a named data set."""
    folder = Path(source).expanduser().absolute()
    if source in NAMED_DATASETS or source in GIVEN_AS_FOLDER or not folder.is_dir():
        return []
    parquet = parquet_files(folder)
    return _left_out_of_parquet(folder, parquet) if parquet else _left_out_of_classes(folder)


def left_out_of_pictures(folder: Path) -> list[str]:
    """A line about files in a folder that are not scored as pictures, or none."""
    return _lines((name for name, _ in _files(folder)), external_images.SUFFIXES, external_images.LOSSLESS)


def _left_out_of_classes(folder: Path) -> list[str]:
    split, names, loose = own_split(folder), [], 0
    for name, above in _files(folder):
        names.append(name)
        if name.lower().endswith(image_folder.SUFFIXES):
            in_class = len(above) >= 2 and above[0] in split if split else len(above) >= 1
            loose += not in_class
    lines = _lines(names, image_folder.SUFFIXES, image_folder.SUFFIXES)
    if loose:
        where = f" of {' and '.join(f'{name}/' for name in split)}" if split else ""
        pictures = "1 picture that is" if loose == 1 else f"{loose:,} pictures that are"
        lines.append(f"left out {pictures} in no class's folder{where}")
    return lines


def _left_out_of_parquet(folder: Path, parquet: ParquetFiles) -> list[str]:
    used = {path for paths in parquet.values() for path in paths}
    names = [name for name, above in _files(folder) if Path(folder, *above, name) not in used]
    splits = " and ".join(f"{split}*.parquet" for split in parquet)
    kinds = _kinds(names)
    return [f"left out {kinds}: only {splits} with labels are read"] if kinds else []


def _files(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Names of all files below a folder, each with the names of its parent folders below `folder`.

    Where a subfolder cannot be read the rest is not listed: what is left out only informs, and must stop no study.
    """
    start = len(os.path.join(folder, ""))
    with contextlib.suppress(OSError):
        for entry in walk(folder):
            *above, name = entry.path[start:].split(os.sep)
            yield name, above


def _lines(names: Iterable[str], suffixes: tuple[str, ...], pictures: tuple[str, ...]) -> list[str]:
    kinds = _kinds(name for name in names if not name.lower().endswith(suffixes))
    return [f"left out {kinds}: pictures are {', '.join(pictures)}"] if kinds else []


def _kinds(names: Iterable[str]) -> str:
    """Number of files of each kind, the most frequent first; '' for none."""
    counts = Counter(_kind(name) for name in names if name.lower() not in LITTER)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count:,} {kind}" for kind, count in ordered[:KINDS]]
    others = sum(count for _, count in ordered[KINDS:])
    return ", ".join([*named, *([f"{others:,} of other kinds"] if others else [])])


def _kind(name: str) -> str:
    if match := FILE_NAME.fullmatch(name):
        return f"{match[1]}*.parquet"
    return os.path.splitext(name)[1].lower() or "without a suffix"
