"""python -m study.sweep status|watch|retry|cancel|clean: manage launched sweeps and searches from any later process.

What was planned is read from the notes of the launches: nothing is planned again, so data, weights, cores and version
of the code here do not matter. The state of a job is read from its records, failures and leases; on Slurm also from the
queue and the accounting. `status` writes nothing.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from results.numbers import counted, disk_size
from results.table import load
from study.core.cards import cards
from study.core.code_snapshot import code_name
from study.core.files import read_json
from study.core.lease import beating, holder
from study.core.paths import CHECKOUT, job_folder, study_root
from study.core.settings import change
from study.core.stopping import ask_to_end
from study.core.study_name import one_study
from study.data.picture_chunks import picture_files
from study.plan.runs import Job, Plan
from study.plan.specs import FitGenerator
from study.plan.stage import Stage, recorded_marks, state_files
from study.plan.warnings import measured_warnings
from study.report.carry_out import carry_out
from study.report.console import console, job_title, progress_texts
from study.report.refresh import collect
from study.search import worker_pool
from study.search.launches import launched_searches
from study.search.outcome import progress_line, repeat_runs
from study.search.problem import Problem
from study.search.trial_notes import noted_stages, planned_as_noted, trial_notes
from study.search.trials import under_way
from study.search.worker import read_trials
from study.submit import cluster, slurm
from study.submit.cluster import read_profile
from study.submit.in_turn import running_process
from study.submit.jobs import log_of
from study.submit.launches import launched_plans, launched_studies
from study.submit.options import Cancel, Clean, Retry, Status, Sweep, Watch
from study.submit.slurm import Ended

WATCH_SECONDS = 5.0
WRAPPED = {"run": 26, "stage": 16}  # columns that may wrap, and the width that is kept for them
LEFT_OUT = ("attempts", "host", "left", "job")  # columns that a narrow terminal does without, the first first


# Status


@dataclass(frozen=True)
class State:
    """State of a job; texts that do not apply are ''."""

    job: Job
    state: str  # done, running, queued, interrupted, pending, failed, diverged, timed out
    stage: str = ""
    share: str = ""
    left: str = ""
    host: str = ""
    number: str = ""  # Slurm id
    attempts: int = 0
    reason: str = ""
    log: str = ""


def states_of(plan: Plan) -> list[State]:
    """The state of every job of a plan; writes nothing."""
    queued, ended = slurm.active_jobs(plan.jobs), slurm.ended_jobs(plan.jobs)
    return [_state(job, queued, ended) for job in plan.jobs]


def _state(job: Job, queued: dict[str, str], ended: dict[str, Ended]) -> State:
    submission = read_json(job_folder(job.name) / "submission.json") or {}
    common = {"number": submission.get("job_id", ""), "attempts": submission.get("attempt", 0), "log": log_of(job)}
    missing = job.missing()
    if not missing:
        return State(job, "done", **common)
    for stage in missing:
        if lease := beating(stage.folder):
            progress = lease["progress"]
            share, _, time_left = progress_texts(progress)
            return State(job, "running", progress.get("stage", ""), share, time_left, lease["host"], **common)
    for stage in missing:
        if failure := stage.failure():
            return State(job, failure["state"], stage.kind, reason=failure["reason"], **common)
    if job.name in queued:
        return State(job, "queued", **common)
    if running_process(job.name):
        return State(job, "running", "starting", **common)
    if job.name in ended:
        end = ended[job.name]
        return State(job, end.state, end.stage.kind, reason=end.reason, **common)
    if any(stage.interrupted() for stage in missing):
        return State(job, "interrupted", reason="saved; the same sweep resumes from there", **common)
    return State(job, "pending", **common)


def status_table(study: str, states: list[State]) -> Group:
    """The table of `status`, followed by the reasons of failed runs and the paths of their logs."""
    rows = [
        {
            "run": job_title(s.job),
            "state": s.state, "stage": s.stage, "done": s.share, "left": s.left, "host": s.host, "job": s.number,
            "attempts": str(s.attempts or ""),
        }
        for s in states
    ]  # fmt: skip
    numbers: dict[str, int] = {}
    for s in states:
        numbers[s.state] = numbers.get(s.state, 0) + 1
    lines = [f"{escape(study)}: " + ", ".join(f"{n} {state}" for state, n in sorted(numbers.items()))]
    for s in states:
        if s.reason:
            lines.append(escape(f"  {s.job.title}: {s.reason}" + (f"\n    {s.log}" if s.log else "")))
        lines += [escape(f"  warning: {line}") for line in measured_warnings(s.job.stages)]
    return Group(*_table(rows), *lines)


def _table(rows: list[dict[str, str]]) -> list[Table]:
    """A table of these rows, without columns that are empty or that the terminal is too narrow for; none of no rows."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []

    def width(name: str) -> int:
        return min(WRAPPED.get(name, console.width), max(len(name), *(len(row[name]) for row in rows)))

    for name in LEFT_OUT:
        if sum(width(column) + 2 for column in columns) > console.width + 2 and name in columns:
            columns.remove(name)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        right = name in ("done", "attempts")
        table.add_column(name, no_wrap=name not in WRAPPED, justify="right" if right else "left")
    for row in rows:
        table.add_row(*(escape(row[name]) for name in columns))
    return [table] if rows else []


