"""Sheets from a finished run: the sweep's own samples if no option is changed, and one line for what is missing."""

import dataclasses

import numpy as np
import pytest
import torch
from made_up import COMPUTE
from PIL import Image

from results import table as results
from results.schema import FOREIGN, SELECTION_SEED, Row
from study import sample
from study.core import compute
from study.core.files import read_json, write_json
from study.core.paths import stage_folder
from study.plan.stage import mark_record, stage_from_record
from study.report.table_rows import update_table
from study.stages import sample as sample_stage


@pytest.fixture
def fitted(tiny_plan, run_or_copy, tmp_path, monkeypatch):
    """A plan whose generator is trained and whose rows are in the table, but which has not been judged."""
    monkeypatch.setattr(compute, "resolve", lambda: COMPUTE)
    scale = dataclasses.replace(tiny_plan().scale, judges=(("classifier", 0),))
    plan = dataclasses.replace(tiny_plan(scale), study="desk")
    stages = (*plan.jobs[0].stages, plan.jobs[1].stages[0])
    run_or_copy(stage for stage in stages if stage.kind not in ("reconstruct", "judge"))
    update_table(plan, tmp_path)
    return plan


RUN = "f4d4 + LightningDiT-XXS/2"


def draw(tmp_path, *arguments, run=RUN):
    """The pictures of a sheet that must be drawn, uint8 (rows, columns, H, W, C)."""
    path = tmp_path / "sheet.png"
    call = [run, "--out", str(path), "--results", str(tmp_path / "results"), *map(str, arguments)]
    assert sample.main(call) == 0
    pixels = np.asarray(Image.open(path))
    rows, columns = pixels.shape[0] // 16, pixels.shape[1] // 16
    return pixels.reshape(rows, 16, columns, 16, 3).transpose(0, 2, 1, 3, 4)


def refused(capsys, tmp_path, *arguments, run=RUN):
    code = sample.main([run, "--results", str(tmp_path / "results"), *map(str, arguments)])
    errors = capsys.readouterr().err
    assert code == 2, errors
    (line,) = errors.strip().splitlines()
    return line.removeprefix("study.sample: ")


def test_a_sheet_shows_the_sweeps_own_samples(fitted, tmp_path, capsys):
    stage = fitted.jobs[1].stages[-2]
    draw_chunk = sample_stage.sampler(stage.spec, stage.inputs)
    expected = torch.cat([draw_chunk(0), draw_chunk(1)]).permute(0, 2, 3, 1).numpy()[:6]  # labels 0 1 2 0 1 2
    sheet = draw(tmp_path, "--each", 2)
    assert sheet.shape == (2, 3, 16, 16, 3)
    np.testing.assert_array_equal(sheet.reshape(6, 16, 16, 3), expected)
    output = capsys.readouterr().out
    assert f"6 pictures of {RUN} after 64 images: euler 2 steps, no guidance, ema weights, seed 0" in output
    np.testing.assert_array_equal(draw(tmp_path, "--each", 2, run=stage.inputs["generator"].fingerprint), sheet)


def test_what_the_options_change(fitted, tmp_path, capsys):
    plain = draw(tmp_path, "--each", 2, "--classes", "2,0")
    assert plain.shape == (2, 2, 16, 16, 3)
    for change in (["--images-seen", 32], ["--steps", 5], ["--guidance", 3.0], ["--seed", 1], ["--classes", "0,2"]):
        other = draw(tmp_path, "--each", 2, "--classes", "2,0", *change)
        assert (other != plain).any(), change
    # the class alone changes, not the noise: the first picture is of class 2 in both
    np.testing.assert_array_equal(draw(tmp_path, "--each", 1, "--classes", "2,1")[0, 0], plain[0, 0])
    assert draw(tmp_path, "--each", 10, "--classes", "1").shape == (2, 8, 16, 16, 3)
    assert "euler 5 steps" in capsys.readouterr().out


def test_a_fingerprint_is_drawn_as_it_scores_unguided_whatever_was_swept(fitted, tmp_path, capsys):
    path = tmp_path / "results" / "desk" / "table.csv"
    table = results.load(path)
    own = table[(table["kind"] == "generator") & (table["images_seen"] == 64)]
    swept = [
        own.assign(protocol=f"0{seed}{scale}", sampling_seed=seed, guidance_scale=scale, run=f"{RUN} {scale}")
        for seed, scale in ((0, 3.0), (SELECTION_SEED, 1.0))
    ]
    results.write(results.merge(results.merge(table, swept[0]), swept[1]), path)
    draw(tmp_path, "--each", 1, run=fitted.jobs[1].stages[0].fingerprint)
    assert "no guidance, ema weights, seed 0" in capsys.readouterr().out
    draw(tmp_path, "--each", 1, run=f"{RUN} 3.0")
    assert "guidance 3, ema weights, seed 0" in capsys.readouterr().out


