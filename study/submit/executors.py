"""Run jobs where the options say: in this process, as processes of this machine, or on Slurm."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from study.core.cards import cards
from study.core.compute import parallel_jobs
from study.core.stopping import interrupt_on_signals, stop_requested
from study.plan.memory import largest_gib
from study.plan.runs import Job, Plan
from study.submit import local
from study.submit.cluster import read_profile
from study.submit.local import Show
from study.submit.options import Sweep
from study.submit.slurm import Collect, SlurmJobs, submit


def slots(options: Sweep, plan: Plan) -> int:
    """How many jobs run at once."""
    if options.executor == "inline":
        return 1
    if options.executor == "slurm":
        return min(profile.parallel for profile in read_profile(options.cluster).values())
    if options.jobs is not None:
        return options.jobs
    return parallel_jobs(plan.compute, plan.compute.processes, largest_gib(plan.stages))


def run_jobs(
    options: Sweep,
    plan: Plan,
    todo: list[Job],
    progress: AbstractContextManager[Show],
    on_change: Callable[[], None],
    collect: Collect,
) -> bool:
    """Run jobs of a plan and wait for them; False when stopped by a signal, after asking every job to save and end.

    Args:
        progress: entered while jobs run in other processes; gives the function that shows their progress.
        on_change: called after jobs have ended.
        collect: see `study.submit.slurm.submit`.
    """
    if options.executor == "inline":
        local.run_inline(todo, on_change)
        return not stop_requested.is_set()
    if options.executor == "slurm":
        submit(plan, todo, read_profile(options.cluster), options.out, collect)
        scheduler: Any = SlurmJobs(todo)
    else:
        own = cards() if plan.compute.device == "cuda" else ()
        scheduler = local.LocalJobs(todo, slots(options, plan), own)
    interrupt_on_signals()
    try:
        with progress as show:
            scheduler.watch(show, on_change)
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean stop
        print("stopping: jobs save their state ...", flush=True)
        scheduler.stop()
        if isinstance(error, KeyboardInterrupt):
            return False
        raise
    return True


def follow(options: Sweep, plan: Plan) -> int:
    """What the processes of a torchrun other than the first do; returns the exit code."""
    if plan.missing or options.dry_run:
        return 3 if plan.missing else 0
    local.run_inline(list(plan.jobs), lambda: None)
    return 0
