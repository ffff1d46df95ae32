"""Launches: the options of each sweep that was started are saved, so that a later process can plan it again."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from models.names import nearest
from results.runs import SEARCH
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.core.settings import rebuild
from study.data.named_datasets import NAMED_DATASETS
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.runs import Plan
from study.submit.options import Sweep
from study.submit.prepare import prepare


def note_sweep(options: Sweep, plan: Plan, starts: bool) -> None:
    """Save the options of a sweep.

    Args:
        starts: whether a job is started; otherwise the options are saved only if none were before.
    """
    path = launches_folder() / plan.study / f"{plan.ablation}.json"
    if starts or not path.exists():
        write_launch(path, options)


def launched_plans(study: str) -> list[tuple[Sweep, Plan]]:
    """Options and plan of every ablation that was started for a study; '' is the study started last.

    Raises:
        ValueError: no study of that name was started under this STUDY_ROOT.
    """
    launches = launches_of(study)
    sweeps = [read_options(Sweep, launch) for name, launch in launches.items() if not name.startswith(SEARCH)]
    return [(options, prepare(options)) for options in sweeps]


def launched_studies() -> set[str]:
    """Names of the studies that were started under this STUDY_ROOT."""
    return {path.parent.name for path in launches_folder().glob("*/*.json")}


def launches_folder() -> Path:
    """Folder of all launches: STUDY/ABLATION.json."""
    return study_root() / "sweeps"


def write_launch(path: Path, options: Any) -> None:
    """Save the options of a launch and the time."""
    fields = dataclasses.asdict(options)
    for name in ("out", "cluster", "data"):  # absolute: a later process may run in another folder
        value = fields[name]
        if value and value not in {*NAMED_DATASETS, *GIVEN_AS_FOLDER}:
            fields[name] = str(Path(value).expanduser().absolute())
    write_json(path, {"options": fields, "started": time.time()})


def launches_of(study: str) -> dict[str, dict[str, Any]]:
    """Launches of a study, by name of the ablation or search; '' is the study started last.

    Raises:
        ValueError: no study of that name was started.
    """
    launches = {path: launch for path in sorted(launches_folder().glob("*/*.json")) if (launch := read_json(path))}
    if not launches:
        raise ValueError(f"nothing was started under {study_root()}; set STUDY_ROOT if it was elsewhere")
    study = study or max(launches, key=lambda path: launches[path]["started"]).parent.name
    selected = {path.stem: launch for path, launch in launches.items() if path.parent.name == study}
    if not selected:
        studies = sorted({path.parent.name for path in launches})
        raise ValueError(f"no study called {study!r} was started; {nearest(study, studies)}")
    return selected


def read_options(options_type: type, launch: dict[str, Any]) -> Any:
    """The options of a launch; ValueError when another version of the code wrote them."""
    fields = launch["options"]
    try:
        options = rebuild(options_type, {**fields, "out": None, "cluster": None})
    except TypeError as error:
        raise ValueError(f"it was started by another version of this code; use that version ({error})") from None
    cluster = Path(fields["cluster"]) if fields["cluster"] else None
    return dataclasses.replace(options, out=Path(fields["out"]), cluster=cluster)
