"""A stage: one unit of work and of caching, identified by its fingerprint; its state is read from its folder.

A fingerprint says what was asked, never where it ran: it hashes the resolved spec (not only differences from
defaults), the fingerprints of the inputs and the stage's version. Left out are names of files and data sets, which are
known by their content, and how a stage is carried out: device, threads, processes, microbatches (see `Compute`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.compute import resolve
from study.core.files import fingerprint, read_json
from study.core.paths import stage_folder
from study.core.settings import identity, rebuild
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Judge, Reconstruct, Sample, Spec

# Increased when a stage's results change for an unchanged spec: old results stay valid under their old fingerprint.
VERSIONS = {"fit_tokenizer": 3, "reconstruct": 5, "encode": 2, "fit_generator": 3, "sample": 1, "judge": 1}

# Files in a stage's folder, next to its record
INTERRUPTED = "interrupted.json"  # the stage saved and stopped on request
ATTEMPTS = "attempts.json"  # where and how each attempt ran, the last one last
DIAGNOSTICS = "diagnostics.json"  # see study/judge/latent_diagnostics.py
IFIDS = ("ifid", "ifid_released")  # in a reconstruct stage's, by judge, see study/stages/reconstruct.py
LATENT_MAP, LATENT_PICTURES = "latent-map.csv", "latent-pictures.png"  # next to the diagnostics of latents
TOKENIZER_WEIGHTS = "tokenizer.safetensors"
RECORD = "record.json"
# States of a training: weights, EMA and optimizers. A checkpoint is replaced by the next one, a kept state is not
CHECKPOINT, KEPT_STATE = "checkpoint", "state"


def mark_record(images_seen: int) -> str:
    """Name of the record of a generator's training after this number of images."""
    return f"record-{images_seen:012d}.json"


def state_files(folder: Path) -> dict[int, Path]:
    """The states of a training in its folder, by images seen, in order."""
    paths = [path for kind in (CHECKPOINT, KEPT_STATE) for path in folder.glob(f"{kind}-*.safetensors")]
    return dict(sorted((int(path.stem.rpartition("-")[2]), path) for path in paths))


def snapshot_file(folder: Path, weights: str, images_seen: int) -> Path:
    """Path of a snapshot in a stage's folder; `weights` is "ema" or "raw"."""
    return folder / f"{weights}-{images_seen:012d}.safetensors"


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work and of caching: its kind, its spec and its input stages.

    Stages with equal fingerprints are equal. A generator's training is one stage whatever is asked of it: all requests
    share its folder, in which each mark has its own record, and the request at hand is done when its marks have theirs.
    """

    kind: str
    spec: Spec
    inputs: dict[str, Stage] = field(default_factory=dict)
    noted: str = ""  # the fingerprint where it is known, as of a plan that another version noted; "" computes it

    @functools.cached_property
    def fingerprint(self) -> str:
        return self.noted or fingerprint(
            {
                "stage": self.kind,
                "version": VERSIONS[self.kind],
                "spec": identity(self.spec),
                "inputs": {name: stage.fingerprint for name, stage in self.inputs.items()},
            }
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def folder(self) -> Path:
        return stage_folder(self.kind, self.fingerprint)

    @property
    def marks(self) -> tuple[int, ...]:
        """Images seen for which a generator's training is asked; empty for other stages."""
        return self.spec.recipe.marks if isinstance(self.spec, FitGenerator) else ()

    def at(self, marks: Sequence[int]) -> Stage:
        """The same training of a generator, asked for these marks alone."""
        assert isinstance(self.spec, FitGenerator)
        recipe = dataclasses.replace(self.spec.recipe, budget_images=max(marks), snapshot_images=tuple(marks))
        return Stage(self.kind, dataclasses.replace(self.spec, recipe=recipe), self.inputs, noted=self.fingerprint)

    def record(self) -> dict[str, Any] | None:
        """The record of a finished stage, else None; of a generator's training, that of the last mark once all are
        there."""
        record = None
        for name in map(mark_record, self.marks) if self.marks else [RECORD]:
            record = self._read(name)
            if record is None:
                break
        return record

    def missing_marks(self) -> list[int]:
        """The marks of a generator's training that have no record."""
        return [mark for mark in self.marks if self._read(mark_record(mark)) is None]

    def _read(self, name: str) -> dict[str, Any] | None:
        if _moment is None:
            return self._read_now(name)
        records, key = _moment[0], (self.kind, self.fingerprint, name)
        if key not in records:
            records[key] = self._read_now(name) if self.has_folder() else None
        return records[key]

    def _read_now(self, name: str) -> dict[str, Any] | None:
        content = read_json(self.folder / name)
        return content if isinstance(content, dict) and content.get("fingerprint") == self.fingerprint else None

    def has_folder(self) -> bool:
        """Whether the stage was started here, by any study."""
        if _moment is None:
            return self.folder.is_dir()
        folders = _moment[1]
        if self.kind not in folders:
            folders[self.kind] = _fingerprints_with_folders(self.kind)
        return self.fingerprint in folders[self.kind]

    def diagnostics(self) -> dict[str, Any]:
        """Measurements outside the stage's record, see study/judge/latent_diagnostics.py; empty if there are none."""
        content = read_json(self.folder / DIAGNOSTICS)
        return content if isinstance(content, dict) else {}

    def interrupted(self) -> bool:
        """Whether the stage saved and stopped on request and has not been run since."""
        return self.record() is None and (self.folder / INTERRUPTED).exists()

    def failure(self) -> dict[str, Any] | None:
        """State and reason of the stage's last failure; None if it has not failed or was started again since."""
        return None if self.record() else UNWRITTEN_FAILURES.get(self.folder) or read_json(self.folder / "failure.json")


