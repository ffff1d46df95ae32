"""Workers of a search: one Ctrl-C stops their start, and none starts, or stays in the queue, for nothing."""

import dataclasses
import os
import signal
import subprocess

import pytest
from made_problems import make_problem, search

from results import searches
from study.core.files import read_json, write_json
from study.core.lease import STALE_SECONDS, lease
from study.report.table_rows import state_of
from study.search import run as running
from study.search import worker_pool
from study.search.options import Search
from study.search.trial_notes import note_trial
from study.search.worker import open_trials, run_worker
from study.submit.local import deferred_signals


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C as a terminal sends it to a command in the foreground, even where the tests run in the background."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_one_ctrl_c_while_workers_start_is_enough(tmp_path, monkeypatch, ctrl_c, capsys):
    started, asked = [], []

    def start(folder, *_):
        started.append(folder.name)
        ctrl_c()

    monkeypatch.setattr(worker_pool, "start_process", start)
    monkeypatch.setattr(worker_pool, "stop_local", asked.append)
    problem = dataclasses.replace(make_problem(out=tmp_path), workers=3)
    assert not running._watch(Search(space="sampling"), problem, open_trials(problem))
    assert started == ["0"] and asked == [problem]
    assert "stopping: workers save their state" in capsys.readouterr().out


def test_a_search_that_is_done_starts_no_worker(tmp_path, stages_run, monkeypatch, capsys):
    search(tmp_path, "sampling", 3)
    monkeypatch.setattr(worker_pool, "start", lambda problem: pytest.fail("a worker is started"))
    monkeypatch.setattr(worker_pool, "submit", lambda *arguments: pytest.fail("a worker is submitted"))
    for executor, detach in (("local", False), ("slurm", True)):
        options = Search(space="sampling", executor=executor, detach=detach)
        assert running.run(options, make_problem("sampling", 3, out=tmp_path), []) == 0
        assert "3 of 3 trials: 3 complete" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="a worker is started"):
        running.run(Search(space="sampling", trials=4), make_problem("sampling", 4, out=tmp_path), [])


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Stands in for Slurm: `squeue` prints the file `queue`, `scancel` notes what it is asked in `cancelled`."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("squeue", f"cat {tmp_path}/queue"), ("scancel", f'echo "$@" >> {tmp_path}/cancelled')):
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def submitted(problem, states):
        (tmp_path / "queue").write_text("".join(f"7_{number}|{state}\n" for number, state in enumerate(states)))
        for number in range(len(states)):
            note = {"executor": "slurm", "job_id": f"7_{number}"}
            write_json(problem.folder / "workers" / str(number) / "submission.json", note)

    return submitted


@pytest.mark.parametrize("failing", [False, True])
def test_when_a_search_ends_workers_that_wait_in_the_queue_are_cancelled(
    tmp_path, stages_run, monkeypatch, queue, failing
):
    problem = make_problem("sampling", 2, out=tmp_path)
    queue(problem, ["RUNNING", "PENDING", "COMPLETED", "REQUEUED"])
    if failing:  # a repeat that another worker may try again
        monkeypatch.setattr("study.search.outcome.repeats_finished", lambda problem, trials: False)
    assert run_worker(problem, 0)
    assert len(searches.load(tmp_path / "results" / "made", "sampling").trials) == 2
    cancelled = tmp_path / "cancelled"
    assert not cancelled.exists() if failing else sorted(cancelled.read_text().split()) == ["7_1", "7_3"]


def test_a_trial_whose_machine_died_is_not_running(tmp_path, stages_run):
    problem = make_problem("generator", 2, out=tmp_path)
    trials = open_trials(problem)
    with trials.claim() as claimed:
        plan = problem.plan([problem.run(claimed.values)])
        note_trial(problem, claimed.values, plan)
        generator = plan.runs[1]
        with lease(generator.fit.folder):
            files = [folder / "lease.json" for folder in (trials._folder(claimed.number), generator.fit.folder)]
            left = [{**read_json(file), "boot": "elsewhere/1/2", "pid": 1} for file in files]
    for file, content in zip(files, left, strict=True):
        write_json(file, content)

    def told():
        state, _, _ = state_of(generator, generator.results[0].judges[0])
        return trials.summary(), state

    assert told() == ("0 of 2 trials: 1 running", "running")
    for file in files:
        beat = file.stat().st_mtime - STALE_SECONDS - 1
        os.utime(file, (beat, beat))
    assert told() == ("0 of 2 trials: 1 interrupted", "pending")


def test_a_process_that_is_started_survives_ctrl_c(ctrl_c):
    with deferred_signals():
        child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.kill()
    assert child.wait(20) == -signal.SIGKILL
