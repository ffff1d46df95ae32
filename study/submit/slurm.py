"""Sweeps on Slurm: a job array of tokenizers, then one of generators, then a last job that writes table and figures.

No open shell is needed: jobs that were preempted or ran out of time requeue themselves, and a later process finds them
by the `submission.json` in their folders. A job that is in the queue is never submitted again.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.core.code_snapshot import environment, snapshot
from study.core.compute import Compute
from study.core.files import read_json, write_json
from study.core.lease import holder
from study.core.paths import job_folder, study_root
from study.plan.runs import Job, Plan
from study.plan.stage import Stage
from study.submit import cluster
from study.submit.cluster import Profile, SlurmRefused
from study.submit.jobs import NO_RECORD, log_of, note_failure, run_job, stage_without_record

POLL_SECONDS = 10.0
COLLECTOR_MINUTES = 60
COLLECTOR = "collect"  # prefix of the last job's folder, before study and ablation
Collect = Callable[[Plan, list[Job], Path], None]  # of a plan, its jobs and the folder that contains results/
ENDED = {  # by Slurm state of a job that ended without all its records: state and reason in the table
    "TIMEOUT": ("timed out", "the job reached its time limit; the same command goes on from there"),
    "CANCELLED": ("failed", "cancelled; retry goes on from what was saved"),
}


def submissions(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """The submission of each job that was submitted to Slurm, by name of the job."""
    contents = {job.name: read_json(job_folder(job.name) / "submission.json") for job in jobs}
    return {name: content for name, content in contents.items() if content and content.get("executor") == "slurm"}


def active_jobs(jobs: Sequence[Job]) -> dict[str, str]:
    """Slurm ids of the jobs that wait or run, by name of the job."""
    ids = {name: submission["job_id"] for name, submission in submissions(jobs).items()}
    states = cluster.job_states(ids.values())
    return {name: id_ for name, id_ in ids.items() if states.get(id_, "") in cluster.WAITING | cluster.RUNNING}


def submit(plan: Plan, jobs: Sequence[Job], profiles: dict[str, Profile], out: Path, collect: Collect) -> None:
    """Submit the unfinished jobs that are not in the queue, then a last job that collects their results.

    Args:
        plan: whose results table is written.
        jobs: of the plan.
        profiles: by kind of job.
        out: folder that contains results/ and figures/.
        collect: what the last job runs after all others have ended: it writes table and figures (study/report).

    Raises:
        SlurmRefused: Slurm rejected a job; then no job of this call stays in the queue.
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
    """Submit `todo`; generators whose tokenizer is queued, or which a queued job trains for other marks, wait for all
    such jobs."""
    code = snapshot()
    for job in todo:  # delete traces of earlier attempts, which would be taken for those of this one
        for stage in job.missing():
            for name in ("failure.json", "interrupted.json"):
                (stage.folder / name).unlink(missing_ok=True)
    tokenizers = [job for job in todo if job.kind == "tokenizer"]
    generators = [job for job in todo if job.kind == "generator"]
    tokenizer_ids = {job.name: id_ for job in jobs if job.kind == "tokenizer" and (id_ := queued.get(job.name))}
    tokenizer_ids |= _submit_wave(tokenizers, profiles["tokenizer"], [], code)
    folders = {folder: job.name for job in generators for folder in job_folder("").glob(f"{job.training}-*")}
    training_ids = active_workers(list(folders))
    trained_elsewhere = {folders[folder] for folder in training_ids}
    dependent = [job for job in generators if job.after in tokenizer_ids or job.name in trained_elsewhere]
    ready = [job for job in generators if job not in dependent]
    before = sorted({*tokenizer_ids.values(), *training_ids.values()})
    generator_ids = _submit_wave(ready, profiles["generator"], [], code)
    generator_ids |= _submit_wave(dependent, profiles["generator"], before, code)
    all_ids = [*tokenizer_ids.values(), *generator_ids.values(), *queued.values()]
    if all_ids:
        _submit_collector((collect, plan, list(jobs), out), profiles["tokenizer"], all_ids, code)


