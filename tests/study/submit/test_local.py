"""The local scheduler with fake processes: what it notes for jobs that end early, and that it always ends."""

import errno
import shutil

import pytest
from made_up import COMPUTE, Asking, data_spec

from study.core.files import write_json
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.plan.stage import RECORD, mark_record
from study.report.table_rows import state_of
from study.submit.jobs import note_failure
from study.submit.local import LocalJobs


class Ended:
    """A submitted process that has ended."""

    def done(self):
        return True


@pytest.fixture
def plan():
    run = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    return make_plan("one", Asking(run), smoke(), data_spec(), COMPUTE, "made")


def finish(stage):
    for name in map(mark_record, stage.marks) if stage.marks else [RECORD]:
        write_json(stage.folder / name, {"fingerprint": stage.fingerprint})


def scheduler(plan, monkeypatch, on_submit):
    """Local jobs whose processes do `on_submit(job, attempt)` and end at once."""
    jobs = LocalJobs(list(plan.jobs), slots=2)
    attempts = []

    def submit(job):
        attempts.append(job.kind)
        on_submit(job, attempts.count(job.kind))
        jobs._submitted[job.name] = Ended()
        jobs.board.running[job.name] = {}

    monkeypatch.setattr(jobs, "_submit", submit)
    monkeypatch.setattr("study.submit.local.POLL_SECONDS", 0.001)
    return jobs, attempts


def watch(jobs):
    changes = []
    jobs.watch(lambda running: None, lambda: changes.append(1))
    return len(changes)


def test_generators_follow_their_tokenizers(plan, monkeypatch):
    jobs, attempts = scheduler(plan, monkeypatch, lambda job, attempt: [finish(s) for s in job.stages])
    assert watch(jobs)
    assert attempts == ["tokenizer", "generator"]
    assert not jobs.board.failed


def test_a_kill_after_another_stage_failed_is_noted_too(plan, monkeypatch):
    fit, reconstruct, encode, _ = plan.jobs[0].stages

    def killed_in_encode(job, attempt):
        finish(fit)
        note_failure(reconstruct, "failed", "ValueError: no")

    jobs, attempts = scheduler(plan, monkeypatch, killed_in_encode)
    watch(jobs)
    assert attempts == ["tokenizer"]
    assert reconstruct.failure()["reason"] == "ValueError: no"
    assert "ended without a record" in encode.failure()["reason"]


def test_a_job_that_another_sweep_stopped_goes_on(plan, monkeypatch):
    def stopped_once(job, attempt):
        if job.kind == "tokenizer" and attempt == 1:
            write_json(job.stages[0].folder / "interrupted.json", {})
        else:
            for stage in job.stages:
                finish(stage)

    jobs, attempts = scheduler(plan, monkeypatch, stopped_once)
    watch(jobs)
    assert attempts == ["tokenizer", "tokenizer", "generator"]
    assert not jobs.board.failed


def test_it_ends_when_what_a_job_reads_is_deleted_meanwhile(plan, monkeypatch):
    for stage in plan.jobs[0].stages:
        finish(stage)
    jobs, attempts = scheduler(plan, monkeypatch, lambda job, attempt: None)
    shutil.rmtree(plan.jobs[0].stages[2].folder)
    jobs.board.jobs.pop(plan.jobs[0].name)  # it was done when this sweep began
    watch(jobs)
    assert attempts == []


def test_a_job_that_a_full_disk_keeps_from_starting_has_failed_though_nothing_can_be_written(plan, monkeypatch):
    def no_room(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    jobs, attempts = scheduler(plan, monkeypatch, no_room)
    monkeypatch.setattr("study.submit.jobs.write_json", no_room)
    changes = watch(jobs)
    assert attempts == ["tokenizer"]
    assert changes
    state, reason, _ = state_of(plan.runs[0], plan.runs[0].results[0].judges[0])
    assert state == "failed"
    assert "could not be started: [Errno 28] No space left on device; cannot write to" in reason
    for stage in plan.jobs[0].stages:
        finish(stage)
    assert plan.jobs[0].stages[0].failure() is None


def test_a_job_that_ends_before_it_starts_does_not_go_on_for_ever(plan, monkeypatch):
    class Executor:
        def __init__(self, folder):
            pass

        def update_parameters(self, **parameters):
            pass

        def submit(self, function, job, *others):
            process = Ended()
            process.job_id = "1"
            return process

    monkeypatch.setattr("submitit.LocalExecutor", Executor)
    monkeypatch.setattr("study.submit.local.POLL_SECONDS", 0.001)
    write_json(plan.jobs[0].stages[0].folder / "interrupted.json", {})  # an earlier sweep was stopped
    jobs = LocalJobs(list(plan.jobs), slots=2)
    watch(jobs)
    assert plan.jobs[0].stages[0].failure()["state"] == "failed"
