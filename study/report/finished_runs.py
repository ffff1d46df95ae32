"""Finished runs by their names in a results table, as their stages under `$STUDY_ROOT`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from models.names import nearest
from results.schema import FOREIGN
from results.table import load
from study.core.files import read_json
from study.core.paths import stage_folder, study_root
from study.plan.stage import RECORD, Stage, recorded_marks, stage_from_record

FIT = {"tokenizer": "fit_tokenizer", "generator": "fit_generator"}  # the training stage of each kind of run


def study_table(results: Path, study: str) -> pd.DataFrame:
    """The results table of a study in this folder; ValueError with the nearest names if there is none."""
    studies = sorted(path.parent.name for path in results.glob("*/table.csv"))
    if study not in studies:
        near = nearest(study, studies) if studies else "there is none, run python -m study.sweep first"
        raise ValueError(f"no study {study!r} in {results}; {near}")
    return load(results / study / "table.csv")


def rows_of_run(table: pd.DataFrame, study: str, run: str, kinds: Sequence[str]) -> pd.DataFrame:
    """The table's rows of the run with this name or fingerprint, those with its own protocol before those of a guidance
    sweep. Of several runs of one name, as after another version of a stage, it is the one that was trained here.

    Raises:
        ValueError: with the nearest names, unless they belong to one run of these kinds.
    """
    named = table[(table["fingerprint"] == run) | (table["run"] == run)]
    of_kinds = table[table["kind"].isin(kinds) & ~table["fingerprint"].str.startswith(FOREIGN)]
    rows = named[named.index.isin(of_kinds.index)]
    if len(rows) == 0:
        if len(named):
            foreign = named["fingerprint"].iloc[0].startswith(FOREIGN)
            other = f"is a {named['kind'].iloc[0]}, not a {' or a '.join(kinds)}"
            reason = "was made elsewhere: only its score is here" if foreign else other
            raise ValueError(f"{run!r} {reason}; {' and '.join(f'{kind}s' for kind in kinds)}: {_listed(of_kinds)}")
        names = sorted(set(of_kinds["fingerprint" if re.fullmatch("[0-9a-f]{9,}", run) else "run"]))  # f4d8 is a name
        near = nearest(run, names) if names else f"it has no {' and no '.join(kinds)}"
        raise ValueError(f"no run {run!r} in study {study!r}; {near}")
    fingerprints = sorted(set(rows["fingerprint"]))
    if len(fingerprints) > 1:
        here = [one for one in fingerprints if any(stage_folder(kind, one).exists() for kind in FIT.values())]
        if len(here) != 1:
            where = f"{len(here)} of them trained here" if here else f"none of them trained under {study_root()}"
            choice = ", ".join(here or fingerprints)
            raise ValueError(f"{run!r} names {len(fingerprints)} runs, {where}: give a fingerprint, {choice}")
        rows = rows[rows["fingerprint"] == here[0]]
    return rows.sort_values(["sampling_seed", "guidance_scale"], kind="stable")


def _listed(rows: pd.DataFrame) -> str:
    return ", ".join(sorted(set(rows["run"]))) or "none"


def finished_training(row: Any, images_seen: int | None = None) -> Stage:
    """The training of a row's run, of a generator up to a mark, None being the last; all its inputs are finished.

    Raises:
        ValueError: there is no such mark, or the folder of one of these stages is not under `$STUDY_ROOT`, or cannot be
            identified.
    """
    mark = None
    if row["kind"] == "generator":
        marks = recorded_marks(row["fingerprint"])
        if marks and images_seen not in (None, *marks):
            raise ValueError(f"no snapshot at {images_seen} images seen; there are {', '.join(map(str, marks))}")
        mark = images_seen or max(marks, default=0)
    try:
        training = stage_from_record(FIT[row["kind"]], row["fingerprint"], mark)
        unchecked = [training]
        while unchecked:  # records of inputs may have been deleted, and planned stages may never have run
            stage = unchecked.pop()
            if stage.record() is None:
                raise ValueError(f"no finished {stage.kind} in {stage.folder}")
            unchecked += stage.inputs.values()
    except ValueError as error:
        raise ValueError(
            f"{row['run']!r} is in the table of {row['study']}, but its stages are not available here: {error}. "
            f"Set STUDY_ROOT (now {study_root()}) to where it was trained, or train it here with study.sweep"
        ) from error
    return training


def latents_of(tokenizer: Stage) -> Stage | None:
    """The finished latents of a tokenizer, of the most images if there are several; None if there are none."""
    found = []
    for path in stage_folder("encode", "").glob(f"*/{RECORD}"):
        record = read_json(path)
        if isinstance(record, dict) and record.get("inputs") == {"tokenizer": tokenizer.fingerprint}:
            with suppress(ValueError):  # of an older version
                stage = stage_from_record("encode", path.parent.name)
                found.append((record["images"], stage.fingerprint, stage))
    return max(found)[2] if found else None
