"""Carry out a plan: its jobs run, table and figures are kept up to date, progress and a summary are printed."""

from __future__ import annotations

import time

from study.core.distributed import rank_and_world_size
from study.data.left_out import data_notes
from study.plan.runs import Job, Plan
from study.plan.scales import named_scale
from study.plan.warnings import measured_warnings
from study.report import console
from study.report.refresh import StudyFiles, collect
from study.submit.cluster import read_profile
from study.submit.executors import run_jobs, slots
from study.submit.launches import note_sweep
from study.submit.options import Sweep, prefetch_command
from study.submit.prepare import fallbacks
from study.submit.slurm import submit


def run(options: Sweep, plan: Plan) -> int:
    """Carry out a plan; returns the exit code: 0 done, 1 a run has no result, 3 something is missing, 130 stopped."""
    profiles = read_profile(options.cluster) if options.executor == "slurm" else None
    notes = [reason for _, reason in fallbacks(named_scale(options.scale), options).values()]
    notes += data_notes(options.data or plan.scale.data, plan.data)
    console.print_plan(plan, slots(options, plan), profiles, notes, prefetch_command(options))
    todo = [job for job in plan.jobs if job.missing()]
    if rank_and_world_size()[1] > 1:  # all processes must go through the same jobs
        todo = list(plan.jobs)
    if plan.missing and (todo or options.dry_run):
        return 3
    if options.dry_run:
        return 0
    note_sweep(options, plan, starts=bool(todo))
    if not options.detach or not todo:
        return carry_out(options, plan, todo)
    StudyFiles(plan, options.out).update()
    assert profiles is not None  # --detach is for Slurm alone
    submit(plan, todo, profiles, options.out, collect)
    print(f"submitted; python -m study.sweep status {plan.study} shows its progress")
    folders = (console.relative_path(options.out / kind / plan.study) for kind in ("results", "figures"))
    print(f"when all has ended, a last job writes {'/ and '.join(folders)}/")
    return 0


def carry_out(options: Sweep, plan: Plan, todo: list[Job]) -> int:
    """Run these jobs of a plan, keep table and figures up to date, print a summary; returns the exit code."""
    files = StudyFiles(plan, options.out)
    files.update()
    started = time.monotonic()
    stopped = False
    told = set(measured_warnings(plan.stages))  # with the plan

    def on_change() -> None:
        new = [line for line in measured_warnings(plan.stages) if line not in told]
        told.update(new)
        console.print_warnings(new)
        files.progress()

    if todo:
        stopped = not run_jobs(options, plan, todo, console.Progress(todo), on_change, collect)
        files.update()
    unfinished = console.print_summary(plan, files, time.monotonic() - started, stopped)
    return 130 if stopped else (1 if unfinished else 0)
