"""What a search found: its best, the winner among them, and the files that say so."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from results import searches
from study.claims.verdicts import Comparison
from study.core.lease import locked
from study.plan.runs import Run
from study.report.refresh import StudyFiles
from study.report.rows import measured_protocol, state_of
from study.search.problem import Problem, run_scores
from study.search.spaces import Values
from study.search.trials import STATES, Trials, has_result, outcome_of

BEST = 5  # that are run again
CHOOSING, SCORING = (1, 2), (3, 4, 5)  # repeats of the best: those that choose the winner, and those that score it
FEWEST = 8  # complete trials that importances can be told from

log = logging.getLogger(__name__)

Again = tuple["Values", int, bool]  # what is run again: values, repeat, scored


def best_trials(problem: Problem, trials: Trials) -> list[FrozenTrial]:
    """The best complete trials, of those that are the same run the first, the default left out: of one objective by
    its value, of two the Pareto front, evenly along it."""
    seen = [problem.run(problem.default())]
    different = []
    for trial in trials.all():
        if trial.state == TrialState.COMPLETE and (run := problem.run(trials.values(trial))) not in seen:
            seen.append(run)  # what a value changes may depend on another: without guidance its interval moves nothing
            different.append(trial)
    different.sort(key=lambda trial: trial.values)
    if len(problem.objectives) == 1:
        return different[:BEST]
    front = [trial for trial in different if not any(_dominates(other, trial) for other in different)]
    if len(front) <= BEST:
        return front
    return [front[round(i * (len(front) - 1) / (BEST - 1))] for i in range(BEST)]


def _dominates(one: FrozenTrial, other: FrozenTrial) -> bool:
    pairs = list(zip(one.values, other.values, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def choosing_runs(problem: Problem, trials: Trials) -> list[Again]:
    """The best, with the seeds that choose the winner; nothing where there is none to choose."""
    if len(problem.objectives) > 1:
        return []
    return [(trials.values(trial), repeat, False) for trial in best_trials(problem, trials) for repeat in CHOOSING]


def scoring_runs(problem: Problem, trials: Trials) -> list[Again]:
    """What is compared, with the seeds that score it: winner and default, or the front and the default."""
    compared = [trials.values(trial) for trial in best_trials(problem, trials)]
    if len(problem.objectives) == 1:
        won = winner(problem, trials)
        compared = [trials.values(won)] if won is not None else []
    return (
        [(values, repeat, True) for values in (*compared, problem.default()) for repeat in SCORING] if compared else []
    )


def repeat_runs(problem: Problem, trials: Trials) -> list[Again]:
    """All that decides, as far as it is known what that is."""
    return [*choosing_runs(problem, trials), *scoring_runs(problem, trials)]


def winner(problem: Problem, trials: Trials) -> FrozenTrial | None:
    """Of the best the one with the lowest mean on the seeds that choose, of those that did not fail on one; None while
    one is still to be run."""
    means = {}
    for trial in best_trials(problem, trials):
        values = trials.values(trial)
        found = _again(problem, values, CHOOSING, False)[problem.judge].get(problem.objectives[0], ())
        if len(found) == len(CHOOSING):
            means[trial.number] = fmean(found)
        elif not any(stage.failure() for stage in problem.plan([problem.run(values, r) for r in CHOOSING]).stages):
            return None
    if not means:
        return None
    lowest = min(means, key=lambda number: (means[number], number))
    return next(trial for trial in trials.all() if trial.number == lowest)


def decided(problem: Problem, trials: Trials) -> bool:
    """Whether nothing is left to run of what decides; a repeat that has diverged is a result."""
    asked = [problem.run(*one) for one in repeat_runs(problem, trials)]
    planned = problem.plan(asked).runs if asked else ()
    states = {state_of(one, result)[0] for one in planned for result in one.results}
    return not states & {"pending", "running", "failed"}


def failures(problem: Problem, trials: Trials) -> list[str]:
    """Why what is missing is missing: of trials that nothing has replaced, or of what decides."""
    if not trials.finished():
        told = [about["reason"] for trial in trials.all() if (about := outcome_of(trial)).get("state") == "failed"]
    else:
        asked = [problem.run(*one) for one in repeat_runs(problem, trials)]
        stages = problem.plan(asked).stages if asked else ()
        told = [failure["reason"] for stage in stages if stage.record() is None and (failure := stage.failure())]
    return list(dict.fromkeys(told))


def progress_line(problem: Problem, trials: Trials) -> str:
    """How far the search is, in words."""
    told = [trials.standing()]
    if trials.finished():
        for purpose, runs_of in (("choose", choosing_runs), ("score", scoring_runs)):
            asked = [problem.run(*one) for one in runs_of(problem, trials)]
            done = sum(bool(run_scores(problem, run)) for run in asked)
            told += [f"run again to {purpose}: {done} of {len(asked)}"] if asked else []
    return "; ".join(told)


def _again(
    problem: Problem, values: Values, repeats: Sequence[int], scored: bool
) -> dict[str, dict[str, tuple[float, ...]]]:
    """By judge and objective, what the repeats that are done came to."""
    found = [run_scores(problem, problem.run(values, repeat, scored)) for repeat in repeats]
    return {
        judge: {name: tuple(one[judge][name] for one in found if one) for name in problem.objectives if any(found)}
        for judge, _ in problem.setting.scale.judges
    }


def _verdict(problem: Problem, trials: Trials, won: FrozenTrial | None) -> tuple[bool | None, str]:
    """Whether the winner beats the default on the seeds that score, by all judges, and the numbers."""
    if won is None:
        tried = (
            "not all of the best have been run again"
            if best_trials(problem, trials)
            else "none but the default is complete"
        )
        return None, tried
    (objective,) = problem.objectives
    ours = _again(problem, trials.values(won), SCORING, True)
    default = _again(problem, problem.default(), SCORING, True)
    compared = [
        Comparison(place="", judge=judge, low=ours[judge].get(objective, ()), high=default[judge].get(objective, ()))
        for judge, _ in problem.setting.scale.judges
    ]
    if not all(one.repeats == len(SCORING) for one in compared):
        return None, "not all of winner and default has a score"
    verdicts = {one.verdict() for one in compared}
    beats = True if verdicts == {"holds"} else False if verdicts == {"fails"} else None
    numbers = "; ".join(f"{one} by {one.judge}" for one in compared)
    return beats, f"{searches.printed(objective)} of winner against default on {len(SCORING)} held-out seeds: {numbers}"


def search_of(problem: Problem, trials: Trials) -> searches.Search:
    """The search as it stands, for results/searches.py."""
    dimensions = problem.dimensions()
    single = len(problem.objectives) == 1
    won = winner(problem, trials) if single else None
    beats, reason = _verdict(problem, trials, won) if single else (None, "two objectives have no winner: see the front")
    candidates = tuple(
        searches.Candidate(
            trial=trial.number,
            params=trials.values(trial),
            chosen_on=dict(zip(problem.objectives, trial.values, strict=True)),
            again=_again(problem, trials.values(trial), CHOOSING, False)[problem.judge] if single else {},
            scores=_again(problem, trials.values(trial), SCORING, True)[problem.judge],
        )
        for trial in best_trials(problem, trials)
    )
    return searches.Search(
        space=problem.space,
        question=problem.module.QUESTION,
        study=problem.setting.study,
        scale=problem.setting.scale.name,
        objectives=problem.objectives,
        budget=trials.total,
        parameters={name: dimension.declared() for name, dimension in dimensions.items()},
        trials=tuple(_trial(problem, trials, trial) for trial in trials.asked()),
        importances=_importances(problem, trials),
        default=searches.Default(
            params=problem.default(), scores=_again(problem, problem.default(), SCORING, True)[problem.judge]
        ),
        candidates=candidates,
        winner=None if won is None else won.number,
        beats_default=beats,
        reason=reason,
        protocol=_protocol(problem, trials),
    )


def _trial(problem: Problem, trials: Trials, trial: FrozenTrial) -> searches.Trial:
    about = outcome_of(trial)
    states: dict[TrialState, searches.State] = {
        TrialState.COMPLETE: "complete", TrialState.PRUNED: about.get("state", "pruned"), TrialState.FAIL: "failed",
    }  # fmt: skip
    return searches.Trial(
        trial=trial.number,
        state=states.get(trial.state, "running"),
        run=about.get("run", ""),
        seconds=about.get("seconds"),
        images_seen=about.get("images_seen"),
        values=dict(zip(problem.objectives, trial.values or (), strict=False)),
        params=trials.values(trial),
    )


def _importances(problem: Problem, trials: Trials) -> dict[str, dict[str, float]]:
    """Share of each parameter in what the complete trials differ by, per objective; empty where that cannot be told."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions = {name: dimension.distribution() for name, dimension in problem.dimensions().items()}
    complete = [trial for trial in trials.all() if trial.state == TrialState.COMPLETE]
    if len(complete) < FEWEST:
        return {}
    tried = optuna.create_study(directions=["minimize"] * len(problem.objectives))  # of values as they were tried
    for trial in complete:
        params = trials.values(trial)
        tried.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=trial.values))
    found = {}
    for index, objective in enumerate(problem.objectives):
        if len({trial.values[index] for trial in complete}) > 1:
            shares = get_param_importances(
                tried,
                evaluator=FanovaImportanceEvaluator(seed=0),
                target=functools.partial(_value, index=index),
            )
            found[objective] = {name: round(float(share), 6) for name, share in shares.items()}
    return found


