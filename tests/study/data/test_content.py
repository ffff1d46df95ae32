"""A data set is its pictures and labels: no form, name or order of files changes it, nor the order it is trained in."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from study.core.settings import identity
from study.data import datasets, image_folder, named_datasets
from study.data.datasets import load_images, packing_notes, resolve_data
from study.data.left_out import data_notes, left_out_of_data

CLASSES = named_datasets.CIFAR10_CLASSES
CIFAR10 = Path("~/cifar10").expanduser()  # all 60,000 images in class folders


def images_of(rng, count, side=32):
    """Distinct pictures uint8 (N, side, side, 3)."""
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def png(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def write_folder(folder, images, labels, names):
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        (folder / names[label] / f"{number:04}.png").write_bytes(png(pixels))
    return folder


def write_parquet(path, images, labels, names, column="img"):
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": list(names)}}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(column, image), ("label", pa.int64())], {b"huggingface": json.dumps(info).encode()})
    rows = [
        {column: {"bytes": png(pixels), "path": None}, "label": int(label)}
        for pixels, label in zip(images, labels, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def write_archive(path, splits):
    """CIFAR-10's binary archive of these splits: images (N, 32, 32, 3) and labels, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for split, names in named_datasets.CIFAR10_BATCHES.items():
            images, labels = splits[split]
            for name, rows in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
                content = b"".join(bytes([labels[row]]) + images[row].transpose(2, 0, 1).tobytes() for row in rows)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def everything(spec):
    """Images and labels of both splits, in order."""
    found = {}
    for split in datasets.SPLITS:
        images = load_images(spec, split)
        found[split] = images.images(range(len(images.labels))), images.labels
    return found


def assert_same(spec, other):
    assert identity(spec) == identity(other)
    for split, (images, labels) in everything(spec).items():
        np.testing.assert_array_equal(images, everything(other)[split][0])
        np.testing.assert_array_equal(labels, everything(other)[split][1])


def together(found):
    """Images and labels of both splits in one."""
    return [np.concatenate(parts) for parts in zip(*found.values(), strict=True)]


def colourful(found):
    """Images and labels of both splits but those that are white."""
    images, labels = together(found)
    kept = (images != 255).any((1, 2, 3))
    return images[kept], labels[kept]


def held_as(images, labels, found):
    """Assert that a split is these images (N, H, W, C) with these labels, in any order."""
    expected = sorted((x.transpose(2, 0, 1).tobytes(), label) for x, label in zip(images, labels, strict=True))
    assert sorted((x.tobytes(), label) for x, label in zip(found[0], found[1].tolist(), strict=True)) == expected


@pytest.fixture
def cifar():
    """Splits like CIFAR-10's, smaller."""
    rng = np.random.default_rng(0)
    labels = {"train": rng.permutation(np.arange(60) % 10), "test": rng.permutation(np.arange(20) % 10)}
    return {split: (images_of(rng, len(of)), of) for split, of in labels.items()}


def test_three_forms_are_one_data_set(cifar, study_root, tmp_path, monkeypatch):
    archive = study_root / "data" / "cifar10" / "raw" / named_datasets.CIFAR10_ARCHIVE
    write_archive(archive, cifar)
    monkeypatch.setattr(named_datasets, "CIFAR10_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    for split, (images, labels) in cifar.items():
        write_folder(tmp_path / "folders" / split, images, labels, CLASSES)
        mixed = np.random.default_rng(1).permutation(len(labels))
        file = tmp_path / "hub" / "plain_text" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, images[mixed], labels[mixed], CLASSES)
    published, folders, hub = (
        resolve_data(s, 32) for s in ("cifar10", str(tmp_path / "folders"), str(tmp_path / "hub"))
    )
    assert_same(published, folders)
    assert_same(published, hub)
    assert published.class_names == folders.class_names == hub.class_names
    for split, (images, labels) in cifar.items():
        held_as(images, labels, everything(hub)[split])


