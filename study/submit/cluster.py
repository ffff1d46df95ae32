"""What a Slurm cluster is asked for and what it says: the profile of its jobs, their states, putting one back.

Slurm is asked through its own commands. Without accounting `sacct` fails and `squeue` forgets a job some minutes after
its end: whatever nobody knows any more is 'gone'.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.settings import change, nearest

KINDS = ("tokenizer", "generator")  # tables of a profile: what differs between the two waves
ANSWER_SECONDS = 60
REQUEUE_SECONDS = 120  # at most, until a job that goes back into the queue is ended
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"}


class SlurmRefused(ValueError):
    """Slurm does not take a job, for instance because there is no such partition."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What each job asks Slurm for. Empty or 0 leaves it to the cluster."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    minutes: int = 24 * 60  # wall-clock limit; a job that reaches it saves, goes back into the queue and goes on
    save_seconds: int = 120  # before the limit, when a job is told to save
    nodes: int = 1  # that the processes of a job are spread over
    cpus: int = 0  # of each process; 0 is the threads that it uses
    memory_gb: float = 0.0  # of each node
    parallel: int = 256  # jobs of an array that run at once
    array: int = 1000  # jobs in one array, at most
    setup: tuple[str, ...] = ()  # shell lines before the job, such as module loads
    extra: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch by its long name


def read_profile(path: Path | None) -> dict[str, Profile]:
    """The profile of each wave, from a TOML file: fields of Profile, those of one wave in a table of its name.

    Raises:
        ValueError: no such file, no TOML, an unknown field (with the nearest) or a value of the wrong type.
    """
    if path is None:
        return {kind: Profile() for kind in KINDS}
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the profile {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    tables = {kind: content.pop(kind, {}) for kind in KINDS}
    return {kind: _profile(path, {**content, **table}) for kind, table in tables.items()}


def _profile(path: Path, fields: dict[str, Any]) -> Profile:
    profile = Profile()
    for name, value in fields.items():
        if name == "extra":
            if not isinstance(value, dict):
                raise ValueError(f"{path}: extra is a table of sbatch options, got {value!r}")
            profile = dataclasses.replace(profile, extra=value)
            continue
        if isinstance(value, dict):
            raise ValueError(f"{path}: no table {name!r}; {nearest(name, (*KINDS, 'extra'))}")
        try:
            profile = change(profile, name, tuple(value) if isinstance(value, list) else value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not 0 < profile.save_seconds < profile.minutes * 60:
        raise ValueError(
            f"{path}: save_seconds {profile.save_seconds} must lie within the {profile.minutes} minutes of a job"
        )
    return profile


@contextmanager
def outside_a_job() -> Iterator[None]:
    """Drop what an enclosing job or shell told Slurm's commands, for the block: sbatch would take it for our wish."""
    names = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_"))]
    kept = {name: os.environ.pop(name) for name in names if name not in ("SLURM_CONF", "SLURM_CLUSTERS")}
    try:
        yield
    finally:
        os.environ.update(kept)


def array_limit() -> int:
    """Jobs that the cluster takes in one array (its MaxArraySize counts from 0); 1000 where it does not say."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _answer("scontrol", "show", "config") or "")
    return int(found[1]) if found else 1000


def job_states(job_ids: Iterable[str]) -> dict[str, str]:
    """What Slurm says of jobs (such as '12' or '12_3'), by id: a state in capitals, of the queue or of the accounts.

    Those that it does not know are left out. None of it when the queue does not answer: see `answers`.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    queue = _answer("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--user={os.getuid()}")
    found = _pairs(queue)
    unknown = sorted({job.partition("_")[0] for job in wanted - found.keys()}, key=int)
    if unknown:
        accounts = _answer(
            "sacct", "--allocations", "--parsable2", "--noheader", "--format=JobID,State", "-j", ",".join(unknown)
        )
        found = {**_pairs(accounts), **found}
    return {job: found[job] for job in wanted & found.keys()}


def queue_answers() -> bool:
    """Whether the queue can be asked at all; when it cannot, no job may be taken for gone."""
    return _answer("squeue", "--noheader", "--user=0") is not None


def _pairs(text: str | None) -> dict[str, str]:
    rows = (line.strip().split("|") for line in (text or "").splitlines())
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1]}  # "CANCELLED by 0"


def cancel_jobs(job_ids: Iterable[str]) -> None:
    """Take jobs out of the queue, the running ones too."""
    ids = list(job_ids)
    for start in range(0, len(ids), 500):  # a command line has its limits
        subprocess.run(["scancel", *ids[start : start + 500]], check=False, timeout=ANSWER_SECONDS, capture_output=True)


def requeue() -> str:
    """From within a job that was asked to stop and has saved: have it run again. Returns what happened.

    A job that was cancelled stays so: only one that Slurm still calls running goes back.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return ""
    told = _answer("scontrol", "show", "job", job)
    if told is None:
        return "scontrol does not answer here: the next sweep submits this job again"
    state = re.search(r"JobState=(\w+)", told)
    if state is None or state[1] not in ("RUNNING", "SIGNALING"):
        return f"Slurm calls this job {state[1] if state else 'unknown'}: what becomes of it is left to Slurm"
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    if _answer("scontrol", "requeue", name) is None:
        return f"scontrol requeue {name} was refused: the next sweep submits this job again"
    time.sleep(REQUEUE_SECONDS)  # Slurm ends this process, before submitit can write a result that is none
    return f"job {name} goes back into the queue"


def _answer(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def require_slurm() -> None:
    """ValueError when this machine cannot submit to Slurm."""
    if shutil.which("sbatch") is None:
        raise ValueError("--executor slurm needs the command sbatch, which is not on this machine's PATH")
