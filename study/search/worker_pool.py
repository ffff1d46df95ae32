"""The workers of a search, seen from outside: started where they do not run, found by any later process, stopped.

Each has a folder with its logs and the note of how it was submitted; what one does is in study/search/worker.py.
"""

from __future__ import annotations

import time
from pathlib import Path

from study.core.compute import gpus
from study.core.files import read_json
from study.core.lease import process_alive
from study.core.stopping import ask_to_end
from study.search.problem import Problem
from study.search.worker import run_worker
from study.submit import cluster
from study.submit.cluster import Profile
from study.submit.local import start_process, undisturbed
from study.submit.slurm import active_workers, submit_workers

STOP_SECONDS = 60.0


def start(problem: Problem) -> None:
    """Start those that do not run as processes of this machine."""
    processes, cards = problem.compute.processes, gpus(problem.compute)
    running = local(problem)
    for number, folder in enumerate(_folders(problem)):
        if folder not in running:
            mine = [cards[(number * processes + i) % len(cards)] for i in range(processes)] if cards else []
            with undisturbed():
                start_process(
                    folder, f"search-{problem.space}-{number}", (run_worker, problem, number), processes, mine
                )


def submit(problem: Problem, profile: Profile) -> None:
    """Submit those that are not in the queue to Slurm.

    Raises:
        Refused: by Slurm; then nothing of this call stays in the queue.
    """
    calls = {folder: (run_worker, problem, number) for number, folder in enumerate(_folders(problem))}
    submit_workers(calls, f"search-{problem.space}", problem.compute, profile)


def _folders(problem: Problem) -> list[Path]:
    return [problem.folder / "workers" / str(number) for number in range(problem.workers)]


def _known(problem: Problem) -> list[Path]:
    """Folders of all that ever were: an earlier command may have started more."""
    return sorted((problem.folder / "workers").glob("*"))


def local(problem: Problem) -> dict[Path, int]:
    """Processes of the workers of this machine that run, whoever started them, by folder."""
    notes = {folder: read_json(folder / "submission.json") for folder in _known(problem)}
    return {folder: note["pid"] for folder, note in notes.items() if note and "pid" in note and process_alive(note)}


def queued(problem: Problem) -> dict[Path, str]:
    """Slurm ids of the workers that wait or run, by folder."""
    return active_workers(_known(problem))


def alive(problem: Problem, executor: str) -> bool:
    """Whether any waits or runs. While Slurm's queue does not answer none is taken for gone."""
    return bool(local(problem) or queued(problem)) or (executor == "slurm" and not cluster.queue_answers())


def stop_local(problem: Problem) -> None:
    """Ask the workers of this machine to save and end, and wait until they have."""
    deadline = time.monotonic() + STOP_SECONDS
    while (pids := local(problem).values()) and time.monotonic() < deadline:
        for pid in pids:
            ask_to_end(pid)  # again and again: a worker that starts up is deaf
        time.sleep(1.0)
