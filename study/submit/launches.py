"""Sweeps that were started, noted so that any later process can plan them again."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from results.runs import SEARCH
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.core.settings import nearest, rebuild
from study.data.named_datasets import NAMED_DATASETS
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.runs import Plan
from study.submit.options import Sweep
from study.submit.prepare import prepare


def note_sweep(options: Sweep, plan: Plan, starts: bool) -> None:
    """Note how a study was asked for.

    Args:
        starts: whether there is something to do; a plan that starts nothing is noted only if it never was.
    """
    path = _notes() / plan.study / f"{plan.ablation}.json"
    if starts or not path.exists():
        _write(path, options)


def launched_plans(study: str) -> list[tuple[Sweep, Plan]]:
    """Options and plan of every ablation that was started for a study; '' is the study that was started last.

    Raises:
        ValueError: nothing of that name was started here.
    """
    asked = [_options(Sweep, about) for name, about in _chosen(study).items() if not name.startswith(SEARCH)]
    return [(options, prepare(options)) for options in asked]


def launched_studies() -> set[str]:
    """Studies that were started here."""
    return {path.parent.name for path in _notes().glob("*/*.json")}


def _notes() -> Path:
    return study_root() / "sweeps"


def _write(path: Path, options: Any) -> None:

    asked = dataclasses.asdict(options)
    for name in ("out", "cluster", "data"):  # the later process may stand in another folder
        given = asked[name]
        if given and given not in {*NAMED_DATASETS, *GIVEN_AS_FOLDER}:
            asked[name] = str(Path(given).expanduser().absolute())
    write_json(path, {"options": asked, "started": time.time()})


def _chosen(study: str) -> dict[str, dict[str, Any]]:
    """Notes of a study, by ablation or search."""
    notes = {path: about for path in sorted(_notes().glob("*/*.json")) if (about := read_json(path))}
    if not notes:
        raise ValueError(f"nothing was started under {study_root()}; set STUDY_ROOT if it was elsewhere")
    study = study or max(notes, key=lambda path: notes[path]["started"]).parent.name
    chosen = {path.stem: about for path, about in notes.items() if path.parent.name == study}
    if not chosen:
        raise ValueError(f"no study called {study!r} was started; {nearest(study, {p.parent.name for p in notes})}")
    return chosen


def _options(kind: type, about: dict[str, Any]) -> Any:
    asked = about["options"]
    try:
        options = rebuild(kind, {**asked, "out": None, "cluster": None})
    except TypeError as error:
        raise ValueError(f"another version of this code started it; use that one ({error})") from None
    cluster = Path(asked["cluster"]) if asked["cluster"] else None
    return dataclasses.replace(options, out=Path(asked["out"]), cluster=cluster)
