"""Carry out a search: start its workers, print their progress, and write the outcome."""

from __future__ import annotations

import dataclasses
import signal
import time
from typing import Any

from study.core.stopping import interrupt_on_signals, stop_requested
from study.data.left_out import data_notes
from study.plan.needs import identity_unknown
from study.plan.warnings import plan_warnings
from study.report.console import print_warnings
from study.search import worker_pool
from study.search.console import print_findings, print_space
from study.search.launches import note_search
from study.search.options import Search
from study.search.outcome import failures, progress_line, repeats_finished, write_outcome
from study.search.problem import Problem
from study.search.worker import open_trials, read_trials, run_worker
from study.submit.cluster import read_profile

WATCH_SECONDS = {"local": 1.0, "slurm": 10.0}  # between checks whether workers are alive, on Slurm by its queue
LINE_SECONDS = 20.0  # between progress lines


def run(options: Search, problem: Problem, missing: list[str]) -> int:
    """Carry out a search; returns the exit code: 0 done, 1 a run failed, 3 something is missing, 130 stopped."""
    looks = options.dry_run or bool(missing)  # nothing is started, so nothing is written
    trials = read_trials(problem) if looks else open_trials(problem)
    if options.trials is None and trials is not None:
        problem = dataclasses.replace(problem, budget=trials.total)
    print_space(problem, trials)
    for line in data_notes(options.data or problem.setting.scale.data, problem.setting.data):
        print(f"{problem.setting.data.name}: {line}")
    print_warnings(plan_warnings(problem.plan(problem.extremes())))
    for line in missing:
        print(f"  missing here: {line}")
    if unknown := identity_unknown(problem.plan([problem.run(problem.default())]).stages):
        print(unknown)
    if missing:
        return 3
    if options.dry_run:
        return 0
    assert trials is not None
    trials.set_total(problem.budget)
    if options.executor == "inline":
        note_search(problem)
        run_worker(problem, 0)
        stopped = stop_requested.is_set()
    elif trials.finished() and repeats_finished(problem, trials):  # workers would find nothing to do
        note_search(problem)
        return _finish(problem, trials, stopped=False)
    else:
        stopped = not _watch(options, problem, trials)
    return _finish(problem, trials, stopped) if not options.detach else 0


def follow(options: Search, problem: Problem, missing: list[str]) -> int:
    """What the processes of a torchrun other than the first do; returns the exit code."""
    if missing or options.dry_run:
        return 3 if missing else 0
    return int(not run_worker(problem, 0))


def _finish(problem: Problem, trials: Any, stopped: bool) -> int:
    """Write and print the outcome, complete or not; returns the exit code."""
    search = write_outcome(problem, trials)
    print_findings(search, problem.out / "results" / problem.setting.study)
    if trials.finished() and repeats_finished(problem, trials):
        return 0
    print(progress_line(problem, trials))
    for reason in failures(problem, trials):
        print(f"  failed: {reason}")
    print(f"run the same command again to continue; logs of workers: {problem.folder / 'workers'}")
    return 130 if stopped else 1


def _watch(options: Search, problem: Problem, trials: Any) -> bool:
    """Start the workers that are not running and watch them until they end; False when stopped by a signal."""
    interrupt_on_signals()
    try:
        if options.executor == "slurm":
            worker_pool.submit(problem, read_profile(options.cluster)["generator"])
        else:
            worker_pool.start(problem)
        note_search(problem)
        if options.detach:
            print(f"submitted; python -m study.sweep status {problem.setting.study} shows its progress")
            return True
        last_line = 0.0
        while worker_pool.any_alive(problem, options.executor):
            if time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                print(progress_line(problem, trials), flush=True)
            time.sleep(WATCH_SECONDS[options.executor])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean stop
        if options.executor == "slurm":
            print("the workers stay in the queue; run the same command again to watch them")
        else:
            print("stopping: workers save their state ...", flush=True)
            worker_pool.stop_local(problem)
        return False
    return True
