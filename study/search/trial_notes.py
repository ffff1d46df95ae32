"""Notes in the run folders that record each trial, so that a search whose storage is lost can be rebuilt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from study.core.files import fingerprint, read_json, write_json
from study.core.paths import study_root
from study.plan.runs import Plan
from study.plan.specs import Generate
from study.search.problem import Problem, planned_pair, run_scores
from study.search.spaces import Values
from study.search.trials import OUTCOME, STATES


def note_trial(problem: Problem, values: Values, plan: Plan, repeat: int = 0) -> None:
    """Write the trial's values into the folder of its generator, unless the note exists."""
    fit = planned_pair(plan)[1].fit
    path = fit.folder / f"trial-{problem.name}-{fingerprint([dict(values), repeat], 12)}.json"
    if not path.exists():
        stages = [stage.fingerprint for stage in plan.stages]
        note = {
            "search": problem.name,
            "values": dict(values),
            "repeat": repeat,
            "asked": time.time(),
            "stages": stages,
        }
        write_json(path, note)


def trial_notes() -> list[dict[str, Any]]:
    """All notes of trials under $STUDY_ROOT, oldest first."""
    notes = (read_json(path) for path in study_root().glob("stages/fit_generator/*/trial-*.json"))
    return sorted((note for note in notes if note), key=lambda note: note["asked"])


def earlier_trials(problem: Problem, params: Sequence[Values]) -> list[Any]:
    """Optuna trials for the results in the run folders that lie in the space and are not in the Optuna study yet.

    Args:
        params: parameters of the trials that the Optuna study has.
    """
    import optuna

    dimensions, default = problem.dimensions(), problem.default()
    complete = (values for values in params if dimensions.keys() <= values.keys())  # others are just being drawn
    seen = [{name: d.value(values[name]) for name, d in dimensions.items()} for values in complete]
    earlier = []
    for note in trial_notes():
        values = {**default, **note["values"]}
        if note["search"] != problem.name or note["repeat"] or values in seen or set(values) != set(dimensions):
            continue
        if not all(dimension.contains(values[name]) for name, dimension in dimensions.items()):
            continue
        result = _recorded_outcome(problem, values)
        if result is None:
            continue
        seen.append(values)
        outcome, judged = result
        earlier.append(
            optuna.trial.create_trial(
                state=STATES[outcome["state"]],
                values=outcome.pop("values") or None,
                params=values,
                distributions={name: dimension.distribution() for name, dimension in dimensions.items()},
                intermediate_values=judged if len(problem.objectives) == 1 else {},
                user_attrs={OUTCOME: outcome},
                system_attrs=_rungs(problem, judged),
            )
        )
    return earlier


def _rungs(problem: Problem, judged: Mapping[int, float]) -> dict[str, float]:
    """The attributes in which Optuna's successive halving keeps a trial's value at each rung, to prune later trials."""
    attributes: dict[str, float] = {}
    if problem.prunes():
        first, factor = problem.rungs()
        for mark in sorted(set(judged) & set(problem.marks()[:-1])):
            while mark >= first * factor ** len(attributes):
                attributes[f"completed_rung_{len(attributes)}"] = judged[mark]
    return attributes


def _recorded_outcome(problem: Problem, values: Values) -> tuple[dict[str, Any], dict[int, float]] | None:
    """The outcome of a run with these values as the fields of Outcome, and its gFID at every judged mark.

    None where the run folders hold no outcome.
    """
    run = problem.run(values)
    tokenizer, generator = planned_pair(problem.plan([run]))
    records = {r.spec.images_seen: r.record() for r in generator.results if isinstance(r.spec, Generate)}
    judged = {mark: record["metrics"][problem.judge]["gfid"] for mark, record in records.items() if record}
    outcome: dict[str, Any] = {"run": generator.fit.fingerprint, "seconds": None, "reason": "", "values": []}
    outcome["images_seen"] = max(judged, default=None)
    if scores := run_scores(problem, run):
        outcome["values"] = [scores[problem.judge][objective] for objective in problem.objectives]
        return {**outcome, "state": "complete"}, judged
    failures = [failure for stage in (tokenizer.fit, generator.fit) if (failure := stage.failure())]
    if failures and (failures[0]["state"] == "diverged" or (failures[0]["state"] == "pruned" and problem.prunes())):
        if judged and len(problem.objectives) == 1:
            outcome["values"] = [judged[max(judged)]]
        return {**outcome, **failures[0]}, judged
    return None
