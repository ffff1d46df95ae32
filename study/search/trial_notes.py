"""Notes beside the runs: what they were tried for, so that a search whose storage is lost can be rebuilt."""

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
    """Write beside a run what it was tried for; nothing where that is written."""
    fit = planned_pair(plan)[1].fit
    path = fit.folder / f"trial-{problem.name}-{fingerprint([dict(values), repeat], 12)}.json"
    if not path.exists():
        stages = [stage.fingerprint for stage in plan.stages]
        about = {
            "search": problem.name,
            "values": dict(values),
            "repeat": repeat,
            "asked": time.time(),
            "stages": stages,
        }
        write_json(path, about)


def trial_notes() -> list[dict[str, Any]]:
    """All such notes, in the order of their making."""
    found = (read_json(path) for path in study_root().glob("stages/fit_generator/*/trial-*.json"))
    return sorted((about for about in found if about), key=lambda about: about["asked"])


def earlier_trials(problem: Problem, there: Sequence[Values]) -> list[Any]:
    """Optuna's trials of what the run folders know, where it lies in the space and is not in the study."""
    import optuna

    dimensions, default = problem.dimensions(), problem.default()
    drawn = (values for values in there if dimensions.keys() <= values.keys())  # of others a worker was just asking
    seen = [{name: d.value(values[name]) for name, d in dimensions.items()} for values in drawn]
    found = []
    for about in trial_notes():
        values = {**default, **about["values"]}
        if about["search"] != problem.name or about["repeat"] or values in seen or set(values) != set(dimensions):
            continue
        if not all(dimension.has(values[name]) for name, dimension in dimensions.items()):
            continue
        known = _known(problem, values)
        if known is None:
            continue
        seen.append(values)
        outcome, judged = known
        found.append(
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
    return found


def _rungs(problem: Problem, judged: Mapping[int, float]) -> dict[str, float]:
    """What Optuna's successive halving notes of a trial at each rung: against this it holds later trials."""
    found: dict[str, float] = {}
    if problem.prunes():
        first, factor = problem.rungs()
        for mark in sorted(set(judged) & set(problem.marks()[:-1])):
            while mark >= first * factor ** len(found):
                found[f"completed_rung_{len(found)}"] = judged[mark]
    return found


def _known(problem: Problem, values: Values) -> tuple[dict[str, Any], dict[int, float]] | None:
    """How a run of these values came out, as an Outcome's fields, and its gFID at every mark that is judged; None where
    the run folders do not say."""
    run = problem.run(values)
    tokenizer, generator = planned_pair(problem.plan([run]))
    records = {r.spec.images_seen: r.record() for r in generator.results if isinstance(r.spec, Generate)}
    judged = {mark: record["metrics"][problem.judge]["gfid"] for mark, record in records.items() if record}
    outcome: dict[str, Any] = {"run": generator.fit.fingerprint, "seconds": None, "reason": "", "values": []}
    outcome["images_seen"] = max(judged, default=None)
    if found := run_scores(problem, run):
        outcome["values"] = [found[problem.judge][objective] for objective in problem.objectives]
        return {**outcome, "state": "complete"}, judged
    failures = [failure for stage in (tokenizer.fit, generator.fit) if (failure := stage.failure())]
    if failures and (failures[0]["state"] == "diverged" or (failures[0]["state"] == "pruned" and problem.prunes())):
        if judged and len(problem.objectives) == 1:
            outcome["values"] = [judged[max(judged)]]
        return {**outcome, **failures[0]}, judged
    return None
