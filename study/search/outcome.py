"""The outcome of a whole search: its best trials, the winner among them, and the files that record them.

The outcome of a single trial is `Outcome` of study/search/trials.py.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from results import searches
from results.pareto import front
from results.verdicts import at_places, pooled
from study.claims.verdicts import Comparison
from study.core.lease import locked
from study.plan.runs import Run
from study.report.refresh import StudyFiles
from study.report.table_rows import measured_protocol, state_of
from study.search.problem import Problem, run_scores
from study.search.spaces import Values
from study.search.trials import STATES, Trials, has_result, outcome_of

BEST = 5  # trials that are repeated with other seeds
CHOOSING, SCORING = (1, 2), (3, 4, 5)  # repeats that choose the winner among the best, and repeats that score it
FEWEST = 8  # complete trials that parameter importances need

log = logging.getLogger(__name__)

Repeat = tuple["Values", int, bool]  # arguments of Problem.run: values, repeat, scored


def best_trials(problem: Problem, trials: Trials) -> list[FrozenTrial]:
    """The best complete trials other than the default; of trials that give the same run only the first.

    With one objective these are the lowest values; with two, trials spread evenly along the Pareto front.
    """
    seen = [problem.run(problem.default())]
    different = []
    for trial in trials.all():
        if trial.state == TrialState.COMPLETE and (run := problem.run(trials.values(trial))) not in seen:
            seen.append(run)  # different values can give one run: without guidance, its interval has no effect
            different.append(trial)
    different.sort(key=lambda trial: trial.values)
    if len(problem.objectives) == 1:
        return different[:BEST]
    best = front(different, lambda trial: trial.values)
    if len(best) <= BEST:
        return best
    return [best[round(i * (len(best) - 1) / (BEST - 1))] for i in range(BEST)]


def choosing_runs(problem: Problem, trials: Trials) -> list[Repeat]:
    """Repeats of the best trials that choose the winner; empty with two objectives, which have no winner."""
    if len(problem.objectives) > 1:
        return []
    return [(trials.values(trial), repeat, False) for trial in best_trials(problem, trials) for repeat in CHOOSING]


def scoring_runs(problem: Problem, trials: Trials) -> list[Repeat]:
    """Repeats that give scores: of the winner and the default, or of the Pareto front and the default."""
    compared = [trials.values(trial) for trial in best_trials(problem, trials)]
    if len(problem.objectives) == 1:
        won = winner(problem, trials)
        compared = [trials.values(won)] if won is not None else []
    return (
        [(values, repeat, True) for values in (*compared, problem.default()) for repeat in SCORING] if compared else []
    )


def repeat_runs(problem: Problem, trials: Trials) -> list[Repeat]:
    """All repeats that are known so far: scoring repeats are known once there is a winner."""
    return [*choosing_runs(problem, trials), *scoring_runs(problem, trials)]


def winner(problem: Problem, trials: Trials) -> FrozenTrial | None:
    """The best trial with the lowest mean over the CHOOSING repeats; trials that failed in one of them are out.

    None while one of these repeats is still to be run.
    """
    means = {}
    for trial in best_trials(problem, trials):
        values = trials.values(trial)
        scores = _repeat_scores(problem, values, CHOOSING, False)[problem.judge].get(problem.objectives[0], ())
        if len(scores) == len(CHOOSING):
            means[trial.number] = fmean(scores)
        elif not any(stage.failure() for stage in problem.plan([problem.run(values, r) for r in CHOOSING]).stages):
            return None
    if not means:
        return None
    lowest = min(means, key=lambda number: (means[number], number))
    return next(trial for trial in trials.all() if trial.number == lowest)


def repeats_finished(problem: Problem, trials: Trials) -> bool:
    """Whether no repeat is left to run; a diverged repeat counts as finished."""
    runs = [problem.run(*repeat) for repeat in repeat_runs(problem, trials)]
    planned_runs = problem.plan(runs).runs if runs else ()
    states = {
        state_of(planned, judge)[0] for planned in planned_runs for result in planned.results for judge in result.judges
    }
    return not states & {"pending", "running", "failed"}


def failures(problem: Problem, trials: Trials) -> list[str]:
    """Why results are missing: the reasons of failed trials, or once all trials are done, of failed repeats."""
    if not trials.finished():
        outcomes = map(outcome_of, trials.all())
        reasons = [outcome["reason"] for outcome in outcomes if outcome.get("state") == "failed"]
    else:
        runs = [problem.run(*repeat) for repeat in repeat_runs(problem, trials)]
        stages = problem.plan(runs).stages if runs else ()
        reasons = [failure["reason"] for stage in stages if stage.record() is None and (failure := stage.failure())]
    return list(dict.fromkeys(reasons))


def progress_line(problem: Problem, trials: Trials) -> str:
    """The progress of the search as one line of text."""
    parts = [trials.summary()]
    if trials.finished():
        for purpose, repeats_of in (("choosing", choosing_runs), ("scoring", scoring_runs)):
            runs = [problem.run(*repeat) for repeat in repeats_of(problem, trials)]
            done = sum(bool(run_scores(problem, run)) for run in runs)
            parts += [f"{purpose} repeats: {done} of {len(runs)}"] if runs else []
    return "; ".join(parts)


def _repeat_scores(
    problem: Problem, values: Values, repeats: Sequence[int], scored: bool
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Scores of the finished repeats, by judge and objective."""
    scores = [run_scores(problem, problem.run(values, repeat, scored)) for repeat in repeats]
    return {
        judge: {name: tuple(s[judge][name] for s in scores if s) for name in problem.objectives if any(scores)}
        for judge, _ in problem.setting.scale.judges
    }


