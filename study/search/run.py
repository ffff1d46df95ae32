"""Carry out a search: its workers run, the terminal shows how far they are, and what came out is written."""

from __future__ import annotations

import dataclasses
import signal
import time
from typing import Any

from study.core.stopping import raise_stop, stop_requested
from study.data.left_out import left_out_of_data
from study.search import worker_pool
from study.search.console import print_findings, print_space
from study.search.launches import note_search
from study.search.options import Search
from study.search.outcome import conclude, decided, failures, progress_line
from study.search.problem import Problem
from study.search.worker import open_trials, run_worker
from study.submit.cluster import read_profile

WATCH_SECONDS = {"local": 1.0, "slurm": 10.0}  # between looks at the workers, of Slurm at its queue
LINE_SECONDS = 20.0  # between progress lines


def run(options: Search, problem: Problem, missing: list[str]) -> int:
    """Carry out a search; returns the exit code: 0 done, 1 something failed, 3 something is missing, 130 stopped."""
    trials = open_trials(problem)
    if options.trials is None:
        problem = dataclasses.replace(problem, budget=trials.total)
    print_space(problem, trials)
    for line in left_out_of_data(options.data or problem.setting.scale.data):
        print(f"{problem.setting.data.name}: {line}")
    for line in missing:
        print(f"  missing here: {line}")
    if missing:
        return 3
    if options.dry_run:
        return 0
    trials.ask_for(problem.budget)
    if options.executor == "inline":
        note_search(options, problem)
        run_worker(problem, 0)
        stopped = stop_requested.is_set()
    else:
        stopped = not _watch(options, problem, trials)
    return _say(problem, trials, stopped) if not options.detach else 0


def follow(options: Search, problem: Problem, missing: list[str]) -> int:
    """What the other processes of a torchrun do."""
    if missing or options.dry_run:
        return 3 if missing else 0
    return int(not run_worker(problem, 0))


def _say(problem: Problem, trials: Any, stopped: bool) -> int:
    """Write what there is, and print it; returns the exit code."""
    search = conclude(problem, trials)
    print_findings(search, problem.out / "results" / problem.setting.study)
    if trials.finished() and decided(problem, trials):
        return 0
    print(progress_line(problem, trials))
    for reason in failures(problem, trials):
        print(f"  failed: {reason}")
    print(f"run the same command again to go on; logs of workers: {problem.folder / 'workers'}")
    return 130 if stopped else 1


def _watch(options: Search, problem: Problem, trials: Any) -> bool:
    """Start the workers that do not run yet and watch them; False when stopped by a signal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, raise_stop)
    try:
        if options.executor == "slurm":
            worker_pool.submit(problem, read_profile(options.cluster)["generator"])
        else:
            worker_pool.start(problem)
        note_search(options, problem)
        if options.detach:
            print(f"submitted; python -m study.sweep status {problem.setting.study} shows how far it is")
            return True
        said = 0.0
        while worker_pool.alive(problem, options.executor):
            if time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                print(progress_line(problem, trials), flush=True)
            time.sleep(WATCH_SECONDS[options.executor])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        if options.executor == "slurm":
            print("the workers go on in the queue; the same command watches them again")
        else:
            print("stopping: workers save what they have ...", flush=True)
            worker_pool.stop_local(problem)
        return False
    return True
