"""Notes in the run folders that record each trial with its plan: a search whose storage is lost can be rebuilt from
them, and a later process can see its stages without planning again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.runs import SEARCH
from study.core.files import fingerprint, read_json, write_json
from study.core.paths import study_root
from study.plan.plan_file import plan_content, plan_from
from study.plan.runs import Plan, Run
from study.plan.stage import Stage
from study.search.problem import Problem, planned_pair, run_scores
from study.search.spaces import Values
from study.search.trials import OUTCOME, STATES
from study.submit.launches import of_this_version


def note_trial(problem: Problem, values: Values, plan: Plan, repeat: int = 0) -> None:
    """Write the trial's values and plan into the folder of its generator, unless the note exists."""
    fit, study = planned_pair(plan)[1].fit, problem.optuna_name()
    path = fit.folder / f"trial-{problem.name}-{fingerprint([study, dict(values), repeat], 12)}.json"
    if not path.exists():
        stages = [stage.fingerprint for stage in plan.stages]
        note = {
            "search": problem.name,
            "optuna_study": study,
            "values": dict(values),
            "repeat": repeat,
            "asked": time.time(),
            "stages": stages,
            "plan": plan_content(plan),
        }
        write_json(path, note)


def _note_files() -> Iterator[Path]:
    return study_root().glob("stages/fit_generator/*/trial-*.json")


def trial_notes() -> list[dict[str, Any]]:
    """All notes of trials under $STUDY_ROOT, oldest first."""
    notes = map(read_json, _note_files())
    return sorted((note for note in notes if note), key=lambda note: note["asked"])


def noted_stages() -> list[Stage]:
    """The stages of all noted trials, each with the marks that its trial asks for.

    Raises:
        ValueError: another version of the code noted a trial.
    """
    stages: list[Stage] = []
    for path in _note_files():
        with of_this_version(path):
            stages += plan_from((read_json(path) or {})["plan"]).stages
    return stages


@dataclass(frozen=True, kw_only=True)
class LaunchedProblem(Problem):
    """The problem of a launched search: its workers have planned its runs and noted the plans.

    plans: content of the plan of each run, by the hash of the run.
    """

    plans: Mapping[str, Any]

    def plan(self, runs: Sequence[Run]) -> Plan:
        """What the workers noted of some of its runs; nothing of a run that they have not planned yet."""
        keys = [fingerprint(dataclasses.asdict(run)) for run in runs]
        with of_this_version(self.folder):
            found = [plan_from(self.plans[key]) for key in keys if key in self.plans]
        return Plan(
            f"{SEARCH}{self.space}", self.module.QUESTION, self.setting.study, self.setting.scale, self.setting.data,
            runs=tuple(planned for plan in found for planned in plan.runs),
            jobs=tuple(job for plan in found for job in plan.jobs),
        )  # fmt: skip


def planned_as_noted(problem: Problem) -> LaunchedProblem:
    """A launched search whose plans are read from the notes of its trials."""
    notes = [note for note in trial_notes() if note.get("optuna_study") == problem.optuna_name()]
    plans = {fingerprint(note["plan"]["runs"][-1]["run"]): note["plan"] for note in notes}
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(Problem)}
    return LaunchedProblem(**fields, plans=plans)


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
    numbers = {result.images_seen: result.measured(problem.judge) for result in generator.results}
    judged = {mark: measured["gfid"] for mark, measured in numbers.items() if measured}
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
