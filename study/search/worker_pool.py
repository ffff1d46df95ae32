"""The workers of a search as processes: start or submit them, find them from a later process, and stop them.

Each has a folder with its logs and the note of how it was submitted. What a worker does is in study/search/worker.py.
"""

from __future__ import annotations

import time
from pathlib import Path

from study.core.cards import cards
from study.core.files import read_json
from study.core.lease import process_alive
from study.core.stopping import ask_to_end
from study.search.problem import Problem
from study.search.worker import WORKERS, run_worker
from study.submit import cluster
from study.submit.cluster import Profile
from study.submit.local import deferred_signals, start_process
from study.submit.slurm import active_workers, submit_workers

STOP_SECONDS = 60.0


def start(problem: Problem) -> None:
    """Start the workers that are not running, as processes of this machine."""
    processes, found = problem.compute.processes, cards() if problem.compute.device == "cuda" else ()
    running = local(problem)
    for number, folder in enumerate(_folders(problem)):
        if folder not in running:
            own = [found[(number * processes + i) % len(found)] for i in range(processes)] if found else []
            call = (run_worker, problem, number)
            with deferred_signals():
                start_process(folder, f"search-{problem.space}-{number}", call, processes, own)


def submit(problem: Problem, profile: Profile) -> None:
    """Submit the workers that are not in Slurm's queue.

    Raises:
        SlurmRefused: Slurm refuses one; then no worker of this call stays in the queue.
    """
    calls = {folder: (run_worker, problem, number) for number, folder in enumerate(_folders(problem))}
    submit_workers(calls, f"search-{problem.space}", problem.compute, profile)


def _folders(problem: Problem) -> list[Path]:
    return [problem.folder / WORKERS / str(number) for number in range(problem.workers)]


def _all_folders(problem: Problem) -> list[Path]:
    """Folders of all workers that ever ran: an earlier command may have started more than this one."""
    return sorted((problem.folder / WORKERS).glob("*"))


def local(problem: Problem) -> dict[Path, int]:
    """Process ids of the workers that run on this machine, by folder, no matter which process started them."""
    notes = {folder: read_json(folder / "submission.json") for folder in _all_folders(problem)}
    return {folder: note["pid"] for folder, note in notes.items() if note and "pid" in note and process_alive(note)}


def queued(problem: Problem) -> dict[Path, str]:
    """Slurm job ids of the workers that wait or run, by folder."""
    return active_workers(_all_folders(problem))


def any_alive(problem: Problem, executor: str) -> bool:
    """Whether any worker waits or runs; True also while Slurm's queue does not answer."""
    return bool(local(problem) or queued(problem)) or (executor == "slurm" and not cluster.queue_answers())


def stop_local(problem: Problem) -> None:
    """Ask the workers of this machine to save and end, and wait for them, at most STOP_SECONDS."""
    deadline = time.monotonic() + STOP_SECONDS
    while (pids := local(problem).values()) and time.monotonic() < deadline:
        for pid in pids:
            ask_to_end(pid)  # repeatedly: a worker that is still starting up ignores signals
        time.sleep(1.0)
