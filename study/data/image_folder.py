"""Folders with a subfolder of pictures per class; decoding and square cropping by several workers."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from study.core.compute import cores

T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # of these files, by Pillow's names
CROP = "centre square, as ADM"
TEST_SHARE = 0.1  # held out from each class of a folder without a test split
BLOCK = 64  # pictures that a worker decodes in one task
PROCESSES_FROM = 4096  # pictures; for fewer, threads finish before processes would have started
AHEAD = 2  # blocks per worker that are queued or being decoded

Blocks = Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class PictureSplit:
    """One split of a source of pictures.

    Args:
        labels: (N,) int64, in the order of packing.
        pictures: function from a number to skip to the remaining pictures, in the order of the source: position in the
            order of packing, name for error messages, and the encoded picture as a path or as bytes.
    """

    labels: np.ndarray
    pictures: Callable[[int], Iterator[tuple[int, str, Path | bytes]]]


def native_resolution(folder: str | Path) -> int:
    """Median short side, in pixels, of a folder's pictures (of about 2,000, evenly spread, if there are more)."""
    _, splits = _files(Path(folder).expanduser())
    paths = sorted(path for files, _ in splits.values() for path in files)
    sides = []
    for path in paths[:: max(1, len(paths) // 2000)]:
        with open_picture(path) as picture:
            sides.append(min(picture.size))
    return statistics.median_low(sides)


def picture_digest(folder: Path) -> str:
    """Hash that changes when a picture is added, removed, renamed or rewritten; reads names, sizes and times only."""
    pictures = (entry for entry in walk(folder) if entry.name.lower().endswith(SUFFIXES))
    return file_digest((os.path.relpath(entry.path, folder), entry.stat()) for entry in pictures)


def file_digest(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Hash that changes with any name, size or time of these files."""
    digest = hashlib.sha256()
    for name, stat in files:
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def picture_splits(folder: Path) -> tuple[tuple[str, ...], dict[str, PictureSplit]]:
    """Class names, sorted, and the pictures of 'train' and 'test'.

    If the folder has no train/ and test/ (or val/), some pictures of each class are held out, see `hold_out`. Both
    splits are ordered by the hash of each path, which mixes the classes, so that the beginning of a split is a fair
    sample.

    Raises:
        ValueError: no subfolders, a subfolder without pictures or with a single one, or a test class that train/ lacks.
    """

    def split(files: list[Path], labels: np.ndarray) -> PictureSplit:
        return PictureSplit(
            labels, lambda start: ((row, str(path), path) for row, path in enumerate(files[start:], start))
        )

    class_names, splits = _files(folder)
    return class_names, {name: split(*files) for name, files in splits.items()}


def _files(folder: Path) -> tuple[tuple[str, ...], dict[str, tuple[list[Path], np.ndarray]]]:
    per_split: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    if own := own_split(folder):
        per_split = {"train": _per_class(folder / own[0]), "test": _per_class(folder / own[1])}
        if unknown := sorted(set(per_split["test"]) - set(per_split["train"])):
            raise ValueError(f"{folder / own[1]} has classes that train/ does not have: {', '.join(unknown[:5])}")
    else:
        for name, files in _per_class(folder).items():
            per_split["train"][name], per_split["test"][name] = hold_out(
                files, lambda path: _key(folder, path), str(folder / name)
            )
    label = {name: number for number, name in enumerate(per_split["train"])}
    splits = {}
    for split, classes in per_split.items():
        label_of = {path: label[name] for name, paths in classes.items() for path in paths}
        mixed = sorted(label_of, key=lambda path: _key(folder, path))
        splits[split] = mixed, np.array([label_of[path] for path in mixed], np.int64)
    return tuple(label), splits


def own_split(folder: Path) -> tuple[str, ...]:
    """Names of the training and test subfolders of a folder that has them; else ()."""
    names = {path.name for path in _subfolders(folder)}
    held_out = next((name for name in ("test", "val") if name in names), None)
    return ("train", held_out) if "train" in names and held_out else ()


def hold_out(pictures: list[T], key: Callable[[T], str], name: str) -> tuple[list[T], list[T]]:
    """The pictures of a class for training, and those held out: the first TEST_SHARE by their keys, at least one.

    Raises ValueError, with the name of the class, when there is only one picture.
    """
    if len(pictures) < 2:
        raise ValueError(f"{name} has {len(pictures)} picture; a class needs 2, one of them for test")
    order = sorted(pictures, key=key)
    cut = max(1, round(TEST_SHARE * len(pictures)))
    return order[cut:], order[:cut]


def picture_key(path: str) -> str:
    """Sort key of a picture in the mixed order: the hash of its path."""
    return hashlib.sha256(path.encode()).hexdigest()


def picture_blocks(splits: dict[str, PictureSplit], resolution: int) -> tuple[int, dict[str, Blocks]]:
    """Channels (1 if every picture is grey, else 3), and by split a function that decodes its pictures.

    The function takes the number of pictures to skip and yields blocks: positions in the order of packing (rows,)
    int64, and pictures uint8 (rows, C, H, W). Neither depends on the number of workers.

    Raises:
        ValueError: a picture cannot be decoded, or has more than 8 bits per value.
    """
    pictures = (picture for split in splits.values() for picture in split.pictures(0))
    channels = 3 if any(_mode(name, content) not in ("L", "1") for _, name, content in pictures) else 1
    return channels, {name: functools.partial(_blocks, split, resolution, channels) for name, split in splits.items()}


def _blocks(split: PictureSplit, resolution: int, channels: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    decode = functools.partial(_decode_all, resolution=resolution, channels=channels)
    pictures, pool = split.pictures(start), _workers(len(split.labels) - start)
    waiting: collections.deque[tuple[np.ndarray, Iterator[np.ndarray]]] = collections.deque()
    try:
        for part in iter(lambda: list(itertools.islice(pictures, BLOCK)), []):
            rows, encoded = np.array([row for row, _, _ in part]), [picture[1:] for picture in part]
            waiting.append((rows, pool.map(decode, [encoded])))  # starts at once
            if len(waiting) == AHEAD * cores():
                rows, block = waiting.popleft()
                yield rows, next(block)
        for rows, block in waiting:
            yield rows, next(block)
    finally:
        pool.shutdown(cancel_futures=True)


def _workers(pictures: int) -> Executor:
    """Threads, or processes for many pictures: Python's share of the work limits threads to about 20."""
    if pictures < PROCESSES_FROM:
        return ThreadPoolExecutor(cores())
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn"), _start_worker)


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit when the parent ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def centre_crop(picture: Any, resolution: int) -> Any:
    """The centre square of a PIL image at `resolution` pixels, as ADM prepares ImageNet.

    It is halved by box averages while the short side is at least twice `resolution`, then resized by bicubic
    interpolation, then cropped. Source: `openai/guided-diffusion`, image_datasets.py (center_crop_arr).
    """
    from PIL import Image

    while min(picture.size) >= 2 * resolution:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    left, top = ((side - resolution) // 2 for side in picture.size)
    return picture.crop((left, top, left + resolution, top + resolution))


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Files below `folder`, sorted, without hidden files and links that lead back to a parent folder."""
    real = Path(os.path.realpath(folder))
    loops = (*above, str(real), *map(str, real.parents))
    with os.scandir(folder) as entries:
        by_name = sorted(entries, key=lambda entry: entry.name)
    for entry in by_name:
        if entry.name.startswith("."):
            continue
        link = entry.is_symlink()  # then not entry.is_dir(), which raises on a link to itself
        if os.path.isdir(entry.path) if link else entry.is_dir():
            if os.path.realpath(entry.path) not in loops:
                yield from walk(Path(entry.path), loops)
        elif os.path.isfile(entry.path) if link else entry.is_file():
            yield entry


def _pictures(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in walk(folder) if entry.name.lower().endswith(SUFFIXES)]


def _subfolders(folder: Path) -> list[Path]:
    real = Path(os.path.realpath(folder))
    loops = {real, *real.parents}
    paths = (Path(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith("."))
    return [path for path in paths if os.path.isdir(path) and Path(os.path.realpath(path)) not in loops]


def _per_class(folder: Path) -> dict[str, list[Path]]:
    classes = {path.name: _pictures(path) for path in _subfolders(folder)}
    wanted = f"one subfolder per class, holding pictures ({', '.join(SUFFIXES)})"
    if not classes:
        loose = len(_pictures(folder))
        raise ValueError(f"{folder} has no subfolders and {loose} pictures of its own; it should have {wanted}")
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(f"{folder} should have {wanted}; remove or fill those without: {', '.join(empty[:5])}")
    return classes


def _key(folder: Path, path: Path) -> str:
    return picture_key(path.relative_to(folder).as_posix())


def open_picture(file: Path | io.BytesIO, formats: tuple[str, ...] = FORMATS, name: str = "") -> Any:
    """The PIL image of a file, not decoded yet.

    Raises ValueError, with `name` or else the file, unless it is a picture in one of the formats.
    """
    from PIL import Image

    try:
        return Image.open(file, formats=formats)  # Pillow passes some others, such as PostScript, to programs
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name or file} cannot be read as a picture ({error}); remove or replace it") from error


def _open(name: str, content: Path | bytes) -> Any:
    return open_picture(content if isinstance(content, Path) else io.BytesIO(content), name=name)


def _mode(name: str, content: Path | bytes) -> str:
    with _open(name, content) as picture:
        return picture.mode


def _decode_all(pictures: list[tuple[str, Path | bytes]], resolution: int, channels: int) -> np.ndarray:
    return np.stack([_decode(name, content, resolution, channels) for name, content in pictures])


def _decode(name: str, content: Path | bytes, resolution: int, channels: int) -> np.ndarray:
    from PIL import Image

    with _open(name, content) as picture:
        if picture.mode.startswith(("I", "F")):  # Pillow would clip its values at 255
            raise ValueError(f"{name} has more than 8 bits per value (mode {picture.mode}); convert it to 8")
        try:
            converted = picture.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name} cannot be decoded ({error}); remove or replace it") from error
    array = np.asarray(centre_crop(converted, resolution))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
