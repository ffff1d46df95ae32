"""Notes beside the runs: what they were tried for, so that a search whose storage is lost can be rebuilt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study.files import fingerprint, read_json, write_json
from study.paths import study_root
from study.spaces import Values
from study.specs import Generate

if TYPE_CHECKING:
    from study.plan import Plan
    from study.task import Task


def note(task: Task, values: Values, plan: Plan, repeat: int = 0) -> None:
    """Write beside a run what it was tried for; nothing where that is written."""
    from study.task import parts

    fit = parts(plan)[1].fit
    path = fit.folder / f"trial-{task.name}-{fingerprint([dict(values), repeat], 12)}.json"
    if not path.exists():
        stages = [stage.fingerprint for stage in plan.stages]
        about = {"search": task.name, "values": dict(values), "repeat": repeat, "asked": time.time(), "stages": stages}
        write_json(path, about)


def notes() -> list[dict[str, Any]]:
    """All such notes, in the order of their making."""
    found = (read_json(path) for path in study_root().glob("stages/fit_generator/*/trial-*.json"))
    return sorted((about for about in found if about), key=lambda about: about["asked"])


def earlier(task: Task, there: Sequence[Values]) -> list[Any]:
    """Optuna's trials of what the run folders know, where it lies in the space and is not in the study."""
    import optuna

    from study.trials import OUTCOME, STATES

    dimensions, default = task.dimensions(), task.default()
    drawn = (values for values in there if dimensions.keys() <= values.keys())  # of others a worker was just asking
    seen = [{name: d.value(values[name]) for name, d in dimensions.items()} for values in drawn]
    found = []
    for about in notes():
        values = {**default, **about["values"]}
        if about["search"] != task.name or about["repeat"] or values in seen or set(values) != set(dimensions):
            continue
        if not all(dimension.has(values[name]) for name, dimension in dimensions.items()):
            continue
        known = _known(task, values)
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
                intermediate_values=judged if len(task.objectives) == 1 else {},
                user_attrs={OUTCOME: outcome},
                system_attrs=_rungs(task, judged),
            )
        )
    return found


def _rungs(task: Task, judged: Mapping[int, float]) -> dict[str, float]:
    """What Optuna's successive halving notes of a trial at each rung: against this it holds later trials."""
    found: dict[str, float] = {}
    if task.prunes():
        first, factor = task.rungs()
        for mark in sorted(set(judged) & set(task.marks()[:-1])):
            while mark >= first * factor ** len(found):
                found[f"completed_rung_{len(found)}"] = judged[mark]
    return found


def _known(task: Task, values: Values) -> tuple[dict[str, Any], dict[int, float]] | None:
    """How a run of these values came out, as an Outcome's fields, and its gFID at every mark that is judged; None where
    the run folders do not say."""
    from study.task import parts, scores

    run = task.run(values)
    tokenizer, generator = parts(task.plan([run]))
    records = {r.spec.images_seen: r.record() for r in generator.results if isinstance(r.spec, Generate)}
    judged = {mark: record["metrics"][task.judge]["gfid"] for mark, record in records.items() if record}
    outcome: dict[str, Any] = {"run": generator.fit.fingerprint, "seconds": None, "reason": "", "values": []}
    outcome["images_seen"] = max(judged, default=None)
    if found := scores(task, run):
        outcome["values"] = [found[task.judge][objective] for objective in task.objectives]
        return {**outcome, "state": "complete"}, judged
    failures = [failure for stage in (tokenizer.fit, generator.fit) if (failure := stage.failure())]
    if failures and (failures[0]["state"] == "diverged" or (failures[0]["state"] == "pruned" and task.prunes())):
        if judged and len(task.objectives) == 1:
            outcome["values"] = [judged[max(judged)]]
        return {**outcome, **failures[0]}, judged
    return None
