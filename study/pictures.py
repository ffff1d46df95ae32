"""Folders of pictures: one subfolder per class, decoded by Pillow and cropped to a square."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from study.compute import cores

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # of those files, as Pillow names them
TEST_SHARE = 0.1  # of each class of a folder that has no split of its own
BLOCK = 256  # pictures decoded at a time

Splits = dict[str, tuple[list[Path], np.ndarray]]  # by split: files, and their labels int64 (N,)


def native_resolution(folder: str | Path) -> int:
    """Median short side, in pixels, of a folder's pictures (of 2,000, evenly spread, when there are more)."""
    _, splits = picture_splits(Path(folder).expanduser())
    paths = sorted(path for files, _ in splits.values() for path in files)
    sides = []
    for path in paths[:: max(1, len(paths) // 2000)]:
        with open_picture(path) as picture:
            sides.append(min(picture.size))
    return statistics.median_low(sides)


def picture_digest(folder: Path) -> str:
    """Changes when a picture is added, removed, renamed or rewritten; reads names, sizes and times only."""
    known = hashlib.sha256()
    for entry in walk(folder):
        if entry.name.lower().endswith(SUFFIXES):
            stat = entry.stat()
            known.update(f"{os.path.relpath(entry.path, folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return known.hexdigest()


def picture_splits(folder: Path) -> tuple[tuple[str, ...], Splits]:
    """Class names, sorted, and the files of 'train' and 'test'.

    Where the folder has no train/ and test/ (or val/), TEST_SHARE of each class, and at least one, is held
    out by the hash of its path. The classes are mixed in both, so that the first so many are a fair part.

    Raises:
        ValueError: no subfolders, one without pictures or with a single one, or a test class unknown in
        train/.
    """
    names = {path.name for path in _subfolders(folder)}
    held_out = next((name for name in ("test", "val") if name in names), None)
    found: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    if "train" in names and held_out:
        found = {"train": _per_class(folder / "train"), "test": _per_class(folder / held_out)}
        if unknown := sorted(set(found["test"]) - set(found["train"])):
            raise ValueError(f"{folder / held_out} has classes that train/ has not: {', '.join(unknown[:5])}")
    else:
        for name, files in _per_class(folder).items():
            if len(files) < 2:
                raise ValueError(f"{folder / name} has 1 picture; a class needs 2, one of them for test")
            order = sorted(files, key=lambda path: _key(folder, path))
            cut = max(1, round(TEST_SHARE * len(files)))
            found["test"][name], found["train"][name] = order[:cut], order[cut:]
    class_names = tuple(found["train"])
    splits: Splits = {}
    for split, classes in found.items():
        label_of = {path: class_names.index(name) for name, paths in classes.items() for path in paths}
        mixed = sorted(label_of, key=lambda path: _key(folder, path))
        splits[split] = mixed, np.array([label_of[path] for path in mixed], np.int64)
    return class_names, splits


def picture_blocks(splits: Splits, resolution: int) -> tuple[int, dict[str, Iterator[np.ndarray]]]:
    """Channels, 1 when every picture is grey and else 3; and by split all pictures, uint8 (up to BLOCK, C,
    H, W).

    Raises:
        ValueError: a picture that cannot be decoded, or one with more than 8 bits per value.
    """
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        modes = set(pool.map(_mode, [path for files, _ in splits.values() for path in files]))
    channels = 1 if modes <= {"L", "1"} else 3

    def decoded(files: list[Path]) -> Iterator[np.ndarray]:
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(files), BLOCK):
                part = files[start : start + BLOCK]
                yield np.stack(list(pool.map(lambda path: _decode(path, resolution, channels), part)))

    return channels, {split: decoded(files) for split, (files, _) in splits.items()}


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
        if os.path.isdir(entry.path):  # not entry.is_dir(), which raises on a link to itself
            if os.path.realpath(entry.path) not in loops:
                yield from walk(Path(entry.path), loops)
        elif os.path.isfile(entry.path):
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
    return hashlib.sha256(path.relative_to(folder).as_posix().encode()).hexdigest()


def open_picture(path: Path, formats: tuple[str, ...] = FORMATS) -> Any:
    """The PIL image of a file, not decoded yet. Raises ValueError unless it is a picture of one of the formats."""
    from PIL import Image

    try:
        return Image.open(path, formats=formats)  # Pillow would hand others, such as PostScript, to programs
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); remove or replace it") from error


def _mode(path: Path) -> str:
    with open_picture(path) as picture:
        return picture.mode


def _decode(path: Path, resolution: int, channels: int) -> np.ndarray:
    from PIL import Image

    with open_picture(path) as picture:
        if picture.mode.startswith(("I", "F")):  # Pillow would cut its values off at 255
            raise ValueError(f"{path} has more than 8 bits per value (mode {picture.mode}); convert it to 8")
        try:
            converted = picture.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be decoded ({error}); remove or replace it") from error
    array = np.asarray(centre_crop(converted, resolution))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)