def _submit_wave(jobs: Sequence[Job], profile: Profile, after: Sequence[str], code: Path) -> dict[str, str]:
    """Submit jobs of one kind as arrays; returns their Slurm ids by name of the job."""
    if not jobs:
        return {}
    compute = jobs[0].stages[0].spec.compute
    calls = {job_folder(job.name): (run_job, job) for job in jobs}
    ids = _submit_arrays(calls, f"study-{jobs[0].kind}", compute, profile, after, code)
    return {job.name: ids[job_folder(job.name)] for job in jobs}


def _submit_arrays(
    calls: dict[Path, tuple[Any, ...]], name: str, compute: Compute, profile: Profile, after: Sequence[str], code: Path
) -> dict[Path, str]:
    """Submit calls (a function and its arguments) by the folder of their `submission.json`; returns their Slurm ids."""
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
        array = folders[start : start + size]
        executor = _executor(profile, after, code, name, profile.minutes, options)
        handles = _submit_calls(executor, code, [calls[folder] for folder in array])
        for folder, handle in zip(array, handles, strict=True):
            ids[folder] = handle.job_id
            _write_submission(folder, handle.job_id, code)
    return ids


def submit_workers(calls: dict[Path, tuple[Any, ...]], name: str, compute: Compute, profile: Profile) -> None:
    """Submit the calls (a function and its arguments) that are not in the queue, by folder of their `submission.json`.

    Raises:
        SlurmRefused: Slurm rejected a job; then no job of this call stays in the queue.
    """
    queued = active_workers(list(calls))
    todo = {folder: call for folder, call in calls.items() if folder not in queued}
    try:
        if todo:
            _submit_arrays(todo, name, compute, profile, [], snapshot())
    except SlurmRefused:
        cluster.cancel_jobs(active_workers(list(todo)).values())
        raise


def active_workers(folders: Sequence[Path], running: bool = True) -> dict[Path, str]:
    """Slurm ids of the calls that wait or run, or only wait, by the folder of their `submission.json`."""
    contents = {folder: read_json(folder / "submission.json") for folder in folders}
    ids = {folder: each["job_id"] for folder, each in contents.items() if each and each.get("executor") == "slurm"}
    states, active = cluster.job_states(ids.values()), cluster.WAITING | (cluster.RUNNING if running else set())
    return {folder: id_ for folder, id_ in ids.items() if states.get(id_, "") in active}


def _submit_collector(call: tuple[Any, ...], profile: Profile, after: Sequence[str], code: Path) -> None:
    """Submit the last job of a plan, replacing an earlier one; `call` is a function and its arguments."""
    plan = call[1]
    folder = job_folder(f"{COLLECTOR}-{plan.study}-{plan.ablation}")
    earlier = read_json(folder / "submission.json")
    minutes = min(COLLECTOR_MINUTES, profile.minutes)
    options = {"cpus_per_task": 1, **({"mem": f"{profile.memory_gb * 1024:.0f}MB"} if profile.memory_gb else {})}
    executor = _executor(profile, after, code, "study-collect", minutes, options)
    (handle,) = _submit_calls(executor, code, [call])
    if earlier is not None:
        cluster.cancel_jobs([earlier["job_id"]])  # it would not wait for the jobs submitted since
    _write_submission(folder, handle.job_id, code)


