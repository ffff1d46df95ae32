"""Launched sweeps, shown and changed from a later process. Tests on a real Slurm are in tests/slurm."""

import dataclasses
import io
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from touched import touched, tree

from study import manage, sweep
from study.core import cards, compute
from study.core.files import read_json, write_json
from study.core.lease import this_process
from study.core.paths import job_folder, study_root
from study.plan.stage import INTERRUPTED, VERSIONS
from study.report.table_rows import update_table
from study.submit import cluster
from study.submit.jobs import note_failure, run_stage
from study.submit.launches import launched_plans, note_sweep
from study.submit.options import Sweep


@pytest.fixture
def started(tiny_plan, tmp_path):
    """A launched sweep of a study 'birds' whose tokenizer is done and whose generator is not."""
    plan = dataclasses.replace(tiny_plan(), study="birds")
    options = Sweep(study="birds", out=tmp_path)
    note_sweep(options, plan, starts=True)
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
    assert plan == started
    assert launched_plans("")[0][1] == started  # the study started last


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
    assert manage.unreferenced(tmp_path, []) == []
    assert {encode.folder, unjudged.folder} < set(manage.unreferenced(tmp_path / "none", []))


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


# The note is the plan


def test_status_changes_nothing_and_reads_neither_pictures_nor_weights(
    started, capsys, pictures, study_root, monkeypatch, tmp_path, never_planned
):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    before = tree(study_root)
    with touched() as files:
        code, text = shown(capsys, "status", "birds")
    assert code == 0 and "birds: 1 done, 1 pending" in text
    assert study_root / "sweeps" / "birds" / "frontier.json" in files.read  # so that the hook is known to see
    assert not files.read_below(pictures, study_root / "data", tmp_path / "weights")
    assert not files.changed and tree(study_root) == before


def test_a_study_is_known_when_its_pictures_are_gone(started, capsys, pictures, study_root, monkeypatch, never_planned):
    expected = shown(capsys, "status", "birds")
    shutil.rmtree(pictures)
    shutil.rmtree(study_root / "data")
    assert shown(capsys, "status", "birds") == expected
    assert shown(capsys, "cancel", "birds", "--yes") == (0, "birds: nothing waits or runs\n")
    done = []
    monkeypatch.setattr("study.manage.carry_out", lambda options, plan, todo: done.extend(todo) or 0)
    note_failure(started.jobs[1].stages[0], "failed", "OSError: no space")
    assert shown(capsys, "retry", "birds")[0] == 0
    assert done == [started.jobs[1]]


def test_jobs_are_found_with_other_cores_and_another_version_but_only_retried_by_their_own(
    started, capsys, monkeypatch, never_planned
):
    generator = started.jobs[1]
    with subprocess.Popen(["sleep", "600"]) as job:
        write_json(job_folder(generator.name) / "submission.json", this_process(job.pid))
        monkeypatch.setattr(compute, "cores", lambda: 64)
        compute.resolve.cache_clear()
        monkeypatch.setitem(VERSIONS, "fit_generator", 99)
        ((_, plan),) = launched_plans("birds")
        assert [one.name for one in plan.jobs] == [one.name for one in started.jobs]
        assert plan.compute == started.compute
        assert "birds: 1 done, 1 running" in shown(capsys, "status", "birds")[1]
        assert shown(capsys, "cancel", "birds", "--yes")[0] == 0
        assert job.wait(20) == -signal.SIGTERM
    note_failure(generator.stages[0], "failed", "OSError: no space")
    code, text = shown(capsys, "retry", "birds")
    assert code == 2 and "fit_generator was planned by another version of this code" in text
    assert generator.stages[0].failure()


def test_retry_on_a_machine_without_the_gpu_says_so(started, capsys, tmp_path, monkeypatch):
    def on_gpu(stage):
        spec = dataclasses.replace(stage.spec, compute=dataclasses.replace(stage.spec.compute, device="cuda"))
        return dataclasses.replace(stage, spec=spec)

    jobs = tuple(dataclasses.replace(job, stages=tuple(map(on_gpu, job.stages))) for job in started.jobs)
    note_sweep(Sweep(study="birds", out=tmp_path), dataclasses.replace(started, jobs=jobs), starts=True)
    monkeypatch.setattr(cards, "_found", lambda: ((), "no GPU"))
    note_failure(started.jobs[1].stages[0], "failed", "OSError: no space")
    assert "birds was started on a GPU, and this machine has none" in shown(capsys, "retry", "birds")[1]


def test_a_job_that_slurm_ended_is_seen_without_being_noted(started, capsys, study_root, tmp_path, monkeypatch):
    generator = started.jobs[1]
    write_json(job_folder(generator.name) / "submission.json", {"executor": "slurm", "job_id": "7", "code": "c"})
    monkeypatch.setattr(cluster, "queue_answers", lambda: True)
    monkeypatch.setattr(cluster, "job_states", lambda ids: dict.fromkeys(ids, "TIMEOUT"))
    before = tree(study_root)
    code, text = shown(capsys, "status", "birds")
    assert code == 0 and "birds: 1 done, 1 timed out" in text and "the job reached its time limit" in text
    assert tree(study_root) == before
    done = []
    with monkeypatch.context() as patch:
        patch.setattr("study.manage.carry_out", lambda options, plan, todo: done.extend(todo) or 0)
        assert shown(capsys, "retry", "birds")[0] == 0 and done == [generator]
    assert generator.stages[0].failure() is None
    assert shown(capsys, "watch", "birds")[0] == 0  # which ends with the table, for which it is noted
    assert generator.stages[0].failure()["state"] == "timed out"
    assert (tmp_path / "results" / "birds" / "table.csv").exists()


def test_a_note_of_another_version_is_one_line(started, capsys, study_root):
    path = study_root / "sweeps" / "birds" / "frontier.json"
    note = read_json(path)
    for changed in ({**note, "options": {**note["options"], "patience": 3}}, {"options": {}, "started": 0.0}):
        write_json(path, changed)
        code, text = shown(capsys, "status", "birds")
        assert code == 2 and f"{path}: it was started by another version of this code" in text
        assert len(text.splitlines()) == 1


def test_what_ran_out_of_memory_is_retried_with_fewer_images_at_a_time(started, capsys, monkeypatch):
    generator = started.jobs[1]
    note_failure(generator.stages[0], "failed", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    again = []
    monkeypatch.setattr("study.manage.carry_out", lambda sweep, plan, todo: again.extend(todo) or 0)
    share = generator.stages[0].spec.recipe.batch_images
    code, text = shown(capsys, "retry", "birds", "--microbatch-images", "3")
    assert code == 2 and f"--microbatch-images 3 must divide the {share} images" in text
    assert generator.stages[0].failure() and not again
    assert shown(capsys, "retry", "birds", "--microbatch-images", "2")[0] == 0
    (job,) = again
    assert [stage.fingerprint for stage in job.stages] == [stage.fingerprint for stage in generator.stages]
    assert job.stages[0].spec.compute.microbatch_images == 2
    assert job.name == generator.name and generator.stages[0].failure() is None
