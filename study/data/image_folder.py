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
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from study.core.compute import cores

# of large pictures, transparent palettes and damaged EXIF: what concerns a user is an error or a line of the plan
warnings.filterwarnings("ignore", module=r"PIL\.")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # of these files, by Pillow's names
JPEGS = ("JPEG", "MPO")  # MPO: with a second picture inside, as many cameras write them
CROP = "centre square, as ADM"
# names of folders of splits, of which the first that exists is used: val before test, which has no labels in ImageNet,
# as study/data/parquet.py has it
TRAINING = ("train", "training")
HELD_OUT = ("validation", "val", "valid", "dev", "test", "testing", "evaluation", "eval")
BLOCK = 64  # pictures that a worker decodes in one task
PROCESSES_FROM = 4096  # pictures; for fewer, threads finish before processes would have started
AHEAD = 2  # blocks per worker that are queued or being decoded


class Block(NamedTuple):
    """Pictures that follow one another in their source.

    Args:
        pixels: uint8 (rows, C, H, W).
        transparent: how many of them were laid on white.
        jpegs: how many of them are JPEGs.
    """

    pixels: np.ndarray
    transparent: int = 0
    jpegs: int = 0


Blocks = Callable[[int], Iterator[Block]]  # from the number of pictures to skip to the remaining ones


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures of a folder, in the order of their source: first all of the training split, if it has splits.

    Args:
        labels: (N,) int64.
        training: number of pictures of the training split, the others being for test; None: a part is to be held out.
        encoded: function from a number to skip to the remaining pictures: name for error messages, and the encoded
            picture as a path or as bytes.
    """

    labels: np.ndarray
    training: int | None
    encoded: Callable[[int], Iterator[tuple[str, Path | bytes]]]


def native_resolution(folder: str | Path) -> int:
    """Median short side, in pixels, of a folder's pictures (of about 2,000, evenly spread, if there are more)."""
    paths = sorted(
        path for classes in _splits(Path(folder).expanduser()) for files in classes.values() for path in files
    )
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


def folder_pictures(folder: Path) -> tuple[tuple[str, ...], Pictures]:
    """Class names in their order, see `class_order`, and the pictures of a folder, class by class.

    Raises:
        ValueError: no subfolders, a subfolder without pictures, or with a single one where one is to be held out, a
            test class that the training split lacks, or a test split alone.
    """
    splits = _splits(folder)
    label_of = {name: label for label, name in enumerate(splits[0])}
    paths = [path for classes in splits for files in classes.values() for path in files]
    counts = [(label_of[name], len(files)) for classes in splits for name, files in classes.items()]
    labels = np.repeat(*np.array(counts, np.int64).T)
    training = sum(map(len, splits[0].values())) if len(splits) == 2 else None
    if training is None:
        require_two_each(labels, [str(folder / name) for name in splits[0]])
    return tuple(splits[0]), Pictures(labels, training, lambda start: ((str(path), path) for path in paths[start:]))


def _splits(folder: Path) -> list[dict[str, list[Path]]]:
    """Pictures by class: of the training split and of the test split, or of all pictures together."""
    splits = [_per_class(folder / name) for name in own_split(folder)] or [_per_class(folder)]
    if (
        len(splits) == 1
        and {name.lower() for name in splits[0]} <= {*HELD_OUT}
        and any(map(_subfolders, _subfolders(folder)))
    ):
        raise ValueError(f"{folder} has {' and '.join(f'{name}/' for name in splits[0])}, but no train/")
    for path in _subfolders(folder) if len(splits[0]) > 1 and not own_split(folder) else []:
        if path.name.lower() in TRAINING and all(file.parent != path for file in splits[0][path.name]):
            others = ", ".join(f"{name}/" for name in [name for name in splits[0] if name != path.name][:3])
            raise ValueError(
                f"{folder} has {path.name}/ with folders of its own beside {others}: if it is the training split, give "
                f"{path}; if it is a class, rename it"
            )
    if unknown := [name for name in splits[-1] if name not in splits[0]]:
        held_out, training = reversed(own_split(folder))
        raise ValueError(f"{folder / held_out} has classes that {training}/ does not have: {', '.join(unknown[:5])}")
    return splits


def own_split(folder: Path) -> tuple[str, ...]:
    """Names of the training and test subfolders of a folder that has both, of the training one where it stands alone;
    else ()."""
    names = {path.name.lower(): path.name for path in _subfolders(folder)}
    training = next((names[name] for name in TRAINING if name in names), None)
    held_out = next((names[name] for name in HELD_OUT if name in names), None)
    if training is None or (held_out is None and (len(names) > 1 or not _subfolders(folder / training))):
        return ()
    return (training,) if held_out is None else (training, held_out)


