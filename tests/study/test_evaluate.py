"""Scoring pictures of others: the sweep's own numbers for the sweep's own pictures, one line for what cannot be."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import COMPUTE, draw_pictures
from PIL import Image

from results import table as results
from results.schema import PROTOCOL
from study import evaluate
from study.core import compute
from study.data.datasets import load_images
from study.data.external_images import STATISTICS
from study.data.picture_chunks import pictures_of
from study.judge import judges, references
from study.plan import weight_files
from study.plan.judge_spec import SPATIAL_WIDTH
from study.report.table_rows import update_table
from study.submit.jobs import run_stage


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(compute, "resolve", lambda: COMPUTE)


@pytest.fixture
def theirs(tmp_path):
    """12 pictures of 16 px that are no training images."""
    pixels = np.random.default_rng(5).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "theirs").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "theirs" / f"{number:02}.png")
    return tmp_path / "theirs"


def scored(out, *arguments):
    """The table after a call that must succeed."""
    assert evaluate.main([*map(str, arguments), "--out", str(out)]) == 0
    return results.load(out / "results" / "desk" / "table.csv")


def refused(capsys, out, *arguments):
    """The one line of a call that must be refused; nothing is left in the results."""
    code = evaluate.main([*map(str, arguments), "--out", str(out)])
    errors = capsys.readouterr().err
    assert code == 2, errors
    assert not list(out.rglob("table.csv"))
    (line,) = errors.strip().splitlines()
    return line.removeprefix("study.evaluate: ")


def test_the_pictures_of_a_sweep_get_the_numbers_of_the_sweep(tiny_plan, tiny_scale, tmp_path, capsys):
    plan = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),)))
    plan = dataclasses.replace(plan, study="desk")
    for stage in plan.stages:
        run_stage(stage)
    samples, stage = plan.jobs[1].stages[-2:]
    images = torch.cat(list(pictures_of(samples.spec, samples.folder)))
    (tmp_path / "png").mkdir()
    for number, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(tmp_path / "png" / f"{number:05}.png")
    update_table(plan, tmp_path)

    judge, count = "classifier", stage.spec.reference_images
    arguments = ["--reference", tmp_path / "pictures", "--reference-images", count, "--judge", judge]
    table = scored(tmp_path, tmp_path / "png", *arguments, "--name", "again")
    ours = table[(table["kind"] == "generator") & (table["images_seen"] == 64)].iloc[0]
    (row,) = table[table["run"] == "again"].to_dict("records")
    for metric in ("gfid", "kid", "precision", "recall"):
        assert row[metric] == pytest.approx(ours[metric], rel=1e-6), metric
    same = ("samples", "reference", "reference_hash", "extractor", "extractor_size", "comparable")
    for field in same:
        assert row[field] == ours[field], field
    both = table[table["run"].isin(["again", ours["run"]]) & (table["images_seen"].fillna(64) == 64)]
    results.check_protocol(both, set(PROTOCOL) - set(same))  # an axis they may share, once how they were drawn is named
    with pytest.raises(results.ProtocolError, match="chunk: 4, empty"):
        results.check_protocol(both)

    # unknown columns are empty, and the fingerprint marks the pictures as made elsewhere
    assert row["fingerprint"].startswith("images-")
    unknown = [
        "ablations", "tokenizer", "generator", "images_seen", "seed", "tokenizer_seed", "sampling_seed", "chunk",
        "solver", "steps", "guidance_scale", "weights", "label_scheme", "decode_precision", "scale", "data", "sfid",
        "inception_score", "train_precision", "train_seconds", "parameters", "sheet",
    ]  # fmt: skip
    assert [name for name in unknown if row[name] not in ("", ()) and not pd.isna(row[name])] == []
    assert (row["state"], row["study"], row["resolution"], row["threads"]) == ("done", "desk", 16, 1)
    assert "torch" in row["versions"]

    # it survives the next sweep, and is drawn in no figure
    from figures.render import render

    with_row = render(tmp_path / "results" / "desk", tmp_path / "a", ["frontier"])
    assert len(results.load(update_table(plan, tmp_path))) == len(table)
    results.write(table[table["run"] != "again"], tmp_path / "results" / "desk" / "table.csv")
    without = render(tmp_path / "results" / "desk", tmp_path / "b", ["frontier"])
    assert with_row.refused == without.refused == {}
    assert len(with_row.written) == len(without.written) == 3
    for one, other in zip(with_row.written, without.written, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name

    output = capsys.readouterr().out
    assert "again: 10 pictures" in output
    assert f"{row['gfid']:.4g}" in output
    assert "compared with pictures train, " in output
    assert "not comparable" in output


def test_a_folder_against_a_folder_by_an_imagenet_judge(theirs, tmp_path, capsys):
    loose = tmp_path / "reference"
    loose.mkdir()
    for number, path in enumerate(sorted(draw_pictures(tmp_path / "pictures").rglob("*.png"))[::4]):
        path.rename(loose / f"{number}.png")
    (theirs / "moves.gif").write_bytes(b"GIF89a")
    (loose / "notes.txt").write_text("of theirs")
    table = scored(tmp_path, theirs, "--reference", loose, "--judge", "efficientnet_lite2@32")
    told = capsys.readouterr().out
    assert f"{theirs}: left out 1 .gif: pictures are .png, .bmp, .webp, .tif, .tiff\n" in told
    assert f"{loose}: left out 1 .txt: " in told
    row = table.iloc[0]
    assert (row["run"], row["samples"], row["reference"]) == ("theirs", 12, "reference, 18 images")
    assert (row["extractor"], row["extractor_size"], bool(row["comparable"])) == ("efficientnet_lite2", 32, False)
    assert row["gfid"] > 0
    assert pd.isna(row["sfid"])
    # the same pictures again, as an array and under another name: the same row
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(theirs.glob("*.png"))])
    np.savez(tmp_path / "array.npz", pixels)
    again = scored(tmp_path, tmp_path / "array.npz", "--reference", loose, "--judge", "efficientnet_lite2@32")
    assert again["run"].tolist() == ["array"]
    assert again["gfid"].tolist() == pytest.approx([row["gfid"]], rel=1e-6)
    assert "efficientnet_lite2: comparing 12 pictures with 18 of the reference" in capsys.readouterr().out


@pytest.mark.parametrize(("scale", "turned"), [("desk", True), ("imagenet256", False), ("imagenet256-system", False)])
def test_the_reference_is_read_as_the_scale_reads_it(scale, turned, theirs, tmp_path):
    upright = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by a quarter
    for number in range(8):
        (tmp_path / "own" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        stored = Image.fromarray(np.ascontiguousarray(upright[::-1].transpose(1, 0, 2)))
        stored.save(tmp_path / "own" / "ab"[number % 2] / f"{number}.png", exif=exif)
    options = evaluate.Evaluate(
        path=theirs, reference=str(tmp_path / "own"), judge=("classifier",), scale=scale, out=tmp_path
    )
    _, _, target, _ = evaluate.prepare(options)
    (found,) = {x.tobytes() for x in load_images(target.data, "train").images(range(target.data.train_images))}
    expected = upright if turned else upright[::-1].transpose(1, 0, 2)
    assert found == expected.transpose(2, 0, 1).tobytes()
    assert options.table == tmp_path / "results" / scale / "table.csv"


def test_a_scale_has_judges_and_a_number_of_reference_images(theirs, tmp_path, capsys):
    draw_pictures(tmp_path / "pictures", per_class=100)
    options = evaluate.Evaluate(path=theirs, reference=str(tmp_path / "pictures"), scale="smoke", out=tmp_path)
    _, _, target, found = evaluate.prepare(options)
    assert ([judge.name for judge in found], target.count) == (["efficientnet_lite2"], 256)
    line = refused(capsys, tmp_path, theirs, "--scale", "imagenet")
    assert line == "unknown scale 'imagenet'; nearest: imagenet256, imagenet256-system"


def test_who_judges_when_nobody_says(theirs, tmp_path, monkeypatch):
    """The desk's judges against a data set, those without a data set against pictures."""
    draw_pictures(tmp_path / "pictures")
    options = evaluate.Evaluate(path=theirs, reference=str(tmp_path / "pictures"), out=tmp_path)
    _, _, target, found = evaluate.prepare(options)
    assert [(judge.name, judge.size) for judge in found] == [("efficientnet_lite2", 64), ("classifier", 16)]
    assert (target.text, target.count) == (f"pictures train, {target.count} images", target.data.train_images)
    options = dataclasses.replace(options, reference=str(theirs), samples=5, judge=("efficientnet_lite2",))
    _, pictures, target, found = evaluate.prepare(options)
    assert [(judge.name, judge.size) for judge in found] == [("efficientnet_lite2", 64)]
    assert (len(pictures.pixels), target.count) == (5, 12)


