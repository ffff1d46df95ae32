"""TensorBoard event files: TensorBoard's own reader finds in them what the harness wrote."""

import dataclasses
import io
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from results import table as results
from study import tensorboard
from study.report.table_rows import update_table
from study.submit.jobs import run_stage
from study.train import history

WRITTEN_ONCE = {"rfid", "psnr", "ssim", "perceptual", "colour_shift", "chroma_r2"}


@pytest.fixture
def study(tiny_plan, tiny_scale, run_or_copy, tmp_path):
    """A finished study with one judge; its plan and the folder that holds results/."""
    plan = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),)))
    run_or_copy(plan.stages)
    update_table(plan, tmp_path)
    return plan, tmp_path


def read(folder):
    """Scalars and images of a run's folder, by tag: (step, value) in the order written."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    return scalars, images


def same_pixels(png, path):
    with Image.open(io.BytesIO(png)) as drawn, Image.open(path) as sheet:
        return np.array_equal(np.asarray(drawn.convert("RGB")), np.asarray(sheet.convert("RGB")))


def mirrored(out, *options):
    return tensorboard.main(["test", "--out", str(out), "--logdir", str(out / "tb"), *options])


def folder_of(out, stage):
    (folder,) = (out / "tb" / "test").glob(f"*-{stage.fingerprint[:8]}")
    return folder


def test_curves_scores_and_sheets_are_the_records(study, capsys):
    pytest.importorskip("tensorboard")
    plan, out = study
    assert mirrored(out) == 0
    assert len(list((out / "tb" / "test").iterdir())) == 2
    table = results.load(out / "results" / "test" / "table.csv")
    for kind in ("fit_tokenizer", "fit_generator"):
        stage = next(s for s in plan.stages if s.kind == kind)
        scalars, images = read(folder_of(out, stage))
        points = history.read_history(stage.folder)
        for name in points[0].keys() - {"images_seen", "time"}:
            expected = [(point["images_seen"], float(np.float32(point[name]))) for point in points]
            assert scalars[f"train/{name}"] == expected, name
        rows = table[table["fingerprint"] == stage.fingerprint].sort_values("images_seen")
        metric = "rfid" if kind == "fit_tokenizer" else "gfid"
        (curve,) = [values for tag, values in scalars.items() if tag.startswith(f"{metric}/classifier-")]
        assert curve == [(n, float(np.float32(v))) for n, v in zip(rows["images_seen"], rows[metric], strict=True)]
        ((tag, sheets),) = images.items()
        assert re.fullmatch(rf"sheets/{'reconstructions' if kind == 'fit_tokenizer' else 'samples'}-\w+", tag)
        for (step, png), row in zip(sheets, rows.to_dict("records"), strict=True):
            assert step == row["images_seen"]
            assert same_pixels(png, out / "results" / "test" / "sheets" / row["sheet"])


def test_a_second_time_adds_what_is_new_and_nothing_twice(study, capsys):
    pytest.importorskip("tensorboard")
    plan, out = study
    stage = next(s for s in plan.stages if s.kind == "fit_generator")
    path = stage.folder / history.FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))  # as while it trains
    assert mirrored(out) == 0
    before = read(folder_of(out, stage))
    assert [step for step, _ in before[0]["train/loss"]] == [8, 16, 24]
    assert mirrored(out, "--study", "test") == 0
    assert "test: 0 new points" in capsys.readouterr().out
    assert mirrored(out, "--study", "tests") == 2
    assert "'test' and --study 'tests'" in capsys.readouterr().err
    assert read(folder_of(out, stage)) == before
    path.write_text("".join(lines))
    assert mirrored(out) == 0
    after = read(folder_of(out, stage))[0]
    assert [step for step, _ in after["train/loss"]] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert all(len({step for step, _ in values}) == len(values) for values in after.values())


def test_a_training_that_another_ablation_calls_otherwise_keeps_its_folder(study):
    pytest.importorskip("tensorboard")
    _, out = study
    assert mirrored(out) == 0
    before = sorted(path.name for path in (out / "tb" / "test").iterdir())
    path = out / "results" / "test" / "table.csv"
    table = results.load(path)
    results.write(table.assign(run="another + " + table["run"]), path)
    assert mirrored(out) == 0
    assert sorted(path.name for path in (out / "tb" / "test").iterdir()) == before


def test_watching_adds_what_comes_until_it_is_stopped(study, monkeypatch):
    pytest.importorskip("tensorboard")
    plan, out = study
    stage = next(s for s in plan.stages if s.kind == "fit_generator")
    path = stage.folder / history.FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    rounds = []

    def sleep(seconds):
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        path.write_text("".join(lines[: 1 + len(rounds)]))

    monkeypatch.setattr(tensorboard.time, "sleep", sleep)
    assert mirrored(out, "--watch") == 130
    assert [step for step, _ in read(folder_of(out, stage))[0]["train/loss"]] == [8, 16, 24]
    assert len(list(folder_of(out, stage).iterdir())) == 1


def test_a_table_from_another_machine_gives_its_scores(study):
    pytest.importorskip("tensorboard")
    plan, out = study
    for stage in plan.stages:
        shutil.rmtree(stage.folder)
    assert mirrored(out) == 0
    scalars, images = read(folder_of(out, plan.stages[0]))
    assert {tag.partition("/")[0] for tag in scalars} == WRITTEN_ONCE
    assert images


def test_without_the_package_everything_else_works(monkeypatch, tiny_plan, tiny_scale, tmp_path, capsys):
    for name in [name for name in sys.modules if re.match(r"tensorboard\b|torch\.utils\.tensorboard\b", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    plan = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),)))
    for stage in plan.stages:
        run_stage(stage)
    assert set(results.load(update_table(plan, tmp_path))["state"]) == {"done"}
    assert mirrored(tmp_path) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("study.tensorboard: event files need the package tensorboard") and message.count("\n") == 1
    )
    assert not (tmp_path / "tb").exists()


def test_an_unknown_study_is_one_line(tmp_path, capsys):
    assert mirrored(tmp_path) == 2
    assert "no study 'test'" in capsys.readouterr().err


def test_sheets_of_one_channel_and_of_three_keep_their_pixels(tmp_path):
    pytest.importorskip("tensorboard")
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    sheets = {"L": Image.fromarray(pixels[..., 0]), "RGB": Image.fromarray(pixels)}
    for mode, sheet in sheets.items():
        sheet.save(tmp_path / f"{mode}.png")
    event_files = tensorboard.Mirror(tmp_path / "tb")
    points = [tensorboard.Point(f"sheets/{mode}", 8, tmp_path / f"{mode}.png") for mode in sheets]
    assert event_files.add("test", "run", "0" * 16, iter(points)) == 2
    event_files.close()
    _, images = read(tmp_path / "tb" / "test" / "run-00000000")
    assert set(images) == {"sheets/L", "sheets/RGB"}
    for mode in sheets:
        ((step, png),) = images[f"sheets/{mode}"]
        assert step == 8 and same_pixels(png, tmp_path / f"{mode}.png")


def test_a_long_history_is_known_in_full(tmp_path):
    pytest.importorskip("tensorboard")
    Image.new("RGB", (6, 4)).save(tmp_path / "sheet.png")
    curve = [tensorboard.Point("train/loss", step, 1.0) for step in range(10_001)]  # TensorBoard's default limit + 1
    sheets = [tensorboard.Point("sheets/samples", step, tmp_path / "sheet.png") for step in range(9)]
    for new in (10_010, 0):
        event_files = tensorboard.Mirror(tmp_path / "tb")
        assert event_files.add("test", "run", "0" * 16, iter(curve + sheets)) == new
        event_files.close()
