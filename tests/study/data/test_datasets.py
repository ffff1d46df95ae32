"""Data sets: parsers and refusals, the order of sources, folders of pictures, packing once."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from study.data import datasets, image_folder, named_datasets
from study.data.datasets import load_images, native_resolution, resolve_data


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def picture(seed, size=(96, 96), grey=False):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6) if grey else (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 12 pictures."""
    root = tmp_path / "pets & co"
    for label, name in enumerate(("cat", "ant", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(12):
            picture(100 * label + i, (96 + 7 * i, 96)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def tiny_fashion(tmp_path, monkeypatch):
    """A folder with four small idx files, and constants that take them for the published ones."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(30, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    root = tmp_path / "idx"
    root.mkdir()
    for name, array in arrays.items():
        (root / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))  # another compression than the published one
    digests = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(named_datasets, "FASHION_MNIST_FILES", digests)
    return root, arrays


def test_idx():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(named_datasets.parse_idx(idx(array)), array)
    for broken in (b"", b"\0\0\x08\x03\0\0", idx(array)[:-1], idx(array) + b"\0", b"\0\0\x0d\x01\0\0\0\0"):
        with pytest.raises(ValueError, match="idx"):
            named_datasets.parse_idx(broken)


def test_fashion_mnist_is_padded_and_checked(tiny_fashion):
    root, arrays = tiny_fashion
    images, labels = named_datasets.read_fashion_mnist(root)["train"]
    assert images.shape == (30, 1, 32, 32)
    np.testing.assert_array_equal(images[:, 0, 2:30, 2:30], arrays["train-images-idx3-ubyte"])
    assert not images[:, :, :2].any()
    assert not images[..., 30:].any()
    np.testing.assert_array_equal(labels, arrays["train-labels-idx1-ubyte"])
    changed = arrays["train-images-idx3-ubyte"].copy()
    changed[3, 4, 5] ^= 1
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(changed)))
    with pytest.raises(ValueError, match="not the published file"):
        named_datasets.read_fashion_mnist(root)
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(changed))[:500])
    with pytest.raises(ValueError, match="damaged"):
        named_datasets.read_fashion_mnist(root)


def offline(monkeypatch, tried):
    def download(url, path):
        tried.append("download")
        raise OSError("no network")

    def run_command(command, folder):
        tried.append(" ".join(word for word in command if word in ("apt-get", "update", "download")))
        raise ValueError("no network")

    monkeypatch.setattr(named_datasets, "download", download)
    monkeypatch.setattr(named_datasets, "run_command", run_command)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_a_named_data_set_can_be_planned_before_it_is_fetched(name, study_root, tmp_path, monkeypatch):
    offline(monkeypatch, [])
    spec = resolve_data(name, 32, pack=False)
    channels, train_images = {"fashion-mnist": (1, 60_000), "cifar10": (3, 50_000)}[name]
    assert (spec.channels, spec.train_images, spec.test_images, spec.classes) == (channels, train_images, 10_000, 10)
    assert spec.content == "" and not list(study_root.iterdir())


def test_sources_are_tried_in_order(tiny_fashion, study_root, tmp_path, monkeypatch):
    root, _ = tiny_fashion
    tried: list[str] = []
    offline(monkeypatch, tried)
    monkeypatch.setattr(named_datasets, "FASHION_MNIST_INSTALLED", tmp_path / "usr" / "installed")
    with pytest.raises(ValueError, match="could not be obtained") as caught:
        resolve_data("fashion-mnist", 32)
    assert tried == ["download", "apt-get download", "apt-get update"]
    raw = study_root / "data" / "fashion-mnist" / "raw"
    for word in (str(raw), "mirrors", "apt-get download", "Put its four idx files"):
        assert word in str(caught.value)

    # a mirror that answers is used before the package
    monkeypatch.setattr(named_datasets, "download", lambda url, path: path.write_bytes((root / path.name).read_bytes()))
    tried.clear()
    spec = resolve_data("fashion-mnist", 32)
    assert tried == []
    assert (spec.train_images, spec.test_images, spec.channels, spec.flip) == (30, 10, 1, False)
    assert len(spec.class_names) == 10


def test_local_files_come_before_the_network(tiny_fashion, study_root, monkeypatch):
    root, _ = tiny_fashion
    tried: list[str] = []
    offline(monkeypatch, tried)
    raw = study_root / "data" / "fashion-mnist" / "raw"
    raw.parent.mkdir(parents=True)
    os.symlink(root, raw)
    spec = resolve_data("fashion-mnist", 32)
    assert tried == []
    assert sorted(load_images(spec, "train").labels.tolist()) == sorted(i % 10 for i in range(30))


def test_package_is_unpacked_without_root(tiny_fashion, tmp_path, monkeypatch):
    root, _ = tiny_fashion
    commands = []

    def run_command(command, folder):
        commands.append(command)
        if "download" in command and "update" not in [c for previous in commands for c in previous]:
            raise ValueError("Unable to locate package")  # before the lists are downloaded
        if "download" in command:
            (folder / "some.deb").write_bytes(b"")
        if command[0] == "dpkg-deb":
            target = folder / "unpacked" / named_datasets.FASHION_MNIST_INSTALLED.relative_to("/")
            target.parent.mkdir(parents=True)
            os.symlink(root, target)

    monkeypatch.setattr(named_datasets, "run_command", run_command)
    found = named_datasets._fashion_mnist_package(tmp_path)
    assert len(named_datasets.read_fashion_mnist(found)["test"][0]) == 10
    private = [command for command in commands if command[0] == "apt-get"][1:]
    assert all(any("Dir::State::Lists" in word and str(tmp_path) in word for word in c) for c in private)


def test_real_fashion_mnist():
    if not (named_datasets.FASHION_MNIST_INSTALLED / "t10k-images-idx3-ubyte.gz").exists():
        pytest.skip("the package dataset-fashion-mnist is not installed, and tests use no network")
    spec = resolve_data("fashion-mnist", 32)
    assert (spec.train_images, spec.test_images) == (60_000, 10_000)
    assert np.bincount(load_images(spec, "test").labels).tolist() == [1000] * 10


def test_cifar(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), np.array([3, 9, 0, 1], np.uint8)
    batch = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
    for found, expected in zip(named_datasets.parse_cifar_batch(batch), (images, labels), strict=True):
        np.testing.assert_array_equal(found, expected)
    for broken in (b"", batch[:-1], b"\x0a" + batch[1:]):
        with pytest.raises(ValueError, match="CIFAR-10"):
            named_datasets.parse_cifar_batch(broken)

    def archive(names):
        path = tmp_path / "some.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(batch)
                file.addfile(info, io.BytesIO(batch))
        return path

    names = [name for split in named_datasets.CIFAR10_BATCHES.values() for name in split]
    arrays = named_datasets.read_cifar_archive(archive(names))
    assert arrays["train"][0].shape == (20, 3, 32, 32)
    np.testing.assert_array_equal(arrays["test"][1], labels)
    with pytest.raises(ValueError, match="binary archive"):
        named_datasets.read_cifar_archive(archive(names[:2]))


def test_cifar_archive_is_checked_before_it_is_read(study_root, monkeypatch):
    raw = study_root / "data" / "cifar10" / "raw" / named_datasets.CIFAR10_ARCHIVE
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"something else")
    monkeypatch.setattr(named_datasets, "read_cifar_archive", lambda path: pytest.fail("read"))
    with pytest.raises(ValueError, match="not the published archive"):
        resolve_data("cifar10", 32)
    raw.unlink()
    offline(monkeypatch, [])
    with pytest.raises(ValueError, match="no network"):
        resolve_data("cifar10", 32)


def test_folder(folder, study_root):
    spec = resolve_data(str(folder), 32)
    assert spec.name == "pets-co"
    assert spec.class_names == ("ant", "bee", "cat")
    assert (spec.train_images, spec.test_images, spec.channels, spec.flip) == (33, 3, 3, True)
    train, test = load_images(spec, "train"), load_images(spec, "test")
    assert isinstance(train.packed, np.memmap)
    assert np.bincount(train.labels).tolist() == [11, 11, 11]
    assert sorted(test.labels) == [0, 1, 2]
    assert len(set(train.labels[:11].tolist())) == 3  # mixed: the beginning of the split has all classes
    pixels = train.pixels([4, 2])
    assert pixels.shape == (2, 3, 32, 32)
    np.testing.assert_allclose(pixels[0].numpy(), train.images([4])[0] / 127.5 - 1, atol=1e-6)
    assert pixels.min() >= -1
    assert pixels.max() <= 1

    # the second time nothing is decoded
    start = time.perf_counter()
    pack = datasets._pack_folder
    try:
        datasets._pack_folder = lambda *_: pytest.fail("packed again")
        assert resolve_data(str(folder), 32) == spec
    finally:
        datasets._pack_folder = pack
    assert time.perf_counter() - start < 0.05

    # a picture with a new time is read again, and has the same content
    os.utime(folder / "ant" / "3.png", (1, 1))
    assert resolve_data(str(folder), 32) == spec
    picture(7).save(folder / "ant" / "3.png")
    assert resolve_data(str(folder), 32).content != spec.content
    assert load_images(spec, "train").packed.shape == (36, 3, 32, 32)  # the old one still exists


def test_own_split(folder, tmp_path):
    own = tmp_path / "own"
    for split in ("train", "val"):
        (own / split).mkdir(parents=True)
        for name in ("ant", "bee"):
            os.symlink(folder / name, own / split / name)
    spec = resolve_data(str(own), 16)
    assert (spec.train_images, spec.test_images, spec.class_names) == (24, 24, ("ant", "bee"))
    os.symlink(folder / "cat", own / "val" / "cat")
    with pytest.raises(ValueError, match="has classes that train/ does not have: cat"):
        resolve_data(str(own), 16)


def test_crop_takes_the_centre():
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = (0, 128, 255)  # only the centre square is coloured
    cropped = np.asarray(image_folder.centre_crop(Image.fromarray(wide), 32))
    assert cropped.shape == (32, 32, 3)
    assert (cropped == (0, 128, 255)).all()
    assert image_folder.centre_crop(picture(0, (50, 41)), 64).size == (64, 64)


@pytest.mark.parametrize("size", [(64, 64), (127, 64), (64, 129), (500, 375), (333, 1000), (63, 200), (1, 3)])
@pytest.mark.parametrize("resolution", [16, 33, 64])
def test_crop_is_the_published_one(size, resolution):
    """ADM's rule (openai/guided-diffusion, image_datasets.py), implemented with the number of halvings computed
    beforehand and the crop as a slice."""
    image = picture(1, size)
    for _ in range(int(np.log2(max(1, min(size) / resolution)))):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    assert min(image.size) < 2 * resolution
    factor = resolution / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    y, x = (pixels.shape[0] - resolution) // 2, (pixels.shape[1] - resolution) // 2
    cut = pixels[y : y + resolution, x : x + resolution]
    np.testing.assert_array_equal(np.asarray(image_folder.centre_crop(picture(1, size), resolution)), cut)


def test_processes_pack_what_threads_pack(folder, study_root, monkeypatch):
    spec = resolve_data(str(folder), 16)
    for path in (study_root / "data").glob("*/manifest.json"):
        path.unlink()
    monkeypatch.setattr(image_folder, "PROCESSES_FROM", 0)
    monkeypatch.setattr(image_folder, "BLOCK", 5)
    assert resolve_data(str(folder), 16) == spec
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "bee" / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        resolve_data(str(folder), 16)


def test_an_interrupted_packing_is_resumed(folder, study_root, monkeypatch):
    expected = resolve_data(str(folder), 32).content
    for path in (study_root / "data").glob("*/manifest.json"):
        path.unlink()
    monkeypatch.setattr(image_folder, "BLOCK", 5)
    monkeypatch.setattr(image_folder, "AHEAD", 1)
    monkeypatch.setattr(image_folder, "cores", lambda: 1)
    monkeypatch.setattr(datasets, "SAVE_SECONDS", 0.0)
    decode, decoded = image_folder._decode, []

    def cut_off_after(count):
        def counted(name, *rest):
            if len(decoded) == count:
                raise KeyboardInterrupt
            decoded.append(name)
            return decode(name, *rest)

        monkeypatch.setattr(image_folder, "_decode", counted)

    cut_off_after(22)
    with pytest.raises(KeyboardInterrupt):
        resolve_data(str(folder), 32)
    first = len(decoded)
    cut_off_after(-1)
    spec = resolve_data(str(folder), 32)
    assert spec.content == expected
    assert first == 22
    assert len(decoded) <= 36 + 5  # only the interrupted block is decoded again

    cut_off_after(len(decoded) + 12)
    with pytest.raises(KeyboardInterrupt):
        resolve_data(str(folder), 16)
    picture(9).save(folder / "ant" / "3.png")  # the partial arrays belong to another state of the folder
    decoded.clear()
    cut_off_after(-1)
    changed = resolve_data(str(folder), 16)
    assert len(decoded) == 36
    assert not list((study_root / "data").glob(".packing-*/arrays"))
    assert load_images(changed, "train").images(range(33)).shape == (33, 3, 16, 16)


def test_grey_and_hidden_and_linked(tmp_path):
    root = tmp_path / "grey"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            picture(i, (20, 30), grey=True).save(root / name / f"{i}.PNG")
    (root / ".cache").mkdir()
    (root / "a" / ".hidden.png").write_bytes(b"no picture")
    (root / "a" / "notes.txt").write_text("no picture either")
    os.symlink(root, root / "a" / "loop")
    os.symlink(root, root / "loop")
    os.symlink("self", root / "b" / "self")
    spec = resolve_data(str(root), 16)
    assert (spec.channels, spec.classes, spec.train_images, spec.test_images) == (1, 2, 4, 2)
    assert native_resolution(root) == 20


def test_folder_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="nearest: fashion-mnist"):
        resolve_data("fashion-mnits", 32)
    with pytest.raises(ValueError, match="comes at 32 px"):
        resolve_data("fashion-mnist", 28)
    (tmp_path / "flat").mkdir()
    picture(0).save(tmp_path / "flat" / "0.png")
    with pytest.raises(ValueError, match="no subfolders and 1 pictures"):
        resolve_data(str(tmp_path / "flat"), 32)
    (folder / "dog").mkdir()
    with pytest.raises(ValueError, match="those without: dog"):
        resolve_data(str(folder), 32)
    picture(0).save(folder / "dog" / "0.png")
    with pytest.raises(ValueError, match="has 1 picture"):
        resolve_data(str(folder), 32)
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(folder / "dog" / "1.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        resolve_data(str(folder), 32)
    whole = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1\.png cannot be decoded"):
        resolve_data(str(folder), 32)
    (folder / "dog" / "1.png").write_bytes(whole)
    assert resolve_data(str(folder), 32).classes == 4  # packing works after a failure


class Trap:
    def __reduce__(self):
        return os.system, ("touch $TRAP",)


def test_pickles_are_never_loaded(folder, tmp_path, study_root, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    trap = pickle.dumps(Trap())
    (folder / "ant" / "extra.pkl").write_bytes(trap)
    spec = resolve_data(str(folder), 32)  # not a picture: left out
    assert spec.train_images + spec.test_images == 36
    (folder / "ant" / "extra.png").write_bytes(trap)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        resolve_data(str(folder), 32)
    packed = datasets._folder(spec) / "labels.npy"
    with open(packed, "wb") as file:
        np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_images(spec, "train")
    assert not (tmp_path / "sprung").exists()


def test_planning_needs_no_torch():
    code = "import sys, study.data.datasets, study.plan.resolve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=image_folder.__file__.rsplit("/", 3)[0]).returncode == 0