def search_table(problem: Problem) -> Group:
    """The progress of a search, the number of its workers, and its running stages."""
    title = escape(f"{problem.setting.study}, search {problem.space}")
    trials, problem = read_trials(problem), planned_as_noted(problem)
    if trials is None:
        return Group(f"{title}: no trial yet", *_worker_lines(problem))
    runs = {str(trial.number): problem.run(trials.values(trial)) for trial in trials.with_values() if under_way(trial)}
    repeats = enumerate(repeat_runs(problem, trials), start=1)
    runs |= {f"again {number}": problem.run(*repeat) for number, repeat in repeats}
    rows = []
    for name, run in runs.items():
        networks = dataclasses.replace(run, changes={}, options={}).name
        for stage in problem.plan([run]).stages:
            if lease := beating(stage.folder):
                share, _, left = progress_texts(lease["progress"])
                place = {"host": lease["host"], "job": lease["job"]}
                rows.append({"trial": name, "run": networks, "stage": stage.kind, "done": share, "left": left, **place})
    return Group(*_table(rows), f"{title}: {escape(progress_line(problem, trials))}", *_worker_lines(problem))


def _worker_lines(problem: Problem) -> list[str]:
    count = len(worker_pool.local(problem)) + len(worker_pool.queued(problem))
    workers = "1 worker runs or waits" if count == 1 else f"{count} workers run or wait"
    return [f"  {workers}; logs: {escape(str(problem.folder / 'workers'))}"] if count else []


def _status(options: Status) -> int:
    for _, plan in launched_plans(options.study):
        console.print(status_table(plan.study, states_of(plan)))
        _print_if_code_changed(plan)
    for problem in launched_searches(options.study):
        console.print(search_table(problem))
    return 0


def _print_if_code_changed(plan: Plan) -> None:
    submissions = slurm.submissions([job for job in plan.jobs if job.missing()])
    if {submission["code"] for submission in submissions.values()} - {code_name()}:
        console.print("the code has changed since jobs were submitted; they run the submitted code", markup=False)


def _watch(options: Watch) -> int:
    plans, searches = launched_plans(options.study), launched_searches(options.study)
    with Live(console=console, refresh_per_second=1) as live:
        while True:
            states = {plan.study + "/" + plan.ablation: states_of(plan) for _, plan in plans}
            tables = [status_table(name.rpartition("/")[0], of_plan) for name, of_plan in states.items()]
            live.update(Group(*tables, *map(search_table, searches)))
            busy = any(s.state in ("running", "queued") for of_plan in states.values() for s in of_plan)
            if not busy and not any(worker_pool.local(problem) or worker_pool.queued(problem) for problem in searches):
                break
            time.sleep(WATCH_SECONDS)
    for sweep, plan in plans:  # of a cancelled sweep that was detached nothing else writes what had finished
        collect(plan, list(plan.jobs), sweep.out)
    return 0


# Commands that change something


