"""Launched sweeps, shown and changed from a later process. Tests on a real Slurm are in tests/slurm."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from study import manage, sweep
from study.core.files import read_json, write_json
from study.core.lease import this_process
from study.core.paths import job_folder, study_root
from study.plan.stage import INTERRUPTED
from study.report.table_rows import update_table
from study.submit.jobs import note_failure, run_stage
from study.submit.launches import launched_plans, note_sweep
from study.submit.options import Sweep


@pytest.fixture
def started(tiny_plan, tmp_path, monkeypatch):
    """A launched sweep of a study 'birds' whose tokenizer is done and whose generator is not; never planned again."""
    plan = dataclasses.replace(tiny_plan(), study="birds")
    options = Sweep(study="birds", out=tmp_path)
    note_sweep(options, plan, starts=True)
    monkeypatch.setattr("study.submit.launches.prepare", lambda options: plan)
    for stage in plan.jobs[0].stages:
        run_stage(stage)
    return plan


def shown(capsys, *arguments):
    code = sweep.manage(list(arguments))
    output = capsys.readouterr()
    return code, output.out + output.err


def states(plan):
    return [state.state for state in manage.states_of(plan)]


def test_paths_stay_the_same_from_another_folder(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"out": Path("here"), "cluster": Path("it.toml"), "data": "pictures"}
    note_sweep(Sweep(study="birds", **paths), started, starts=True)
    ((options, _),) = launched_plans("birds")
    assert (options.out, options.cluster, options.data) == (
        tmp_path / "here", tmp_path / "it.toml", str(tmp_path / "pictures"),
    )  # fmt: skip
    note_sweep(Sweep(study="birds", data="cifar10"), started, starts=True)
    assert launched_plans("birds")[0][0].data == "cifar10"


def test_the_options_of_a_sweep_come_back_from_its_note(started, tmp_path):
    ((options, plan),) = launched_plans("birds")
    assert options == Sweep(study="birds", out=tmp_path)
    assert plan is started
    assert launched_plans("")[0][1] is started  # the study started last


def test_status_reads_records_failures_interruptions_and_processes(started, capsys):
    generator = started.jobs[1]
    fit = generator.stages[0]
    assert states(started) == ["done", "pending"]
    fit.folder.mkdir(parents=True)
    write_json(fit.folder / INTERRUPTED, {"reason": "asked"})
    assert states(started) == ["done", "interrupted"]
    write_json(job_folder(generator.name) / "submission.json", this_process())
    assert states(started) == ["done", "running"]  # it is starting and has no lease yet
    (job_folder(generator.name) / "submission.json").unlink()
    (fit.folder / INTERRUPTED).unlink()
    note_failure(fit, "diverged", "diverged at step 3")
    assert states(started) == ["done", "diverged"]
    code, text = shown(capsys, "status", "birds")
    assert code == 0
    assert "birds: 1 diverged, 1 done" in text
    assert "diverged at step 3" in text


def test_a_study_that_was_not_started_is_named_with_the_nearest(started, capsys):
    assert shown(capsys, "status", "bird") == (
        2,
        "study.sweep status: no study called 'bird' was started; nearest: birds\n",
    )


def test_a_study_is_named_by_argument_or_option(started, capsys):
    expected = shown(capsys, "status", "birds")
    assert expected[0] == 0 and "birds: 1 done, 1 pending" in expected[1]
    assert shown(capsys, "status", "--study", "birds") == expected
    assert shown(capsys, "status", "birds", "--study", "birds") == expected
    assert shown(capsys, "retry", "--study", "birds", "--minutes", "5") == (0, "birds: nothing has failed\n")
    assert shown(capsys, "cancel", "--study", "birds", "--yes") == (0, "birds: nothing waits or runs\n")
    for command in ("status", "watch", "retry", "cancel"):
        line = f"study.sweep {command}: two studies were named, 'birds' and --study 'cats': give one of them\n"
        assert shown(capsys, command, "birds", "--study", "cats") == (2, line)
    for named in (["birds"], ["--study", "birds"]):  # clean concerns all studies
        with pytest.raises(SystemExit) as refused:
            shown(capsys, "clean", *named, "--yes")
        assert refused.value.code == 2


def test_retry_does_what_failed_and_nothing_else(started, capsys, monkeypatch):
    fit = started.jobs[1].stages[0]
    done = []
    monkeypatch.setattr("study.manage.carry_out", lambda options, plan, todo: done.extend(todo) or 0)
    assert shown(capsys, "retry", "birds") == (0, "birds: nothing has failed\n")
    note_failure(fit, "failed", "OSError: no space")
    code, text = shown(capsys, "retry", "birds")
    assert (code, done) == (0, [started.jobs[1]])
    assert "LightningDiT-XXS/2" in text
    assert fit.failure() is None


def test_cancel_and_clean_ask_first(started, capsys, tmp_path):
    assert shown(capsys, "cancel", "birds") == (0, "birds: nothing waits or runs\n")
    other = study_root() / "stages" / "fit_tokenizer" / ("0" * 16)
    other.mkdir(parents=True)
    (other / "tokenizer.safetensors").write_bytes(b"x" * 100)
    write_json(other / "record.json", {"fingerprint": "0" * 16, "stage": "fit_tokenizer"})
    kept = started.jobs[0].stages[0].folder / "tokenizer.safetensors"
    assert shown(capsys, "clean", "--out", str(tmp_path))[0] == 2  # no terminal to confirm on
    assert other.exists()
    code, text = shown(capsys, "clean", "--out", str(tmp_path), "--yes")
    assert code == 0
    assert "1 stage folder" in text
    assert [path.name for path in other.iterdir()] == ["record.json"]
    assert read_json(other / "record.json")
    assert kept.exists()
    assert shown(capsys, "clean", "--out", str(tmp_path)) == (0, "nothing to delete: everything is referred to\n")


def test_clean_keeps_what_a_table_refers_to_when_the_sweep_is_forgotten(started, tiny_plan, tiny_scale, tmp_path):
    listed = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),)))  # the same trainings, with rows
    update_table(listed, tmp_path)
    for note in study_root().glob("sweeps/*/*.json"):
        note.unlink()
    encode = started.jobs[0].stages[2]
    unjudged = started.jobs[0].stages[1]
    assert manage.unreferenced(tmp_path) == []
    assert {encode.folder, unjudged.folder} < set(manage.unreferenced(tmp_path / "none"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_status_names_every_run_however_narrow_the_terminal_is(width, started, monkeypatch):
    tokenizer, generator = started.jobs
    common = {"host": "node-17.cluster", "number": "5581631_0", "attempts": 2, "left": "30 s left", "share": "12%"}
    running = manage.State(tokenizer, "running", "fit_tokenizer: foundation model's features", **common)
    failed = manage.State(generator, "failed", "fit_generator", reason="OSError: no space")
    screen = Console(width=width, file=io.StringIO(), highlight=False)
    monkeypatch.setattr(manage, "console", screen)
    screen.print(manage.status_table("birds", [running, failed]))
    text = screen.file.getvalue()
    words = text.split()
    for word in ("f4d4", "LightningDiT-XXS/2", "running", "failed", "foundation", "features", "12%"):
        assert word in words, word
    assert ("5581631_0" in words) == (width >= 80) and ("node-17.cluster" in words) == (width == 120)
    assert max(map(len, text.splitlines())) <= width
