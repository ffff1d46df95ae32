"""A process that has finished a job takes the next one of its sweep: interpreter, imports and data are there already.

In the folder of a finished job, `ended.json` says that its process has left it, and `next.json` which job that process
takes, or that it takes none. The side that writes `next.json` first decides.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.core.files import read_json, write_json
from study.core.lease import process_alive
from study.core.paths import job_folder
from study.core.stopping import stop_on_signals, stop_requested
from study.plan.runs import Job
from study.plan.stage import INTERRUPTED
from study.submit.jobs import run_job

SUBMISSION, ENDED, NEXT = "submission.json", "ended.json", "next.json"
PATIENCE_SECONDS = 5.0  # for a sweep to hand over its next job: it may be writing its table
POLL_SECONDS = 0.05


# In the process of the jobs


def run_in_turn(job: Job, jobs: Sequence[Job]) -> None:
    """Run a job, then those of `jobs` that the sweep hands over to this process, until it hands over none.

    A process whose job has failed or was stopped ends: the next job gets a fresh one.
    """
    by_name = {each.name: each for each in jobs}
    with stop_on_signals():
        while len(run_job(job)) == len(job.stages) and not stop_requested.is_set():
            write_json(job_folder(job.name) / ENDED, {})
            name = _next_job(job_folder(job.name) / NEXT)
            if name is None:
                return
            job = by_name[name]
            _log_to(job)


def _next_job(path: Path) -> str | None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := read_json(path)) is None:
        if time.monotonic() > deadline or stop_requested.is_set():
            _decide(path, None)
        time.sleep(POLL_SECONDS)
    return found["job"]


def _log_to(job: Job) -> None:
    """From now on, print into this job's log."""
    sys.stdout.flush()
    submission = read_json(job_folder(job.name) / SUBMISSION)
    assert submission is not None  # written before the hand-over
    with open(submission["log"], "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


# In the sweep


def hand_over(ended: str, job: Job | None) -> bool:
    """Give the process of a finished job another one, or None to let it end; False if it no longer waits.

    The other job's folder then says that it is run by that process.

    Args:
        ended: name of the finished job.
    """
    folder = job_folder(ended)
    if job is None:
        return _decide(folder / NEXT, None)
    submission = read_json(folder / SUBMISSION)
    if submission is None or not process_alive(submission):
        return False
    target = job_folder(job.name)
    target.mkdir(parents=True, exist_ok=True)
    forget_turns(job)
    write_json(target / SUBMISSION, {**submission, "log": str(target / f"{submission['pid']}_0_log.out")})
    if _decide(folder / NEXT, job.name):
        return True
    (target / SUBMISSION).unlink()
    return False


def forget_turns(job: Job) -> None:
    """Remove what an earlier process left in a job's folder, before another one starts."""
    for name in (ENDED, NEXT):
        (job_folder(job.name) / name).unlink(missing_ok=True)
    for stage in job.stages:  # else a job that dies before its first stage would be started forever
        (stage.folder / INTERRUPTED).unlink(missing_ok=True)


# On either side, and for others who look


def _decide(path: Path, job: str | None) -> bool:
    """Write which job a process takes next; False if the other side has decided."""
    try:
        with open(path, "x") as file:
            json.dump({"job": job}, file)
    except FileExistsError:
        return False
    return True


def has_left(job: str) -> bool:
    """Whether the process that finished a job of this name has left it: it waits for another one, runs it, or ended."""
    return (job_folder(job) / ENDED).exists()


def running_process(job: str) -> dict[str, Any] | None:
    """The process of this machine that runs the job of this name, as noted at its submission; None if none does."""
    submission = read_json(job_folder(job) / SUBMISSION)
    return submission if submission is not None and process_alive(submission) and not has_left(job) else None
