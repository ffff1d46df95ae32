"""Data sets: found or fetched once, packed as arrays under `$STUDY_ROOT/data`, then identified by a content hash.

Once a data set is packed, `resolve_data` only reads a manifest; it does not import torch, so that planning starts
quickly. Nothing is unpickled: study/data/named_datasets.py parses bytes, study/data/image_folder.py and
study/data/parquet.py decode pictures.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.names import nearest
from results.numbers import counted
from study.core.files import create_array, fingerprint, read_json, remove_tree, write_json
from study.core.lease import lease
from study.core.paths import study_root
from study.core.settings import rebuild
from study.data import image_folder
from study.data.image_folder import Block, Blocks, Pictures, decoded_pictures, decoder, folder_pictures, picture_digest
from study.data.named_datasets import NAMED_DATASETS
from study.data.parquet import parquet_digest, parquet_files, parquet_pictures, parquet_resolution
from study.plan.data_spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


SPLITS = ("train", "test")
NAMED_RESOLUTION = 32  # pixels, of all named data sets
PACK_VERSION = 2  # raised when packing the same source gives other pixels or other files
TEST_SHARE = 0.1  # held out from each class of a data set without a test split
KEY_BYTES = 16
SAVE_SECONDS = 20.0  # between writes of the packing's progress, from which an interrupted one resumes


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One split, in the order of its content.

    Args:
        packed: uint8 (M, C, H, W), the images of all splits in the order of their source, mapped from disk.
        order: int64 (N,), where in `packed` the images of this split are.
        labels: int64 (N,).
    """

    packed: np.ndarray
    order: np.ndarray
    labels: np.ndarray

    def images(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """uint8 (B, C, H, W), the images at these indices of the split."""
        return np.asarray(self.packed[self.order[np.asarray(indices)]])

    def pixels(self, indices: np.ndarray | Sequence[int]) -> Tensor:
        """float32 (B, C, H, W) in [-1, 1] of the images at these indices."""
        import torch

        return torch.from_numpy(self.images(indices)).float().div_(127.5).sub_(1.0)


class Source(NamedTuple):
    """Images to pack, in the order of their source; `labels` and `training` as of `image_folder.Pictures`."""

    blocks: Blocks
    labels: np.ndarray
    training: int | None
    shape: tuple[int, ...]  # (C, H, W)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What the manifest of packed images says about one source of them; several sources may have the same content."""

    source: str  # name of a data set, or path of a folder
    upright: bool
    digest: str  # of the state of the source
    spec: DataSpec
    transparent: int  # pictures that were laid on white
    jpegs: int
    decoder: str  # versions of what decoded the pictures


def resolve_data(source: str, resolution: int, pack: bool = True, upright: bool = True) -> DataSpec:
    """The data set called `source`, packed at `resolution` unless it already is.

    Args:
        source: 'fashion-mnist', 'cifar10', or a folder with one subfolder of pictures per class, or with a training and
            a test folder (or the former alone) of such subfolders, or with parquet files. If it has no test split,
            about a tenth of each class is held out for test, chosen by content.
        resolution: pixels; 32 for the named sets (Fashion-MNIST is 28, padded with zeros). Pictures of a
            folder are cropped to the centre square and resized.
        pack: False writes nothing: a data set that is not packed yet has its sizes, and no content.
        upright: whether pictures of a folder are turned as their EXIF orientation says; ADM does not (guided-diffusion,
            image_datasets.py).

    Raises:
        ValueError: an unknown source, a data set that cannot be obtained, a folder with another layout, a
            broken picture, or a resolution that the source does not have.
    """
    if source in NAMED_DATASETS:
        if resolution != NAMED_RESOLUTION:
            raise ValueError(
                f"{source} comes at {NAMED_RESOLUTION} px, not {resolution}: set the resolution to {NAMED_RESOLUTION}"
            )
        if packed := _packed(source, source, resolution, source):
            return packed
        return _pack_named(source) if pack else _unpacked_named(source)
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
    digest = fingerprint({"pictures": pictures, "upright": upright})
    if packed := _packed(name, str(folder), resolution, digest):
        return packed
    if pack:
        return _pack_folder(folder, name, resolution, digest, upright)
    return _unpacked_folder(folder, name, resolution)


def native_resolution(folder: Path) -> int:
    """Median short side, in pixels, of the pictures of a folder."""
    parquet = parquet_files(folder)
    return parquet_resolution(parquet) if parquet else image_folder.native_resolution(folder)


def crop_method(spec: DataSpec) -> str:
    """How the pictures of a packed data set were cropped and resized."""
    folder = any(os.path.isabs(packing.source) for packing in _packings(_folder(spec)))
    return image_folder.CROP if folder else "as published"


def packing_notes(source: str, spec: DataSpec) -> list[str]:
    """Lines about packed pixels of a folder that are not those of its files, or may not be those of packing it anew."""
    if source in NAMED_DATASETS:
        return []
    folder, lines = str(Path(source).expanduser().absolute()), []
    all_folders = (study_root() / "data").glob(f"{spec.name}-{spec.resolution}-*")
    packings = [packing for path in all_folders for packing in _packings(path) if packing.source == folder]
    for packing in [packing for packing in packings if packing.spec.content == spec.content][-1:]:
        if packing.transparent:
            lines.append(f"{counted(packing.transparent, 'picture')} with transparency laid on white")
        if packing.jpegs and packing.decoder != decoder():
            lines.append(
                f"{counted(packing.jpegs, 'picture')} in JPEG decoded by {packing.decoder}; "
                f"by {decoder()}, which is here now, pixels may differ, and so may what is packed anew"
            )
        before = {other.decoder for other in packings if other.upright == packing.upright} - {packing.decoder}
        if packing.jpegs and before:
            lines.append(
                f"packed before by {' and by '.join(sorted(before))}, as another data set: pictures have changed, or "
                f"{packing.decoder} decodes their JPEGs otherwise"
            )
    return lines


def load_images(spec: DataSpec, split: str) -> ImageSet:
    """The 'train' or 'test' images of a resolved data set.

    Raises:
        ValueError: an unknown split, or the packed arrays are missing or of another size.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; valid: {', '.join(SPLITS)}")
    folder = _folder(spec)
    if not _packings(folder):
        raise ValueError(f"{spec.name} is not packed in {folder}; resolve its source again, which packs it")
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels, order = (
            np.load(folder / name, allow_pickle=False).astype(np.int64, copy=False)
            for name in ("labels.npy", f"{split}.order.npy")
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ValueError(f"{name} is missing in {folder}; delete the folder: the same command packs it again") from None
    count, total = spec.train_images if split == "train" else spec.test_images, spec.train_images + spec.test_images
    expected = (total, spec.channels, spec.resolution, spec.resolution)
    if images.shape != expected or images.dtype != np.uint8 or labels.shape != (total,) or order.shape != (count,):
        raise ValueError(f"{folder} holds {images.dtype} {images.shape}, expected uint8 {expected}; delete it")
    return ImageSet(packed=images, order=order, labels=labels[order])


def selected_images(spec: DataSpec, split: str, rows: np.ndarray, count: int | None = None) -> Iterator[np.ndarray]:
    """The images of these rows in order, uint8 (n, C, H, W), `count` at a time or all at once.

    The file is mapped anew each time, so that no more than one part of it stays in memory.
    """
    for start in range(0, len(rows), count or len(rows)):
        yield load_images(spec, split).images(rows[start : start + (count or len(rows))])


def _folder(spec: DataSpec) -> Path:
    return study_root() / "data" / f"{spec.name}-{spec.resolution}-{spec.content}"


def _packings(folder: Path) -> list[Packing]:
    """What the manifest of a folder of packed images says; [] where nothing is packed, or by another version."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("version") != PACK_VERSION:
        return []
    return [rebuild(Packing, packing) for packing in manifest["packings"]]


def _packed(name: str, source: str, resolution: int, digest: str) -> DataSpec | None:
    """The data set that was packed from this source in this state, if there is one."""
    folders = sorted((study_root() / "data").glob(f"{name}-{resolution}-*"))
    packings = (packing for folder in folders for packing in _packings(folder))
    return next((one.spec for one in packings if (one.source, one.digest) == (source, digest)), None)


def picture_key(pixels: np.ndarray, label: int) -> bytes:
    """What a picture is known and sorted by: BLAKE2b of its pixels uint8 (C, H, W), then of its label as int64."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=KEY_BYTES)
    digest.update(int(label).to_bytes(8, "little"))
    return digest.digest()


def held_out(pictures: int) -> int:
    """How many of a class's pictures are held out for test."""
    return max(1, round(TEST_SHARE * pictures)) if pictures else 0


def split_sizes(labels: np.ndarray, training: int | None) -> dict[str, int]:
    """Number of pictures in each split, for labels (N,)."""
    if training is None:
        training = len(labels) - sum(held_out(pictures) for pictures in np.bincount(labels).tolist())
    return {"train": training, "test": len(labels) - training}


def content_order(keys: np.ndarray, labels: np.ndarray, training: int | None) -> dict[str, np.ndarray]:
    """Rows of each split in the order of their keys. It mixes the classes: the beginning of a split is a fair sample.

    Args:
        keys: (N,) bytes of KEY_BYTES, of all pictures in the order of their source.
        labels: (N,).
        training: the first so many rows are the training split; None: of each class, the pictures with the smallest
            keys are held out for test.
    """
    order = np.argsort(keys, kind="stable")
    if training is None:
        test = np.zeros(len(keys), bool)
        by_class = order[np.argsort(labels[order], kind="stable")]
        for members in np.split(by_class, np.cumsum(np.bincount(labels))):
            test[members[: held_out(len(members))]] = True
    else:
        test = np.arange(len(keys)) >= training
    return {"train": order[~test[order]], "test": order[test[order]]}


def _pack(
    name: str,
    source: str,
    digest: str,
    resolution: int,
    class_names: tuple[str, ...],
    flip: bool,
    upright: bool,
    read: Callable[[], Source],
) -> DataSpec:
    """Write the images of `read()`; an interrupted packing is resumed.

    The folder is moved into place when it is complete, and its manifest is written last.
    """
    with lease(study_root() / "data" / f".packing-{name}-{resolution}") as held:
        if done := _packed(name, source, resolution, digest):  # another process packed it meanwhile
            return done
        work, progress_file = held.folder / "arrays", held.folder / "written.json"
        state = {"digest": digest, "decoder": decoder(), "version": PACK_VERSION}
        written: dict[str, Any] = read_json(progress_file) or {}
        if written.get("state") != state or not work.exists():
            remove_tree(work)
            work.mkdir()
            written = {"state": state, "images": 0, "transparent": 0, "jpegs": 0}
        blocks, labels, training, shape = read()
        paths = work / "images.npy", held.folder / "keys.npy"
        if written["images"]:
            images, keys = (np.load(path, mmap_mode="r+", allow_pickle=False) for path in paths)
        else:
            images = create_array(paths[0], np.uint8, (len(labels), *shape))
            keys = create_array(paths[1], f"S{KEY_BYTES}", (len(labels),))
        count, saved = written["images"], time.monotonic()
        for pixels, transparent, jpegs in blocks(count):
            images[count : count + len(pixels)] = pixels
            of_block = labels[count : count + len(pixels)]
            keys[count : count + len(pixels)] = list(map(picture_key, pixels, of_block))
            count += len(pixels)
            written |= {
                "images": count,
                "transparent": written["transparent"] + transparent,
                "jpegs": written["jpegs"] + jpegs,
            }
            held.check()
            held.progress = {"images": count, "of": len(labels)}
            if count == len(labels) or time.monotonic() - saved > SAVE_SECONDS:
                images.flush()
                keys.flush()
                write_json(progress_file, written)
                saved = time.monotonic()
        assert count == len(labels), (count, len(labels))
        np.save(work / "labels.npy", labels.astype(np.int64))
        content = hashlib.sha256(repr((shape, len(class_names))).encode())
        for split, order in content_order(keys, labels, training).items():
            np.save(work / f"{split}.order.npy", order)
            content.update(f"{split} {len(order)}".encode())
            content.update(keys[order].tobytes())
        sizes = split_sizes(labels, training)
        spec = DataSpec(
            name=name,
            resolution=resolution,
            channels=shape[0],
            classes=len(class_names),
            train_images=sizes["train"],
            test_images=sizes["test"],
            content=content.hexdigest()[:16],
            flip=flip,
            class_names=class_names,
        )
        packing = Packing(
            source=source,
            upright=upright,
            digest=digest,
            spec=spec,
            transparent=written["transparent"],
            jpegs=written["jpegs"],
            decoder=decoder(),
        )
        target = _folder(spec)
        before = _packings(target)
        if not before:
            remove_tree(target)
            os.replace(work, target)
        # several folders may have the same content, and files may get new times without new content
        others = [other for other in before if (other.source, other.upright) != (source, upright)]
        manifest = {"version": PACK_VERSION, "packings": [asdict(each) for each in (*others, packing)]}
        write_json(target / "manifest.json", manifest)
        remove_tree(work)
        for path in (paths[1], progress_file):
            path.unlink(missing_ok=True)
    return spec


def _pack_named(name: str) -> DataSpec:
    dataset = NAMED_DATASETS[name]

    def read() -> Source:
        with tempfile.TemporaryDirectory() as temporary:
            arrays = dataset.read(Path(temporary))
        images, labels = (np.concatenate([arrays[split][part] for split in SPLITS]) for part in (0, 1))
        return Source(lambda start: iter([Block(images[start:])]), labels, len(arrays["train"][1]), images.shape[1:])

    return _pack(name, name, name, NAMED_RESOLUTION, dataset.class_names, dataset.flip, True, read)


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


def _pack_folder(folder: Path, name: str, resolution: int, digest: str, upright: bool) -> DataSpec:
    class_names, pictures = _folder_pictures(folder)

    def read() -> Source:
        channels, blocks = decoded_pictures(pictures, resolution, upright)
        return Source(blocks, pictures.labels, pictures.training, (channels, resolution, resolution))

    return _pack(name, str(folder), digest, resolution, class_names, True, upright, read)


def _unpacked_folder(folder: Path, name: str, resolution: int) -> DataSpec:
    class_names, pictures = _folder_pictures(folder)
    sizes = split_sizes(pictures.labels, pictures.training)
    return DataSpec(
        name=name,
        resolution=resolution,
        channels=3,  # pictures in colour: whether all are grey is known once each was opened
        classes=len(class_names),
        train_images=sizes["train"],
        test_images=sizes["test"],
        content="",
        flip=True,
        class_names=class_names,
    )


def _folder_pictures(folder: Path) -> tuple[tuple[str, ...], Pictures]:
    parquet = parquet_files(folder)
    return parquet_pictures(parquet) if parquet else folder_pictures(folder)
