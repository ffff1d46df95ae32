"""A plan as JSON content and back: what a launch notes, so that later processes read the plan and never plan again."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from study.core.settings import rebuild
from study.plan.runs import Job, Plan, Planned, Result, Run
from study.plan.stage import SPECS, Stage


def plan_content(plan: Plan) -> dict[str, Any]:
    """The plan as JSON content: stages in a table, inputs first, to which runs, jobs and inputs refer by number.

    All stages have the plan's data set, which stands in the content once: it may have a thousand names of classes.
    """
    table: dict[str, int] = {}  # a stage as JSON text, so that equal stages are one: its number
    numbers: dict[int, int] = {}  # the same by id of the stage

    def number(stage: Stage) -> int:
        if id(stage) not in numbers:
            inputs = {name: number(source) for name, source in stage.inputs.items()}
            spec = {name: value for name, value in dataclasses.asdict(stage.spec).items() if name != "data"}
            content = {"kind": stage.kind, "spec": spec, "inputs": inputs, "fingerprint": stage.fingerprint}
            numbers[id(stage)] = table.setdefault(json.dumps(content), len(table))
        return numbers[id(stage)]

    runs = [
        {
            "run": dataclasses.asdict(one.run),
            "fit": number(one.fit),
            "results": [[*map(number, result.stages)] for result in one.results],
        }
        for one in plan.runs
    ]
    jobs = [
        {"kind": job.kind, "title": job.title, "stages": [*map(number, job.stages)], "after": job.after}
        for job in plan.jobs
    ]
    return {
        "ablation": plan.ablation,
        "question": plan.question,
        "study": plan.study,
        "scale": dataclasses.asdict(plan.scale),
        "data": dataclasses.asdict(plan.data),
        "missing": plan.missing,
        "factors": dict(plan.factors),
        "base": plan.base,
        "stages": [json.loads(text) for text in table],
        "runs": runs,
        "jobs": jobs,
    }


def plan_from(content: dict[str, Any]) -> Plan:
    """The plan of `plan_content`, with the fingerprints that it had then.

    Raises:
        KeyError, TypeError, ValueError: another version of the code wrote it, with other fields or values.
    """
    hints = typing.get_type_hints(Plan)
    fields = {name: value for name, value in content.items() if name not in ("stages", "runs", "jobs")}
    stages: list[Stage] = []
    for entry in content["stages"]:
        spec_type = SPECS[entry["kind"]]
        has_data = any(field.name == "data" for field in dataclasses.fields(spec_type))
        spec = rebuild(spec_type, {**entry["spec"], **({"data": content["data"]} if has_data else {})})
        inputs = {name: stages[number] for name, number in entry["inputs"].items()}
        stages.append(Stage(entry["kind"], spec, inputs, noted=entry["fingerprint"]))

    def of(numbers: list[int]) -> tuple[Stage, ...]:
        return tuple(stages[number] for number in numbers)

    return Plan(
        **{name: rebuild(hints[name], value) for name, value in fields.items()},
        runs=tuple(
            Planned(
                rebuild(Run, one["run"]),
                stages[one["fit"]],
                tuple(Result(stages[pictures], of(judges)) for pictures, *judges in one["results"]),
            )
            for one in content["runs"]
        ),
        jobs=tuple(Job(job["kind"], job["title"], of(job["stages"]), job["after"]) for job in content["jobs"]),
    )
