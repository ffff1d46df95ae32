"""How a training goes on: from which of the states in its folder, and over how many images.

study/train/loop.py trains accordingly; this is for the plan, which reads no state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from study.core.files import read_json
from study.core.paths import stage_folder
from study.core.settings import identity, rebuild
from study.plan.specs import FitTokenizer
from study.plan.stage import RECORD, Stage, state_files


def stretches(stage: Stage) -> list[tuple[int, int]]:
    """The images over which a generator's training still has to go, each from one number of images seen to another.

    A mark is trained from the last state at or before it, else from 0. Empty when every mark has its record.
    """
    states = state_files(stage.folder) if stage.has_folder() else {}
    found: list[tuple[int, int]] = []
    reached = 0
    for mark in stage.missing_marks():
        start = max([reached, *(position for position in states if position <= mark)])
        found.append((start, mark))
        reached = mark
    return found


def goes_on_from(stage: Stage) -> int:
    """The images seen from which a training goes on; 0 where it starts anew or has nothing to do."""
    if isinstance(stage.spec, FitTokenizer):
        return 0 if stage.record() else max(state_files(stage.folder), default=0)
    return next((start for start, _ in stretches(stage)), 0)


def images_left(stage: Stage) -> int:
    """Images that a generator's training still sees."""
    return sum(end - start for start, end in stretches(stage))


def trained_for_other_budgets(stages: Iterable[Stage]) -> list[int]:
    """The budgets, in images, for which tokenizers were trained that differ from one of these stages in that alone."""
    wanted = {_apart_from_budget(stage.spec) for stage in stages if isinstance(stage.spec, FitTokenizer)}
    budgets = set()
    for path in stage_folder("fit_tokenizer", "").glob(f"*/{RECORD}") if wanted else ():
        try:
            spec = rebuild(FitTokenizer, (read_json(path) or {})["spec"])
        except (KeyError, TypeError):  # by another version of the code
            continue
        if _apart_from_budget(spec) in wanted:
            budgets.add(spec.recipe.budget_images)
    return sorted(budgets)


def _apart_from_budget(spec: FitTokenizer) -> str:
    recipe = dataclasses.replace(spec.recipe, budget_images=0)
    return repr(identity(dataclasses.replace(spec, recipe=recipe)))
