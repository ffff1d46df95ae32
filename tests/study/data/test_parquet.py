"""Parquet files as on the hub: the same pictures as in a folder, read in batches; damage is reported by file."""

import dataclasses
import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import draw_pictures
from PIL import Image

from study.data import image_folder, parquet
from study.data.datasets import crop_method, load_images, native_resolution, resolve_data

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def row(path, label):
    return {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": label}


def write(path, rows, names=None, **options):
    """Write a file like the hub's library."""
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}}}
    metadata = {b"huggingface": json.dumps(info).encode()} if names else None
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)


def rows_of(folder, seed=0):
    """All pictures of a folder with a subfolder per class, shuffled."""
    names = sorted(path.name for path in folder.iterdir())
    found = [row(path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    return names, [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


@pytest.fixture
def split_folder(tmp_path):
    """train/ and val/, each with three classes, and the same pictures as parquet files like ImageNet's on the hub."""
    folder, hub = tmp_path / "folder", tmp_path / "hub"
    draw_pictures(folder / "train", per_class=9)
    draw_pictures(folder / "val", per_class=4)
    for number in range(4):  # names differ from those of train
        for label in range(3):
            path = folder / "val" / f"class{label}" / f"{number:03}.png"
            path.rename(path.with_name(f"v{number}.png"))
    names, rows = rows_of(folder / "train")
    for number, part in enumerate((rows[:11], rows[11:])):
        write(hub / "data" / f"train-{number:05d}-of-00002.parquet", part, names, row_group_size=4)
    write(hub / "data" / "validation-00000-of-00001.parquet", rows_of(folder / "val")[1], names)
    unlabelled = [{**item, "label": -1} for item in rows[:5]]
    write(hub / "data" / "test-00000-of-00028-0a1b.parquet", unlabelled, names)  # the other files are missing
    return folder, hub


def test_the_same_pictures_have_the_same_content(split_folder):
    folder, hub = split_folder
    spec = resolve_data(str(hub), 16)
    expected = resolve_data(str(folder), 16)
    assert (spec.content, spec.class_names) == (expected.content, expected.class_names)
    assert (spec.train_images, spec.test_images, spec.channels, spec.flip) == (27, 12, 3, True)
    assert crop_method(spec) == image_folder.CROP
    for split in ("train", "test"):
        one, other = load_images(spec, split), load_images(expected, split)
        np.testing.assert_array_equal(one.images(range(len(one.labels))), other.images(range(len(one.labels))))
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_folder_can_be_planned_before_it_is_packed(split_folder, study_root):
    unpacked = [resolve_data(str(source), 16, pack=False) for source in split_folder]
    assert not list(study_root.iterdir())
    packed = [resolve_data(str(source), 16) for source in split_folder]
    assert unpacked == [dataclasses.replace(spec, content="") for spec in packed]
    assert [resolve_data(str(source), 16, pack=False) for source in split_folder] == packed


def test_without_a_split_of_its_own_the_same_tenth_is_held_out(tmp_path):
    folder = draw_pictures(tmp_path / "folder", per_class=24)
    names, rows = rows_of(folder)
    write(tmp_path / "hub" / "train-00000-of-00001.parquet", rows, names, row_group_size=10)
    write(tmp_path / "hub" / "test-00000-of-00001.parquet", [{**rows[0], "label": -1}])
    spec = resolve_data(str(tmp_path / "hub"), 16)
    assert (spec.train_images, spec.test_images) == (66, 6)
    assert spec.content == resolve_data(str(folder), 16).content


def test_a_labelled_test_split_is_used_and_classes_need_no_names(tmp_path):
    rows = rows_of(draw_pictures(tmp_path / "folder", per_class=5))[1]
    for item in rows:
        item["image"]["path"] = None  # as for pictures that were never files
    write(tmp_path / "hub" / "train.parquet", rows[:10])
    write(tmp_path / "hub" / "test.parquet", rows[10:])
    spec = resolve_data(str(tmp_path / "hub"), 16)
    assert spec.class_names == ("0", "1", "2")
    assert (spec.train_images, spec.test_images) == (10, 5)


def test_pictures_are_read_a_few_at_a_time_and_from_any_one_on(split_folder, monkeypatch):
    _, hub = split_folder
    _, pictures = parquet.parquet_pictures(parquet.parquet_files(hub))
    whole = list(pictures.encoded(0))
    read = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(self, size, row_groups, columns):
        read.append((row_groups, columns))
        return original(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(parquet, "READ_BATCH", 3)
    for start in (0, 9, 11, 26, 27, 30, 39):
        assert list(pictures.encoded(start)) == whole[start:]
    assert (len(whole), pictures.training) == (39, 27)
    # of all three files, of two, of the last, of none; skipped groups are not read
    assert read.count(([0], ["image.bytes"])) == 3 + 2 + 2 + 1 + 1 + 1 + 0
    assert all(len(groups) == 1 for groups, _ in read)


def test_grey_pictures_stay_grey_and_their_size_is_found(tmp_path):
    rows = []
    for number in range(12):
        file = io.BytesIO()
        Image.fromarray(np.full((20, 30 + number), 20 * number, np.uint8)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "label": number % 2})
    write(tmp_path / "train-00000-of-00001.parquet", rows, ["even", "odd"])
    assert native_resolution(tmp_path) == 20
    assert resolve_data(str(tmp_path), 16).channels == 1


def rewritten(hub, change):
    path = hub / "data" / "train-00001-of-00002.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table), path)


BROKEN = {
    "a file that was cut off": (
        lambda hub, path: path.write_bytes(path.read_bytes()[:-100]),
        r"train-00001-of-00002\.parquet cannot be read as parquet .*fetch it again",
    ),
    "bytes that were changed": (
        lambda hub, path: path.write_bytes(b"PAR1" + b"\xff" * 300 + path.read_bytes()[304:]),
        r"train-00001-of-00002\.parquet",
    ),
    "a file that is missing": (
        lambda hub, path: path.unlink(),
        r"has 1 of 2 files of train; missing: train-00001-of-00002\.parquet",
    ),
    "no training split": (
        lambda hub, path: [other.unlink() for other in hub.glob("data/train-*")],
        r"has no train-\*\.parquet",
    ),
    "other columns": (
        lambda hub, path: rewritten(hub, lambda table: table.rename_columns(["picture", "label"])),
        r"has the columns label, picture.bytes, picture.path, but not image.bytes",
    ),
    "labels that are text": (
        lambda hub, path: rewritten(
            hub, lambda table: table.set_column(1, "label", pa.array(["a"] * len(table), pa.string()))
        ),
        "labels of type string",
    ),
    "a label of no class": (
        lambda hub, path: rewritten(
            hub, lambda table: table.set_column(1, "label", pa.array([7] * len(table), pa.int64()))
        ),
        "has the label 7 in train; its classes are 0 to 2",
    ),
    "training without labels": (
        lambda hub, path: rewritten(
            hub, lambda table: table.set_column(1, "label", pa.array([-1] * len(table), pa.int64()))
        ),
        "has the label -1 in train",
    ),
    "no bytes": (
        lambda hub, path: rewritten(
            hub, lambda table: table.set_column(0, "image", pa.array([{"path": "x.png"}] * len(table), IMAGE))
        ),
        r"train-00001-of-00002.parquet \(x.png\) holds no bytes",
    ),
    "a picture that is none": (
        lambda hub, path: rewritten(
            hub, lambda table: table.set_column(0, "image", pa.array([{"bytes": b"no", "path": "x.png"}] * 16, IMAGE))
        ),
        r"train-00001-of-00002.parquet \(x.png\) cannot be read as a picture",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_damage_is_reported_in_one_line(what, split_folder):
    _, hub = split_folder
    breaks, message = BROKEN[what]
    breaks(hub, hub / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        resolve_data(str(hub), 16)
    assert len(str(caught.value).splitlines()) == 1


def test_without_pyarrow_it_is_asked_for(split_folder, monkeypatch):
    _, hub = split_folder
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'pyarrow>=15'"):
        resolve_data(str(hub), 16)
