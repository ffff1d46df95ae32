"""Searches that were started, noted so that any later process can set them up again."""

from __future__ import annotations

import dataclasses

from results.runs import SEARCH
from study.search.options import Search
from study.search.prepare import prepare
from study.search.problem import Problem
from study.submit.launches import _chosen, _notes, _options, _write


def note_search(options: Search, problem: Problem) -> None:
    """Note how a search was asked for."""
    options = dataclasses.replace(options, storage=problem.storage)
    _write(_notes() / problem.setting.study / f"{SEARCH}{problem.space}.json", options)


def launched_searches(study: str) -> list[tuple[Search, Problem]]:
    """The same of every search."""
    asked = [_options(Search, about) for name, about in _chosen(study).items() if name.startswith(SEARCH)]
    return [(options, prepare(options)[0]) for options in asked]
