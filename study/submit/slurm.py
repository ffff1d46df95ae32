"""Sweeps on Slurm: an array of tokenizers, an array of generators after it, and a last job that collects and draws.

Nothing needs an open shell: the jobs put themselves back where they were preempted or out of time, and any later
process finds them by their notes. A job that is in the queue is never submitted a second time.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from study.core.code_snapshot import environment, snapshot
from study.core.compute import Compute
from study.core.files import read_json, write_json
from study.core.lease import holder
from study.core.paths import job_folder, study_root
from study.plan.runs import Job, Plan
from study.submit import cluster
from study.submit.cluster import Profile, SlurmRefused
from study.submit.jobs import log_of, note_end_without_record, run_job

POLL_SECONDS = 10.0
COLLECTOR_MINUTES = 60
COLLECTOR = "collect"  # folder of the last job's note, with the study's name
Collect = Callable[[Plan, list[Job], Path], None]  # plan, its jobs, the folder that holds results/
ENDED = {  # by Slurm, before its records were there: state and reason
    "TIMEOUT": ("timed out", "the job reached its time limit; the same command goes on from there"),
    "CANCELLED": ("failed", "cancelled; retry goes on from what was saved"),
}


def submissions(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """The notes of those jobs that were submitted to Slurm, by name of the job."""
    notes = {job.name: read_json(job_folder(job.name) / "submission.json") for job in jobs}
    return {name: note for name, note in notes.items() if note and note.get("executor") == "slurm"}


def active_jobs(jobs: Sequence[Job]) -> dict[str, str]:
    """Slurm ids of the jobs that wait or run, by name of the job."""
    ids = {name: note["job_id"] for name, note in submissions(jobs).items()}
    found = cluster.job_states(ids.values())
    return {name: id_ for name, id_ in ids.items() if found.get(id_, "") in cluster.WAITING | cluster.RUNNING}


def submit(plan: Plan, jobs: Sequence[Job], profiles: dict[str, Profile], out: Path, collect: Collect) -> None:
    """Submit the jobs that have something missing and are not in the queue, then the one that collects.

    Args:
        plan: whose table is collected.
        jobs: of the plan.
        profiles: what each wave asks for.
        out: folder that holds results/ and figures/.
        collect: what the last job does, once all others have ended: it writes the table and draws (study/report).

    Raises:
        Refused: by Slurm; then nothing of this call stays in the queue.
    """
    queued = active_jobs(jobs)
    todo = [job for job in jobs if job.missing() and job.name not in queued]
    try:
        _submit(plan, jobs, todo, queued, profiles, out, collect)
    except SlurmRefused:
        cluster.cancel_jobs(active_jobs(todo).values())
        raise


def _submit(
    plan: Plan,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    queued: dict[str, str],
    profiles: dict[str, Profile],
    out: Path,
    collect: Collect,
) -> None:
    """Submit `todo`, each wave after the one that it reads from; generators wait for all tokenizers of the queue."""
    code = snapshot()
    for job in todo:  # of earlier attempts: they would be taken for this one's
        for stage in job.missing():
            for name in ("failure.json", "interrupted.json"):
                (stage.folder / name).unlink(missing_ok=True)
    tokenizers = [job for job in todo if job.kind == "tokenizer"]
    generators = [job for job in todo if job.kind == "generator"]
    waits_for = {job.name: id_ for job in jobs if job.kind == "tokenizer" and (id_ := queued.get(job.name))}
    waits_for |= _submit_wave(tokenizers, profiles["tokenizer"], [], code)
    free = [job for job in generators if job.after not in waits_for]
    bound = [job for job in generators if job.after in waits_for]
    submitted = _submit_wave(free, profiles["generator"], [], code)
    submitted |= _submit_wave(bound, profiles["generator"], sorted(waits_for.values()), code)
    ends = [*waits_for.values(), *submitted.values(), *queued.values()]
    if ends:
        _submit_collector((collect, plan, list(jobs), out), profiles["tokenizer"], ends, code)


def _submit_wave(jobs: Sequence[Job], profile: Profile, after: Sequence[str], code: Path) -> dict[str, str]:
    """Submit jobs of one kind as arrays; their Slurm ids by name of the job."""
    if not jobs:
        return {}
    compute = jobs[0].stages[0].spec.compute
    calls = {job_folder(job.name): (run_job, job) for job in jobs}
    ids = _submit_arrays(calls, f"study-{jobs[0].kind}", compute, profile, after, code)
    return {job.name: ids[job_folder(job.name)] for job in jobs}


def _submit_arrays(
    calls: dict[Path, tuple[Any, ...]], name: str, compute: Compute, profile: Profile, after: Sequence[str], code: Path
) -> dict[Path, str]:
    """Submit calls (function, then its arguments) by the folder of each one's note; their Slurm ids."""
    per_node = -(-compute.processes // profile.nodes)
    options = {
        "ntasks_per_node": per_node,
        "nodes": profile.nodes,
        "cpus_per_task": profile.cpus or compute.threads,
        **({"gpus_per_node": per_node} if compute.device == "cuda" else {}),
        **({"mem": f"{profile.memory_gb * 1024:.0f}MB"} if profile.memory_gb else {}),
    }
    ids: dict[Path, str] = {}
    size = min(profile.array, cluster.array_limit())
    folders = list(calls)
    for start in range(0, len(folders), size):
        part = folders[start : start + size]
        executor = _executor(profile, after, code, name, profile.minutes, options)
        handles = _submitted(executor, code, [calls[folder] for folder in part])
        for folder, handle in zip(part, handles, strict=True):
            ids[folder] = handle.job_id
            _note(folder, handle.job_id, code)
    return ids


def submit_workers(calls: dict[Path, tuple[Any, ...]], name: str, compute: Compute, profile: Profile) -> None:
    """Submit calls (function, then its arguments) that are not in the queue, by the folder of each one's note.

    Raises:
        Refused: by Slurm; then nothing of this call stays in the queue.
    """
    queued = active_workers(list(calls))
    todo = {folder: call for folder, call in calls.items() if folder not in queued}
    try:
        if todo:
            _submit_arrays(todo, name, compute, profile, [], snapshot())
    except SlurmRefused:
        cluster.cancel_jobs(active_workers(list(todo)).values())
        raise


def active_workers(folders: Sequence[Path]) -> dict[Path, str]:
    """Slurm ids of the calls that wait or run, by the folder of their notes."""
    notes = {folder: read_json(folder / "submission.json") for folder in folders}
    ids = {folder: note["job_id"] for folder, note in notes.items() if note and note.get("executor") == "slurm"}
    found = cluster.job_states(ids.values())
    return {folder: id_ for folder, id_ in ids.items() if found.get(id_, "") in cluster.WAITING | cluster.RUNNING}


def _submit_collector(call: tuple[Any, ...], profile: Profile, ends: Sequence[str], code: Path) -> None:
    """Submit the last job of a plan, in place of an earlier one; `call` is a function, then its arguments."""
    plan = call[1]
    note = job_folder(f"{COLLECTOR}-{plan.study}-{plan.ablation}")
    earlier = read_json(note / "submission.json")
    minutes = min(COLLECTOR_MINUTES, profile.minutes)
    options = {"cpus_per_task": 1, **({"mem": f"{profile.memory_gb * 1024:.0f}MB"} if profile.memory_gb else {})}
    executor = _executor(profile, ends, code, "study-collect", minutes, options)
    (handle,) = _submitted(executor, code, [call])
    if earlier is not None:
        cluster.cancel_jobs([earlier["job_id"]])  # it would not wait for what has been submitted since
    _note(note, handle.job_id, code)


def _submitted(executor: Any, code: Path, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Submit calls (function, then its arguments) as one array.

    Raises:
        Refused: in Slurm's own words, one line.
    """
    from submitit.core.utils import FailedJobError

    try:
        with (
            cluster.outside_a_job(),
            mock.patch.dict(os.environ, environment(code)),
            contextlib.redirect_stderr(io.StringIO()),  # submitit prints there what it raises
            executor.batch(),
        ):
            return [executor.submit(*call) for call in calls]
    except FailedJobError as error:
        said = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
        raise SlurmRefused(f"Slurm refuses the jobs: {'; '.join(said)}") from None


def _executor(
    profile: Profile, after: Sequence[str], code: Path, name: str, minutes: int, options: dict[str, Any]
) -> Any:
    import submitit

    folder = job_folder("slurm")
    folder.mkdir(parents=True, exist_ok=True)
    with cluster.outside_a_job():
        executor = submitit.SlurmExecutor(folder=folder, python=_python())
        arrays = sorted({job.partition("_")[0] for job in after}, key=int)
        variables = {**environment(code), "STUDY_ROOT": str(study_root())}  # whatever the cluster hands on
        if weights := os.environ.get("STUDY_WEIGHTS"):
            variables["STUDY_WEIGHTS"] = weights
        wishes = {field: getattr(profile, field) for field in ("partition", "account", "qos", "constraint")}
        executor.update_parameters(
            job_name=name,
            time=minutes,
            signal_delay_s=min(profile.save_seconds, minutes * 30),
            array_parallelism=profile.parallel,
            stderr_to_stdout=True,
            srun_args=["--kill-on-bad-exit=1"],  # of several processes none outlives another
            setup=[*(f"export {key}={shlex.quote(value)}" for key, value in variables.items()), *profile.setup],
            additional_parameters={"requeue": True, **profile.extra},
            **{field: wish for field, wish in wishes.items() if wish},
            **({"dependency": f"afterany:{':'.join(arrays)}"} if arrays else {}),
            **options,
        )
    return executor


def _python() -> str:
    """How a job starts Python: deaf to the signals that ask it to save, until it can.

    A job that is preempted while it imports torch would otherwise end at once, as one that failed; so it is Slurm that
    ends it when the grace time is over, and puts it back.
    """
    return shlex.join(["sh", "-c", 'trap "" TERM USR1 USR2; exec "$0" "$@"', sys.executable])


def _note(folder: Path, job_id: str, code: Path) -> None:
    earlier = read_json(folder / "submission.json") or {}
    write_json(
        folder / "submission.json",
        {
            "executor": "slurm",
            "job_id": job_id,
            "log": str(job_folder("slurm") / f"{job_id}_0_log.out"),
            "code": code.name,
            "submitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "attempt": earlier.get("attempt", 0) + 1,
        },
    )


def settle(jobs: Sequence[Job]) -> None:
    """Say of every job that has left the queue without its records how it ended, where it did not say so itself."""
    if not cluster.queue_answers():  # silence of the queue is no news of a job
        return
    notes = submissions(jobs)
    found = cluster.job_states(note["job_id"] for note in notes.values())
    for job in jobs:
        if job.name not in notes or not job.missing():
            continue
        state = found.get(notes[job.name]["job_id"], "gone")
        if state in cluster.WAITING | cluster.RUNNING:
            continue
        if state != "CANCELLED" and any(stage.interrupted() for stage in job.stages):
            continue
        if state in ("CANCELLED", "gone") and not log_of(job):  # an array's task that waited leaves no trace in Slurm
            note_end_without_record(job, "failed", "cancelled before it started; retry submits it again")
        elif state in ENDED:
            note_end_without_record(job, *ENDED[state])
        elif state in ("COMPLETED", "FAILED", "gone"):
            note_end_without_record(job)
        else:
            note_end_without_record(job, "failed", f"Slurm ended the job: {state.lower().replace('_', ' ')}")


class SlurmJobs:
    """Watches submitted jobs from the outside; they do not need it."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs

    def watch(self, show: Callable[[dict[str, dict[str, Any]]], None], on_change: Callable[[], None]) -> None:
        """Wait until no job waits or runs."""
        left = {job.name: job for job in self.jobs}
        while left:
            queued = active_jobs(list(left.values())) if cluster.queue_answers() else left
            for name in [name for name, job in left.items() if name not in queued or not job.missing()]:
                settle([left.pop(name)])
                on_change()
            leases = {name: [holder(stage.folder) for stage in job.stages] for name, job in left.items()}
            show({name: lease["progress"] for name, all_ in leases.items() for lease in all_ if lease})
            time.sleep(POLL_SECONDS if left else 0)

    def stop(self) -> None:
        """Leave the jobs to the cluster: they need no open shell."""
        print("the jobs go on in the queue; the same command watches them again")