# Records that were read, by kind, fingerprint and file, and the fingerprints that have a folder, by kind: see below
_moment: tuple[dict[tuple[str, str, str], dict[str, Any] | None], dict[str, set[str]]] | None = None


@contextlib.contextmanager
def at_one_moment() -> Iterator[None]:
    """Context in which every record is read once, however often it is asked for, and folders of stages are listed
    instead of looked for one by one: for a view of a whole plan."""
    global _moment
    before, _moment = _moment, ({}, {})
    try:
        yield
    finally:
        _moment = before


# Failures that this process could not write to the stage's folder, by that folder
UNWRITTEN_FAILURES: dict[Path, dict[str, Any]] = {}


SPECS: dict[str, type] = {
    "fit_tokenizer": FitTokenizer,
    "reconstruct": Reconstruct,
    "encode": Encode,
    "fit_generator": FitGenerator,
    "sample": Sample,
    "judge": Judge,
}
KIND_OF_INPUT = {  # by input name
    "tokenizer": "fit_tokenizer", "latents": "encode", "generator": "fit_generator",
    "samples": "sample", "reconstructions": "reconstruct",
}  # fmt: skip


def _fingerprints_with_folders(kind: str) -> set[str]:
    try:
        return set(os.listdir(stage_folder(kind, "")))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def recorded_marks(fingerprint: str) -> list[int]:
    """The images seen for which a generator's training has a record, in order."""
    paths = stage_folder("fit_generator", fingerprint).glob("record-*.json")
    return sorted(int(path.stem.rpartition("-")[2]) for path in paths)


def stage_from_record(kind: str, fingerprint: str, images_seen: int | None = None) -> Stage:
    """A finished stage and all its inputs, rebuilt from their records, to be computed with on this machine.

    Args:
        images_seen: of a generator's training: the mark whose record is read.

    Raises:
        ValueError: a record is missing, or was written by another version of the stage.
    """
    folder = stage_folder(kind, fingerprint)
    record = read_json(folder / (RECORD if images_seen is None else mark_record(images_seen)))
    if not isinstance(record, dict):
        raise ValueError(f"no finished {kind} in {folder}")
    inputs = {
        name: stage_from_record(
            KIND_OF_INPUT[name], source, record["spec"]["images_seen"] if name == "generator" else None
        )
        for name, source in record["inputs"].items()
    }
    try:
        spec = rebuild(SPECS[kind], record["spec"])
        here = resolve(precision=spec.compute.precision)
        stage = Stage(kind, dataclasses.replace(spec, compute=here), inputs)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the record in {folder} was written by another version of the code: {error}") from error
    if stage.fingerprint != fingerprint:
        versions = f"version {record.get('version')} of {kind}, now {VERSIONS[kind]}"
        raise ValueError(
            f"the record in {folder} was written by another version of the code ({versions}): run study.sweep again"
        )
    return stage