def _retry(options: Retry) -> int:
    code = 0
    for problem in launched_searches(options.study):
        console.print(f"{escape(problem.setting.study)}, search {problem.space}: its own command continues it")
    for sweep, plan in launched_plans(options.study):
        failed = [s.job for s in states_of(plan) if s.state in ("failed", "diverged", "timed out", "interrupted")]
        names = {job.name for job in failed}
        waiting = [job for job in plan.jobs if job.after in names and job.missing() and job.name not in names]
        todo = [*failed, *waiting]
        if not todo:
            console.print(f"{escape(plan.study)}: nothing has failed")
            continue
        _require_same_code([stage for job in todo for stage in job.missing()])
        if sweep.executor != "slurm" and plan.compute.device == "cuda" and not cards():
            raise ValueError(f"{plan.study} was started on a GPU, and this machine has none: retry it where it ran")
        if options.microbatch_images is not None:
            todo = [_in_microbatches(job, options.microbatch_images) for job in todo]
        for job in todo:
            for stage in job.missing():
                (stage.folder / "failure.json").unlink(missing_ok=True)
        console.print(f"{escape(plan.study)}: again " + escape(", ".join(job.title for job in todo)))
        if sweep.executor == "slurm":
            overrides = {"memory_gb": options.memory_gb, "minutes": options.minutes}
            profiles = read_profile(sweep.cluster)
            for field, value in overrides.items():
                if value is not None:
                    profiles = {kind: change(profile, field, value) for kind, profile in profiles.items()}
            slurm.submit(plan, todo, profiles, sweep.out, collect)
        else:
            code = max(code, carry_out(sweep, plan, todo))
    return code


def _in_microbatches(job: Job, images: int) -> Job:
    """The job, whose generator's share of a batch goes through in pieces of this many images; no fingerprint changes.

    Raises:
        ValueError: they do not divide the share.
    """
    stages = []
    for stage in job.stages:
        if isinstance(stage.spec, FitGenerator) and not stage.spec.pretrained:
            share = stage.spec.recipe.batch_images // stage.spec.compute.processes
            if images < 1 or share % images:
                raise ValueError(f"--microbatch-images {images} must divide the {share} images of {job.title}'s share")
            smaller = dataclasses.replace(stage.spec.compute, microbatch_images=images)
            stage = dataclasses.replace(stage, spec=dataclasses.replace(stage.spec, compute=smaller))
        stages.append(stage)
    return dataclasses.replace(job, stages=tuple(stages))


def _require_same_code(stages: list[Stage]) -> None:
    """ValueError if this version of the code would compute something else under the noted fingerprints."""
    for stage in stages:
        if dataclasses.replace(stage, noted="").fingerprint != stage.fingerprint:
            raise ValueError(
                f"{stage.kind} was planned by another version of this code, which computes it differently; retry with "
                "that version, or run study.sweep again"
            )


