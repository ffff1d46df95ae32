"""Launches of searches: their options are saved, so that any later process can set the same search up again."""

from __future__ import annotations

import dataclasses

from results.runs import SEARCH
from study.search.options import Search
from study.search.prepare import prepare
from study.search.problem import Problem
from study.submit.launches import launches_folder, launches_of, read_options, write_launch


def note_search(options: Search, problem: Problem) -> None:
    """Save the options of a search that is started."""
    options = dataclasses.replace(options, storage=problem.storage)
    write_launch(launches_folder() / problem.setting.study / f"{SEARCH}{problem.space}.json", options)


def launched_searches(study: str) -> list[tuple[Search, Problem]]:
    """Options and problem of every search that was started for a study; '' is the study that was started last.

    Raises:
        ValueError: no study of that name was started under this STUDY_ROOT.
    """
    notes = [note for name, note in launches_of(study).items() if name.startswith(SEARCH)]
    all_options = [read_options(Search, note) for note in notes]
    return [(options, prepare(options)[0]) for options in all_options]
