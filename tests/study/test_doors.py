"""Every reader of external files: a hostile pickle is refused, and never run."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up import draw_pictures
from PIL import Image
from safetensors import SafetensorError

from models import foundation, load_generator, load_latent_statistics, load_tokenizer, packages
from models.weights import TORCH_SUFFIXES, load_foreign
from study import evaluate, figures
from study.core.files import read_json, read_tensors, save_tensors, write_json
from study.core.lease import holder
from study.data import datasets, external_images, named_datasets
from study.data import latents as stored_latents
from study.data.datasets import load_images, native_resolution, resolve_data
from study.data.picture_chunks import chunk_file, read_chunk
from study.judge import extractors, judges, references
from study.plan import judge_spec, weight_files
from study.plan.data_spec import DataSpec
from study.plan.specs import ForeignFile
from study.plan.stage import TOKENIZER_WEIGHTS, snapshot_file, stage_from_record
from study.stages import fit_generator, fit_tokenizer
from study.train import checkpoint, foundation_features, pretrained
from study.train.checkpoint import Position

PROTOCOLS = (0, 2, 5)  # text, binary, framed
# how libraries refuse a file
NOT_SAFETENSORS = "deserializing header"
NOT_AN_ARRAY = "pickle|Python objects"
CHECKOUT = Path(__file__).resolve().parents[2]


class Trap:
    """Makes the folder `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def trap(tmp_path):
    """A trap, and after the test a check that it was not run."""
    marker = tmp_path / "sprung"
    yield Trap(marker)
    assert not marker.exists(), "a pickle was run"


def object_array(trap) -> bytes:
    """A .npy file whose values are pickled."""
    file = io.BytesIO()
    np.save(file, np.array([trap], dtype=object), allow_pickle=True)
    return file.getvalue()


def torch_file(content, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def zip_by_hand(trap, *names: str) -> bytes:
    """A zip that torch accepts as its own archive, with the trap as each of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/version", "3\n")
        for name in names:
            archive.writestr(f"archive/{name}", pickle.dumps(trap, 2))
    return file.getvalue()


def tar_of(members: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


WEIGHT_FILES = {
    **{f"pickle {n}": lambda trap, n=n: pickle.dumps({"ema": {"w": trap}}, n) for n in PROTOCOLS},
    "torch, zip": lambda trap: torch_file({"w": torch.zeros(2), "code": trap}, True),
    "torch, legacy": lambda trap: torch_file({"w": torch.zeros(2), "code": trap}, False),
    "zip by hand": lambda trap: zip_by_hand(trap, "data.pkl"),
    "TorchScript": lambda trap: zip_by_hand(trap, "data.pkl", "constants.pkl"),
    "torch, tar": lambda trap: tar_of({n: pickle.dumps(trap, 2) for n in ("storages", "tensors", "pickle")}, "w"),
}


def test_the_trap_springs_where_files_are_trusted(tmp_path):
    """Otherwise the tests below would prove nothing."""
    marker = tmp_path / "marker"
    openers = {
        "pickle": lambda: pickle.loads(pickle.dumps(Trap(marker))),
        "npy": lambda: np.load(io.BytesIO(object_array(Trap(marker))), allow_pickle=True),
        "zip": lambda: torch.load(io.BytesIO(torch_file(Trap(marker), True)), weights_only=False),
        "hand": lambda: torch.load(io.BytesIO(zip_by_hand(Trap(marker), "data.pkl")), weights_only=False),
    }
    for name, opener in openers.items():
        opener()
        assert marker.is_dir(), name
        marker.rmdir()


# Weights


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_weights(kind, suffix, trap, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(WEIGHT_FILES[kind](trap))
    with pytest.raises(ValueError, match=r"refused .*weights\.\w+: it is not a plain file of tensors"):
        load_foreign(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_weights_under_other_names(protocol, trap, tmp_path):
    for name, message in (("w.safetensors", "not a valid safetensors"), ("w.pkl", "refused"), ("w.npy", "refused")):
        (tmp_path / name).write_bytes(pickle.dumps(trap, protocol))
        with pytest.raises(ValueError, match=message):
            load_foreign(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_released_checkpoints(kind, trap, tmp_path):
    path = tmp_path / "released.pt"
    path.write_bytes(WEIGHT_FILES[kind](trap))
    for loader in (
        lambda: load_tokenizer("f16d32-dinov2", path),
        lambda: load_generator("LightningDiT-XL/1", path),
        lambda: load_latent_statistics(path),
    ):
        with pytest.raises(ValueError, match=r"refused .*released\.pt: it is not a plain file of tensors"):
            loader()


@pytest.mark.parametrize("kind", ["torch, zip", "torch, legacy"])
def test_weights_in_a_wheel(kind, trap, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0.pth").write_bytes(WEIGHT_FILES[kind](trap))
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(ValueError, match="refused"):
        foundation.lite_weights("lite0")


@pytest.mark.parametrize("kind", ["pickle 2", "torch, zip", "torch, legacy"])
def test_weights_of_inception(kind, trap, tmp_path, monkeypatch):
    made = DataSpec(
        name="made", resolution=32, channels=1, classes=2, train_images=8, test_images=2, content="0" * 16,
        flip=False, class_names=("a", "b"),
    )  # fmt: skip
    spec = judge_spec.judge_spec("inception", 0, made)
    path = tmp_path / weight_files.FILES["inception"].file
    path.write_bytes(WEIGHT_FILES[kind](trap))
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match="damaged"):
        judges.build_judge(spec, made)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stated = dataclasses.replace(weight_files.FILES["inception"], sha256=digest[:8])
    monkeypatch.setitem(weight_files.FILES, "inception", stated)  # even a file of the right hash is not unpickled
    assert weight_files.require_weights("inception") == path
    spec = judge_spec.judge_spec("inception", 0, made)
    with pytest.raises(ValueError, match="refused"):
        judges.build_judge(spec, made)


@pytest.mark.parametrize("kind", ["pickle 2", "torch, zip", "torch, legacy"])
def test_pretrained_weights(kind, trap, tmp_path, monkeypatch, tiny_plan):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    (tmp_path / "hostile.pt").write_bytes(WEIGHT_FILES[kind](trap))
    file = ForeignFile(name="hostile.pt", sha256=weight_files.content_hash("hostile.pt"))
    plan = tiny_plan()
    stages = (plan.jobs[0].stages[0], plan.jobs[0].stages[2], plan.jobs[1].stages[0])
    fit, latents, generator = (dataclasses.replace(stage.spec, pretrained=file) for stage in stages)
    for read in (
        lambda: pretrained.write_tokenizer(fit, None),
        lambda: pretrained.statistics_record(latents, stages[1].inputs),
        lambda: pretrained.write_generator(generator, {}, None),
    ):
        with pytest.raises(ValueError, match="refused"):
            read()


@pytest.mark.parametrize("kind", ["pickle 2", "torch, zip", "torch, legacy"])
def test_weights_of_lpips(kind, trap, tmp_path):
    from models.lpips import LPIPS

    (tmp_path / "vgg16-397923af.pth").write_bytes(WEIGHT_FILES[kind](trap))
    with pytest.raises(ValueError, match="refused"):
        LPIPS(tmp_path / "vgg16-397923af.pth")


@pytest.mark.parametrize("kind", ["pickle 2", "torch, zip", "torch, legacy"])
def test_weights_of_a_foundation_model(kind, trap, tmp_path):
    for suffix, refused in ((".pth", "refused"), (".safetensors", "not a valid safetensors")):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(WEIGHT_FILES[kind](trap))
        with pytest.raises(ValueError, match=refused):
            foundation.foundation_model("mae", weights=path)


# Published data


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network and no package: only the study's own data folder is left."""

    def away(*_):
        raise OSError("no network")

    monkeypatch.setattr(named_datasets, "download", away)
    monkeypatch.setattr(named_datasets, "run_command", away)
    monkeypatch.setattr(named_datasets, "FASHION_MNIST_INSTALLED", tmp_path / "not installed")


@pytest.mark.parametrize("hidden_as", [".gz", ""])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fashion_mnist(protocol, hidden_as, trap, study_root, offline, monkeypatch):
    raw = study_root / "data" / "fashion-mnist" / "raw"
    raw.mkdir(parents=True)
    content = pickle.dumps(trap, protocol)
    for name in named_datasets.FASHION_MNIST_FILES:
        (raw / f"{name}{hidden_as}").write_bytes(gzip.compress(content) if hidden_as else content)
    with pytest.raises(ValueError, match=r"could not be obtained(.|\n)*is not the published file"):
        resolve_data("fashion-mnist", 32)
    digest = hashlib.sha256(content).hexdigest()  # even with the right hash it is parsed as bytes
    monkeypatch.setattr(
        named_datasets, "FASHION_MNIST_FILES", dict.fromkeys(named_datasets.FASHION_MNIST_FILES, digest)
    )
    with pytest.raises(ValueError, match=r"could not be obtained(.|\n)*not an idx file"):
        resolve_data("fashion-mnist", 32)


CIFAR_FILES = {
    "a pickle": (lambda content: content, "not CIFAR-10's binary archive"),
    "the archive of pickles": (
        lambda content: tar_of({"cifar-10-batches-py/data_batch_1": content}, "w:gz"),
        "not CIFAR-10's binary archive",
    ),
    "pickles under the right names": (
        lambda content: tar_of({n: content for ns in named_datasets.CIFAR10_BATCHES.values() for n in ns}, "w:gz"),
        "records of 3,073 bytes",
    ),
}


@pytest.mark.parametrize("kind", CIFAR_FILES)
def test_cifar(kind, trap, study_root, offline, monkeypatch):
    pack, message = CIFAR_FILES[kind]
    path = study_root / "data" / "cifar10" / "raw" / named_datasets.CIFAR10_ARCHIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(pack(pickle.dumps(trap)))
    with pytest.raises(ValueError, match="not the published archive"):
        resolve_data("cifar10", 32)
    monkeypatch.setattr(named_datasets, "CIFAR10_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=message):
        resolve_data("cifar10", 32)


# Folders of pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("kind", ["pickle", "object array", "torch"])
def test_pictures(kind, suffix, trap, tmp_path):
    folder = draw_pictures(tmp_path / "shapes", classes=2, per_class=3)
    files = {"pickle": pickle.dumps(trap), "object array": object_array(trap), "torch": torch_file(trap, True)}
    for name in ("extra.pkl", "extra.npy", "extra.pt"):
        (folder / "class0" / name).write_bytes(files[kind])
    assert resolve_data(str(folder), 16).train_images == 4  # not pictures: left out
    (folder / "class0" / f"hostile{suffix}").write_bytes(files[kind])
    message = rf"hostile\{suffix} cannot be read as a picture"
    with pytest.raises(ValueError, match=message):
        native_resolution(folder)
    with pytest.raises(ValueError, match=message):
        resolve_data(str(folder), 16)


@pytest.mark.parametrize("part", ["file", "picture"])
def test_parquet(part, trap, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "train.parquet"
    image = [{"bytes": pickle.dumps(trap), "path": "0.png"}] * 4
    pq.write_table(pa.table({"image": image, "label": [0, 0, 1, 1]}), path)
    if part == "file":
        path.write_bytes(pickle.dumps(trap))
    message = "as parquet" if part == "file" else r"\(0.png\) cannot be read as a picture"
    for read in (native_resolution, lambda folder: resolve_data(str(folder), 16)):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """PostScript under the name of a picture: Pillow would hand it to Ghostscript."""
    from PIL import EpsImagePlugin

    run = []

    def ghostscript(*_, **__):
        run.append(True)
        return Image.new("RGB", (16, 16)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    folder = draw_pictures(tmp_path / "shapes", classes=2, per_class=3)
    program = io.BytesIO()
    Image.new("RGB", (16, 16)).save(program, "EPS")
    (folder / "class0" / "hostile.png").write_bytes(program.getvalue())
    with pytest.raises(ValueError, match=r"hostile\.png cannot be read as a picture"):
        resolve_data(str(folder), 16)
    assert not run


# External arrays of pictures


def archive_of(**members: bytes) -> bytes:
    """An .npz with these bytes as its arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def plain_array(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARCHIVES = {
    "pickle": (lambda trap: pickle.dumps(trap), "cannot be read as an .npz"),
    "object array": (lambda trap: archive_of(arr_0=object_array(trap)), "refused .*holds Python objects"),
    "pickle as an array": (lambda trap: archive_of(arr_0=pickle.dumps(trap)), "arr_0 of .* cannot be read"),
    "torch": (lambda trap: torch_file(trap, True), "has no arr_0"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_npz(kind, trap, tmp_path, capsys):
    pack, message = ARCHIVES[kind]
    hostile, fine = tmp_path / "hostile.npz", tmp_path / "fine.npz"
    hostile.write_bytes(pack(trap))
    np.savez(fine, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=message):
        external_images.read_pictures(hostile)
    for path, reference in ((hostile, fine), (fine, hostile)):
        assert evaluate.main([str(path), "--reference", str(reference), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(message, line)
    assert not list(tmp_path.rglob("table.csv"))


@pytest.mark.parametrize("name", external_images.STATISTICS)
@pytest.mark.parametrize("kind", ["pickle", "object array"])
def test_statistics_of_a_reference(kind, name, trap, tmp_path):
    content = object_array(trap) if kind == "object array" else pickle.dumps(trap)
    members = {other: plain_array(np.zeros(shape, np.float32)) for other, shape in external_images.STATISTICS.items()}
    path = tmp_path / "VIRTUAL_hostile.npz"
    path.write_bytes(archive_of(**{**members, name: content, "arr_0": plain_array(np.zeros((4, 8, 8, 3), np.uint8))}))
    with pytest.raises(ValueError, match=f"{name} (holds Python objects|of .* cannot be read)"):
        external_images.read_statistics(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_a_picture_to_be_scored(suffix, trap, tmp_path):
    for content in (pickle.dumps(trap), object_array(trap), torch_file(trap, True)):
        (tmp_path / f"hostile{suffix}").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            external_images.read_pictures(tmp_path)


def test_a_record_that_is_read_back_builds_nothing_but_specs(trap, tiny_plan):
    stage = tiny_plan().jobs[0].stages[0]
    path = stage.folder / "record.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="no finished fit_tokenizer"):
        stage_from_record("fit_tokenizer", stage.fingerprint)
    write_json(path, {"fingerprint": stage.fingerprint, "inputs": {}, "spec": {"py/object": "os.system"}})
    with pytest.raises(ValueError, match="written by another version of the code"):
        stage_from_record("fit_tokenizer", stage.fingerprint)


# Files of a study, whose folder others may be able to write


@pytest.mark.parametrize("part", ["images", "labels", "train.order"])
@pytest.mark.parametrize("kind", ["pickle", "object array"])
def test_packed_data(kind, part, trap, pictures):
    spec = resolve_data(str(pictures), 16)
    path = datasets._folder(spec) / f"{part}.npy"
    path.write_bytes(object_array(trap) if kind == "object array" else pickle.dumps(trap))
    with pytest.raises(ValueError, match=NOT_AN_ARRAY):
        load_images(spec, "train")


def test_the_manifest_of_packed_data(trap, pictures):
    spec = resolve_data(str(pictures), 16)
    (datasets._folder(spec) / "manifest.json").write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="is not packed"):
        load_images(spec, "train")
    assert resolve_data(str(pictures), 16) == spec  # packed again


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_checkpoint_falls_back_to_the_one_before(protocol, trap, tmp_path, caplog):
    layer = torch.nn.Linear(3, 2)
    parts = {"layer": layer, "optimizer": torch.optim.AdamW(layer.parameters())}
    checkpoint.write(tmp_path, checkpoint.host_copy(parts), Position(8, 1.0))
    hostile = tmp_path / "checkpoint-000000000016.safetensors"
    hostile.write_bytes(pickle.dumps(trap, protocol))
    assert checkpoint.restore(tmp_path, parts) == Position(8, 1.0)
    assert hostile.name in caplog.text
    assert "falling back" in caplog.text
    for path in tmp_path.glob("checkpoint-*"):
        path.write_bytes(torch_file(trap, True))
    assert checkpoint.restore(tmp_path, parts) is None  # from the start


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_records_count_as_missing(protocol, trap, tiny_plan):
    for stage in tiny_plan().stages:
        stage.folder.mkdir(parents=True)
        for name in ("record.json", "failure.json", "lease.json"):
            (stage.folder / name).write_bytes(pickle.dumps(trap, protocol))
            assert read_json(stage.folder / name) is None
        assert stage.record() is stage.failure() is holder(stage.folder) is None


def test_tensors_of_a_stage(trap, tiny_plan):
    plan = tiny_plan()
    fit, _, latents = plan.jobs[0].stages
    fitted, generated = plan.jobs[1].stages[:2]
    shard, chunk = stored_latents.shard_path(latents.folder, 0), chunk_file(generated.folder, 0)
    snapshot = snapshot_file(fitted.folder, "ema", 32)
    for path in (shard, chunk, snapshot, fit.folder / TOKENIZER_WEIGHTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(trap))
    statistics = {"mean": [0.0] * 4, "std": [1.0] * 4}
    write_json(latents.folder / "record.json", {"fingerprint": latents.fingerprint, "latent": statistics})
    assert read_tensors(shard) is None  # as during encoding: encoded again
    assert read_chunk(generated.folder, 0) is None
    for reader in (
        lambda: stored_latents.read_latents(latents),
        lambda: fit_tokenizer.trained_tokenizer(fit),
        lambda: fit_generator.trained_generator(fitted, 32, "ema"),
        lambda: extractors.Classifier("name", ["penultimate"], weights=chunk),
    ):
        with pytest.raises(SafetensorError, match=NOT_SAFETENSORS):
            reader()


def test_a_reference(trap, pictures, tmp_path, monkeypatch):
    spec = resolve_data(str(pictures), 16)
    (tmp_path / "reference.safetensors").write_bytes(pickle.dumps(trap))
    monkeypatch.setattr(references, "asset", lambda *_: tmp_path)
    with pytest.raises(SafetensorError, match=NOT_SAFETENSORS):
        references.dataset_reference(judge_spec.judge_spec("efficientnet_lite2", 64, spec), spec, "train", 8)


@pytest.mark.parametrize("kind", ["pickle", "object array"])
def test_features_of_a_foundation_model(kind, trap, tiny_plan, tiny_scale, tmp_path, monkeypatch):
    plan = tiny_plan(dataclasses.replace(tiny_scale, foundation_models=("lite0",)))
    fit = next(s for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation)
    shape = torch.tensor([4, 2, 2])
    save_tensors(tmp_path / "statistics.safetensors", {"mean": torch.zeros(4), "std": torch.ones(4), "shape": shape})
    (tmp_path / "features.npy").write_bytes(object_array(trap) if kind == "object array" else pickle.dumps(trap))
    monkeypatch.setattr(foundation_features, "asset", lambda *_: tmp_path)
    with pytest.raises(ValueError, match=NOT_AN_ARRAY):
        foundation_features.tokenizer_features(fit.spec)


# Results from others


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_results_table(protocol, trap, tmp_path, capsys):
    from results.table import load as load_table

    table = tmp_path / "results" / "theirs" / "table.csv"
    table.parent.mkdir(parents=True)
    table.write_bytes(pickle.dumps(trap, protocol))
    with pytest.raises(ValueError, match="unknown columns" if protocol == 0 else "can't decode byte"):
        load_table(table)
    assert figures.main("theirs", tmp_path) == 1
    assert capsys.readouterr().err.startswith("theirs: ")


def test_a_picture_sheet(trap, tmp_path):
    from figures.pictures import load as load_sheet

    (tmp_path / "sheets").mkdir()
    for content in (pickle.dumps(trap), object_array(trap)):
        (tmp_path / "sheets" / "samples.png").write_bytes(content)
        with pytest.raises((ValueError, SyntaxError, OSError), match="not a PNG file"):
            load_sheet(tmp_path, "samples.png")


# The sources

PACKAGES = ("study", "models", "results", "figures", "ablations")
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNNERS = {"load", "loads", "Unpickler", "open", "read_pickle"}


def dangers(source: str) -> list[str]:
    """Lines of Python source that could unpickle a file, read a job's pickled result, or run text as code."""
    found = []

    def flag(node, what):
        found.append(f"{node.lineno}: {what}")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in UNPICKLERS and alias.asname:
                    flag(node, f"{alias.name} under another name")
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module in UNPICKLERS or (node.module in ("torch", "numpy") and "load" in names):
                flag(node, f"from {node.module} import {', '.join(sorted(names))}")
        if isinstance(node, ast.Attribute) and node.attr in RUNNERS and ast.unparse(node.value) in UNPICKLERS:
            flag(node, ast.unparse(node))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in ("torch.load", "torch.hub.load_state_dict_from_url") and keywords.get("weights_only") != "True":
            flag(node, f"{name} without weights_only=True")
        if keywords.get("allow_pickle", "False") != "False":
            flag(node, f"{name} with allow_pickle")
        if name in ("np.load", "numpy.load") and (len(node.args) > 2 or None in keywords):
            flag(node, f"{name} with options that cannot be read here")
        if name in ("eval", "exec", "torch.jit.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"):
            flag(node, name)
        if name.rpartition(".")[2] in ("result", "results") and "." in name:
            flag(node, f"{name}(): outcomes are read from records")
    return found


def test_no_source_unpickles():
    sources = [path for package in PACKAGES for path in sorted((CHECKOUT / package).rglob("*.py"))]
    assert len(sources) > 50
    found = [f"{path.relative_to(CHECKOUT)}:{what}" for path in sources for what in dangers(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)", "pickle.loads(text)", "cloudpickle.load(file)", "joblib.load(path)",
        "pickle.Unpickler(file).load()", "from pickle import load", "from dill import loads", "shelve.open(path)",
        "import pickle as p", "from torch import load", "from numpy import load as read",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)", "numpy.load(path, allow_pickle=flag)", "np.load(path, None, True)",
        "np.load(path, **options)", "pd.read_pickle(path)", "job.result()", "jobs[0].results()", "eval(text)",
    ],
)  # fmt: skip
def test_the_search_finds(line):
    assert dangers(f"import pickle\n{line}")


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, map_location='cpu', weights_only=True)", "np.load(path, mmap_mode='r')",
        "np.load(path, allow_pickle=False)", "load(path)", "network.eval()", "planned.results",
        "'never job.result()'", "json.loads(text)", "raise pickle.UnpicklingError", "import pickle",
        "from torch import Tensor",
    ],
)  # fmt: skip
def test_the_search_lets_pass(line):
    assert not dangers(line)