def test_a_label_is_content_and_a_name_is_not(cifar, tmp_path):
    images, labels = cifar["train"]
    write_folder(tmp_path / "a", images, labels, CLASSES)
    write_folder(tmp_path / "b", images[::-1], labels[::-1], [f"kind {name}" for name in CLASSES])
    write_folder(tmp_path / "c", images, (labels + 1) % 10, CLASSES)
    a, b, c = (resolve_data(str(tmp_path / name), 32) for name in "abc")
    assert_same(a, b)
    assert a.content != c.content
    assert a.content != resolve_data(str(tmp_path / "a"), 16).content


def test_what_is_held_out_is_chosen_by_content(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 3
    images = images_of(rng, 72)
    write_folder(tmp_path / "folder", images, labels, "abc")
    write_parquet(tmp_path / "hub" / "train.parquet", images[::-1], labels[::-1], "abc", "image")
    folder, hub = (resolve_data(str(tmp_path / name), 32) for name in ("folder", "hub"))
    assert_same(folder, hub)
    found = everything(folder)
    assert [len(found[split][1]) for split in ("train", "test")] == [66, 6]
    held_as(images, labels, together(found))
    keys = {split: [datasets.picture_key(*one) for one in zip(*found[split], strict=True)] for split in found}
    for label in range(3):
        of_class = {s: [key for key, own in zip(keys[s], found[s][1], strict=True) if own == label] for s in keys}
        assert len(of_class["test"]) == 2
        assert max(of_class["test"]) < min(of_class["train"])
    # the same pictures, split so by folders
    for split, (pixels, own) in found.items():
        write_folder(tmp_path / "own" / split, pixels.transpose(0, 2, 3, 1), own, "abc")
    assert_same(folder, resolve_data(str(tmp_path / "own"), 32))


def test_equal_pictures_are_all_kept(tmp_path):
    images = np.repeat(images_of(np.random.default_rng(0), 2), 10, axis=0)
    write_folder(tmp_path / "a", images, [0] * 10 + [1] * 10, "xy")
    found = everything(resolve_data(str(tmp_path / "a"), 32))
    assert [len(found[split][1]) for split in ("train", "test")] == [18, 2]
    for label in range(2):
        assert (found["train"][0][found["train"][1] == label] == images[10 * label].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("resumed", [False, True])
def test_keys_that_were_hashed_before_an_interruption_count(resumed, tmp_path, monkeypatch):
    images, labels = images_of(np.random.default_rng(0), 40), np.arange(40) % 2
    spec = resolve_data(str(write_folder(tmp_path / "whole", images, labels, "ab")), 32)
    monkeypatch.setattr(image_folder, "BLOCK", 8)
    monkeypatch.setattr(image_folder, "AHEAD", 1)
    monkeypatch.setattr(image_folder, "cores", lambda: 1)
    monkeypatch.setattr(datasets, "SAVE_SECONDS", 0.0)
    folder, decode, decoded = write_folder(tmp_path / "cut", images, labels, "ab"), image_folder._decode, []

    def cut_off(*arguments):
        if len(decoded) == 25:
            raise KeyboardInterrupt
        decoded.append(arguments)
        return decode(*arguments)

    monkeypatch.setattr(image_folder, "_decode", cut_off)
    with pytest.raises(KeyboardInterrupt):
        resolve_data(str(folder), 32)
    monkeypatch.setattr(image_folder, "_decode", lambda *arguments: decoded.append(arguments) or decode(*arguments))
    if not resumed:  # pixels of two decoders are not mixed
        monkeypatch.setattr(datasets, "decoder", lambda: "another")
    assert_same(spec, resolve_data(str(folder), 32))
    assert len(decoded) == (25 + 40 - 24 if resumed else 25 + 40)


def test_packed_by_an_earlier_version_is_packed_again(tmp_path, study_root):
    folder = write_folder(tmp_path / "a", images_of(np.random.default_rng(0), 8), [0, 1] * 4, "xy")
    spec = resolve_data(str(folder), 32)
    (manifest,) = (study_root / "data").glob("*/manifest.json")
    manifest.write_text(json.dumps({"spec": dataclasses.asdict(spec), "sources": {str(folder): "0" * 16}}))
    (manifest.parent / "images.npy").unlink()
    assert_same(spec, resolve_data(str(folder), 32))


def test_one_content_in_two_folders_of_one_name_keeps_both(tmp_path):
    images, labels = images_of(np.random.default_rng(0), 8), [0, 1] * 4
    one = write_folder(tmp_path / "1" / "birds", images, labels, ["finch", "heron"])
    other = write_folder(tmp_path / "2" / "birds", images, labels, ["Fink", "Reiher"])
    first, second = resolve_data(str(one), 32), resolve_data(str(other), 32)
    assert first.content == second.content
    assert resolve_data(str(one), 32, pack=False).class_names == ("finch", "heron")
    assert resolve_data(str(other), 32, pack=False).class_names == ("Fink", "Reiher")


# Layouts


@pytest.mark.parametrize(
    "held_out", [None, "test", "val", "valid", "validation", "dev", "Test", "Testing", "eval", "evaluation"]
)
@pytest.mark.parametrize("training", ["train", "training", "Train"])
def test_usual_names_of_splits(training, held_out, tmp_path):
    rng = np.random.default_rng(0)
    train, test = images_of(rng, 22), images_of(rng, 8)
    write_folder(tmp_path / "own" / training, train, np.arange(22) % 2, "ab")
    if held_out is None:
        write_folder(tmp_path / "flat", train, np.arange(22) % 2, "ab")
        assert_same(resolve_data(str(tmp_path / "flat"), 32), resolve_data(str(tmp_path / "own"), 32))
        return
    write_folder(tmp_path / "own" / held_out, test, np.arange(8) % 2, "ab")
    spec = resolve_data(str(tmp_path / "own"), 32)
    assert spec.class_names == ("a", "b")
    held_as(train, np.arange(22) % 2, everything(spec)["train"])
    held_as(test, np.arange(8) % 2, everything(spec)["test"])
    assert left_out_of_data(str(tmp_path / "own")) == []


def test_of_several_test_splits_the_first_by_name_is_used_in_every_form(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(6) % 2
    images = {split: images_of(rng, 6) for split in ("train", "val", "test", "dev")}
    for split, of in images.items():
        write_folder(tmp_path / "folders" / split, of, labels, "ab")
        if split != "dev":
            write_parquet(tmp_path / "hub" / f"{split}.parquet", of, labels, "ab")
    folders, hub = (resolve_data(str(tmp_path / name), 32) for name in ("folders", "hub"))
    held_as(images["val"], labels, everything(folders)["test"])
    assert_same(folders, hub)
    assert left_out_of_data(str(tmp_path / "folders")) == [
        "left out 12 pictures that are in no class's folder of train/ and val/"
    ]


def test_imagenet_has_pictures_without_labels_in_its_test_folder(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(6) % 2
    images = {split: images_of(rng, 6) for split in ("train", "val")}
    for split, of in images.items():
        write_folder(tmp_path / split, of, labels, ["n01440764", "n01443537"])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.png").write_bytes(png(images["val"][0]))
    found = everything(resolve_data(str(tmp_path), 32))
    held_as(images["train"], labels, found["train"])
    held_as(images["val"], labels, found["test"])


def test_a_training_split_beside_folders_of_other_names_is_not_taken_for_a_class(tmp_path):
    rng = np.random.default_rng(0)
    write_folder(tmp_path / "train", images_of(rng, 6), np.arange(6) % 2, "ab")
    write_folder(tmp_path, images_of(rng, 3), [0] * 3, ["unlabelled"])
    with pytest.raises(ValueError, match=r"has train/ with folders of its own beside unlabelled/: if it is") as refused:
        resolve_data(str(tmp_path), 32)
    assert len(str(refused.value).splitlines()) == 1
    assert resolve_data(str(tmp_path / "train"), 32).class_names == ("a", "b")


def test_train_is_a_class_among_others_and_a_test_split_alone_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    write_folder(tmp_path / "vehicles", images_of(rng, 12), np.arange(12) % 3, ["car", "ship", "train"])
    assert resolve_data(str(tmp_path / "vehicles"), 32).class_names == ("car", "ship", "train")
    write_folder(tmp_path / "own" / "val", images_of(rng, 6), np.arange(6) % 2, "ab")
    with pytest.raises(ValueError, match="has val/, but no train/"):
        resolve_data(str(tmp_path / "own"), 32)


@pytest.mark.parametrize(
    "names",
    [
        ("0", "2", "10", "100"),
        ("000", "002", "010", "100"),
        ("1", "02", "10", "a"),
        ("Zebra", "ant", "n01", "n1"),
    ],
)
def test_numbers_sort_as_numbers(names, tmp_path):
    images, labels = images_of(np.random.default_rng(0), 16), np.arange(16) % 4
    spec = resolve_data(str(write_folder(tmp_path / "a", images, labels, names)), 32)
    assert spec.class_names == names
    found = everything(spec)
    held_as(images, labels, together(found))


def test_parquet_files_of_two_configurations_are_not_mixed(tmp_path):
    images, labels = images_of(np.random.default_rng(0), 8), np.arange(8) % 2
    for name in ("one", "two"):
        write_parquet(tmp_path / name / "train.parquet", images, labels, "ab")
    with pytest.raises(ValueError, match=r"in several subfolders \(one, two\); give one"):
        resolve_data(str(tmp_path), 32)
    assert resolve_data(str(tmp_path / "one"), 32).train_images == 6


# Pixels


def one_picture(tmp_path, content, suffix=".png", resolution=16, upright=True):
    """Pixels (H, W, C) of a picture as packed: in a data set of two more, that are white."""
    folder = tmp_path / "pixels"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    (folder / "a" / f"it{suffix}").write_bytes(content)
    white = np.full((16, 16, 3), 255, np.uint8)
    for name in ("a/1.png", "b/2.png", "b/3.png"):
        (folder / name).write_bytes(png(white))
    spec = resolve_data(str(folder), resolution, upright=upright)
    found = [x for images, labels in everything(spec).values() for x in images[labels == 0]]
    (other,) = [x for x in found if (x != 255).any()]
    return other.transpose(1, 2, 0), folder, spec


UPRIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
# where the first row and the first column of the stored pixels are in the upright picture (Exif 2.32, Orientation)
STORED = {
    1: lambda x: x,  # top, left
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.transpose(1, 0, 2),  # left, top
    6: lambda x: x[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda x: x[::-1].transpose(1, 0, 2),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_by_their_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    turned, folder, spec = one_picture(tmp_path, png(stored, exif=exif))
    np.testing.assert_array_equal(turned, UPRIGHT)
    as_stored = resolve_data(str(folder), 16, upright=False)
    assert (as_stored.content == spec.content) == (orientation == 1)
    kept = [x for images, _ in everything(as_stored).values() for x in images if (x != 255).any()]
    np.testing.assert_array_equal(kept[0].transpose(1, 2, 0), stored)
    assert resolve_data(str(folder), 16) == spec  # neither takes the place of the other
    assert resolve_data(str(folder), 16, upright=False) == as_stored


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["WEBP", "JPEG", "parquet"])
def test_every_form_of_a_picture_has_an_orientation(form, orientation, tmp_path):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    stored.save(file, "PNG" if form == "parquet" else form, exif=exif, lossless=True, quality=100)
    if form != "parquet":
        found, *_ = one_picture(tmp_path, file.getvalue(), f".{form.lower()}")
        np.testing.assert_allclose(found, UPRIGHT, atol=2 if form == "JPEG" else 0)
        return
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"image": {"bytes": file.getvalue(), "path": None}, "label": 0}] * 4
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema([("image", image), ("label", pa.int64())])), tmp_path / "train.parquet"
    )
    held_as([UPRIGHT] * 4, [0] * 4, together(everything(resolve_data(str(tmp_path), 16))))


def test_a_jpeg_of_a_camera_is_turned_before_it_is_cropped(tmp_path):
    tall = np.zeros((48, 16, 3), np.uint8)
    tall[:16], tall[16:32], tall[32:] = 255, 100, 30
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(STORED[6](tall)).save(file, "JPEG", quality=100, exif=exif)
    found, *_ = one_picture(tmp_path, file.getvalue(), ".jpg")
    assert np.abs(found[2:-2].astype(int) - 100).max() < 4


def transparent(kind):
    """A picture, half of it transparent, as a file; its pixels on white."""
    alpha = np.full((16, 16), 255, np.uint8)
    alpha[:, 8:] = 0
    colour = UPRIGHT.copy()
    colour[..., 1] = 40
    if kind == "palette":
        index = np.where(alpha == 255, 1, 0).astype(np.uint8)
        picture, file = Image.fromarray(index, "P"), io.BytesIO()
        picture.putpalette([9, 9, 9, 200, 30, 60])
        picture.save(file, "PNG", transparency=bytes([0, 255]))
        return file.getvalue(), np.where(alpha[..., None] == 255, (200, 30, 60), 255)
    if kind == "one colour":
        colour[:, 8:] = (1, 2, 3)
        return png(colour, transparency=(1, 2, 3)), np.where(alpha[..., None] == 255, colour, 255)
    if kind == "LA":
        grey = UPRIGHT[..., 0]
        return png(np.stack([grey, alpha], -1)), np.where(alpha == 255, grey, 255)[..., None].repeat(3, 2)
    if kind == "half":
        alpha[:, 8:] = 51  # a fifth
    laid = (colour.astype(int) * alpha[..., None] + 255 * (255 - alpha[..., None].astype(int))) / 255
    return png(np.dstack([colour, alpha])), np.round(laid)


@pytest.mark.parametrize("kind", ["RGBA", "half", "LA", "palette", "one colour"])
def test_transparency_is_laid_on_white_and_said(kind, tmp_path):
    content, expected = transparent(kind)
    found, folder, spec = one_picture(tmp_path, content)
    np.testing.assert_allclose(found, expected, atol=1 if kind == "half" else 0)
    said = ["1 picture with transparency laid on white"]
    assert packing_notes(str(folder), spec) == data_notes(str(folder), spec) == said


def test_an_alpha_channel_without_transparency_is_not_said(tmp_path):
    found, folder, spec = one_picture(tmp_path, png(np.dstack([UPRIGHT, np.full((16, 16), 255, np.uint8)])))
    np.testing.assert_array_equal(found, UPRIGHT)
    assert packing_notes(str(folder), spec) == []


@pytest.mark.parametrize("colour", [2, 4, 6])  # of PNG: RGB, grey with alpha, RGBA
def test_sixteen_bits_are_refused_in_colour_too(colour, tmp_path):
    """Pillow writes none, and reads the upper half of each value."""
    values = {2: 3, 4: 2, 6: 4}[colour] * 16

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 16, 16, 16, colour, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(2 * values)) * 16)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"it\.png has more than 8 bits per value; convert it to 8"):
        one_picture(tmp_path, content)


