"""The workers of a search, seen from outside: started where they do not run, found by any later process, stopped.

Each has a folder with its logs and the note of how it was submitted; what one does is in study/worker.py.
"""

from __future__ import annotations

import time
from pathlib import Path

from study import cluster
from study.cluster import Profile
from study.files import read_json
from study.lease import process_alive
from study.slurm import active_workers, submit_workers
from study.stopping import ask_to_end
from study.sweep import gpus
from study.task import Task
from study.worker import run_worker

STOP_SECONDS = 60.0


def start(task: Task) -> None:
    """Start those that do not run as processes of this machine."""
    from study.schedule import start_process, undisturbed

    processes, cards = task.compute.processes, gpus(task.compute)
    running = local(task)
    for number, folder in enumerate(_folders(task)):
        if folder not in running:
            mine = [cards[(number * processes + i) % len(cards)] for i in range(processes)] if cards else []
            with undisturbed():
                start_process(folder, f"search-{task.space}-{number}", (run_worker, task, number), processes, mine)


def submit(task: Task, profile: Profile) -> None:
    """Submit those that are not in the queue to Slurm.

    Raises:
        Refused: by Slurm; then nothing of this call stays in the queue.
    """
    calls = {folder: (run_worker, task, number) for number, folder in enumerate(_folders(task))}
    submit_workers(calls, f"search-{task.space}", task.compute, profile)


def _folders(task: Task) -> list[Path]:
    return [task.folder / "workers" / str(number) for number in range(task.workers)]


def _known(task: Task) -> list[Path]:
    """Folders of all that ever were: an earlier command may have started more."""
    return sorted((task.folder / "workers").glob("*"))


def local(task: Task) -> dict[Path, int]:
    """Processes of the workers of this machine that run, whoever started them, by folder."""
    notes = {folder: read_json(folder / "submission.json") for folder in _known(task)}
    return {folder: note["pid"] for folder, note in notes.items() if note and "pid" in note and process_alive(note)}


def queued(task: Task) -> dict[Path, str]:
    """Slurm ids of the workers that wait or run, by folder."""
    return active_workers(_known(task))


def alive(task: Task, executor: str) -> bool:
    """Whether any waits or runs. While Slurm's queue does not answer none is taken for gone."""
    return bool(local(task) or queued(task)) or (executor == "slurm" and not cluster.answers())


def stop_local(task: Task) -> None:
    """Ask the workers of this machine to save and end, and wait until they have."""
    deadline = time.monotonic() + STOP_SECONDS
    while (pids := local(task).values()) and time.monotonic() < deadline:
        for pid in pids:
            ask_to_end(pid)  # again and again: a worker that starts up is deaf
        time.sleep(1.0)
