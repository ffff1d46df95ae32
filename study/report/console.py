"""What the sweep says on the terminal: the plan, live progress, the closing summary."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from results.guidance import choices
from results.table import load
from study.core.compute import Compute, processor
from study.plan.estimate import (
    GUESSED_GPU,
    data_bytes,
    disk_bytes,
    estimated_seconds,
    has_rates,
    stage_flops,
    stage_parameters,
)
from study.plan.runs import Job, Plan
from study.plan.stage import Stage
from study.report.amounts import counted, disk_size, duration, progress_texts, relative_path, short_count
from study.report.refresh import StudyFiles
from study.report.rows import state_of
from study.submit.cluster import Profile

LINE_SECONDS = 20.0  # between progress lines where there is no terminal
console = Console(highlight=False, soft_wrap=True)


def remaining_seconds(jobs: list[Job], slots: int) -> float:
    """Rough wall-clock time of what is missing: tokenizers, then generators, spread over the slots."""
    total = 0.0
    for kind in ("tokenizer", "generator"):
        times = [_seconds_left(job) for job in jobs if job.kind == kind]
        total += max([sum(times) / slots, *times])
    return total


def print_plan(
    plan: Plan, slots: int, profiles: dict[str, Profile] | None = None, left_out: Sequence[str] = ()
) -> None:
    """Print what will run before anything runs.

    Args:
        profiles: what Slurm is asked for, where it runs there.
        left_out: what the folder of the data holds beside them, a line each.
    """
    compute = plan.compute
    console.print(f"[bold]{plan.ablation}[/bold] at scale [bold]{plan.scale.name}[/bold]: {plan.question}")
    data = plan.data
    console.print(
        f"data {escape(data.name)}, {data.classes} classes, "
        f"{min(plan.scale.train_images, data.train_images):,} training images of {data.resolution} px; "
        f"on {compute.device} in {compute.precision}"
        + ("" if profiles else f", {counted(slots, 'job')} at once, {counted(compute.threads, 'thread')} each")
    )
    for line in left_out:
        console.print(f"  {line}", markup=False)
    if profiles:
        asked = {kind: _asked(compute, profile) for kind, profile in profiles.items()}
        same = len(set(asked.values())) == 1
        told = asked["tokenizer"] if same else "; ".join(f"{wishes} ({kind}s)" for kind, wishes in asked.items())
        console.print(f"each job asks Slurm for {told}", markup=False)
    cached = sum(stage.record() is not None for job in plan.jobs for stage in job.stages)
    stages = f"{len(plan.runs)} runs, {len(plan.stages)} stages, {cached} done before; "
    if compute.device == "cuda":
        console.print(_costs(plan))
        hours = sum(_seconds_left(job) for job in plan.jobs) / 3600
        kept = disk_size(sum(disk_bytes(stage) for stage in plan.stages))
        console.print(
            f"{stages}about {hours:,.0f} GPU hours, {kept} of results and {disk_size(data_bytes(data))} of data"
        )
        if not has_rates(compute, processor()):
            console.print(f"The hours are those of one {GUESSED_GPU} at assumed rates (study/plan/estimate.py).")
    else:
        console.print(_times(plan))
        left = remaining_seconds(list(plan.jobs), slots)
        console.print(stages + (f"estimated time ~{duration(left)}" if left else "nothing to do"))
    if plan.missing:
        console.print("[bold]missing here:[/bold]")
        for line in plan.missing:
            console.print(f"  {line}", markup=False)
        if any("study.prefetch" in line for line in plan.missing):
            console.print(f"to bring: python -m study.prefetch {plan.ablation} --scale {plan.scale.name}", markup=False)


def _asked(compute: Compute, profile: Profile) -> str:
    """What a job asks Slurm for, in words."""
    wishes = [
        counted(compute.processes * (profile.cpus or compute.threads), "CPU"),
        counted(compute.processes, "GPU") if compute.device == "cuda" else "",
        f"{profile.memory_gb:g} GB" if profile.memory_gb else "",
        duration(profile.minutes * 60),
        f"partition {profile.partition}" if profile.partition else "",
    ]
    return ", ".join(filter(None, wishes))


def _times(plan: Plan) -> Table:
    """What each job has to do and about how long it takes."""
    table = _plan_table("stages", "done", "state", "time")
    for job in plan.jobs:
        done = sum(stage.record() is not None for stage in job.stages)
        left = _seconds_left(job)
        time_left = f"~{duration(left)}" if left else ""
        table.add_row(escape(_title(job)), str(len(job.stages)), str(done), _state(job), time_left)
    return table


def _costs(plan: Plan) -> Table:
    """What each job costs: parameters that it trains, FLOPs of all its stages, GPU hours left, disk."""
    table = _plan_table("state", "params", "FLOPs", "GPU hours", "disk")
    for job in plan.jobs:
        flops, left = sum(stage_flops(stage) for stage in job.stages), _seconds_left(job)
        hours = f"~{left / 3600:,.0f}" if left else ""
        disk = disk_size(sum(disk_bytes(stage) for stage in job.stages))
        table.add_row(
            escape(_title(job)),
            _state(job),
            short_count(stage_parameters(job.stages[0])),
            short_count(flops),
            hours,
            disk,
        )
    return table


def _plan_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")  # the one that gives way where the terminal is narrow
    for name in columns:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    return table


def _title(job: Job) -> str:
    return f"tokenizer {job.title}" if job.kind == "tokenizer" else job.title


def _seconds_left(job: Job) -> float:
    return sum(estimated_seconds(stage, processor()) for stage in job.stages if stage.record() is None)


def _state(job: Job) -> str:
    if all(stage.record() is not None for stage in job.stages):
        return "done"
    failures = [failure for stage in job.stages if (failure := stage.failure())]
    if failures:
        return f"{failures[0]['state']} before, tried again"
    return "goes on" if any(_started(stage) for stage in job.stages) else "to do"


def _started(stage: Stage) -> bool:
    return stage.record() is None and any(stage.folder.glob("*.safetensors"))


class Progress:
    """Shows running jobs: a live table on a terminal, a line now and then elsewhere."""

    def __init__(self, jobs: list[Job]) -> None:
        self._titles = {job.name: _title(job) for job in jobs}
        self._jobs = {job.name: job for job in jobs}
        self._live = Live(console=console, refresh_per_second=2, transient=True) if sys.stdout.isatty() else None
        self._printed: dict[str, tuple[str, float]] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, running: dict[str, dict[str, Any]]) -> None:
        if self._live:
            self._live.update(self._table(running))
            return
        now = time.monotonic()
        for name, progress in running.items():
            stage = progress.get("stage", "starting")
            last_stage, last_time = self._printed.get(name, ("", -LINE_SECONDS))
            if stage != last_stage or now - last_time >= LINE_SECONDS:
                self._printed[name] = (stage, now)
                left = " ".join(filter(None, progress_texts(progress)))
                print(f"[{duration(now - self._started):>6}] {self._titles[name]}: {stage} {left}".rstrip(), flush=True)

    def _table(self, running: dict[str, dict[str, Any]]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("running", "stage", "", "rate", "left"):
            table.add_column(column)
        for name, progress in running.items():
            done, rate, eta = progress_texts(progress)
            table.add_row(escape(self._titles[name]), progress.get("stage", "starting"), done, rate, eta)
        finished = sum(all(s.record() for s in job.stages) for job in self._jobs.values())
        elapsed = duration(time.monotonic() - self._started)
        table.caption = f"{finished} of {len(self._jobs)} jobs done after {elapsed}; Ctrl-C saves and stops"
        return table


def print_summary(plan: Plan, collector: StudyFiles, seconds: float, stopped: bool) -> int:
    """Print what came out and where it is; returns how many rows have no result."""
    states: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for planned in plan.runs:
        for result in planned.results:
            state, reason, _ = state_of(planned, result)
            states[state] += 1
            if reason:
                reasons.setdefault(planned.run.title, f"{state}: {reason}")
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    console.print(f"{'stopped' if stopped else 'finished'} after {duration(seconds)}: {counted}")
    for name, reason in reasons.items():
        console.print(f"  {name}: {reason}", markup=False)
    print_guidance(collector.table)
    for name, reason in collector.skipped.items():
        console.print(f"  figure {name} not drawn: {reason}", markup=False)
    console.print(f"table    {relative_path(collector.table)}", markup=False)
    if collector.report.exists():
        console.print(f"report   {relative_path(collector.report)}", markup=False)
    folders = sorted({path.parent for path in collector.made})
    for folder in folders:
        names = sorted({path.stem for path in collector.made if path.parent == folder})
        console.print(f"figures  {relative_path(folder)}/ ({', '.join(names)}; each as png, pdf and csv)", markup=False)
    unfinished = sum(states.values()) - states["done"]
    if stopped or unfinished:
        console.print("run the same command again to go on")
    return unfinished


def print_guidance(path: Path) -> None:
    """Print 'none' and 'best' of a sweep over guidance, where the table holds one."""
    found = choices(load(path)) if path.exists() else []
    if not found:
        return
    console.print("guidance: gFID without, and at the scale that other samples chose")
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("generator", no_wrap=True)
    shown.add_column("judge")
    for name in ("none", "best", "at scale"):
        shown.add_column(name, justify="right")
    for choice in found:
        numbers = ("" if v is None else f"{v:.4g}" for v in (choice.none, choice.best, choice.scale))
        shown.add_row(escape(choice.run), choice.extractor, *numbers)
    console.print(shown)