@pytest.fixture
def virtual(tmp_path):
    """A file like ADM's: statistics of another set than its pictures."""
    content = {name: np.zeros(shape, np.float32) for name, shape in STATISTICS.items()}
    content["sigma"] = np.eye(2048, dtype=np.float32)
    content["sigma_s"] = np.eye(SPATIAL_WIDTH, dtype=np.float32)
    pixels = np.random.default_rng(6).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "VIRTUAL_made.npz", arr_0=pixels, **content)
    return tmp_path / "VIRTUAL_made.npz"


def test_statistics_are_given_to_inception_alone(theirs, virtual, tmp_path, monkeypatch):
    """Features are planted: no network with random weights may ever give a row."""
    seen = {}

    def reference_of(judge, images, digest, device, given):
        seen[judge.name] = None if given is None else sorted(given)
        rng = torch.Generator().manual_seed(0)
        found = torch.randn(len(images), 8, generator=rng)
        unit = {"mu": torch.zeros(8, dtype=torch.float64), "sigma": torch.eye(8, dtype=torch.float64)}
        unit["root"] = unit["sigma"]
        spatial = unit if judge.name == "inception" else None
        return references.Reference(features=found, **unit, head=None, hash="f" * 16, count=len(found), spatial=spatial)

    def all_features(extractor, parts):
        rng = torch.Generator().manual_seed(1)
        found = torch.randn(sum(map(len, parts)), 8, generator=rng)
        return found, found + 1 if extractor == "inception" else None

    monkeypatch.setattr(evaluate, "require_weights", lambda name: None)
    monkeypatch.setattr(references, "pictures_reference", reference_of)
    monkeypatch.setattr(judges, "build_judge", lambda judge, data, device: judge.name)
    monkeypatch.setattr(judges, "all_features", all_features)
    both = ["--judge", "inception", "--judge", "efficientnet_lite2"]
    table = scored(tmp_path, theirs, "--reference", virtual, *both).set_index("extractor")
    assert seen == {"inception": ["mu", "mu_s", "sigma", "sigma_s"], "efficientnet_lite2": None}
    assert table.loc["inception", "reference"] == "VIRTUAL_made, its statistics and 6 images"
    assert table.loc["efficientnet_lite2", "reference"] == "VIRTUAL_made, 6 images"
    assert table.loc["inception", "sfid"] > table.loc["inception", "gfid"] + 1
    assert pd.isna(table.loc["efficientnet_lite2", "sfid"])
    _, _, _, found = evaluate.prepare(evaluate.Evaluate(path=theirs, reference=str(virtual), out=tmp_path))
    assert [judge.name for judge in found] == ["inception"]


