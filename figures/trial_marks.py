"""What the figures of a search share: its words, its numbers as rows, its colours."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from figures import wording
from figures.drawing import NothingToDraw
from results.numbers import count
from results.searches import STATES, Search, Trial, printed

TRIAL, CHOSEN = "#0072b2", "#d55e00"  # distinguishable for the colour-blind; in greyscale the markers differ


def complete(search: Search) -> list[Trial]:
    """The complete trials, in order; NothingToDraw with the states of the others if there are none."""
    done = [trial for trial in search.trials if trial.state == "complete"]
    if not done:
        raise NothingToDraw(f"no trial is complete: {counted(search)}" if search.trials else "it has no trials yet")
    return done


def counted(search: Search) -> str:
    """'34 of 40 trials: 20 complete, 14 pruned, 2 failed, 3 running', where 34 have a result and 40 is the budget."""
    counts = Counter(trial.state for trial in search.trials)
    results = sum(counts[state] for state in ("complete", "pruned", "diverged"))
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return f"{results} of {search.budget} trials: {', '.join(parts)}"


def verdict(search: Search) -> str:
    """A sentence that says whether the winner beats the default, and why; empty where a search has no verdict."""
    if len(search.objectives) > 1 or (not search.reason and search.winner is None):
        return ""
    what = {
        True: f"Trial {search.winner} beats the default",
        False: "No trial is shown to beat the default",
        None: "Whether a trial beats the default is undecided",
    }[search.beats_default]
    return f"{what}: {search.reason.rstrip('.')}." if search.reason else f"{what}."


def axis(search: Search, objective: str) -> str:
    """Label of an objective's axis; a second line names its judge if that is known."""
    about = search.protocol.get(objective, {})
    if not about.get("extractor"):
        return f"{printed(objective)} ({wording.BETTER})"
    columns = ("samples", "extractor", "extractor_size", "comparable")
    return wording.axis(printed(objective), pd.DataFrame([{column: about.get(column) for column in columns}]))


def caption(search: Search) -> list[str]:
    """How the objectives were measured."""
    lines = []
    for objective, about in search.protocol.items():
        facts = [str(about["generator"])] if about.get("generator") else []
        if isinstance(seen := about.get("images_seen"), int):
            facts.append(f"{count(seen)} images seen")
        if isinstance(samples := about.get("samples"), int):
            facts.append(f"{samples:,} samples")
        if about.get("solver"):
            facts.append(f"{about['solver']} {about.get('steps', '')}".strip())
        if about.get("reference"):
            facts.append(f"reference {about['reference']}")
        if about.get("comparable") is False:
            facts.append("not comparable: fewer samples than twice the feature width")
        if facts:
            lines.append(f"{printed(objective)}: {', '.join(facts)}.")
    return lines


def frame(search: Search) -> pd.DataFrame:
    """The plotted trials and held-out scores, one row each: `part` is trial, default or candidate."""
    made: list[dict[str, Any]] = []
    for trial in search.trials:
        settings = {f"param.{key}": value for key, value in trial.params.items()}
        facts = {"trial": trial.trial, "state": trial.state, "run": trial.run, "images_seen": trial.images_seen}
        made.append({"part": "trial", **facts, **trial.values, **settings})
    for part, number, scores in (
        ("default", None, search.default.scores),
        *(("candidate", candidate.trial, candidate.scores) for candidate in search.candidates),
    ):
        for repeat in range(max(map(len, scores.values()), default=0)):
            values = {key: found[repeat] for key, found in scores.items() if repeat < len(found)}
            made.append({"part": part, "trial": number, "held_out_repeat": repeat, **values})
    columns = ["part", "trial", "state", "run", "images_seen", "held_out_repeat", *search.objectives]
    columns += [f"param.{key}" for key in search.parameters]
    return pd.DataFrame(made, columns=columns, dtype=object)  # object: integers stay integers in columns with gaps


def mean(values: Sequence[float]) -> float:
    """The mean of some scores."""
    return sum(values) / len(values)
