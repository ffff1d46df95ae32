"""Slurm: profiles (what jobs request), states of jobs, cancelling and requeueing.

All through Slurm's own commands. Without accounting, `sacct` fails and `squeue` forgets a job some minutes after its
end: a job that neither of them knows counts as 'gone'.
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

from models.names import nearest
from study.core.settings import change

KINDS = ("tokenizer", "generator")  # tables of a profile with settings of one wave only
COMMAND_SECONDS = 60  # time limit of one Slurm command
REQUEUE_SECONDS = 120  # at most, until Slurm ends a job that was requeued
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"}


class SlurmRefused(ValueError):
    """Slurm rejected a job, for instance because the partition does not exist."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What each job requests from Slurm. An empty field or 0 leaves the choice to the cluster."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    minutes: int = 24 * 60  # wall-clock limit; a job that reaches it saves, is requeued and resumes
    save_seconds: int = 120  # time before the limit at which a job gets the signal: it must suffice to write a state
    nodes: int = 1  # over which the processes of a job are spread
    cpus: int = 0  # of each process; 0: as many as its threads
    memory_gb: float = 0.0  # of each node
    parallel: int = 256  # jobs of an array that run at the same time, at most
    array: int = 1000  # jobs in one array, at most
    setup: tuple[str, ...] = ()  # shell lines before the job, such as module loads
    extra: dict[str, Any] = field(default_factory=dict)  # other options of sbatch by their long names


def read_profile(path: Path | None) -> dict[str, Profile]:
    """The profile of each wave from a TOML file: fields of Profile, and a table per wave for fields of that wave only.

    Raises:
        ValueError: no such file, invalid TOML, an unknown field (suggesting similar ones) or a value of the wrong type.
    """
    if path is None:
        return {kind: Profile() for kind in KINDS}
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the profile {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    tables = {kind: content.pop(kind, {}) for kind in KINDS}
    return {kind: _profile(path, {**content, **table}) for kind, table in tables.items()}


def _profile(path: Path, fields: dict[str, Any]) -> Profile:
    profile = Profile()
    for name, value in fields.items():
        if name == "extra":
            if not isinstance(value, dict):
                raise ValueError(f"{path}: extra must be a table of sbatch options, got {value!r}")
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
def without_job_variables() -> Iterator[None]:
    """Remove the Slurm variables of an enclosing job or shell for the block: sbatch would read them as options."""
    names = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_"))]
    removed = {name: os.environ.pop(name) for name in names if name not in ("SLURM_CONF", "SLURM_CLUSTERS")}
    try:
        yield
    finally:
        os.environ.update(removed)


def array_limit() -> int:
    """The cluster's limit of jobs in one array (MaxArraySize, the largest index plus 1); 1000 if unknown."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config") or "")
    return int(match[1]) if match else 1000


def job_states(job_ids: Iterable[str]) -> dict[str, str]:
    """Slurm's state of each job (ids such as '12' or '12_3') in capitals, from the queue or from accounting.

    Jobs that Slurm does not know are left out; so are all when the queue does not answer (see `queue_answers`).
    """
    requested = set(job_ids)
    if not requested:
        return {}
    queue = _output("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--user={os.getuid()}")
    states = _states(queue)
    unknown = sorted({job.partition("_")[0] for job in requested - states.keys()}, key=int)
    if unknown:
        accounting = _output(
            "sacct", "--allocations", "--parsable2", "--noheader", "--format=JobID,State", "-j", ",".join(unknown)
        )
        states = {**_states(accounting), **states}
    return {job: states[job] for job in requested & states.keys()}


def queue_answers() -> bool:
    """Whether `squeue` works; while it does not, no job may be considered gone."""
    return _output("squeue", "--noheader", "--user=0") is not None


def _states(text: str | None) -> dict[str, str]:
    rows = (line.strip().split("|") for line in (text or "").splitlines())
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1]}  # "CANCELLED by 0"


def cancel_jobs(job_ids: Iterable[str]) -> None:
    """Cancel jobs, waiting or running."""
    ids = list(job_ids)
    for start in range(0, len(ids), 500):  # command lines have a maximum length
        command = ["scancel", *ids[start : start + 500]]
        subprocess.run(command, check=False, timeout=COMMAND_SECONDS, capture_output=True)


def requeue() -> str:
    """Requeue the job that this process belongs to, after it has saved on request. Returns a message, '' outside Slurm.

    A cancelled job stays cancelled: only a job that Slurm still considers running is requeued.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return ""
    description = _output("scontrol", "show", "job", job)
    if description is None:
        return "scontrol does not answer here: the next sweep submits this job again"
    state = re.search(r"JobState=(\w+)", description)
    if state is None or state[1] not in ("RUNNING", "SIGNALING"):
        return f"not requeued: Slurm reports the state {state[1] if state else 'unknown'} for this job"
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    if _output("scontrol", "requeue", name) is None:
        return f"scontrol requeue {name} was refused: the next sweep submits this job again"
    time.sleep(REQUEUE_SECONDS)  # Slurm ends this process before submitit can write an incomplete result
    return f"job {name} is requeued"


def _output(*command: str) -> str | None:
    """Standard output of a command; None if it is missing, fails or does not end in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def require_slurm() -> None:
    """ValueError when this machine cannot submit to Slurm."""
    if shutil.which("sbatch") is None:
        raise ValueError("--executor slurm needs the command sbatch, which is not on this machine's PATH")
