"""What the sweep says on the terminal: the plan, live progress, the closing summary."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from study.cluster import Profile
from study.compute import Compute, cores, processor
from study.estimate import GUESSED_GPU, data_bytes, disk_bytes, estimated_seconds, has_rates, parameters, work
from study.factors import varied
from study.plan import Job, Plan
from study.specs import Stage

if TYPE_CHECKING:
    from results.searches import Search
    from study.collector import Collector
    from study.task import Task
    from study.trials import Trials

LINE_SECONDS = 20.0  # between progress lines where there is no terminal
console = Console(highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def remaining_seconds(jobs: list[Job], slots: int) -> float:
    """Rough wall-clock time of what is missing: tokenizers, then generators, spread over the slots."""
    total = 0.0
    for kind in ("tokenizer", "generator"):
        times = [_seconds_left(job) for job in jobs if job.kind == kind]
        total += max([sum(times) / slots, *times])
    return total


def print_plan(plan: Plan, slots: int, profiles: dict[str, Profile] | None = None) -> None:
    """Print what will run before anything runs; `profiles` say what Slurm is asked for, where it runs there."""
    compute = plan.compute
    console.print(f"[bold]{plan.ablation}[/bold] at scale [bold]{plan.scale.name}[/bold]: {plan.question}")
    data = plan.data
    console.print(
        f"data {escape(data.name)}, {data.classes} classes, "
        f"{min(plan.scale.train_images, data.train_images):,} training images of {data.resolution} px; "
        f"on {compute.device} in {compute.precision}"
        + ("" if profiles else f", {_counted(slots, 'job')} at once, {_counted(compute.threads, 'thread')} each")
    )
    if profiles:
        asked = {kind: _asked(compute, profile) for kind, profile in profiles.items()}
        same = len(set(asked.values())) == 1
        told = asked["tokenizer"] if same else "; ".join(f"{wishes} ({kind}s)" for kind, wishes in asked.items())
        console.print(f"each job asks Slurm for {told}", markup=False)
    cached = sum(stage.record() is not None for job in plan.jobs for stage in job.stages)
    counted = f"{len(plan.runs)} runs, {len(plan.stages)} stages, {cached} done before; "
    if compute.device == "cuda":
        console.print(_costs(plan))
        hours = sum(_seconds_left(job) for job in plan.jobs) / 3600
        kept = size(sum(disk_bytes(stage) for stage in plan.stages))
        console.print(f"{counted}about {hours:,.0f} GPU hours, {kept} of results and {size(data_bytes(data))} of data")
        if not has_rates(compute, processor()):
            console.print(f"The hours are those of one {GUESSED_GPU} at assumed rates (study/estimate.py).")
    else:
        console.print(_times(plan))
        left = remaining_seconds(list(plan.jobs), slots)
        console.print(counted + (f"estimated time ~{duration(left)}" if left else "nothing to do"))
    if plan.missing:
        console.print("[bold]missing here:[/bold]")
        for line in plan.missing:
            console.print(f"  {line}", markup=False)
        if any("study.prefetch" in line for line in plan.missing):
            console.print(f"to bring: python -m study.prefetch {plan.ablation} --scale {plan.scale.name}", markup=False)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _asked(compute: Compute, profile: Profile) -> str:
    """What a job asks Slurm for, in words."""
    wishes = [
        _counted(compute.processes * (profile.cpus or compute.threads), "CPU"),
        _counted(compute.processes, "GPU") if compute.device == "cuda" else "",
        f"{profile.memory_gb:g} GB" if profile.memory_gb else "",
        duration(profile.minutes * 60),
        f"partition {profile.partition}" if profile.partition else "",
    ]
    return ", ".join(filter(None, wishes))


def print_ablations(scale: str, found: Sequence[tuple[str, ModuleType, Plan | str]]) -> None:
    """Print what each ablation asks, varies and costs at a scale; a text in place of a plan says why there is none."""
    table = Table(title=f"ablations at scale {scale}", title_justify="left", box=SIMPLE_HEAD, header_style="bold")
    table.add_column("ablation", no_wrap=True)
    for column in ("asks", "varies", "in the paper"):
        table.add_column(column, overflow="fold")
    for column in ("trainings", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, module, plan in found:
        if isinstance(plan, str):
            table.add_row(name, module.QUESTION, f"[dim]{escape(plan)}[/dim]", module.SOURCE, "", "")
            continue
        varies = [_factor(name, values) for name, values in varied(plan).items()]
        count, cost = str(len(plan.jobs)), _whole_cost(plan)
        table.add_row(name, module.QUESTION, escape("; ".join(varies)), module.SOURCE, count, cost)
    console.print(table, soft_wrap=False)
    console.print("Trainings that ablations share are counted in each and done once; cost is of all stages.")


def _factor(name: str, values: list[Any]) -> str:
    """A factor in words, with its values where those are names or sizes."""
    telling = [str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool)]
    return f"{name.split('.')[-1].replace('_', ' ')} {', '.join(telling)}".strip()


def _whole_cost(plan: Plan) -> str:
    """GPU hours, or time on one processor with half its cores for each of two jobs at once."""
    seconds = [sum(estimated_seconds(stage, processor()) for stage in job.stages) for job in plan.jobs]
    if plan.compute.device == "cuda":
        return f"~{sum(seconds) / 3600:,.0f} GPU h"
    return f"~{duration(sum(seconds) / max(1, cores() // plan.compute.threads))}"


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
        flops, left = sum(work(stage) for stage in job.stages), _seconds_left(job)
        hours = f"~{left / 3600:,.0f}" if left else ""
        disk = size(sum(disk_bytes(stage) for stage in job.stages))
        table.add_row(escape(_title(job)), _state(job), short(parameters(job.stages[0])), short(flops), hours, disk)
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


def short(number: float) -> str:
    """A count with three digits and its unit: 675M, 1.46e+20 beyond billions."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if unit <= number < 1e12:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.2e}" if number >= 1e12 else f"{number:g}"