def _verdict(problem: Problem, trials: Trials, won: FrozenTrial | None) -> tuple[bool | None, str]:
    """Whether the winner beats the default on the SCORING repeats by all judges, and the numbers as text.

    The spread is over these and the CHOOSING repeats of the best trials.
    """
    if won is None:
        reason = (
            "not all of the best have been run again"
            if best_trials(problem, trials)
            else "none but the default is complete"
        )
        return None, reason
    (objective,) = problem.objectives
    ours = _repeat_scores(problem, trials.values(won), SCORING, True)
    default = _repeat_scores(problem, problem.default(), SCORING, True)
    repeats = [_repeat_scores(problem, trials.values(trial), CHOOSING, False) for trial in best_trials(problem, trials)]
    comparisons = []
    for judge, _ in problem.setting.scale.judges:
        low, high, *others = (scores[judge].get(objective, ()) for scores in (ours, default, *repeats))
        spread = pooled(np.log(values) for values in (low, high, *others) if values)
        comparisons.append(Comparison(place="", judge=judge, low=low, high=high, spread=spread))
    if not all(comparison.repeats == len(SCORING) for comparison in comparisons):
        return None, "not all of winner and default has a score"
    (verdict,) = at_places([[comparison.decision for comparison in comparisons]])
    beats = {"holds": True, "fails": False}.get(verdict)
    numbers = "; ".join(f"{comparison} by {comparison.judge}" for comparison in comparisons)
    return beats, f"{searches.printed(objective)} of winner against default on {len(SCORING)} held-out seeds: {numbers}"


