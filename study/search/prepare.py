"""From the options of a search to its problem: every user error is found before a worker starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from study.core.compute import parallel_jobs
from study.plan.memory import largest_gib
from study.plan.needs import missing_here
from study.plan.runs import Plan
from study.plan.weight_files import keep_hashes
from study.search.options import TRIALS, Search
from study.search.problem import Problem
from study.search.spaces import space
from study.submit.options import Sweep
from study.submit.prepare import prepare_setting

SLURM_WORKERS = 4


def prepare(options: Search) -> tuple[Problem, list[str]]:
    """The problem that the options describe, and what is missing on this machine, a line each.

    A dry run writes nothing.

    Raises:
        ValueError: an option is invalid; the message is one line.
    """
    space(options.space)
    if options.trials is not None and options.trials < 1:
        raise ValueError(f"--trials must be at least 1, got {options.trials}")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if options.executor == "inline" and options.workers not in (None, 1):
        raise ValueError("--executor inline is one worker: leave --workers out")
    shared = {f.name for f in dataclasses.fields(Sweep)} & {f.name for f in dataclasses.fields(Search)}
    setting = prepare_setting(Sweep(**{name: getattr(options, name) for name in shared}))
    problem = Problem(
        space=options.space,
        setting=setting,
        budget=options.trials or TRIALS,
        seed=options.seed,
        storage=_absolute_storage(options.storage),
        workers=1,
        out=options.out.absolute(),
    )
    plan = problem.plan(problem.extremes())
    problem = dataclasses.replace(problem, workers=worker_count(options, plan))
    if not options.dry_run:
        keep_hashes()
    return problem, [*setting.missing, *missing_here(plan.stages)]


def _absolute_storage(storage: str) -> str:
    """The storage with an absolute path, so that processes in other working directories find it too."""
    scheme = "sqlite:///" if storage.startswith("sqlite:///") else ""
    if not storage or ("://" in storage and not scheme):
        return storage
    return scheme + str(Path(storage.removeprefix(scheme)).expanduser().absolute())


def worker_count(options: Search, plan: Plan) -> int:
    """How many workers the search has, by a plan of its largest and smallest trials."""
    if options.workers is not None or options.executor == "inline" or options.storage.startswith("sqlite"):
        return options.workers or 1
    if options.executor == "slurm":
        return SLURM_WORKERS
    return parallel_jobs(plan.compute, plan.scale.execution.processes, largest_gib(plan.stages))
