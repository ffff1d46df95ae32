"""A process that has finished a job takes the next one of its sweep, or ends."""

import time
from pathlib import Path

import pytest
from made_up import COMPUTE, Asking, data_spec

from study.core.files import read_json, write_json
from study.core.lease import process_alive, this_process
from study.core.paths import job_folder
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.plan.stage import RECORD, mark_record
from study.submit import in_turn
from study.submit.in_turn import ENDED, NEXT, SUBMISSION, hand_over, has_left, run_in_turn, running_process
from study.submit.local import LocalJobs, start_process


@pytest.fixture
def jobs():
    """A tokenizer's and a generator's job."""
    run = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    return list(make_plan("one", Asking(run), smoke(), data_spec(), COMPUTE, "made").jobs)


def finish(job):
    for stage in job.stages:
        for name in map(mark_record, stage.marks) if stage.marks else [RECORD]:
            write_json(stage.folder / name, {"fingerprint": stage.fingerprint})


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_runs_the_job_that_is_handed_over_prints_into_its_log_and_ends_without_another(jobs):
    first, second = jobs
    for job in jobs:
        finish(job)
    start_process(job_folder(first.name), "made", (run_in_turn, first, jobs), 1, [])
    process = read_json(job_folder(first.name) / SUBMISSION)
    wait_for(lambda: has_left(first.name))
    assert running_process(first.name) is None and process_alive(process)
    assert hand_over(first.name, second)
    wait_for(lambda: has_left(second.name))
    taken = read_json(job_folder(second.name) / SUBMISSION)
    assert taken["pid"] == process["pid"]
    assert Path(taken["log"]).parent == job_folder(second.name) and Path(taken["log"]).exists()
    assert hand_over(second.name, None)
    wait_for(lambda: not process_alive(process))


def test_a_process_that_waits_no_longer_gets_no_job(jobs, monkeypatch):
    monkeypatch.setattr(in_turn, "PATIENCE_SECONDS", 0)
    first, second = jobs
    folder = job_folder(first.name)
    write_json(folder / SUBMISSION, this_process())
    write_json(folder / ENDED, {})
    assert in_turn._next_job(folder / NEXT) is None
    assert not hand_over(first.name, second)
    assert running_process(second.name) is None and not (job_folder(second.name) / SUBMISSION).exists()


def test_a_process_whose_job_has_failed_takes_no_other(jobs, monkeypatch):
    monkeypatch.setattr(in_turn, "run_job", lambda job: [])
    run_in_turn(jobs[0], jobs)
    assert not has_left(jobs[0].name)


class Process:
    """A submitted process that ends when it gets no other job."""

    ended = False

    def done(self):
        return self.ended


def test_the_scheduler_hands_a_job_over_before_it_starts_a_process(jobs, monkeypatch):
    local, process = LocalJobs(jobs, slots=1), Process()
    submitted, handed = [], []

    def do(job):
        finish(job)
        write_json(job_folder(job.name) / ENDED, {})

    def submit(job):
        submitted.append(job)
        do(job)
        local._submitted[job.name] = process
        local.board.running[job.name] = {}

    def hand(ended, job):
        handed.append((ended, job))
        if job is None:
            process.ended = True
        else:
            do(job)
        return True

    monkeypatch.setattr(local, "_submit", submit)
    monkeypatch.setattr("study.submit.local.hand_over", hand)
    monkeypatch.setattr("study.submit.local.POLL_SECONDS", 0.001)
    local.watch(lambda running: None, lambda: None)
    first, second = jobs
    assert submitted == [first]
    assert handed == [(first.name, second), (second.name, None)]