def _cancel(options: Cancel) -> int:
    active: list[tuple[str, list[str], list[int]]] = []  # name of a launch, Slurm ids, pids on this machine
    for _, plan in launched_plans(options.study):
        pids = [process["pid"] for job in plan.jobs if (process := running_process(job.name))]
        collector = read_json(job_folder(f"{slurm.COLLECTOR}-{plan.study}-{plan.ablation}") / "submission.json")
        queued = list(slurm.active_jobs(plan.jobs).values())
        active.append((plan.study, [*queued, *([collector["job_id"]] if collector and queued else [])], pids))
    for problem in launched_searches(options.study):
        name = f"{problem.setting.study}, search {problem.space}"
        active.append((name, list(worker_pool.queued(problem).values()), list(worker_pool.local(problem).values())))
    for name, queued, pids in active:
        if not queued and not pids:
            console.print(f"{escape(name)}: nothing waits or runs")
            continue
        if not options.yes and not _confirmed(f"end {len(queued) + len(pids)} jobs of {name}?"):
            return 1
        cluster.cancel_jobs(queued)
        for pid in pids:
            ask_to_end(pid)
        console.print(f"{escape(name)}: {counted(len(queued) + len(pids), 'job')} asked to save and end")
    return 0


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError("standard input is no terminal, so nobody can confirm: use --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _clean(options: Clean) -> int:
    launches = [launch for study in launched_studies() for launch in launched_plans(study)]
    launched = [*(stage for _, plan in launches for stage in plan.stages), *noted_stages()]
    folders = unreferenced(options.out, launches)
    unused = [path for folder in folders for path in _contents(folder)]
    states = [path for path in states_of_finished_trainings(launched) if path.parent not in folders]
    pictures = [path for path in judged_pictures(launched) if path.parent not in folders]
    if not folders and not states and not pictures:
        console.print("nothing to delete: everything is referred to")
        return 0
    refused = False
    for paths, what, question in (
        (unused, f"no table and no launched sweep refers to {counted(len(folders), 'stage folder')}",
         "delete their files, except the records?"),
        (states, f"finished generators can go on to a larger budget from {counted(len(states), 'state')}",
         "delete them? such generators would train anew"),
        (pictures, "samples and reconstructions that were judged take disk",
         "delete them? for another judge they would be made again"),
    ):  # fmt: skip
        if paths:
            console.print(f"{what}, {disk_size(sum(path.stat().st_size for path in paths))}")
            if options.yes or _confirmed(question):
                for path in paths:
                    path.unlink()
            else:
                refused = True
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()
    return int(refused)


def _contents(folder: Path) -> list[Path]:
    kept = {folder / ".lock", *_records(folder)}
    return [path for path in folder.rglob("*") if path.is_file() and path not in kept]


def _records(folder: Path) -> list[Path]:
    """Records in the folder of a stage: one, or those of the marks of a generator's training."""
    return sorted(folder.glob("record*.json"))


def judged_pictures(launched: Sequence[Stage]) -> list[Path]:
    """The files of samples and reconstructions that none of these stages, of sweeps and trials, is still to judge."""
    waiting = [stage for stage in launched if stage.kind == "judge" and stage.record() is None]
    wanted = {source.folder for stage in waiting for source in stage.inputs.values()}
    folders = [folder for kind in ("sample", "reconstruct") for folder in study_root().glob(f"stages/{kind}/*")]
    done = [folder for folder in folders if folder not in wanted and _records(folder) and holder(folder) is None]
    return [path for folder in done for path in picture_files(folder)]


def states_of_finished_trainings(launched: Sequence[Stage]) -> list[Path]:
    """The states of trainings of generators that are not running and have reached every mark that these stages ask."""
    unfinished = {stage.folder for stage in launched if stage.missing_marks()}
    found: list[Path] = []
    for folder in study_root().glob("stages/fit_generator/*"):
        states, marks = state_files(folder), recorded_marks(folder.name)
        reached = bool(states) and max(states) in marks
        if reached and folder not in unfinished and holder(folder) is None:
            found += states.values()
    return found


def unreferenced(out: Path | None, launches: Sequence[tuple[Sweep, Plan]]) -> list[Path]:
    """Folders of stages that are not running, that nothing refers to, and that contain more than a record.

    Args:
        out: folder whose results/ count in addition to those of launched sweeps; None is the checkout.
        launches: options and plans of all launched sweeps.
    """
    referenced = {fingerprint for note in trial_notes() for fingerprint in note["stages"]}
    tables = set((out or CHECKOUT).glob("results/*/table.csv"))
    for options, plan in launches:
        referenced |= {stage.fingerprint for stage in plan.stages}
        tables |= set(options.out.glob("results/*/table.csv"))
    for table in tables:
        rows = load(table)
        referenced |= {*rows["fingerprint"], *rows["tokenizer_fingerprint"]}
    folders = [folder for folder in study_root().glob("stages/*/*") if folder.is_dir()]
    records = {folder.name: read_json(path) or {} for folder in folders for path in _records(folder)}
    for _ in range(3):  # inputs of referenced stages, and results of referenced stages only, count as referenced too
        for name, record in records.items():
            inputs = set(record.get("inputs", {}).values())
            if name in referenced:
                referenced |= inputs
            elif inputs and inputs <= referenced and record["stage"] != "fit_generator":
                referenced.add(name)
    candidates = [folder for folder in folders if folder.name not in referenced and holder(folder) is None]
    return [folder for folder in candidates if _contents(folder)]


RUN: dict[str, Callable[[Any], int]] = {
    "status": _status, "watch": _watch, "retry": _retry, "cancel": _cancel, "clean": _clean,
}  # fmt: skip


def manage(name: str, options: Any) -> int:
    """Run the command of this name; a user error is one line on standard error and exit code 2."""
    try:
        if isinstance(options, Status):
            options = dataclasses.replace(options, study=one_study(options.study, options.named))
        return RUN[name](options)
    except (ValueError, OSError) as error:
        print(f"study.sweep {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
