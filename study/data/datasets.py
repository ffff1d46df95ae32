"""Data sets: found or fetched once, packed as arrays under `$STUDY_ROOT/data`, then identified by a content hash.

Once a data set is packed, `resolve_data` only reads a manifest; it does not import torch, so that planning starts
quickly. Nothing is unpickled: study/data/named_datasets.py parses bytes, study/data/image_folder.py and
study/data/parquet.py decode pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.names import nearest
from study.core.files import create_array, fingerprint, read_json, remove_tree, write_json
from study.core.lease import lease
from study.core.paths import study_root
from study.core.settings import rebuild
from study.data import image_folder
from study.data.image_folder import Blocks, PictureSplit, picture_blocks, picture_digest, picture_splits
from study.data.named_datasets import NAMED_DATASETS
from study.data.parquet import parquet_digest, parquet_files, parquet_resolution, parquet_splits
from study.plan.data_spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


SPLITS = ("train", "test")
NAMED_RESOLUTION = 32  # pixels, of all named data sets
PACK_VERSION = 1  # raised when packing the same source gives other pixels
SAVE_SECONDS = 20.0  # between writes of the packing's progress, from which an interrupted one resumes
HASH_BATCH = 256  # pictures hashed at a time


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
    """A split to pack: pictures uint8 (N, C, H, W) in blocks, see `picture_blocks`; labels (N,); shape (C, H, W)."""

    blocks: Blocks
    labels: np.ndarray
    shape: tuple[int, ...]


def resolve_data(source: str, resolution: int, pack: bool = True) -> DataSpec:
    """The data set called `source`, packed at `resolution` unless it already is.

    Args:
        source: 'fashion-mnist', 'cifar10', or a folder with one subfolder of pictures per class, or with two
            such folders, train/ and test/ (or val/), or with parquet files. If it has no test split, about a tenth
            of each class is held out for test.
        resolution: pixels; 32 for the named sets (Fashion-MNIST is 28, padded with zeros). Pictures of a
            folder are cropped to the centre square and resized.
        pack: False writes nothing: a data set that is not packed yet has its sizes, and no content.

    Raises:
        ValueError: an unknown source, a data set that cannot be obtained, a folder with another layout, a
            broken picture, or a resolution that the source does not have.
    """
    if source in NAMED_DATASETS:
        if resolution != NAMED_RESOLUTION:
            raise ValueError(
                f"{source} comes at {NAMED_RESOLUTION} px, not {resolution}: set the resolution to {NAMED_RESOLUTION}"
            )
        digest = fingerprint({"source": source, "version": PACK_VERSION})
        if packed := _packed(source, source, resolution, digest):
            return packed
        return _pack_named(source, digest) if pack else _unpacked_named(source)
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(
            f"no data set and no folder {source!r}; {nearest(source, NAMED_DATASETS)}. "
            "Give one of them, or a folder with one subfolder of pictures per class or with the hub's parquet files"
        )
    if resolution < 1:
        raise ValueError(f"the resolution is a number of pixels, got {resolution}")
    name = re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "folder"
    parquet = parquet_files(folder)
    pictures = parquet_digest(parquet) if parquet else picture_digest(folder)
    digest = fingerprint({"pictures": pictures, "version": PACK_VERSION})
    if packed := _packed(name, str(folder), resolution, digest):
        return packed
    return _pack_folder(folder, name, resolution, digest) if pack else _unpacked_folder(folder, name, resolution)


def native_resolution(folder: Path) -> int:
    """Median short side, in pixels, of the pictures of a folder."""
    parquet = parquet_files(folder)
    return parquet_resolution(parquet) if parquet else image_folder.native_resolution(folder)


def crop_method(spec: DataSpec) -> str:
    """How the pictures of a packed data set were cropped and resized."""
    manifest = read_json(_folder(spec) / "manifest.json") or {}
    return image_folder.CROP if any(os.path.isabs(source) for source in manifest.get("sources", ())) else "as published"


def packed_data(name: str, resolution: int) -> list[DataSpec]:
    """The data sets already packed under this name at this resolution; packs and fetches nothing."""
    return [_spec(manifest) for manifest in _manifests(name, resolution)]


def load_images(spec: DataSpec, split: str) -> ImageSet:
    """The 'train' or 'test' images of a resolved data set.

    Raises:
        ValueError: an unknown split, or the packed arrays are missing or of another size.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; valid: {', '.join(SPLITS)}")
    folder = _folder(spec)
    if read_json(folder / "manifest.json") is None:
        raise ValueError(f"{spec.name} is not packed in {folder}; resolve its source again, which packs it")
    try:
        images = np.load(folder / f"{split}.images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}.labels.npy", allow_pickle=False)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ValueError(f"{name} is missing in {folder}; delete the folder: the same command packs it again") from None
    count = spec.train_images if split == "train" else spec.test_images
    expected = (count, spec.channels, spec.resolution, spec.resolution)
    if images.shape != expected or images.dtype != np.uint8 or labels.shape != (count,):
        raise ValueError(f"{folder} holds {images.dtype} {images.shape}, expected uint8 {expected}; delete it")
    return ImageSet(images=images, labels=labels.astype(np.int64, copy=False))


