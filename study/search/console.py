"""What a search prints on the terminal: its space before it begins, and its result."""

from __future__ import annotations

import contextlib
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Table

from results.numbers import counted, duration
from results.searches import Search, SearchError, load, printed
from study.plan.estimate import device_of, estimated_seconds
from study.report.console import console, relative_path
from study.search.journal import JOURNAL
from study.search.outcome import BEST, CHOOSING, SCORING
from study.search.problem import Problem
from study.search.spaces import Number
from study.search.trials import Trials, has_result


def print_space(problem: Problem, trials: Trials | None) -> None:
    """Print the parameters of a search, its progress, and an estimate of the remaining time.

    Args:
        trials: None if there are none yet.
    """
    setting = problem.setting
    console.print(f"[bold]{problem.space}[/bold] at scale [bold]{setting.scale.name}[/bold]: {problem.module.QUESTION}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("parameter", "from", "to", "", "default"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for dimension in problem.dimensions().values():
        if isinstance(dimension, Number):
            ends = [f"{dimension.low:g}", f"{dimension.high:g}", "log" if dimension.log else ""]
            table.add_row(dimension.label, *ends, f"{dimension.default:g}")
        else:
            table.add_row(
                dimension.label, escape(", ".join(map(str, dimension.choices))), "", "", str(dimension.default)
            )
    console.print(table)
    console.print(trials.summary() if trials else f"0 of {problem.budget} trials: none yet", markup=False)
    plan = problem.plan([problem.run(problem.default())])
    common, device = _shared(problem), device_of(problem.compute)
    shared = [stage for stage in plan.stages if stage.record() is None and stage.fingerprint in common]
    per_trial = estimated_seconds((stage for stage in plan.stages if stage.fingerprint not in common), device)
    left = max(0, problem.budget - (sum(map(has_result, trials.all())) if trials else 0))
    total = estimated_seconds(shared, device) + per_trial * left / problem.workers
    pruned = ", less what is pruned" if problem.prunes() else ""
    repeats = BEST * len(CHOOSING) + 2 * len(SCORING) if len(problem.objectives) == 1 else (BEST + 1) * len(SCORING)
    console.print(
        f"a trial takes about {duration(per_trial)}; {counted(left, 'trial')} left, "
        f"{counted(problem.workers, 'worker')}: about {duration(total)}{pruned}, and at most "
        f"{duration(per_trial * repeats / problem.workers)} to repeat the best trials"
    )
    if not problem.storage:
        console.print(f"trials are kept in {relative_path(problem.folder / JOURNAL)}", markup=False)


def _shared(problem: Problem) -> set[str]:
    """Fingerprints of the stages that all trials have in common, whatever their values."""
    default = problem.default()
    fingerprints = []
    for name, dimension in problem.dimensions().items():
        value = next(v for v in (*getattr(dimension, "choices", ()), *_ends(dimension)) if v != default[name])
        plan = problem.plan([problem.run({**default, name: value})])
        fingerprints.append({stage.fingerprint for stage in plan.stages})
    return set.intersection(*fingerprints)


def _ends(dimension: Any) -> tuple[Any, ...]:
    return (dimension.low, dimension.high) if hasattr(dimension, "low") else ()


def print_findings(search: Search, folder: Path) -> None:
    """Print the best trials of a search, and whether the winner beats the default."""
    console.print(f"[bold]{search.space}[/bold]: {search.question}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("default", justify="right")
    for candidate in search.candidates:
        table.add_column(
            ("winner " if candidate.trial == search.winner else "") + str(candidate.trial), justify="right"
        )
    values = {trial.trial: trial.values for trial in search.trials}
    of_default = next((trial.values for trial in search.trials if trial.params == search.default.params), {})
    for name in search.objectives:
        scores = [of_default.get(name), *(values[candidate.trial][name] for candidate in search.candidates)]
        table.add_row(printed(name), *map(_score, scores))
        means = [fmean(candidate.again[name]) if candidate.again.get(name) else None for candidate in search.candidates]
        if any(means):
            table.add_row(f"{printed(name)}, mean of new seeds", "", *map(_score, means))
    for name, parameter in search.parameters.items():
        settings = [search.default.params.get(name), *(candidate.params.get(name) for candidate in search.candidates)]
        table.add_row(parameter.label, *(f"{v:g}" if isinstance(v, float) else str(v) for v in settings))
    console.print(table)
    if search.reason:
        verdicts = {True: "the winner beats the default", False: "the default beats the winner", None: "undecided"}
        if search.default.scores and search.winner is not None:
            verdicts[None] = "undecided, where intervals or judges do not agree"
        verdict = f"{verdicts[search.beats_default]}: " if len(search.objectives) == 1 else ""
        console.print(verdict + search.reason, markup=False)
    with contextlib.suppress(SearchError):
        if load(folder, search.space) == search:  # otherwise the files hold another search that got further
            console.print(f"written  {relative_path(folder / 'search')}/ ({search.space}.csv and .json)", markup=False)
    figures = folder.parents[1] / "figures" / search.study
    if (figures / f"search-{search.space}.png").exists():
        report = relative_path(folder / "report.html")
        console.print(f"figures  {relative_path(figures)}/ (search-{search.space}; in {report} too)", markup=False)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
