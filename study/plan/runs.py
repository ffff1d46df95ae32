"""What an ablation asks for, a list of runs, and what it is resolved to: a plan of stages, grouped into jobs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.specs import EXTERNAL_TOKENIZERS
from results.labels import BREAKS
from study.core.compute import Compute
from study.plan.data_spec import DataSpec
from study.plan.scales import Scale
from study.plan.stage import Stage

Factors = Mapping[str, tuple[str, ...]]  # name of a factor: the settings that change together


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that take the place of a training.

    name: in FILES of study/plan/weight_files.py, or of a file in its folder. images_seen: in their training, as their
    authors say; the file does not.
    """

    name: str
    images_seen: int

    def __post_init__(self) -> None:
        if self.images_seen < 1:
            raise ValueError(f"{self.name} must have seen at least one image, got {self.images_seen}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training that an ablation asks for: a tokenizer, or a generator on a tokenizer.

    Args:
        tokenizer: spec such as `f16d32-dinov2`.
        generator: spec such as `LightningDiT-B/1`; None for a run that ends with the tokenizer.
        tokenizer_seed, seed: of the two trainings.
        changes: scale fields that this run changes, by dotted name, such as `{"tokenizer.vf_weight": 0.5}`.
        options: of the generator's network, such as `{"rope": False}`.
        judged_at: images seen at which the generator is judged, of generator.snapshot_images; empty is all of them.
        pretrained_tokenizer, pretrained_generator: weights that are not trained but given; None for a training.
        pretrained_statistics: name of the file with the latents' statistics that a given generator was trained with.
        label: what the ablation calls the run, such as `+ rectified flow`; moves no fingerprint and no name.
    """

    tokenizer: str
    generator: str | None = None
    tokenizer_seed: int = 0
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    judged_at: tuple[int, ...] = ()
    pretrained_tokenizer: Pretrained | None = None
    pretrained_generator: Pretrained | None = None
    pretrained_statistics: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if set(self.label) & set(BREAKS) or self.label != " ".join(self.label.split()):
            raise ValueError(f"a run's label is one line without semicolons and brackets, got {self.label!r}")
        if (self.pretrained_generator is None) == bool(self.pretrained_statistics):
            raise ValueError(f"{self.name}: a given generator and the statistics of its latents are given together")
        if self.pretrained_generator and not (self.generator and self.pretrained_tokenizer):
            raise ValueError(f"{self.name}: a given generator needs its name, and the tokenizer that it was trained on")
        if self.tokenizer in EXTERNAL_TOKENIZERS and self.pretrained_tokenizer is None:
            raise ValueError(f"{self.name}: nobody trains this tokenizer here, so its weights are given")
        for given, seed in ((self.pretrained_tokenizer, self.tokenizer_seed), (self.pretrained_generator, self.seed)):
            if given and seed:
                raise ValueError(f"{self.name}: weights that are given have no seed, got {seed}")

    @property
    def name(self) -> str:
        parts = [_named(self.tokenizer, self.tokenizer_seed, self.pretrained_tokenizer)]
        if self.generator:
            parts.append(_named(self.generator, self.seed, self.pretrained_generator))
        changed = [f"{key}={value}" for key, value in {**self.options, **self.changes}.items()]
        return " + ".join(parts + changed)

    @property
    def title(self) -> str:
        """The label, with seeds, or else the name."""
        seeds = [f"seed {seed}" for seed in dict.fromkeys((self.tokenizer_seed, self.seed)) if seed]
        return " ".join([self.label, *([f"({' and '.join(seeds)})"] if seeds else [])]) if self.label else self.name


def _named(spec: str, seed: int, given: Pretrained | None) -> str:
    if given is not None:
        return f"given {given.name}"
    return spec if seed == 0 else f"{spec} (seed {seed})"


@dataclass(frozen=True)
class Planned:
    """A run with the stages that answer it."""

    run: Run
    fit: Stage
    results: tuple[Stage, ...]  # whose records hold its metrics: reconstruct, or one generate per snapshot

    @property
    def kind(self) -> str:
        return "generator" if self.fit.kind == "fit_generator" else "tokenizer"


@dataclass(frozen=True)
class Job:
    """The unit of submission: stages that one process does in order."""

    kind: str  # "tokenizer" or "generator"
    title: str
    stages: tuple[Stage, ...]
    after: str | None = None  # name of the job that makes its inputs

    @functools.cached_property
    def name(self) -> str:
        """Folder-safe and stable: the kind and the fingerprint of what it trains."""
        return f"{self.kind}-{self.stages[0].fingerprint}"

    def missing(self) -> list[Stage]:
        """Its stages that have no record."""
        return [stage for stage in self.stages if stage.record() is None]


@dataclass(frozen=True)
class Plan:
    """All runs of one ablation at one scale, and the jobs that do them."""

    ablation: str
    question: str
    study: str
    scale: Scale
    data: DataSpec
    runs: tuple[Planned, ...]
    jobs: tuple[Job, ...]
    missing: tuple[str, ...] = ()  # what it needs and is not here, one line each
    factors: Factors = field(default_factory=dict)  # the ablation's FACTORS
    base: str = ""  # its BASE

    @property
    def compute(self) -> Compute:
        return self.jobs[0].stages[0].spec.compute

    @property
    def stages(self) -> list[Stage]:
        return list(dict.fromkeys(stage for job in self.jobs for stage in job.stages))
