"""Launches of searches: a search that is started notes its problem, from which a later process knows it."""

from __future__ import annotations

import dataclasses

from results.runs import SEARCH
from study.core.files import read_json
from study.core.settings import rebuild
from study.search.problem import Problem
from study.submit.launches import launches_of, of_this_version, write_launch


def note_search(problem: Problem) -> None:
    """Save the problem of a search that is started."""
    noted = dataclasses.replace(problem, noted_name=problem.optuna_name())
    content = {**dataclasses.asdict(noted), "out": str(problem.out)}
    write_launch(problem.setting.study, f"{SEARCH}{problem.space}", {"problem": content})


def launched_searches(study: str) -> list[Problem]:
    """The problem of every search that was started for a study; '' is the study that was started last.

    Raises:
        ValueError: no study of that name was started under this STUDY_ROOT, or another version of the code did it.
    """
    problems = []
    for path in launches_of(study):
        if path.name.startswith(SEARCH):
            with of_this_version(path):
                problems.append(rebuild(Problem, (read_json(path) or {})["problem"]))
    return problems
