"""Terminal output of a sweep: the plan, live progress, the final summary."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from results.guidance import choices
from results.numbers import count, counted, disk_size, duration
from results.table import load
from study.core.cards import cards
from study.core.compute import Compute
from study.core.garbage import uncollected
from study.plan.estimate import (
    GUESSED_GPU,
    checkpoint_bytes,
    data_bytes,
    device_of,
    disk_bytes,
    has_rates,
    kept_state_bytes,
    memory_of_gpu,
    seconds_left,
    stage_flops,
    stage_parameters,
    title_of,
)
from study.plan.memory import execution_that_fits, largest_gib, stage_bytes
from study.plan.needs import identity_unknown
from study.plan.runs import Job, Plan
from study.plan.specs import FitTokenizer
from study.plan.stage import Stage, at_one_moment
from study.plan.trajectory import goes_on_from, trained_for_other_budgets
from study.plan.warnings import measured_warnings, plan_warnings
from study.report.refresh import StudyFiles
from study.report.table_rows import state_of
from study.submit.cluster import Profile

LINE_SECONDS = 20.0  # between progress lines if the output is not a terminal
console = Console(highlight=False, soft_wrap=True)


def _remaining_seconds(jobs: Sequence[Job], left: Mapping[str, float], slots: int) -> float:
    """Rough wall-clock time of the missing stages: tokenizers, then generators, spread over the slots."""
    total = 0.0
    for kind in ("tokenizer", "generator"):
        times = [left[job.name] for job in jobs if job.kind == kind]
        total += max([sum(times) / slots, *times])
    return total


@uncollected()
@at_one_moment()
def print_plan(
    plan: Plan,
    slots: int,
    profiles: dict[str, Profile] | None = None,
    left_out: Sequence[str] = (),
    to_download: str = "python -m study.prefetch",
) -> None:
    """Print the plan before anything runs.

    Args:
        profiles: resources to request from Slurm, by kind of job; None if it does not run there.
        left_out: what of the scale, or of the folder of the data, is not used, or not as it is, a line per kind.
        to_download: the command that brings what is missing, if it can be downloaded.
    """
    compute, precision, of_tokenizers = plan.compute, plan.scale.precision, plan.scale.tokenizer_precision
    console.print(f"[bold]{plan.ablation}[/bold] at scale [bold]{plan.scale.name}[/bold]: {plan.question}")
    data = plan.data
    gpus = f" on {counted(len(cards()), 'GPU')}" if compute.device == "cuda" and cards() else ""
    console.print(
        f"data {escape(data.name)}, {data.classes} classes, "
        f"{min(plan.scale.train_images, data.train_images):,} training images of {data.resolution} px; "
        f"on {compute.device} in {precision}"
        + ("" if of_tokenizers == precision else f", tokenizers in {of_tokenizers}")
        + ("" if profiles else f", {counted(slots, 'job')} at once{gpus}, {counted(compute.threads, 'thread')} each")
    )
    for line in left_out:
        console.print(f"  {line}", markup=False)
    if profiles:
        requests = {kind: _slurm_request(compute, profile) for kind, profile in profiles.items()}
        same = len(set(requests.values())) == 1
        text = (
            requests["tokenizer"] if same else "; ".join(f"{request} ({kind}s)" for kind, request in requests.items())
        )
        console.print(f"each job asks Slurm for {text}; at most {counted(slots, 'job')} at once", markup=False)
    cached = sum(stage.record() is not None for job in plan.jobs for stage in job.stages)
    stages = f"{len(plan.runs)} runs, {len(plan.stages)} stages, {cached} done before; "
    device = device_of(compute)
    left = {job.name: seconds_left(job.stages, device) for job in plan.jobs}
    if compute.device == "cuda":
        console.print(_costs(plan, left))
        hours = sum(left.values()) / 3600
        at_once = _at_once(plan, slots, left, local=profiles is None)
        results_size, data_size = disk_size(sum(map(disk_bytes, plan.stages))), disk_size(data_bytes(data))
        checkpoints_size = disk_size(checkpoint_bytes(plan.stages, slots))
        console.print(
            f"{stages}about {in_hours(hours)} GPU hours{at_once}; {results_size} of results, {checkpoints_size} of "
            f"checkpoints meanwhile, {data_size} of data"
        )
        console.print(_memory(plan), markup=False)
        if has_rates(plan.stages, device):
            console.print(f"The hours are for {device}, at rates that were measured.")
        else:
            console.print(
                f"The hours are for one {GUESSED_GPU} where rates are assumed (study/plan/estimate.py); "
                "python -m study.doctor measures them."
            )
    else:
        console.print(_times(plan, left))
        remaining = _remaining_seconds(plan.jobs, left, slots)
        console.print(stages + (f"estimated time ~{duration(remaining)}" if remaining else "nothing to do"))
    for line in _on_trajectories(plan):
        console.print(line, markup=False)
    print_warnings([*plan_warnings(plan), *measured_warnings(plan.stages)])
    if plan.missing:
        console.print("[bold]missing here:[/bold]")
        for line in plan.missing:
            console.print(f"  {line}", markup=False)
        if any("study.prefetch" in line for line in plan.missing):
            console.print(f"to download: {to_download}", markup=False)
    if unknown := identity_unknown(plan.stages):
        console.print(unknown)


def print_warnings(lines: Sequence[str]) -> None:
    """Print what is likely a mistake, a line each."""
    for line in lines:
        console.print(f"warning: {line}", markup=False)


def _on_trajectories(plan: Plan) -> list[str]:
    """What a plan says of trainings that go on from others, or cannot."""
    trainings = [job.stages[0] for job in plan.jobs if job.missing() and not job.stages[0].spec.pretrained]  # type: ignore[union-attr]
    anew = [stage for stage in trainings if isinstance(stage.spec, FitTokenizer) and not goes_on_from(stage)]
    generators = [stage for stage in trainings if stage.marks]
    lines = []
    if budgets := trained_for_other_budgets(anew):
        images = " and ".join(f"{budget:,}" for budget in budgets)
        decays = any(stage.spec.recipe.final_learning_rate != 1 for stage in anew)  # type: ignore[union-attr]
        reason = "their learning rate decays over the budget" if decays else "a finished tokenizer keeps no state"
        lines.append(f"Tokenizers trained on {images} images cannot go on: {reason}.")
    if generators:
        size = disk_size(sum(map(kept_state_bytes, generators)))
        lines.append(f"Generators keep states of {size} until study.sweep clean: a larger budget goes on from there.")
    return lines


def _slurm_request(compute: Compute, profile: Profile) -> str:
    """The resources that a job requests from Slurm, as text."""
    resources = [
        counted(compute.processes * (profile.cpus or compute.threads), "CPU"),
        counted(compute.processes, "GPU") if compute.device == "cuda" else "",
        f"{profile.memory_gb:g} GB" if profile.memory_gb else "",
        duration(profile.minutes * 60),
        f"partition {profile.partition}" if profile.partition else "",
    ]
    return ", ".join(filter(None, resources))


def _times(plan: Plan, left: Mapping[str, float]) -> Table:
    """Stages of each job, how many are done, and about how long the others take."""
    rows = []
    for job in plan.jobs:
        done = sum(stage.record() is not None for stage in job.stages)
        time_left = f"~{duration(left[job.name])}" if left[job.name] else ""
        rows.append((job_title(job), str(len(job.stages)), str(done), _state(job), time_left))
    return _plan_table(("stages", "done", "state", "time"), rows)


def _costs(plan: Plan, left: Mapping[str, float]) -> Table:
    """Cost of each job: trained parameters, FLOPs of all its stages, remaining GPU hours, disk."""
    rows = []
    for job in plan.jobs:
        flops = sum(stage_flops(stage) for stage in job.stages)
        hours = f"~{in_hours(left[job.name] / 3600)}" if left[job.name] else ""
        disk = disk_size(sum(disk_bytes(stage) for stage in job.stages))
        parameters = count(stage_parameters(job.stages[0]))
        rows.append((job_title(job), _state(job), parameters, count(flops), hours, disk))
    return _plan_table(("state", "params", "FLOPs", "GPU hours", "disk"), rows)


def _at_once(plan: Plan, slots: int, left: Mapping[str, float], local: bool) -> str:
    """How long the plan takes on the GPUs that work at the same time, if they are known. Jobs that share a GPU are not
    faster than one after the other by the estimate."""
    unfinished = Counter(job.kind for job in plan.jobs if left[job.name])
    wave, processes = max(unfinished.values(), default=0), plan.compute.processes
    jobs = min(slots, wave, len(cards()) // processes if local else wave)
    if not jobs:
        return ""
    seconds = _remaining_seconds(plan.jobs, {name: one / processes for name, one in left.items()}, jobs)
    return f" ({in_hours(seconds / 3600)} hours on {counted(jobs * processes, 'GPU')})"


def _memory(plan: Plan) -> str:
    """How much GPU memory a process takes, and what helps where the GPU has less."""
    gib, largest = largest_gib(plan.stages), max(plan.stages, key=stage_bytes)
    text = f"A process takes up to {gib:,.1f} GiB of GPU memory by the estimate, for {title_of(largest)}"
    name, has = memory_of_gpu()
    if gib <= has:
        return text + "."
    text += f"; {name} has {has:.0f} GiB: "
    if settings := execution_that_fits(plan.stages, has):
        options = " ".join(f"--set execution.{field}={value}" for field, value in settings.items())
        return f"{text}{options} would fit, and moves no result; python -m study.doctor tries it."
    return f"{text}python -m study.doctor tries what fits (execution.checkpointing, processes)."


def in_hours(hours: float) -> str:
    """A number of hours, below ten with two digits."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _plan_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table of runs, named in the first cell of each row, which alone wraps on a narrow terminal.

    To rich all rows are one, of many lines: it takes a second for a thousand rows.
    """
    others = zip(columns, *(cells for _, *cells in rows), strict=True)
    room = max(1, console.width - sum(max(map(cell_len, column)) + 2 for column in others))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", min_width=min(room, max((cell_len(run) for run, *_ in rows), default=1)))
    for name in columns:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    lines: list[tuple[str, ...]] = []
    for run, *cells in rows:
        wrapped = [run] if cell_len(run) <= room else Text(run).wrap(console, room, overflow="ellipsis")
        lines += zip(map(str, wrapped), *([cell] + [""] * (len(wrapped) - 1) for cell in cells), strict=True)
    if lines:
        table.add_row(*(Text("\n".join(column)) for column in zip(*lines, strict=True)))
    return table


def job_title(job: Job) -> str:
    """The name of a job on the terminal."""
    return f"tokenizer {job.title}" if job.kind == "tokenizer" else job.title


def _state(job: Job) -> str:
    if all(stage.record() is not None for stage in job.stages):
        return "done"
    if not any(stage.has_folder() for stage in job.stages):
        return "to do"
    failures = [failure for stage in job.stages if (failure := stage.failure())]
    if failures:
        return f"{failures[0]['state']} before, tried again"
    if start := goes_on_from(job.stages[0]):
        return f"goes on from {start:,} images"
    return "goes on" if any(_started(stage) for stage in job.stages) else "to do"


def _started(stage: Stage) -> bool:
    return stage.record() is None and any(stage.folder.glob("*.safetensors"))


class Progress:
    """Shows running jobs: a live table on a terminal, otherwise a line per job every LINE_SECONDS."""

    def __init__(self, jobs: list[Job]) -> None:
        self._titles = {job.name: job_title(job) for job in jobs}
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


def print_summary(plan: Plan, files: StudyFiles, seconds: float, stopped: bool) -> int:
    """Print the states of all rows and the paths of the results; returns how many rows have no result."""
    states: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for planned in plan.runs:
        for judge in (judge for result in planned.results for judge in result.judges):
            state, reason, _ = state_of(planned, judge)
            states[state] += 1
            if reason:
                reasons.setdefault(planned.run.title, f"{state}: {reason}")
    summary = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    console.print(f"{'stopped' if stopped else 'finished'} after {duration(seconds)}: {summary}")
    for name, reason in reasons.items():
        console.print(f"  {name}: {reason}", markup=False)
    print_warnings(measured_warnings(plan.stages))
    print_guidance(files.table)
    for name, reason in files.skipped.items():
        console.print(f"  figure {name} not drawn: {reason}", markup=False)
    console.print(f"table    {relative_path(files.table)}", markup=False)
    if files.report.exists():
        console.print(f"report   {relative_path(files.report)}", markup=False)
    folders = sorted({path.parent for path in files.drawn})
    for folder in folders:
        names = sorted({path.stem for path in files.drawn if path.parent == folder})
        console.print(f"figures  {relative_path(folder)}/ ({', '.join(names)}; each as png, pdf and csv)", markup=False)
    unfinished = sum(states.values()) - states["done"]
    if stopped or unfinished:
        console.print("run the same command again to continue")
    return unfinished


def print_guidance(path: Path) -> None:
    """Print 'none' and 'best' of a guidance sweep, if the table holds one."""
    chosen = choices(load(path)) if path.exists() else []
    if not chosen:
        return
    console.print("guidance: gFID without guidance, and at the scale chosen on other samples")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("generator", no_wrap=True)
    table.add_column("judge")
    for name in ("none", "best", "at scale"):
        table.add_column(name, justify="right")
    for choice in chosen:
        numbers = ("" if v is None else f"{v:.4g}" for v in (choice.none, choice.best, choice.scale))
        table.add_row(escape(choice.run), choice.extractor, *numbers)
    console.print(table)


def progress_texts(progress: dict[str, Any]) -> tuple[str, str, str]:
    """Finished share, rate and remaining time of a stage, as text."""
    if not progress.get("total"):
        return "", "", ""
    share, rate = progress["done"] / progress["total"], progress["rate"]
    left = f"{duration((progress['total'] - progress['done']) / rate)} left" if rate > 0 else ""
    return f"{share:.0%}", f"{rate:,.0f} {progress['unit']}/s" if rate > 0 else "", left


def relative_path(path: Path) -> str:
    """The path from the current folder, or the whole path if it lies elsewhere."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
