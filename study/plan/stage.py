"""A stage: one unit of work and of caching, named by its fingerprint, with what its folder says of it.

A fingerprint hashes the whole resolved spec (never a difference from defaults), the fingerprints of the inputs and the
stage's version; machine knobs (workers, slots, paths, partition) are in no spec."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.files import fingerprint, read_json
from study.core.paths import stage_folder
from study.core.settings import hashed, rebuild
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Generate, Reconstruct, Spec

# Raised when a stage's numbers move for an unchanged spec: old results stay valid under the old fingerprint.
VERSIONS = {"fit_tokenizer": 1, "reconstruct": 1, "encode": 1, "fit_generator": 1, "generate": 1}

# Files in a stage's folder, beside its record
INTERRUPTED = "interrupted.json"  # it was asked to stop, and saved
DIAGNOSTICS = "diagnostics.json"  # see study/judge/diagnostics.py
LATENT_MAP, LATENT_PICTURES = "latent-map.csv", "latent-pictures.png"  # beside those of latents
TOKENIZER_WEIGHTS = "tokenizer.safetensors"


def snapshot_file(folder: Path, weights: str, images_seen: int) -> Path:
    """File of a snapshot; `weights` is "ema" or "raw"."""
    return folder / f"{weights}-{images_seen:012d}.safetensors"


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work and of caching: a kind, its spec and the stages it reads from.

    Two stages are equal when their fingerprints are.
    """

    kind: str
    spec: Spec
    inputs: dict[str, Stage] = field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        spec = hashed(self.spec)
        if "data" in spec:  # data is known by its content, whatever it is called
            for label in ("name", "class_names"):
                del spec["data"][label]
        for file in ("given", "reference"):
            if file in spec:
                del spec[file]["name"]
        return fingerprint(
            {
                "stage": self.kind,
                "version": VERSIONS[self.kind],
                "spec": spec,
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

    def record(self) -> dict[str, Any] | None:
        """The stage's record when it is done, else None."""
        record = read_json(self.folder / "record.json")
        return record if isinstance(record, dict) and record.get("fingerprint") == self.fingerprint else None

    def diagnostics(self) -> dict[str, Any]:
        """What was measured beside the stage's record, see study/judge/diagnostics.py; empty where nothing was."""
        found = read_json(self.folder / DIAGNOSTICS)
        return found if isinstance(found, dict) else {}

    def interrupted(self) -> bool:
        """Whether the stage was asked to stop, saved, and has not been run since."""
        return self.record() is None and (self.folder / INTERRUPTED).exists()

    def failure(self) -> dict[str, Any] | None:
        """How the stage last failed, when it did and has not been run since: state and reason."""
        return None if self.record() else UNWRITTEN_FAILURES.get(self.folder) or read_json(self.folder / "failure.json")


UNWRITTEN_FAILURES: dict[
    Path, dict[str, Any]
] = {}  # by a stage's folder: failures that this process could not write there


SPECS: dict[str, type] = {
    "fit_tokenizer": FitTokenizer,
    "reconstruct": Reconstruct,
    "encode": Encode,
    "fit_generator": FitGenerator,
    "generate": Generate,
}
MADE_BY = {"tokenizer": "fit_tokenizer", "latents": "encode", "generator": "fit_generator"}  # by name of an input


def stage_from_record(kind: str, fingerprint: str) -> Stage | None:
    """A stage that is done, with all it reads from, as their records tell; None when one of them holds no spec.

    Raises:
        ValueError: a folder is not there or not done, or its record was written by another version of the stage.
    """
    folder = stage_folder(kind, fingerprint)
    record = read_json(folder / "record.json")
    if not isinstance(record, dict):
        raise ValueError(f"no finished {kind} in {folder}")
    if "spec" not in record:  # as records were written at first
        return None
    inputs = {name: stage_from_record(MADE_BY[name], source) for name, source in record["inputs"].items()}
    found = {name: source for name, source in inputs.items() if source is not None}
    if len(found) < len(inputs):
        return None
    try:
        stage = Stage(kind, rebuild(SPECS[kind], record["spec"]), found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record in {folder} was written by other code: {error}") from error
    if stage.fingerprint != fingerprint:
        versions = f"version {record.get('version')} of {kind}, now {VERSIONS[kind]}"
        raise ValueError(f"the record in {folder} was written by other code ({versions}): run study.sweep again")
    return stage
