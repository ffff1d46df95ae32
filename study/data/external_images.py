"""External pictures: a folder of lossless files, or an .npz in ADM's format, read as one array of pixels.

Inputs that would need a guess are refused: floats of unknown range, pictures to be resized, lossy pictures. Pillow
decodes; arrays are parsed as bytes and never unpickled. An .npz of 50,000 pictures is 10 GB, so pixels are kept in an
unnamed temporary file, which disappears with the process.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import lzma
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.core.compute import cores
from study.core.paths import study_root
from study.data.image_folder import open_picture, walk
from study.plan.judge_spec import SPATIAL_WIDTH, WIDTHS

LOSSLESS = (".png", ".bmp", ".webp", ".tif", ".tiff")
SUFFIXES = (*LOSSLESS, ".jpg", ".jpeg")  # JPEG is found and refused
FORMATS = ("PNG", "BMP", "WEBP", "TIFF", "JPEG")
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd")
GREY, COLOUR = ("1", "L"), ("P", "RGB", "LA", "PA", "RGBA")  # modes of 8 bits per value; alpha must be opaque
LOSSY = "its artefacts change a Frechet distance; keep the pictures as PNG from the start"
BLOCK = 256  # pictures at a time

# in ADM's reference files: statistics over a whole data set, of Inception's pooled and of its spatial features
STATISTICS = {
    "mu": (WIDTHS["inception"],),
    "sigma": (WIDTHS["inception"],) * 2,
    "mu_s": (SPATIAL_WIDTH,),
    "sigma_s": (SPATIAL_WIDTH,) * 2,
}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """pixels: uint8 (N, C, H, W), C 1 or 3. digest: first 16 hex digits of the SHA-256 of shape, then pixels."""

    name: str
    pixels: np.ndarray
    digest: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.pixels.shape[2], self.pixels.shape[3]


def read_pictures(path: Path, count: int | None = None) -> Pictures:
    """All pictures of a folder (with subfolders, sorted by path) or of an .npz, or the first `count`.

    Args:
        path: a folder of lossless PNG, BMP, WebP or TIFF of one size; or an .npz whose `arr_0` is uint8
            (N, H, W, 1 or 3), as ADM writes samples (`openai/guided-diffusion`, scripts/image_sample.py).
        count: number of pictures; None for all.

    Raises:
        ValueError: neither of the two, no pictures or too few, lossy ones, more than 8 bits per value, transparent
            ones, several sizes, a broken file, an array of another type or shape.
        OSError: not enough disk space for the pixels.
    """
    if path.is_dir():
        shape, blocks = _folder(path, count)
    elif path.suffix == ".npz" and path.is_file():
        shape, blocks = _npz(path, count)
    else:
        what = "is neither a folder nor an .npz" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}: give a folder of lossless pictures, or an .npz with arr_0")
    pixels, digest, row = _scratch_array(shape), hashlib.sha256(repr(shape).encode()), 0
    for block in blocks:
        pixels[row : row + len(block)] = block
        digest.update(pixels[row : row + len(block)].data)
        row += len(block)
    assert row == len(pixels), (row, shape)
    name = path.stem if path.is_file() else path.resolve().name
    return Pictures(name=name, pixels=pixels, digest=digest.hexdigest()[:16])


def read_statistics(path: Path) -> dict[str, np.ndarray] | None:
    """float64 arrays named as in STATISTICS from one of ADM's reference files; None for an .npz without them.

    Raises:
        ValueError: a broken file, an incomplete set, other shapes, Python objects, or values that are not finite.
    """
    names = _names(path)
    if not any(name in names for name in STATISTICS):
        return None
    if missing := [name for name in (*STATISTICS, "arr_0") if name not in names]:
        raise ValueError(f"{path} has statistics, but lacks {', '.join(missing)}; found {', '.join(names)}")
    statistics = {}
    for name, shape in STATISTICS.items():
        with _Member(path, name) as member:
            if member.shape != shape or member.dtype.kind != "f":
                raise ValueError(
                    f"{name} in {path} is {member.dtype} {member.shape}; expected floats {shape}, "
                    "of the Inception network that ADM's evaluator uses"
                )
            statistics[name] = member.read(math.prod(shape)).reshape(shape).astype(np.float64)
        if not np.isfinite(statistics[name]).all():
            raise ValueError(f"{name} in {path} has values that are not finite")
    return statistics


def _scratch_array(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 array in a temporary file, with its disk space allocated at once."""
    folder = study_root()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _checked_count(available: int, count: int | None, path: Path) -> int:
    if available == 0:
        raise ValueError(f"{path} holds no pictures ({', '.join(LOSSLESS)})")
    if count is not None and not 1 <= count <= available:
        raise ValueError(f"asked for {count} pictures of the {available} in {path}; give a count from 1 to {available}")
    return available if count is None else count


