"""Images: found or fetched once, packed as arrays under `$STUDY_ROOT/data`, then known by their content.

`resolve` reads a manifest and nothing else once a data set is packed; it imports no torch, so that planning
starts at once. Nothing here unpickles: `study/published.py` parses bytes, `study/pictures.py` decodes
pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from study.files import create_array, fingerprint, read_json, remove_tree, write_json
from study.lease import lease
from study.paths import study_root
from study.pictures import native_resolution, picture_blocks, picture_digest, picture_splits
from study.published import KNOWN
from study.settings import nearest, rebuild

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DataSpec", "ImageSet", "load", "native_resolution", "packed", "resolve"]

SPLITS = ("train", "test")
KNOWN_RESOLUTION = 32  # pixels, of all data sets that are known by name
PACK_VERSION = 1  # raised when the same source packs to other pixels


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A packed data set. The same pixels and labels in the same order have the same content, wherever
    from."""

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


# Data sets that only their users can give, as a folder: a study on them can be planned without it
GIVEN_AS_FOLDER = {
    "imagenet": DataSpec(
        name="imagenet",
        resolution=256,
        channels=3,
        classes=1000,
        train_images=1_281_167,
        test_images=50_000,
        content="",
        flip=True,
        class_names=(),
    )
}


class Split(NamedTuple):
    """What is packed: blocks of rows, uint8 (rows, C, H, W), for all labels (N,); shape is (C, H, W)."""

    blocks: Iterable[np.ndarray]
    labels: np.ndarray
    shape: tuple[int, ...]


def resolve(source: str, resolution: int) -> DataSpec:
    """The data set called `source`, packed at `resolution` if it was not yet.

    Args:
        source: 'fashion-mnist', 'cifar10', or a folder with one subfolder of pictures per class, or with two
            such folders, train/ and test/ (or val/). Else about a tenth of each class is held out for test.
        resolution: pixels; 32 for the named sets (Fashion-MNIST is 28, padded with zeros). Pictures of a
            folder are cropped to the centre square and resized to it.

    Raises:
        ValueError: an unknown source, a data set that cannot be had, a folder that is not laid out so, a
            broken picture, or a resolution that the source does not have.
    """
    if source in KNOWN:
        if resolution != KNOWN_RESOLUTION:
            raise ValueError(
                f"{source} comes at {KNOWN_RESOLUTION} px, not {resolution}: set the resolution to {KNOWN_RESOLUTION}"
            )
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
    digest = fingerprint({"pictures": picture_digest(folder), "version": PACK_VERSION})
    return _packed(name, str(folder), resolution, digest) or _pack_folder(folder, name, resolution, digest)


def packed(name: str, resolution: int) -> list[DataSpec]:
    """The data sets that were packed under this name at this resolution; nothing is packed or fetched for it."""
    return [_spec(manifest) for manifest in _manifests(name, resolution)]


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


def _folder(spec: DataSpec) -> Path:
    return study_root() / "data" / f"{spec.name}-{spec.resolution}-{spec.content}"


def _manifests(name: str, resolution: int) -> list[dict[str, Any]]:
    paths = sorted((study_root() / "data").glob(f"{name}-{resolution}-*/manifest.json"))
    return [manifest for path in paths if (manifest := read_json(path))]


def _spec(manifest: dict[str, Any]) -> DataSpec:
    return rebuild(DataSpec, manifest["spec"])


def _packed(name: str, source: str, resolution: int, digest: str) -> DataSpec | None:
    """What was packed from the same source in the same state, if anything."""
    found = (m for m in _manifests(name, resolution) if m["sources"].get(source) == digest)
    return next(map(_spec, found), None)


def _pack(
    name: str,
    source: str,
    digest: str,
    resolution: int,
    class_names: tuple[str, ...],
    flip: bool,
    read: Callable[[], dict[str, Split]],
) -> DataSpec:
    """Write both splits of `read()`. The folder appears whole, and its manifest comes last."""
    with lease(study_root() / "data" / f".packing-{name}-{resolution}") as held:
        if done := _packed(name, source, resolution, digest):  # another process packed it meanwhile
            return done
        work = held.folder / "arrays"
        remove_tree(work)
        work.mkdir()
        splits, content = read(), hashlib.sha256()
        for split in SPLITS:
            blocks, labels, shape = splits[split]
            content.update(repr((split, len(labels), shape)).encode())
            images = create_array(work / f"{split}.images.npy", np.uint8, (len(labels), *shape))
            row = 0
            for block in blocks:
                images[row : row + len(block)] = block
                content.update(np.ascontiguousarray(block).data)
                row += len(block)
                held.check()
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
        # The same content may come from several folders, and a folder may be touched without a change.
        sources = {**(manifest["sources"] if manifest else {}), source: digest}
        write_json(target / "manifest.json", {"spec": dataclasses.asdict(spec), "sources": sources})
        remove_tree(work)
    return spec


def _pack_known(name: str, digest: str) -> DataSpec:
    known = KNOWN[name]

    def read() -> dict[str, Split]:
        with tempfile.TemporaryDirectory() as temporary:
            arrays = known.read(Path(temporary))
        return {split: Split([images], labels, images.shape[1:]) for split, (images, labels) in arrays.items()}

    return _pack(name, name, digest, KNOWN_RESOLUTION, known.class_names, known.flip, read)


def _pack_folder(folder: Path, name: str, resolution: int, digest: str) -> DataSpec:
    class_names, splits = picture_splits(folder)

    def read() -> dict[str, Split]:
        channels, blocks = picture_blocks(splits, resolution)
        shape = (channels, resolution, resolution)
        return {split: Split(blocks[split], splits[split][1], shape) for split in SPLITS}

    return _pack(name, str(folder), digest, resolution, class_names, True, read)