def test_bad_input_is_one_line(fitted, tmp_path, capsys):
    table = tmp_path / "results" / "desk" / "table.csv"
    foreign = Row(kind="generator", run="theirs", fingerprint=FOREIGN + "0" * 16, protocol="p", state="done", gfid=1.0)
    results.write(results.merge(results.load(table), results.table_of([foreign])), table)
    for arguments, message in (
        ({"run": "f4d4 + LightningDiT-XS/2"}, f"in study 'desk'; nearest: {RUN}"),
        ({"run": "f4d4"}, f"'f4d4' is a tokenizer, not a generator; generators: {RUN}"),
        ({"run": "theirs"}, "'theirs' was made elsewhere: only its score is here"),
        (["--study", "dekc"], "no study 'dekc'"),
        (["--classes", "0,3"], "numbers from 0 to 2, got '3'; they are 0 class0, 1 class1, 2 class2"),
        (["--classes", "cat"], "got 'cat'"),
        (["--images-seen", "48"], "no snapshot at 48 images seen; there are 32, 64"),
        (["--steps", "0"], "--steps 0: at least 1"),
        (["--guidance", "nan"], "--guidance must be 0 or more"),
        (["--each", "0"], "--each must be at least 1"),
        (["--out", tmp_path / "sheet.jpg"], "must be a file that ends in .png"),
    ):
        options = arguments if isinstance(arguments, dict) else {}
        line = refused(capsys, tmp_path, *([] if options else arguments), **options)
        assert message in line, line
    assert not list(tmp_path.glob("*.png"))
    assert "run python -m study.sweep first" in refused(capsys, tmp_path / "results")


def test_a_name_of_two_runs_is_that_of_the_one_that_was_trained_here(fitted, tmp_path, capsys):
    path = tmp_path / "results" / "desk" / "table.csv"
    table = results.load(path)
    other = table[table["kind"] == "generator"].assign(fingerprint="0" * 16)
    results.write(results.merge(table, other), path)
    own = fitted.jobs[1].stages[0].fingerprint
    assert draw(tmp_path, "--each", 1).shape == draw(tmp_path, "--each", 1, run=own).shape == (1, 3, 16, 16, 3)
    assert "its stages are not available here: no finished fit_generator in" in refused(capsys, tmp_path, run="0" * 16)
    stage_folder("fit_generator", "0" * 16).mkdir()
    ambiguous = refused(capsys, tmp_path)
    assert f"names 2 runs, 2 of them trained here: give a fingerprint, {min(own, '0' * 16)}" in ambiguous


def test_statistics_of_other_latents_are_refused(fitted, tmp_path, capsys):
    latents = fitted.jobs[0].stages[2]
    record = latents.record()
    record["latent"]["std"] = [2 * value for value in record["latent"]["std"]]
    write_json(latents.folder / "record.json", record)
    assert "was trained on latents" in refused(capsys, tmp_path)


def test_a_run_whose_folders_are_elsewhere_says_so(fitted, tmp_path, capsys, monkeypatch):
    latents = fitted.jobs[0].stages[2]
    (latents.folder / "record.json").rename(latents.folder / "away.json")
    assert f"no finished encode in {latents.folder}" in refused(capsys, tmp_path)
    monkeypatch.setenv("STUDY_ROOT", str(tmp_path / "another"))
    line = refused(capsys, tmp_path)
    assert "is in the table of desk, but its stages are not available here: no finished fit_generator in" in line
    assert f"Set STUDY_ROOT (now {tmp_path / 'another'}) to where it was trained" in line


def test_a_stage_is_read_back_from_its_record(fitted):
    training = fitted.jobs[1].stages[0]
    for stage in (*fitted.jobs[0].stages, training.at([32]), training.at([64])):
        if stage.kind not in ("reconstruct", "judge"):
            again = stage_from_record(stage.kind, stage.fingerprint, max(stage.marks, default=None))
            assert again == stage
            assert again.spec == stage.spec
    folder = fitted.jobs[1].stages[0].folder
    record = read_json(folder / mark_record(64))
    for change in ({"seed": 5}, {"learning_rate": 1.0}):
        write_json(folder / mark_record(64), {**record, "spec": {**record["spec"], **change}})
        with pytest.raises(ValueError, match="was written by another version of the code"):
            stage_from_record("fit_generator", folder.name, 64)


def test_a_record_of_another_format_is_one_line(fitted, tmp_path, capsys):
    path = fitted.jobs[1].stages[0].folder / mark_record(64)
    write_json(path, {name: part for name, part in read_json(path).items() if name != "spec"})
    assert "was written by another version of the code" in refused(capsys, tmp_path)


def test_a_run_of_a_gpu_is_drawn_from_here(fitted, tmp_path):
    """How a training was carried out is no part of what it is."""
    expected = draw(tmp_path, "--each", 2)
    for stage in fitted.stages:
        for path in stage.folder.glob("record*.json"):
            record = read_json(path)
            record["spec"]["compute"] |= {"device": "cuda", "threads": 4, "processes": 8}
            write_json(path, record)
    np.testing.assert_array_equal(draw(tmp_path, "--each", 2), expected)
