"""Unused files in a user's data folder are reported by kind, and change nothing."""

from __future__ import annotations

import os

import pytest
from made_up import draw_pictures

from study.data import left_out
from study.data.datasets import resolve_data
from study.data.left_out import left_out_of_data, left_out_of_pictures

PICTURES = "pictures are .png, .jpg, .jpeg, .bmp, .webp"


@pytest.fixture
def birds(tmp_path):
    return draw_pictures(tmp_path / "birds", per_class=4)


def add(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not used")


def test_files_that_are_not_pictures_are_counted_by_kind_and_litter_is_not(birds):
    before = resolve_data(str(birds), 16)
    assert left_out_of_data(str(birds)) == []
    add(birds, "class0/a.gif", "class0/b.GIF", "class1/deep/c.gif", "class2/notes.txt", "LICENSE")
    add(birds, ".DS_Store", "class0/.hidden.gif", ".git/objects/x.bin", "Thumbs.db", "class1/desktop.ini")
    assert left_out_of_data(str(birds)) == [f"left out 3 .gif, 1 .txt, 1 without a suffix: {PICTURES}"]
    assert resolve_data(str(birds), 16) == before


def test_many_kinds_are_summed_up(birds, monkeypatch):
    monkeypatch.setattr(left_out, "KINDS", 2)
    add(birds, "class0/a.gif", "class0/b.gif", "a.txt", "b.xml", "c.yaml")
    assert left_out_of_data(str(birds)) == [f"left out 2 .gif, 1 .txt, 2 of other kinds: {PICTURES}"]


def test_pictures_outside_of_classes_are_reported_too(birds, tmp_path):
    (birds / "class0" / "000.png").rename(birds / "cover.png")
    assert left_out_of_data(str(birds)) == ["left out 1 picture that is in no class's folder"]
    own = tmp_path / "own"
    for split in ("train", "test", "val"):
        draw_pictures(own / split, per_class=4)
    (own / "train" / "class1" / "000.png").rename(own / "train" / "loose.png")
    (line,) = left_out_of_data(str(own))
    assert line == "left out 13 pictures that are in no class's folder of train/ and val/"
    spec = resolve_data(str(own), 16)
    assert spec.train_images + spec.test_images == 36 - 13


def test_all_other_files_next_to_parquet_files_are_reported(birds, tmp_path, monkeypatch):
    add(birds, "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet")
    add(birds, "data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet", "data/more.parquet", "README.md")
    expected = [
        "left out 12 .png, 2 test*.parquet, 1 .md, 1 .parquet: "
        "only train*.parquet and validation*.parquet with labels are read"
    ]
    assert left_out_of_data(str(birds)) == expected
    monkeypatch.chdir(tmp_path)
    assert left_out_of_data("birds") == left_out_of_data("./birds/") == expected
    monkeypatch.chdir(birds)
    assert left_out_of_data(".") == expected


def test_names_of_data_sets_are_no_folders(birds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add(tmp_path, "cifar10/a.txt", "imagenet/b.txt")
    assert left_out_of_data("cifar10") == left_out_of_data("imagenet") == left_out_of_data("nowhere") == []


def test_of_pictures_that_are_scored(tmp_path):
    add(tmp_path, "a.png", "b.tif", "below/c.gif", "numbers.npy", ".hidden")
    assert left_out_of_pictures(tmp_path) == ["left out 1 .gif, 1 .npy: pictures are .png, .bmp, .webp, .tif, .tiff"]


def test_a_subfolder_that_cannot_be_read_stops_nothing(birds, monkeypatch):
    add(birds, "a.gif")

    def walk(folder):
        yield from (entry for entry in os.scandir(folder) if entry.is_file())
        raise PermissionError("lost+found")

    monkeypatch.setattr(left_out, "walk", walk)
    monkeypatch.setattr(left_out, "own_split", lambda folder: ())
    assert left_out_of_data(str(birds)) == [f"left out 1 .gif: {PICTURES}"]