def test_grey_with_alpha_stays_grey(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    files = {"a/0.png": transparent("LA")[0], "a/1.png": png(grey), "b/2.png": png(grey), "b/3.png": png(255 - grey)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    spec = resolve_data(str(tmp_path), 16)
    assert spec.channels == 1
    expected = [np.where(np.arange(16) < 8, grey, 255), grey, grey, 255 - grey]
    held_as([x[..., None] for x in expected], [0, 0, 1, 1], together(everything(spec)))


def test_another_decoder_is_said_where_there_are_jpegs(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(UPRIGHT).save(file, "JPEG")
    _, with_jpeg, spec = one_picture(tmp_path / "1", file.getvalue(), ".jpg")
    _, without, other = one_picture(tmp_path / "2", png(UPRIGHT))
    here = image_folder.decoder()
    assert here.startswith("Pillow ")
    assert packing_notes(str(with_jpeg), spec) == []
    monkeypatch.setattr(datasets, "decoder", lambda: "Pillow 99, libjpeg-turbo 9")
    (line,) = packing_notes(str(with_jpeg), spec)
    assert line.startswith(f"1 picture in JPEG decoded by {here}; by Pillow 99, libjpeg-turbo 9")
    assert packing_notes(str(without), other) == []
    assert resolve_data(str(with_jpeg), 16) == spec  # nothing is packed for it


def test_a_data_set_that_another_decoder_has_moved_is_said(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(UPRIGHT).save(file, "JPEG")
    found, folder, spec = one_picture(tmp_path, file.getvalue(), ".jpg")
    here, decode = image_folder.decoder(), image_folder._decode

    def another(*arguments):
        pixels, transparent, jpeg = decode(*arguments)
        return pixels ^ np.uint8(jpeg), transparent, jpeg

    monkeypatch.setattr(image_folder, "_decode", another)
    monkeypatch.setattr(datasets, "decoder", lambda: "Pillow 99, libjpeg-turbo 9")
    os.utime(folder / "a" / "it.jpg", (1, 1))  # so that it is packed anew
    moved = resolve_data(str(folder), 16)
    assert moved.content != spec.content
    (line,) = packing_notes(str(folder), moved)
    assert line.startswith(f"packed before by {here}, as another data set: ") and "Pillow 99" in line
    held_as([found ^ np.uint8(1)], [0], colourful(everything(moved)))


def test_warnings_of_pillow_are_silent(tmp_path):
    """In a process of its own, because pytest replaces the filters of warnings."""
    folder = tmp_path / "a"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "palette.png").write_bytes(transparent("palette")[0])
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\xff\xff\xff\xff\0\x06"  # cut off
    (folder / "x" / "exif.png").write_bytes(png(UPRIGHT, exif=exif))
    Image.new("1", (9600, 9600)).save(folder / "x" / "large.png")  # more pixels than Pillow takes without a warning
    code = (
        "import sys, warnings; from study.data.datasets import *; from study.data.image_folder import open_picture\n"
        "print(resolve_data(sys.argv[1], 16).train_images, native_resolution(Path(sys.argv[1])))"
    )
    for processes_from in (4096, 0):
        start = f"from study.data import image_folder; image_folder.PROCESSES_FROM = {processes_from}\n"
        environment = {**os.environ, "STUDY_ROOT": str(tmp_path / f"root{processes_from}")}
        done = subprocess.run(
            [sys.executable, "-c", start + code, str(folder)],
            cwd=Path(image_folder.__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("2 16\n", "")


@pytest.mark.slow  # 60,000 files
def test_cifar10_is_what_the_documentation_names():
    if len(list((CIFAR10 / "train").glob("*/*.png"))) != 50_000:
        pytest.skip(f"{CIFAR10} does not hold the images of CIFAR-10 in class folders")
    spec = resolve_data(str(CIFAR10), 32)
    assert (spec.train_images, spec.test_images, spec.classes) == (50_000, 10_000, 10)
    documentation = (Path(image_folder.__file__).parents[2] / "docs" / "pictures.md").read_text()
    assert f"`{spec.content}`" in documentation