def size(bytes_: float) -> str:
    """'84 GB', '1.2 TB' (decimal, as disks are sold)."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.3g} {name}"
    return f"{bytes_ / 1e6:.3g} MB"


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
                left = " ".join(filter(None, amounts(progress)))
                print(f"[{duration(now - self._started):>6}] {self._titles[name]}: {stage} {left}".rstrip(), flush=True)

    def _table(self, running: dict[str, dict[str, Any]]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("running", "stage", "", "rate", "left"):
            table.add_column(column)
        for name, progress in running.items():
            done, rate, eta = amounts(progress)
            table.add_row(escape(self._titles[name]), progress.get("stage", "starting"), done, rate, eta)
        finished = sum(all(s.record() for s in job.stages) for job in self._jobs.values())
        elapsed = duration(time.monotonic() - self._started)
        table.caption = f"{finished} of {len(self._jobs)} jobs done after {elapsed}; Ctrl-C saves and stops"
        return table


def amounts(progress: dict[str, Any]) -> tuple[str, str, str]:
    """Share done, rate and time left of a stage, as text."""
    if not progress.get("total"):
        return "", "", ""
    share, rate = progress["done"] / progress["total"], progress["rate"]
    left = f"{duration((progress['total'] - progress['done']) / rate)} left" if rate > 0 else ""
    return f"{share:.0%}", f"{rate:,.0f} {progress['unit']}/s" if rate > 0 else "", left


def print_summary(plan: Plan, collector: Collector, seconds: float, stopped: bool) -> int:
    """Print what came out and where it is; returns how many rows have no result."""
    from study.collect import state_of

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
    console.print(f"table    {_relative(collector.table)}", markup=False)
    if collector.report.exists():
        console.print(f"report   {_relative(collector.report)}", markup=False)
    folders = sorted({path.parent for path in collector.made})
    for folder in folders:
        names = sorted({path.stem for path in collector.made if path.parent == folder})
        console.print(f"figures  {_relative(folder)}/ ({', '.join(names)}; each as png, pdf and csv)", markup=False)
    unfinished = sum(states.values()) - states["done"]
    if stopped or unfinished:
        console.print("run the same command again to go on")
    return unfinished


def print_space(task: Task, trials: Trials) -> None:
    """Print what a search varies, how far it is, and about what is left of it."""
    from study.findings import BEST, CHOOSING, SCORING
    from study.journal import JOURNAL
    from study.spaces import Number
    from study.trials import has_result

    setting = task.setting
    console.print(f"[bold]{task.space}[/bold] at scale [bold]{setting.scale.name}[/bold]: {task.module.QUESTION}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("parameter", "from", "to", "", "default"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for dimension in task.dimensions().values():
        if isinstance(dimension, Number):
            ends = [f"{dimension.low:g}", f"{dimension.high:g}", "log" if dimension.log else ""]
            table.add_row(dimension.label, *ends, f"{dimension.default:g}")
        else:
            table.add_row(
                dimension.label, escape(", ".join(map(str, dimension.choices))), "", "", str(dimension.default)
            )
    console.print(table)
    console.print(trials.standing(), markup=False)
    plan = task.plan([task.run(task.default())])
    common = _shared(task)
    shared = [stage for stage in plan.stages if stage.record() is None and stage.fingerprint in common]
    each = sum(estimated_seconds(stage, processor()) for stage in plan.stages if stage.fingerprint not in common)
    left = max(0, task.budget - sum(map(has_result, trials.all())))
    total = sum(estimated_seconds(stage, processor()) for stage in shared) + each * left / task.workers
    pruned = ", less what is pruned" if task.prunes() else ""
    repeats = BEST * len(CHOOSING) + 2 * len(SCORING) if len(task.objectives) == 1 else (BEST + 1) * len(SCORING)
    console.print(
        f"a trial takes about {duration(each)}; {_counted(left, 'trial')} left, {_counted(task.workers, 'worker')}: "
        f"about {duration(total)}{pruned}, and at most {duration(each * repeats / task.workers)} for the best again"
    )
    if not task.storage:
        console.print(f"trials are kept in {_relative(task.folder / JOURNAL)}", markup=False)


def _shared(task: Task) -> set[str]:
    """Stages that a trial shares with the next one, whatever its values."""
    default = task.default()
    others = []
    for name, dimension in task.dimensions().items():
        other = next(v for v in (*getattr(dimension, "choices", ()), *_ends(dimension)) if v != default[name])
        others.append({stage.fingerprint for stage in task.plan([task.run({**default, name: other})]).stages})
    return set.intersection(*others)


def _ends(dimension: Any) -> tuple[Any, ...]:
    return (dimension.low, dimension.high) if hasattr(dimension, "low") else ()


def print_findings(search: Search, folder: Path) -> None:
    """Print the best of a search, and whether the winner beats the default."""
    from results.searches import SearchError, load, printed

    console.print(f"[bold]{search.space}[/bold]: {search.question}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("default", justify="right")
    for candidate in search.candidates:
        table.add_column(
            ("winner " if candidate.trial == search.winner else "") + str(candidate.trial), justify="right"
        )
    values = {trial.trial: trial.values for trial in search.trials}
    first = next((trial.values for trial in search.trials if trial.params == search.default.params), {})
    for name in search.objectives:
        found = [first.get(name), *(values[candidate.trial][name] for candidate in search.candidates)]
        table.add_row(printed(name), *map(_score, found))
        again = [fmean(candidate.again[name]) if candidate.again.get(name) else None for candidate in search.candidates]
        if any(again):
            table.add_row(f"{printed(name)}, mean of new seeds", "", *map(_score, again))
    for name, parameter in search.parameters.items():
        tried = [search.default.params.get(name), *(candidate.params.get(name) for candidate in search.candidates)]
        table.add_row(parameter.label, *(f"{v:g}" if isinstance(v, float) else str(v) for v in tried))
    console.print(table)
    if search.reason:
        verdict = {True: "the winner beats the default", False: "the default beats the winner", None: "undecided"}
        if search.default.scores and search.winner is not None:
            verdict[None] = "undecided, where ranges overlap or judges disagree"
        told = f"{verdict[search.beats_default]}: " if len(search.objectives) == 1 else ""
        console.print(told + search.reason, markup=False)
    with contextlib.suppress(SearchError):
        if load(folder, search.space) == search:  # one that got further stays
            console.print(f"written  {_relative(folder / 'search')}/ ({search.space}.csv and .json)", markup=False)
    drawn = folder.parents[1] / "figures" / search.study
    if (drawn / f"search-{search.space}.png").exists():
        report = _relative(folder / "report.html")
        console.print(f"figures  {_relative(drawn)}/ (search-{search.space}; in {report} too)", markup=False)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def print_guidance(path: Path) -> None:
    """Print 'none' and 'best' of a sweep over guidance, where the table holds one."""
    from results.guidance import choices
    from results.table import load

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


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
