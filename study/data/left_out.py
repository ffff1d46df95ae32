"""The files of a folder that are not read from it, in words: nothing that a user has given vanishes silently."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from study.data import external_images, image_folder
from study.data.image_folder import own_split, walk
from study.data.named_datasets import NAMED_DATASETS
from study.data.parquet import PARTS, Found, parquet_files
from study.plan.data_spec import GIVEN_AS_FOLDER

LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # of systems; hidden files are passed over in any case
KINDS = 6  # at most that are named


def left_out_of_data(source: str) -> list[str]:
    """What a folder holds beside its data set, a line each; none for a data set that is known by its name."""
    folder = Path(source).expanduser().absolute()
    if source in NAMED_DATASETS or source in GIVEN_AS_FOLDER or not folder.is_dir():
        return []
    found = parquet_files(folder)
    return _beside_parquet(folder, found) if found else _beside_classes(folder)


def left_out_of_pictures(folder: Path) -> list[str]:
    """What a folder holds beside pictures that are scored, a line or none."""
    return _lines((name for name, _ in _files(folder)), external_images.SUFFIXES, external_images.SUFFIXES[:-2])


def _beside_classes(folder: Path) -> list[str]:
    split, names, loose = own_split(folder), [], 0
    for name, above in _files(folder):
        names.append(name)
        if name.lower().endswith(image_folder.SUFFIXES):
            loose += (len(above) < 2 or above[0] not in split) if split else not above
    lines = _lines(names, image_folder.SUFFIXES, image_folder.SUFFIXES)
    if loose:
        where = f" of {split[0]}/ and {split[1]}/" if split else ""
        pictures = "1 picture that is" if loose == 1 else f"{loose:,} pictures that are"
        lines.append(f"left out {pictures} in no class's folder{where}")
    return lines


def _beside_parquet(folder: Path, found: Found) -> list[str]:
    read = {str(path) for paths in found.values() for path in paths}
    names = [name for name, above in _files(folder) if os.path.join(folder, *above, name) not in read]
    splits = " and ".join(f"{split}*.parquet" for split in found)
    kinds = _kinds(names)
    return [f"left out {kinds}: only {splits} are read"] if kinds else []


def _files(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Names of all files below a folder, each with the names of the folders that lead to it."""
    start = len(os.path.join(folder, ""))
    for entry in walk(folder):
        *above, name = entry.path[start:].split(os.sep)
        yield name, above


def _lines(names: Iterable[str], suffixes: tuple[str, ...], pictures: tuple[str, ...]) -> list[str]:
    kinds = _kinds(name for name in names if not name.lower().endswith(suffixes))
    return [f"left out {kinds}: pictures are {', '.join(pictures)}"] if kinds else []


def _kinds(names: Iterable[str]) -> str:
    """How many files there are of each kind, the most frequent first; '' for none."""
    counts = Counter(_kind(name) for name in names if name.lower() not in LITTER)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count:,} {kind}" for kind, count in ordered[:KINDS]]
    others = sum(count for _, count in ordered[KINDS:])
    return ", ".join([*named, *([f"{others:,} of other kinds"] if others else [])])


def _kind(name: str) -> str:
    if match := PARTS.fullmatch(name):
        return f"{match[1]}*.parquet"
    return os.path.splitext(name)[1].lower() or "without a suffix"