def _submit_calls(executor: Any, code: Path, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Submit calls (a function and its arguments) as one array; returns submitit's handles.

    Raises:
        SlurmRefused: with Slurm's own message, in one line.
    """
    from submitit.core.utils import FailedJobError
    from submitit.helpers import environment_variables

    try:
        with (
            cluster.without_job_variables(),
            environment_variables(**environment(code)),
            contextlib.redirect_stderr(io.StringIO()),  # submitit also prints the errors that it raises
            executor.batch(),
        ):
            return [executor.submit(*call) for call in calls]
    except FailedJobError as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
        raise SlurmRefused(f"Slurm rejected the jobs: {'; '.join(lines)}") from None


def _executor(
    profile: Profile, after: Sequence[str], code: Path, name: str, minutes: int, options: dict[str, Any]
) -> Any:
    import submitit

    folder = job_folder("slurm")
    folder.mkdir(parents=True, exist_ok=True)
    with cluster.without_job_variables():
        executor = submitit.SlurmExecutor(folder=folder, python=_python())
        arrays = sorted({job.partition("_")[0] for job in after}, key=int)
        variables = {**environment(code), "STUDY_ROOT": str(study_root())}  # whatever environment jobs inherit
        if weights := os.environ.get("STUDY_WEIGHTS"):
            variables["STUDY_WEIGHTS"] = weights
        requests = {field: getattr(profile, field) for field in ("partition", "account", "qos", "constraint")}
        executor.update_parameters(
            job_name=name,
            time=minutes,
            signal_delay_s=min(profile.save_seconds, minutes * 30),
            array_parallelism=profile.parallel,
            stderr_to_stdout=True,
            srun_args=["--kill-on-bad-exit=1"],  # when one process fails, Slurm ends the others
            setup=[*(f"export {key}={shlex.quote(value)}" for key, value in variables.items()), *profile.setup],
            additional_parameters={"requeue": True, **profile.extra},
            **{field: value for field, value in requests.items() if value},
            **({"dependency": f"afterany:{':'.join(arrays)}"} if arrays else {}),
            **options,
        )
    return executor


def _python() -> str:
    """Command that starts Python in a job: it ignores the signals to save until `stop_on_signals` handles them.

    Otherwise a job that is preempted while it imports torch would end at once and count as failed. This way Slurm ends
    it after the grace time and requeues it.
    """
    return shlex.join(["sh", "-c", 'trap "" TERM USR1 USR2; exec "$0" "$@"', sys.executable])


def _write_submission(folder: Path, job_id: str, code: Path) -> None:
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


@dataclass(frozen=True)
class Ended:
    """A job that left the queue without all its records and without noting why.

    stage: the first that has no record. state, reason: as in the results table.
    """

    stage: Stage
    state: str
    reason: str


def note_ended_jobs(jobs: Sequence[Job]) -> None:
    """Note a failure for every job that left the queue without its records, unless the job noted one itself."""
    for ended in ended_jobs(jobs).values():
        note_failure(ended.stage, ended.state, ended.reason)


def ended_jobs(jobs: Sequence[Job]) -> dict[str, Ended]:
    """The jobs that left the queue without their records and without noting why, by name."""
    submitted = submissions(jobs)
    if not submitted or not cluster.queue_answers():  # then the state of a job is unknown
        return {}
    states = cluster.job_states(submission["job_id"] for submission in submitted.values())
    ended: dict[str, Ended] = {}
    for job in jobs:
        if job.name not in submitted or (stage := stage_without_record(job)) is None:
            continue
        state = states.get(submitted[job.name]["job_id"], "gone")
        if state in cluster.WAITING | cluster.RUNNING:
            continue
        if state != "CANCELLED" and any(stage.interrupted() for stage in job.stages):
            continue
        if state in ("CANCELLED", "gone") and not log_of(job):  # Slurm forgets a waiting array task
            ended[job.name] = Ended(stage, "failed", "cancelled before it started; retry submits it again")
        elif state in ENDED:
            ended[job.name] = Ended(stage, *ENDED[state])
        elif state in ("COMPLETED", "FAILED", "gone"):
            ended[job.name] = Ended(stage, "failed", NO_RECORD)
        else:
            ended[job.name] = Ended(stage, "failed", f"Slurm ended the job: {state.lower().replace('_', ' ')}")
    return ended


class SlurmJobs:
    """Watches submitted jobs; they run whether watched or not."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs

    def watch(self, show: Callable[[dict[str, dict[str, Any]]], None], on_change: Callable[[], None]) -> None:
        """Return when no job waits or runs any more; `on_change` is called after a job has ended."""
        left = {job.name: job for job in self.jobs}
        while left:
            queued = active_jobs(list(left.values())) if cluster.queue_answers() else left
            for name in [name for name, job in left.items() if name not in queued or not job.missing()]:
                note_ended_jobs([left.pop(name)])
                on_change()
            leases = {name: [holder(stage.folder) for stage in job.stages] for name, job in left.items()}
            show({name: lease["progress"] for name, of_job in leases.items() for lease in of_job if lease})
            time.sleep(POLL_SECONDS if left else 0)

    def stop(self) -> None:
        """Stop watching; the jobs stay in the queue."""
        print("the jobs continue in the queue; the same command watches them again")