def selected_images(spec: DataSpec, split: str, rows: np.ndarray, count: int | None = None) -> Iterator[np.ndarray]:
    """The images of these rows in order, uint8 (n, C, H, W), `count` at a time or all at once.

    The file is mapped anew each time, so that no more than one part of it stays in memory.
    """
    for start in range(0, len(rows), count or len(rows)):
        yield np.ascontiguousarray(load_images(spec, split).images[rows[start : start + (count or len(rows))]])


def _folder(spec: DataSpec) -> Path:
    return study_root() / "data" / f"{spec.name}-{spec.resolution}-{spec.content}"


def _manifests(name: str, resolution: int) -> list[dict[str, Any]]:
    paths = sorted((study_root() / "data").glob(f"{name}-{resolution}-*/manifest.json"))
    return [manifest for path in paths if (manifest := read_json(path))]


def _spec(manifest: dict[str, Any]) -> DataSpec:
    return rebuild(DataSpec, manifest["spec"])


def _packed(name: str, source: str, resolution: int, digest: str) -> DataSpec | None:
    """The data set that was packed from this source in this state, if there is one."""
    matching = (m for m in _manifests(name, resolution) if m["sources"].get(source) == digest)
    return next(map(_spec, matching), None)


def _pack(
    name: str,
    source: str,
    digest: str,
    resolution: int,
    class_names: tuple[str, ...],
    flip: bool,
    read: Callable[[], dict[str, Split]],
) -> DataSpec:
    """Write both splits of `read()`; an interrupted packing is resumed.

    The folder is moved into place when it is complete, and its manifest is written last.
    """
    with lease(study_root() / "data" / f".packing-{name}-{resolution}") as held:
        if done := _packed(name, source, resolution, digest):  # another process packed it meanwhile
            return done
        work, progress_file = held.folder / "arrays", held.folder / "written.json"
        written: dict[str, Any] = read_json(progress_file) or {}
        if written.get("source") != digest or not work.exists():
            remove_tree(work)
            work.mkdir()
            written = {"source": digest}
        splits, content = read(), hashlib.sha256()
        for split in SPLITS:
            blocks, labels, shape = splits[split]
            path, done_before = work / f"{split}.images.npy", written.get(split, 0)
            if done_before:
                images = np.load(path, mmap_mode="r+", allow_pickle=False)
            else:
                images = create_array(path, np.uint8, (len(labels), *shape))
            count, saved = done_before, time.monotonic()
            for rows, block in blocks(done_before):
                images[rows] = block
                count += len(rows)
                held.check()
                held.progress = {"split": split, "images": count, "of": len(labels)}
                if count == len(labels) or time.monotonic() - saved > SAVE_SECONDS:
                    images.flush()
                    written[split], saved = count, time.monotonic()
                    write_json(progress_file, written)
            assert count == len(labels), (count, len(labels))
            np.save(work / f"{split}.labels.npy", labels.astype(np.int64))
            content.update(repr((split, len(labels), shape)).encode())
            for start in range(0, len(labels), HASH_BATCH):
                content.update(np.ascontiguousarray(images[start : start + HASH_BATCH]).data)
                held.check()
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
        # several folders may have the same content, and files may get new times without new content
        sources = {**(manifest["sources"] if manifest else {}), source: digest}
        write_json(target / "manifest.json", {"spec": dataclasses.asdict(spec), "sources": sources})
        remove_tree(work)
        progress_file.unlink(missing_ok=True)
    return spec


def _pack_named(name: str, digest: str) -> DataSpec:
    dataset = NAMED_DATASETS[name]

    def read() -> dict[str, Split]:
        with tempfile.TemporaryDirectory() as temporary:
            arrays = dataset.read(Path(temporary))
        return {split: Split(_block_of(images), labels, images.shape[1:]) for split, (images, labels) in arrays.items()}

    return _pack(name, name, digest, NAMED_RESOLUTION, dataset.class_names, dataset.flip, read)


def _unpacked_named(name: str) -> DataSpec:
    dataset = NAMED_DATASETS[name]
    return DataSpec(
        name=name,
        resolution=NAMED_RESOLUTION,
        channels=dataset.channels,
        classes=len(dataset.class_names),
        train_images=dataset.train_images,
        test_images=dataset.test_images,
        content="",
        flip=dataset.flip,
        class_names=dataset.class_names,
    )


def _block_of(images: np.ndarray) -> Blocks:
    return lambda start: iter([(np.arange(start, len(images)), images[start:])])


def _pack_folder(folder: Path, name: str, resolution: int, digest: str) -> DataSpec:
    class_names, splits = _folder_splits(folder)

    def read() -> dict[str, Split]:
        channels, blocks = picture_blocks(splits, resolution)
        shape = (channels, resolution, resolution)
        return {split: Split(blocks[split], splits[split].labels, shape) for split in SPLITS}

    return _pack(name, str(folder), digest, resolution, class_names, True, read)


def _unpacked_folder(folder: Path, name: str, resolution: int) -> DataSpec:
    class_names, splits = _folder_splits(folder)
    return DataSpec(
        name=name,
        resolution=resolution,
        channels=3,  # pictures in colour: whether all are grey is known once each was opened
        classes=len(class_names),
        train_images=len(splits["train"].labels),
        test_images=len(splits["test"].labels),
        content="",
        flip=True,
        class_names=class_names,
    )


def _folder_splits(folder: Path) -> tuple[tuple[str, ...], dict[str, PictureSplit]]:
    parquet = parquet_files(folder)
    return parquet_splits(parquet) if parquet else picture_splits(folder)
