"""Launches: a sweep that is started notes its options and its plan; later processes read the note, and plan nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.names import nearest
from results.runs import SEARCH
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.core.settings import rebuild
from study.data.named_datasets import NAMED_DATASETS
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.plan_file import plan_content, plan_from
from study.plan.runs import Plan
from study.submit.options import Sweep


def note_sweep(options: Sweep, plan: Plan, starts: bool) -> None:
    """Save the options and the plan of a sweep.

    Args:
        starts: whether a job is started; otherwise they are saved only if none were before.
    """
    if starts or not launch_file(plan.study, plan.ablation).exists():
        fields = dataclasses.asdict(options)
        for name in ("out", "cluster", "data"):  # absolute: a later process may run in another folder
            value = fields[name]
            if value and value not in {*NAMED_DATASETS, *GIVEN_AS_FOLDER}:
                fields[name] = str(Path(value).expanduser().absolute())
        write_launch(plan.study, plan.ablation, {"options": fields, "plan": plan_content(plan)})


def launched_plans(study: str) -> list[tuple[Sweep, Plan]]:
    """Options and plan of every ablation that was started for a study; '' is the study started last.

    Raises:
        ValueError: no study of that name was started under this STUDY_ROOT, or another version of the code did it.
    """
    launches = []
    for path in launches_of(study):
        if not path.name.startswith(SEARCH):
            with of_this_version(path):
                note = read_json(path) or {}
                launches.append((rebuild(Sweep, note["options"]), plan_from(note["plan"])))
    return launches


def launched_studies() -> set[str]:
    """Names of the studies that were started under this STUDY_ROOT."""
    return {path.parent.name for path in _launches()}


def launch_file(study: str, name: str) -> Path:
    """Path of the note of a launch, by the name of its ablation or search."""
    return study_root() / "sweeps" / study / f"{name}.json"


def _launches() -> list[Path]:
    return sorted(study_root().glob("sweeps/*/*.json"))


def write_launch(study: str, name: str, content: dict[str, Any]) -> None:
    """Save what was launched, and the time."""
    write_json(launch_file(study, name), {**content, "started": time.time()})


def launches_of(study: str) -> list[Path]:
    """The notes of a study's launches; '' is the study started last.

    Raises:
        ValueError: no study of that name was started.
    """
    paths = _launches()
    if not paths:
        raise ValueError(f"nothing was started under {study_root()}; set STUDY_ROOT if it was elsewhere")
    study = study or max(paths, key=lambda path: (read_json(path) or {}).get("started", 0.0)).parent.name
    selected = [path for path in paths if path.parent.name == study]
    if not selected:
        studies = sorted({path.parent.name for path in paths})
        raise ValueError(f"no study called {study!r} was started; {nearest(study, studies)}")
    return selected


@contextlib.contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """ValueError when the block cannot read what is noted in a file, because another version of the code wrote it."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: it was started by another version of this code; use that version, or start it again "
            f"({type(error).__name__}: {error})"
        ) from None