def search_of(problem: Problem, trials: Trials) -> searches.Search:
    """The current state of the search, in the form of results/searches.py."""
    dimensions = problem.dimensions()
    single = len(problem.objectives) == 1
    won = winner(problem, trials) if single else None
    beats, reason = _verdict(problem, trials, won) if single else (None, "two objectives have no winner: see the front")
    candidates = tuple(
        searches.Candidate(
            trial=trial.number,
            params=trials.values(trial),
            chosen_on=dict(zip(problem.objectives, trial.values, strict=True)),
            again=_repeat_scores(problem, trials.values(trial), CHOOSING, False)[problem.judge] if single else {},
            scores=_repeat_scores(problem, trials.values(trial), SCORING, True)[problem.judge],
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
        parameters={name: dimension.as_parameter() for name, dimension in dimensions.items()},
        trials=tuple(_trial(problem, trials, trial) for trial in trials.with_values()),
        importances=_importances(problem, trials),
        default=searches.Default(
            params=problem.default(), scores=_repeat_scores(problem, problem.default(), SCORING, True)[problem.judge]
        ),
        candidates=candidates,
        winner=None if won is None else won.number,
        beats_default=beats,
        reason=reason,
        protocol=_protocol(problem, trials),
    )


def _trial(problem: Problem, trials: Trials, trial: FrozenTrial) -> searches.Trial:
    outcome = outcome_of(trial)
    states: dict[TrialState, searches.State] = {
        TrialState.COMPLETE: "complete", TrialState.PRUNED: outcome.get("state", "pruned"), TrialState.FAIL: "failed",
    }  # fmt: skip
    return searches.Trial(
        trial=trial.number,
        state=states.get(trial.state, "running"),
        run=outcome.get("run", ""),
        seconds=outcome.get("seconds"),
        images_seen=outcome.get("images_seen"),
        values=dict(zip(problem.objectives, trial.values or (), strict=False)),
        params=trials.values(trial),
    )


def _importances(problem: Problem, trials: Trials) -> dict[str, dict[str, float]]:
    """fANOVA importance of each parameter, per objective; none with fewer than FEWEST complete trials."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions = {name: dimension.distribution() for name, dimension in problem.dimensions().items()}
    complete = [trial for trial in trials.all() if trial.state == TrialState.COMPLETE]
    if len(complete) < FEWEST:
        return {}
    study = optuna.create_study(directions=["minimize"] * len(problem.objectives))  # with the rounded values
    for trial in complete:
        params = trials.values(trial)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=trial.values))
    importances = {}
    for index, objective in enumerate(problem.objectives):
        if len({trial.values[index] for trial in complete}) > 1:
            shares = get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(seed=0),
                target=functools.partial(_value, index=index),
            )
            importances[objective] = {name: round(float(share), 6) for name, share in shares.items()}
    return importances


def _value(trial: FrozenTrial, index: int) -> float:
    return trial.values[index]


def _protocol(problem: Problem, trials: Trials) -> dict[str, dict[str, Any]]:
    """How each objective was measured: the protocol columns that are equal in all complete trials."""
    protocols: dict[str, list[dict[str, Any]]] = {objective: [] for objective in problem.objectives}
    for trial in trials.all():
        if trial.state != TrialState.COMPLETE:
            continue
        tokenizer, generator = problem.plan([problem.run(trials.values(trial))]).runs
        for objective in problem.objectives:
            planned = generator if objective == "gfid" else tokenizer
            if planned.results[-1].measured(problem.judge) is None:
                continue  # its record was deleted
            row = measured_protocol(planned.results[-1], problem.judge)
            if objective == "gfid":
                row |= {"generator": generator.run.generator, "images_seen": generator.results[-1].images_seen}
            protocols[objective].append(row)
    return {
        objective: {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
        for objective, rows in protocols.items()
        if rows
    }


def all_runs(problem: Problem, trials: Trials) -> Iterator[Run]:
    """Every run of the search, the repeats included."""
    for trial in trials.with_values():
        yield problem.run(trials.values(trial))
    for repeat in repeat_runs(problem, trials):
        yield problem.run(*repeat)


def write_outcome(problem: Problem, trials: Trials) -> searches.Search:
    """Write the search's files, add its rows to the study's table, and draw its figures.

    If the existing files have more results, from another $STUDY_ROOT for instance, they stay until this search is done.
    """
    with locked(problem.folder / "results"):
        search = search_of(problem, trials)
        folder = problem.out / "results" / problem.setting.study
        if trials.finished() or _written_results(folder, problem.space) <= sum(map(has_result, trials.all())):
            searches.write(search, folder)
        else:
            path = folder / "search" / f"{problem.space}.csv"
            log.warning("%s holds a search with more results and is not replaced yet", path)
        files = StudyFiles(problem.plan(list(all_runs(problem, trials))), problem.out)
        files.update()
        for name, reason in files.skipped.items():
            if name.endswith(f"-{problem.space}"):
                log.warning("no figure %s: %s", name, reason)
    return search


def _written_results(folder: Path, space: str) -> int:
    """How many trials with a result the search's files hold."""
    with contextlib.suppress(searches.SearchError):
        return sum(trial.state in STATES for trial in searches.load(folder, space).trials)
    return 0
