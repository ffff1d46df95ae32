"""Pictures decoded by Pillow and cropped to a square, by several workers; folders with a subfolder per class."""

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
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # of those files, as Pillow names them
CROP = "centre square, as ADM"
TEST_SHARE = 0.1  # of each class of a folder that has no split of its own
BLOCK = 64  # pictures that a worker decodes at a time
PROCESSES_FROM = 4096  # pictures; fewer are decoded by threads before processes would have started
AHEAD = 2  # blocks per worker that are decoded or wait to be

Blocks = Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class PictureSplit:
    """One split of a source of pictures.

    Args:
        labels: (N,) int64, in the order of packing.
        pictures: the pictures as they come from the source, without the first so many: place in the order of packing,
            a name for errors, and the encoded picture as a file or as bytes.
    """

    labels: np.ndarray
    pictures: Callable[[int], Iterator[tuple[int, str, Path | bytes]]]


def native_resolution(folder: str | Path) -> int:
    """Median short side, in pixels, of a folder's pictures (of 2,000, evenly spread, when there are more)."""
    _, splits = _files(Path(folder).expanduser())
    paths = sorted(path for files, _ in splits.values() for path in files)
    sides = []
    for path in paths[:: max(1, len(paths) // 2000)]:
        with open_picture(path) as picture:
            sides.append(min(picture.size))
    return statistics.median_low(sides)


def picture_digest(folder: Path) -> str:
    """Changes when a picture is added, removed, renamed or rewritten; reads names, sizes and times only."""
    found = (entry for entry in walk(folder) if entry.name.lower().endswith(SUFFIXES))
    return file_digest((os.path.relpath(entry.path, folder), entry.stat()) for entry in found)


def file_digest(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Changes with any name, size or time of these files."""
    known = hashlib.sha256()
    for name, stat in files:
        known.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return known.hexdigest()


def picture_splits(folder: Path) -> tuple[tuple[str, ...], dict[str, PictureSplit]]:
    """Class names, sorted, and the pictures of 'train' and 'test'.

    Where the folder has no train/ and test/ (or val/), some of each class are held out, see `hold_out`. The classes
    are mixed in both, by the hash of each path, so that the first so many are a fair part.

    Raises:
        ValueError: no subfolders, one without pictures or with a single one, or a test class unknown in
        train/.
    """

    def split(files: list[Path], labels: np.ndarray) -> PictureSplit:
        return PictureSplit(
            labels, lambda start: ((row, str(path), path) for row, path in enumerate(files[start:], start))
        )

    class_names, found = _files(folder)
    return class_names, {name: split(*files) for name, files in found.items()}


def _files(folder: Path) -> tuple[tuple[str, ...], dict[str, tuple[list[Path], np.ndarray]]]:
    found: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    if own := own_split(folder):
        found = {"train": _per_class(folder / own[0]), "test": _per_class(folder / own[1])}
        if unknown := sorted(set(found["test"]) - set(found["train"])):
            raise ValueError(f"{folder / own[1]} has classes that train/ has not: {', '.join(unknown[:5])}")
    else:
        for name, files in _per_class(folder).items():
            found["train"][name], found["test"][name] = hold_out(
                files, lambda path: _key(folder, path), str(folder / name)
            )
    label = {name: number for number, name in enumerate(found["train"])}
    splits = {}
    for split, classes in found.items():
        label_of = {path: label[name] for name, paths in classes.items() for path in paths}
        mixed = sorted(label_of, key=lambda path: _key(folder, path))
        splits[split] = mixed, np.array([label_of[path] for path in mixed], np.int64)
    return tuple(label), splits


def own_split(folder: Path) -> tuple[str, ...]:
    """The two folders of one that has a split of its own, for training and held out; empty for another."""
    names = {path.name for path in _subfolders(folder)}
    held_out = next((name for name in ("test", "val") if name in names), None)
    return ("train", held_out) if "train" in names and held_out else ()


def hold_out(pictures: list[T], key: Callable[[T], str], name: str) -> tuple[list[T], list[T]]:
    """The pictures of a class for training, and those that are held out: TEST_SHARE of them, and at least one, by the
    order of their keys. ValueError, with the name of the class, when there is only one."""
    if len(pictures) < 2:
        raise ValueError(f"{name} has {len(pictures)} picture; a class needs 2, one of them for test")
    order = sorted(pictures, key=key)
    cut = max(1, round(TEST_SHARE * len(pictures)))
    return order[cut:], order[:cut]


def picture_key(path: str) -> str:
    """Where a picture of this path comes in a mixed order: the hash of the path."""
    return hashlib.sha256(path.encode()).hexdigest()


def picture_blocks(splits: dict[str, PictureSplit], resolution: int) -> tuple[int, dict[str, Blocks]]:
    """Channels, 1 when every picture is grey and else 3; and by split a function that decodes all pictures but the
    first so many.

    It yields their places in the order of packing (rows,) int64, and the pictures, uint8 (rows, C, H, W). Neither
    depends on the number of workers.

    Raises:
        ValueError: a picture that cannot be decoded, or one with more than 8 bits per value.
    """
    every = (picture for split in splits.values() for picture in split.pictures(0))
    channels = 3 if any(_mode(name, content) not in ("L", "1") for _, name, content in every) else 1
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
    """Processes for many pictures, because Python's share of the work keeps more than some 20 threads waiting."""
    if pictures < PROCESSES_FROM:
        return ThreadPoolExecutor(cores())
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn"), _start_worker)


def _start_worker() -> None:
    """Leave Ctrl-C to the process that gives the work, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def centre_crop(picture: Any, resolution: int) -> Any:
    """The centre square of a PIL image at `resolution` pixels, as ADM prepares ImageNet.

    Halved by box averages while the short side is at least twice as long, then resized by bicubic
    interpolation, then cut. Source: `openai/guided-diffusion`, image_datasets.py (center_crop_arr).
    """
    from PIL import Image

    while min(picture.size) >= 2 * resolution:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    left, top = ((side - resolution) // 2 for side in picture.size)
    return picture.crop((left, top, left + resolution, top + resolution))


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Files below `folder`, sorted; hidden ones and links that lead back to a folder above are left out."""
    here = Path(os.path.realpath(folder))
    loops = (*above, str(here), *map(str, here.parents))
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
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
    here = Path(os.path.realpath(folder))
    loops = {here, *here.parents}
    found = (Path(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith("."))
    return [path for path in found if os.path.isdir(path) and Path(os.path.realpath(path)) not in loops]


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
    """The PIL image of a file, not decoded yet. Raises ValueError, with the name or the file's own, unless it is a
    picture of one of the formats."""
    from PIL import Image

    try:
        return Image.open(file, formats=formats)  # Pillow would hand others, such as PostScript, to programs
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
        if picture.mode.startswith(("I", "F")):  # Pillow would cut its values off at 255
            raise ValueError(f"{name} has more than 8 bits per value (mode {picture.mode}); convert it to 8")
        try:
            converted = picture.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name} cannot be decoded ({error}); remove or replace it") from error
    array = np.asarray(centre_crop(converted, resolution))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
