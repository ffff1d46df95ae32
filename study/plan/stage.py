"""A stage: one unit of work and of caching, identified by its fingerprint; its state is read from its folder.

A fingerprint says what was asked, never where it ran: it hashes the resolved spec (not only differences from
defaults), the fingerprints of the inputs and the stage's version. Left out are names of files and data sets, which are
known by their content, and how a stage is carried out: device, threads, processes, microbatches (see `Compute`).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.compute import resolve
from study.core.files import fingerprint, read_json
from study.core.paths import stage_folder
from study.core.settings import identity, rebuild
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Generate, Reconstruct, Spec

# Increased when a stage's results change for an unchanged spec: old results stay valid under their old fingerprint.
VERSIONS = {"fit_tokenizer": 2, "reconstruct": 2, "encode": 2, "fit_generator": 2, "generate": 2}

# Files in a stage's folder, next to its record
INTERRUPTED = "interrupted.json"  # the stage saved and stopped on request
ATTEMPTS = "attempts.json"  # where and how each attempt ran, the last one last
DIAGNOSTICS = "diagnostics.json"  # see study/judge/latent_diagnostics.py
LATENT_MAP, LATENT_PICTURES = "latent-map.csv", "latent-pictures.png"  # next to the diagnostics of latents
TOKENIZER_WEIGHTS = "tokenizer.safetensors"


def snapshot_file(folder: Path, weights: str, images_seen: int) -> Path:
    """Path of a snapshot in a stage's folder; `weights` is "ema" or "raw"."""
    return folder / f"{weights}-{images_seen:012d}.safetensors"


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work and of caching: its kind, its spec and its input stages.

    Stages with equal fingerprints are equal.
    """

    kind: str
    spec: Spec
    inputs: dict[str, Stage] = field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> str:
        return fingerprint(
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

    def record(self) -> dict[str, Any] | None:
        """The record of a finished stage, else None."""
        record = read_json(self.folder / "record.json")
        return record if isinstance(record, dict) and record.get("fingerprint") == self.fingerprint else None

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


# Failures that this process could not write to the stage's folder, by that folder
UNWRITTEN_FAILURES: dict[Path, dict[str, Any]] = {}


SPECS: dict[str, type] = {
    "fit_tokenizer": FitTokenizer,
    "reconstruct": Reconstruct,
    "encode": Encode,
    "fit_generator": FitGenerator,
    "generate": Generate,
}
KIND_OF_INPUT = {"tokenizer": "fit_tokenizer", "latents": "encode", "generator": "fit_generator"}  # by input name


def stage_from_record(kind: str, fingerprint: str) -> Stage:
    """A finished stage and all its inputs, rebuilt from their records, to be computed with on this machine.

    Raises:
        ValueError: a record is missing, or was written by another version of the stage.
    """
    folder = stage_folder(kind, fingerprint)
    record = read_json(folder / "record.json")
    if not isinstance(record, dict):
        raise ValueError(f"no finished {kind} in {folder}")
    inputs = {name: stage_from_record(KIND_OF_INPUT[name], source) for name, source in record["inputs"].items()}
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
