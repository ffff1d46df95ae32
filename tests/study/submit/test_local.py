"""The local scheduler with fake processes: what it notes for jobs that end early, and that it always ends."""

import dataclasses
import errno
import os
import shutil
import subprocess
import time
from collections import Counter

import pytest
from made_up import COMPUTE, Asking, data_spec, made_cards

from study.core.compute import Execution
from study.core.files import read_json, write_json
from study.core.lease import this_process
from study.core.paths import job_folder
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.plan.stage import RECORD, mark_record
from study.report.table_rows import state_of
from study.submit.jobs import note_failure
from study.submit.local import LocalJobs, start_process


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


class Sleeping:
    """Processes that a test starts and ends, each a `sleep` that stands for a job."""

    def __init__(self, monkeypatch):
        self.cards = {}  # name of a job: what its GPUs are called
        self._processes = {}
        monkeypatch.setattr("study.submit.local.start_process", self.start)

    def start(self, folder, name, call, processes, cards):
        process = self._processes[folder.name] = subprocess.Popen(["sleep", "600"])
        self.cards[folder.name] = [card.visible for card in cards]
        write_json(folder / "submission.json", {**this_process(process.pid), "cards": self.cards[folder.name]})
        return self

    def done(self):
        return False

    def end(self, *names):
        for name in names or list(self._processes):
            process = self._processes.pop(name)
            process.kill()
            process.wait()
            self.cards.pop(name)


@pytest.fixture
def sleeping(monkeypatch):
    made = Sleeping(monkeypatch)
    yield made
    made.end()


def tokenizer_jobs(count, processes=1):
    runs = [Run(tokenizer="f4d4", tokenizer_seed=seed) for seed in range(count)]
    scale = dataclasses.replace(smoke(), execution=Execution(processes=processes))
    compute = dataclasses.replace(COMPUTE, device="cuda")
    return list(make_plan("several", Asking(*runs), scale, data_spec(), compute, "made").jobs)


def start(jobs, names):
    """Start those of these jobs that there is room for, in order."""
    for job in names:
        if jobs._has_room(job):
            jobs._start(job)


def loads(sleeping):
    return dict(Counter(card for own in sleeping.cards.values() for card in own))


def test_jobs_share_cards_evenly_and_adopted_ones_count(sleeping):
    all_jobs = tokenizer_jobs(9)
    jobs = LocalJobs(all_jobs, slots=6, cards=made_cards(3))
    start(jobs, all_jobs)
    assert loads(sleeping) == {"0": 2, "1": 2, "2": 2} and len(jobs.board.running) == 6
    on_first = [name for name, own in sleeping.cards.items() if own == ["0"]]
    sleeping.end(*on_first)
    for name in on_first:
        del jobs.board.running[name]
    later = LocalJobs(all_jobs, slots=6, cards=made_cards(3))  # a sweep that finds four of them running
    later.board.running = dict(jobs.board.running)
    start(later, all_jobs[6:])
    assert loads(sleeping) == {"0": 2, "1": 2, "2": 2}


def test_a_job_of_several_processes_gets_as_many_cards_and_waits_for_them(sleeping):
    pairs = tokenizer_jobs(3, processes=2)
    jobs = LocalJobs(pairs, slots=1, cards=made_cards(3))
    start(jobs, pairs)
    assert [len(set(own)) for own in sleeping.cards.values()] == [2]
    jobs = LocalJobs(pairs, slots=2, cards=made_cards(4))
    (held,) = sleeping.cards.values()
    jobs.board.running = {pairs[0].name: {}}
    start(jobs, pairs[1:])
    assert sorted(card for own in sleeping.cards.values() for card in own) == ["0", "1", "2", "3"]
    assert not set(sleeping.cards[pairs[1].name]) & set(held)
    assert pairs[2].name not in sleeping.cards


def test_a_job_waits_while_too_few_cards_have_room_though_a_slot_is_free(sleeping):
    first, second, third = tokenizer_jobs(3, processes=2)
    jobs = LocalJobs([first, second, third], slots=2, cards=made_cards(3))
    start(jobs, [first, second])
    for job in (first, second):  # as it may come when others have ended meanwhile
        note = read_json(job_folder(job.name) / "submission.json")
        write_json(job_folder(job.name) / "submission.json", {**note, "cards": ["0", "1"]})
    jobs.slots = 3  # two processes on each card at most, and one card has room
    assert not jobs._has_room(third)
    jobs.cards = made_cards(4)
    assert jobs._has_room(third)


def test_without_cards_no_job_is_given_any(sleeping):
    all_jobs = tokenizer_jobs(2)
    jobs = LocalJobs(all_jobs, slots=2)
    start(jobs, all_jobs)
    assert list(sleeping.cards.values()) == [[], []]


def test_a_process_sees_its_own_cards_by_whatever_they_are_called(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6a,MIG-77b1,GPU-9c00")
    own = [*made_cards(1, visible="MIG-77b1"), *made_cards(1, visible="GPU-9c00")]
    seen = tmp_path / "seen"
    start_process(tmp_path / "job", "made", (os.system, f'echo "$CUDA_VISIBLE_DEVICES" > {seen}'), 1, own)
    assert read_json(tmp_path / "job" / "submission.json")["cards"] == ["MIG-77b1", "GPU-9c00"]
    deadline = time.monotonic() + 60
    while not (seen.exists() and seen.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert seen.read_text() == "MIG-77b1,GPU-9c00\n"