def class_order(name: str) -> tuple[bool, int, str]:
    """Sort key of a class: numbers come first and by their value, with or without leading zeros, then names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def require_two_each(labels: np.ndarray, names: Sequence[str]) -> None:
    """Raise ValueError, with the name of the class, for a class with one picture, of which none can be held out."""
    if len(single := np.flatnonzero(np.bincount(labels) == 1)):
        raise ValueError(f"{names[single[0]]} has 1 picture; a class needs 2, one of them for test")


def decoded_pictures(pictures: Pictures, resolution: int, upright: bool) -> tuple[int, Blocks]:
    """Channels (1 if every picture is grey, else 3), and a function that decodes from any picture on.

    The blocks do not depend on the number of workers.

    Args:
        upright: whether pictures are turned as their EXIF orientation says.

    Raises:
        ValueError: a picture cannot be decoded, or has more than 8 bits per value.
    """
    channels = 3 if any(_mode(*picture) not in ("L", "LA", "1") for picture in pictures.encoded(0)) else 1
    return channels, functools.partial(_blocks, pictures, functools.partial(_decode_all, resolution, channels, upright))


def _blocks(
    pictures: Pictures, decode: Callable[[list[tuple[str, Path | bytes]]], Block], start: int
) -> Iterator[Block]:
    encoded, pool = pictures.encoded(start), _workers(len(pictures.labels) - start)
    waiting: collections.deque[Iterator[Block]] = collections.deque()
    try:
        for part in iter(lambda: list(itertools.islice(encoded, BLOCK)), []):
            waiting.append(pool.map(decode, [part]))  # starts at once
            if len(waiting) == AHEAD * cores():
                yield next(waiting.popleft())
        for block in waiting:
            yield next(block)
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
    names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=class_order)
    paths = (Path(folder, name) for name in names)
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


def _decode_all(resolution: int, channels: int, upright: bool, pictures: list[tuple[str, Path | bytes]]) -> Block:
    decoded = [_decode(*picture, resolution, channels, upright) for picture in pictures]
    pixels, transparent, jpegs = zip(*decoded, strict=True)
    return Block(np.stack(pixels), sum(transparent), sum(jpegs))


def _decode(
    name: str, content: Path | bytes, resolution: int, channels: int, upright: bool
) -> tuple[np.ndarray, bool, bool]:
    """Pixels uint8 (C, H, W) of a picture, whether it was laid on white, and whether it is a JPEG."""
    from PIL import Image

    with _open(name, content) as picture:
        jpeg = picture.format in JPEGS
        # Pillow would clip values at 255, and silently takes the upper 8 of 16 bits of a PNG in colour
        if picture.mode.startswith(("I", "F")) or (picture.format == "PNG" and _sixteen_bits(picture)):
            raise ValueError(f"{name} has more than 8 bits per value; convert it to 8")
        try:
            opaque, transparent = _on_white(picture)
            converted = opaque.convert("L" if channels == 1 else "RGB")
            if upright and (turn := _turn(picture)) is not None:
                converted = converted.transpose(turn)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name} cannot be decoded ({error}); remove or replace it") from error
    array = np.asarray(centre_crop(converted, resolution))
    return (array[None] if channels == 1 else array.transpose(2, 0, 1)), transparent, jpeg


def _sixteen_bits(picture: Any) -> bool:
    """Whether the values of a PNG, not decoded yet, have 16 bits."""
    return any(";16" in str(tile[3]) for tile in picture.tile)


def _on_white(picture: Any) -> tuple[Any, bool]:
    """A PIL image laid on white, and whether any of it was transparent."""
    from PIL import Image

    if not (picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info):
        return picture, False
    rgba = picture.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba, False
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba), True


def _turn(picture: Any) -> Any:
    """How the pixels of a PIL image are to be turned or mirrored to stand as its EXIF orientation says; None for not.

    Source: Exif 2.32, tag 0x0112. EXIF that cannot be read says nothing.
    """
    from PIL.Image import Transpose

    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # Pillow's parser raises whatever a damaged structure leads to
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return turns.get(orientation)


def decoder() -> str:
    """Versions of what decodes pictures here; the pixels of a JPEG depend on them."""
    import PIL
    from PIL import features

    turbo = features.version("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, " + (f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}")