# Folders

Blocks = tuple[tuple[int, ...], Iterator[np.ndarray]]  # shape (N, C, H, W) of all, and pixels block by block


def _folder(folder: Path, count: int | None) -> Blocks:
    files = [Path(entry.path) for entry in walk(folder) if entry.name.lower().endswith(SUFFIXES)]
    files = files[: _checked_count(len(files), count, folder)]
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        layouts = list(pool.map(_layout, files))
    sizes = [size for _, size in layouts]
    for path, (height, width) in zip(files, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise ValueError(
                f"sizes differ: {path} is {height} x {width} px, {files[0].name} {sizes[0][0]} x {sizes[0][1]}; "
                "pictures that are scored together must have one size"
            )
    channels = 1 if {mode for mode, _ in layouts} <= set(GREY) else 3

    def blocks() -> Iterator[np.ndarray]:
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(files), BLOCK):
                yield np.stack(list(pool.map(lambda path: _decode(path, channels), files[start : start + BLOCK])))

    return (len(files), channels, *sizes[0]), blocks()


def _layout(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode, and height and width in pixels; ValueError unless the file is lossless with 8 bits per value."""
    with open_picture(path, FORMATS) as picture:
        try:
            frames, bits = getattr(picture, "n_frames", 1), _bits(path, picture)
        except Exception as error:  # reading them parses a TIFF's directories, which fails in many ways
            raise ValueError(f"{path} cannot be read as a picture ({error}); remove or replace it") from error
        if picture.format in ("JPEG", "MPO"):  # MPO: several JPEGs in one
            raise ValueError(f"{path} is a JPEG: {LOSSY}")
        if picture.format == "WEBP" and not _lossless_webp(path):
            raise ValueError(f"{path} is a lossy WebP: {LOSSY}")
        if picture.format == "TIFF" and picture.info.get("compression") not in LOSSLESS_TIFF:
            raise ValueError(f"{path} is a TIFF with {picture.info.get('compression')} inside: {LOSSY}")
        if frames != 1:
            raise ValueError(f"{path} holds {frames} pictures; write one picture per file")
        if bits > 8 or picture.mode.startswith(("I", "F")):
            raise ValueError(f"{path} has more than 8 bits per value; convert it to 8")
        if picture.mode not in (*GREY, *COLOUR):
            raise ValueError(f"{path} has the mode {picture.mode}; convert it to RGB")
        return picture.mode, (picture.height, picture.width)


def _bits(path: Path, picture: Any) -> int:
    """Bits per value according to the file: Pillow silently reduces 16 bits of a colour picture to 8."""
    if picture.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # signature, then the header chunk: length, name, width, height, depth
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (8,)))  # BitsPerSample
    return 8


def _lossless_webp(path: Path) -> bool:
    """Whether the first picture chunk of a RIFF file is VP8L; a lossy one is 'VP8 '."""
    with open(path, "rb") as file:
        file.seek(12)  # RIFF, size, WEBP
        while len(header := file.read(8)) == 8:
            if header[:4] in (b"VP8L", b"VP8 "):
                return header[:4] == b"VP8L"
            size = int.from_bytes(header[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _decode(path: Path, channels: int) -> np.ndarray:
    """uint8 (channels, H, W)."""
    from PIL import Image

    with open_picture(path, FORMATS) as picture:
        try:
            if "A" in picture.mode or "transparency" in picture.info:
                opaque = picture.convert("RGBA").getchannel("A").getextrema() == (255, 255)
                if not opaque:
                    raise ValueError("it is partly transparent, and its background is not known")
            array = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be decoded ({error}); remove or replace it") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


# Arrays


class _Member:
    """One array of an .npz, read sequentially as bytes. As a context manager it raises ValueError for any damage."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __enter__(self) -> _Member:
        try:
            self._archive = zipfile.ZipFile(self.path)
            try:
                self._file = self._archive.open(f"{self.name}.npy")
                self._header()
            except BaseException:
                self._archive.close()
                raise
        except Exception as error:  # broken files fail in many ways, among them struct.error and TokenError
            raise self._damaged(error) from error
        if self.dtype.hasobject:
            self._archive.close()
            raise ValueError(
                f"refused {self.path}: {self.name} holds Python objects, a pickle that could run code when loaded; "
                "save plain numbers"
            )
        return self

    def _header(self) -> None:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(self._file)
        if version not in read:
            raise ValueError(f"array format {version} is not supported")
        self.shape, column_major, self.dtype = read[version](self._file)
        if column_major and len(self.shape) > 1:
            raise ValueError("the array is column-major; save np.ascontiguousarray of it")
        stored = self._archive.getinfo(f"{self.name}.npy").file_size
        if min(self.shape, default=0) < 0 or math.prod(self.shape) * self.dtype.itemsize > stored:
            raise ValueError(f"its header states {self.dtype} {self.shape}, but it has {stored} bytes")

    def read(self, values: int) -> np.ndarray:
        """The next values, as a flat array of the stored type."""
        size = values * self.dtype.itemsize
        try:
            content = self._file.read(size)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            raise self._damaged(error) from error
        if len(content) < size:
            raise self._damaged(f"it ends {size - len(content)} bytes too early")
        return np.frombuffer(content, self.dtype)

    def finish(self) -> None:
        """Read to the end, where the archive's checksum is compared; ValueError when there are more values."""
        try:
            more = self._file.read(1)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            raise self._damaged(error) from error
        if more:
            raise self._damaged(f"it has more values than the {self.shape} in its header")

    def _damaged(self, reason: object) -> ValueError:
        why = " ".join(str(reason).split())
        return ValueError(f"{self.name} of {self.path} cannot be read ({why}): the file is damaged, or no .npz")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()


def _names(path: Path) -> list[str]:
    """Names of the arrays in an .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read as an .npz ({error})") from error


def _npz(path: Path, count: int | None) -> Blocks:
    names = _names(path)
    wanted = "uint8 (N, H, W, 3), as np.savez(path, images) writes it"
    if "arr_0" not in names:
        raise ValueError(f"{path} has no arr_0, {wanted}; found {', '.join(names) or 'no arrays'}")
    with _Member(path, "arr_0") as member:
        shape, dtype = member.shape, member.dtype
    if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8:
        raise ValueError(f"arr_0 of {path} is {dtype} {shape}; it should be {wanted}")
    total, height, width, channels = shape
    if total and not height * width:
        raise ValueError(f"the pictures in {path} are {height} x {width} px")
    rows = _checked_count(total, count, path)

    def blocks() -> Iterator[np.ndarray]:
        with _Member(path, "arr_0") as member:
            for start in range(0, rows, BLOCK):
                number = min(BLOCK, rows - start)
                flat = member.read(number * height * width * channels)
                yield flat.reshape(number, height, width, channels).transpose(0, 3, 1, 2)
            if rows == total:
                member.finish()

    return (rows, channels, height, width), blocks()