def _value(trial: FrozenTrial, index: int) -> float:
    return trial.values[index]


def _protocol(problem: Problem, trials: Trials) -> dict[str, dict[str, Any]]:
    """How each objective was measured, as far as that was the same in all complete trials."""
    results: dict[str, list[dict[str, Any]]] = {objective: [] for objective in problem.objectives}
    for trial in trials.all():
        if trial.state != TrialState.COMPLETE:
            continue
        tokenizer, generator = problem.plan([problem.run(trials.values(trial))]).runs
        for objective in problem.objectives:
            planned = generator if objective == "gfid" else tokenizer
            if planned.results[-1].record() is None:
                continue  # deleted since
            row = measured_protocol(planned.results[-1], problem.judge)
            if objective == "gfid":
                row |= {"generator": generator.run.generator, "images_seen": generator.results[-1].spec.images_seen}  # type: ignore[union-attr]
            results[objective].append(row)
    return {
        objective: {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
        for objective, rows in results.items()
        if rows
    }


def runs(problem: Problem, trials: Trials) -> Iterator[Run]:
    """Every run of the search, the repeats included."""
    for trial in trials.asked():
        yield problem.run(trials.values(trial))
    for one in repeat_runs(problem, trials):
        yield problem.run(*one)


def conclude(problem: Problem, trials: Trials) -> searches.Search:
    """Write the search's files and its rows into the study's table, and draw.

    The files of a search that has got further, say under another $STUDY_ROOT, are left until this one is finished.
    """
    with locked(problem.folder / "results"):
        search = search_of(problem, trials)
        folder = problem.out / "results" / problem.setting.study
        if trials.finished() or _results(folder, problem.space) <= sum(map(has_result, trials.all())):
            searches.write(search, folder)
        else:
            log.warning("%s has a search that got further: it stays", folder / "search" / f"{problem.space}.csv")
        collector = StudyFiles(problem.plan(list(runs(problem, trials))), problem.out)
        collector.update()
        for name, reason in collector.skipped.items():
            if name.endswith(f"-{problem.space}"):
                log.warning("no figure %s: %s", name, reason)
    return search


def _results(folder: Path, space: str) -> int:
    """How many trials of a search that is written have a result."""
    with contextlib.suppress(searches.SearchError):
        return sum(trial.state in STATES for trial in searches.load(folder, space).trials)
    return 0