def test_bad_input_is_one_line(theirs, virtual, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    out, lite = tmp_path / "out", ["--judge", "efficientnet_lite2"]
    draw_pictures(tmp_path / "pictures")
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    for path in sorted(theirs.iterdir())[:3]:
        Image.open(path).save(tmp_path / "few" / path.name)
    (tmp_path / "lossy").mkdir()
    Image.open(theirs / "00.png").save(tmp_path / "lossy" / "00.jpg")
    np.savez(tmp_path / "large.npz", np.zeros((5, 32, 32, 3), np.uint8))
    (tmp_path / "torn.npz").write_bytes(b"PK" + bytes(40))
    for arguments, message in (
        ([tmp_path / "empty", *lite], "holds no pictures"),
        ([tmp_path / "nowhere", *lite], "nowhere does not exist"),
        ([tmp_path / "lossy", *lite], "is a JPEG: its artefacts change a Frechet distance"),
        ([tmp_path / "torn.npz", *lite], "torn.npz cannot be read as an .npz"),
        ([tmp_path / "few", "--reference", theirs, *lite], "too few pictures to be scored: 3; at least 4"),
        ([theirs, "--reference", tmp_path / "few", *lite], "too few pictures to be compared with: 3"),
        ([theirs, "--samples", 13, *lite], "asked for 13 pictures of the 12"),
        ([theirs, *lite], "sizes differ: the pictures are 16 x 16 px, those of fashion-mnist 32 x 32"),
        ([theirs, "--reference", tmp_path / "large.npz", *lite], "sizes differ: the pictures are 16 x 16 px"),
        ([theirs, "--reference", tmp_path / "empty", *lite], "has no subfolders and 0 pictures"),
        ([theirs, "--reference", tmp_path / "lossy", *lite], "is a JPEG"),
        ([theirs, "--reference", tmp_path / "torn.npz", *lite], "torn.npz cannot be read as an .npz"),
        ([theirs, "--reference", "fashion-mnits", *lite], "'fashion-mnits'; nearest: fashion-mnist"),
        (
            [theirs, "--reference", tmp_path / "pictures", "--reference-images", 70, *lite],
            "asked for 70 of the 66 training images of pictures",
        ),
        ([theirs, "--reference", virtual, "--reference-images", 5], "does not go with VIRTUAL_made.npz"),
        ([theirs, "--reference", theirs, "--judge", "classifier"], "the classifier is trained on the classes"),
        (
            [theirs, "--reference", theirs, "--judge", "efficientnet_lite"],
            "no judge 'efficientnet_lite'; nearest: efficientnet_lite2",
        ),
        ([theirs, "--judge", "efficientnet_lite2@big"], "takes NAME or NAME@PIXELS"),
        ([theirs, *lite, *lite], "names efficientnet_lite2 twice"),
        ([theirs, "--reference", theirs, "--judge", "efficientnet_lite2@16"], "at least 32 px"),
        ([theirs, "--reference", virtual], "needs weights-inception-2015-12-05-6726825d.pth"),
        ([theirs, "--judge", "inception"], "needs weights-inception-2015-12-05-6726825d.pth"),
        ([theirs, "--reference", theirs, "--name", " ", *lite], "--name must not be empty"),
        ([theirs, "--study", "paper", *lite], "--study must be a plain folder name other than 'paper' and 'since'"),
    ):
        assert message in refused(capsys, out, *arguments), arguments


def test_weights_that_are_not_inceptions_give_no_row(theirs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    torch.save({"fc.weight": torch.randn(1008, 2048)}, tmp_path / weight_files.FILES["inception"].file)
    line = refused(capsys, tmp_path / "out", theirs, "--reference", theirs, "--judge", "inception")
    assert "is damaged: its SHA-256 starts with" in line


def test_a_number_that_cannot_be_trusted_is_no_row(theirs, tmp_path, capsys, monkeypatch):
    def broken(extractor, parts):
        return torch.full((sum(map(len, parts)), 1280), float("nan")), None

    monkeypatch.setattr(judges, "all_features", broken)
    code = evaluate.main([str(theirs), "--reference", str(theirs), "--out", str(tmp_path / "out")])
    assert code == 1
    assert "not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("table.csv"))
