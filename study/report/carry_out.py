"""Carry out a plan: run its jobs, keep table and figures up to date, and print the progress."""

from __future__ import annotations

import signal
import time
from typing import Any

from study.core import compute
from study.core.compute import gpus
from study.core.distributed import rank_and_world_size
from study.core.stopping import raise_stop, stop_requested
from study.data.left_out import left_out_of_data
from study.plan.runs import Job, Plan
from study.report import console
from study.report.refresh import StudyFiles, collect
from study.submit import local
from study.submit.cluster import read_profile
from study.submit.launches import note_sweep
from study.submit.options import Sweep
from study.submit.slurm import SlurmJobs, submit


def run(options: Sweep, plan: Plan) -> int:
    """Carry out a plan; returns the exit code: 0 done, 1 a run has no result, 3 something is missing, 130 stopped."""
    profiles = read_profile(options.cluster) if options.executor == "slurm" else None
    left_out = left_out_of_data(options.data or plan.scale.data)
    console.print_plan(plan, slots(options, plan), profiles, left_out)
    todo = [job for job in plan.jobs if job.missing()]
    if rank_and_world_size()[1] > 1:  # all processes must go through the same jobs
        todo = list(plan.jobs)
    if plan.missing and (todo or options.dry_run):
        return 3
    if options.dry_run:
        return 0
    note_sweep(options, plan, starts=bool(todo))
    if not options.detach:
        return carry_out(options, plan, todo)
    StudyFiles(plan, options.out).update()
    submit(plan, todo, read_profile(options.cluster), options.out, collect)
    print(f"submitted; python -m study.sweep status {plan.study} shows its progress")
    return 0


def slots(options: Sweep, plan: Plan) -> int:
    """How many jobs run at once."""
    if options.executor == "inline":
        return 1
    if options.executor == "slurm":
        return min(profile.parallel for profile in read_profile(options.cluster).values())
    if options.jobs is not None:
        return options.jobs
    resources = len(gpus(plan.compute)) or compute.cores() // plan.compute.threads
    return max(1, resources // plan.compute.processes)


def carry_out(options: Sweep, plan: Plan, todo: list[Job]) -> int:
    """Run these jobs of a plan, keep table and figures up to date, print a summary; returns the exit code."""
    files = StudyFiles(plan, options.out)
    files.update()
    started = time.monotonic()
    stopped = False
    if todo:
        stopped = not run_jobs(options, plan, todo, slots(options, plan), files)
        files.update()
    unfinished = console.print_summary(plan, files, time.monotonic() - started, stopped)
    return 130 if stopped else (1 if unfinished else 0)


def follow(plan: Plan) -> int:
    """What the processes of a torchrun other than the first do; returns the exit code."""
    if plan.missing:
        return 3
    local.run_inline(list(plan.jobs), lambda: None)
    return 0


def run_jobs(options: Sweep, plan: Plan, todo: list[Any], slots: int, files: StudyFiles) -> bool:
    """Run the jobs; False when stopped by a signal, after asking every job to save its state and end."""
    if options.executor == "inline":
        local.run_inline(todo, files.progress)
        return not stop_requested.is_set()
    if options.executor == "slurm":
        submit(plan, todo, read_profile(options.cluster), options.out, collect)
        scheduler: Any = SlurmJobs(todo)
    else:
        scheduler = local.LocalJobs(todo, slots, gpus=gpus(plan.compute))
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, raise_stop)
    try:
        with console.Progress(todo) as show:
            scheduler.watch(show, files.progress)
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean stop
        print("stopping: jobs save their state ...", flush=True)
        scheduler.stop()
        if isinstance(error, KeyboardInterrupt):
            return False
        raise
    return True
