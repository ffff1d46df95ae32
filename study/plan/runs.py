"""The runs that an ablation declares, and the plan they are resolved to: stages, grouped into jobs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.configs import EXTERNAL_TOKENIZERS
from study.core.compute import Compute
from study.core.files import fingerprint
from study.plan.data_spec import DataSpec
from study.plan.scales import Scale
from study.plan.specs import FitTokenizer, Judge, Sample
from study.plan.stage import Stage

Factors = Mapping[str, tuple[str, ...]]  # factor: names of the settings that change together


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Pretrained weights, used instead of a training.

    Args:
        name: a key of FILES in study/plan/weight_files.py, or the name of a file in the weights folder.
        images_seen: during their training, as their authors state it; the file does not contain it.
    """

    name: str
    images_seen: int

    def __post_init__(self) -> None:
        if self.images_seen < 1:
            raise ValueError(f"{self.name} must have seen at least one image, got {self.images_seen}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training that an ablation declares: a tokenizer, or a generator on the latents of a tokenizer.

    Args:
        tokenizer: spec such as `f16d32-dinov2`.
        generator: spec such as `LightningDiT-B/1`; None for a run of a tokenizer alone.
        tokenizer_seed, seed: of the tokenizer's and of the generator's training.
        changes: scale fields that this run changes, by dotted name, such as `{"tokenizer.vf_weight": 0.5}`.
        options: of the generator's network, such as `{"rope": False}`.
        judged_at: marks of the generator's training at which it is judged; empty is all of them.
        pretrained_tokenizer, pretrained_generator: weights to use instead of a training; None trains the network.
        pretrained_statistics: name of the file with the latent statistics that a pretrained generator was trained with.
        label: the ablation's name for the run, such as `+ rectified flow`; part of no fingerprint and of no run name.
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
        if self.label != " ".join(self.label.split()):
            raise ValueError(f"a run's label must be one line, got {self.label!r}")
        if (self.pretrained_generator is None) == bool(self.pretrained_statistics):
            raise ValueError(f"{self.name}: pretrained_generator and pretrained_statistics must be set together")
        if (self.options or self.judged_at) and self.generator is None:
            raise ValueError(f"{self.name}: options and judged_at are a generator's, so generator must be set")
        if self.pretrained_generator and not (self.generator and self.pretrained_tokenizer):
            raise ValueError(f"{self.name}: pretrained_generator needs generator and pretrained_tokenizer too")
        if self.tokenizer in EXTERNAL_TOKENIZERS and self.pretrained_tokenizer is None:
            raise ValueError(f"{self.name}: this tokenizer cannot be trained here, so pretrained_tokenizer must be set")
        for weights, seed in ((self.pretrained_tokenizer, self.tokenizer_seed), (self.pretrained_generator, self.seed)):
            if weights and seed:
                raise ValueError(f"{self.name}: pretrained weights have no seed, got {seed}")

    @property
    def name(self) -> str:
        """Tokenizer, generator and changed settings, such as `f4d4 + LightningDiT-XXS/2 + rope=False`."""
        networks = [_network_name(self.tokenizer, self.tokenizer_seed, self.pretrained_tokenizer)]
        if self.generator:
            networks.append(_network_name(self.generator, self.seed, self.pretrained_generator))
        changed = [f"{key}={value}" for key, value in {**self.options, **self.changes}.items()]
        return " + ".join(networks + changed)

    @property
    def training_changes(self) -> dict[str, Any]:
        """The changed settings of its trainings by name; those of the sampling are left out: they are protocol."""
        changes = {**self.options, **self.changes}
        return {name: value for name, value in changes.items() if not name.startswith("sampling.")}

    @property
    def title(self) -> str:
        """The label with its seeds, or the name of a run without a label."""
        seeds = [f"seed {seed}" for seed in dict.fromkeys((self.tokenizer_seed, self.seed)) if seed]
        return " ".join([self.label, *([f"({' and '.join(seeds)})"] if seeds else [])]) if self.label else self.name


def _network_name(spec: str, seed: int, pretrained: Pretrained | None) -> str:
    if pretrained is not None:
        return f"pretrained {pretrained.name}"
    return spec if seed == 0 else f"{spec} (seed {seed})"


@dataclass(frozen=True)
class Result:
    """Pictures of a run and the stages that judge them: its reconstructions, or its samples at one mark."""

    pictures: Stage  # reconstruct or sample
    judges: tuple[Stage, ...]  # in the order of the scale's

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self.pictures, *self.judges)

    @property
    def images_seen(self) -> int:
        """Of the network that made the pictures."""
        spec = self.pictures.spec
        if isinstance(spec, Sample):
            return spec.images_seen
        fit = self.pictures.inputs["tokenizer"].spec
        assert isinstance(fit, FitTokenizer)
        return fit.recipe.budget_images

    def measured(self, judge: str) -> dict[str, Any] | None:
        """Numbers by a judge, by name, with those that no judge is needed for; None before they are complete."""
        pictures, judged = self.pictures.record(), self.judge(judge).record()
        return pictures.get("metrics", {}) | judged["metrics"] if pictures and judged else None

    def judge(self, name: str) -> Stage:
        return next(stage for stage in self.judges if judge_name(stage) == name)


def judge_name(stage: Stage) -> str:
    """The judge of a judge stage."""
    assert isinstance(stage.spec, Judge)
    return stage.spec.judge.name


@dataclass(frozen=True)
class Planned:
    """A run with its stages."""

    run: Run
    fit: Stage
    results: tuple[Result, ...]  # one of a tokenizer, one per mark of a generator

    @property
    def kind(self) -> str:
        return "generator" if self.fit.kind == "fit_generator" else "tokenizer"


@dataclass(frozen=True)
class Job:
    """The unit of submission: stages that run in order."""

    kind: str  # "tokenizer" or "generator"
    title: str
    stages: tuple[Stage, ...]
    after: str | None = None  # name of the job that computes its inputs

    @functools.cached_property
    def name(self) -> str:
        """Valid as a folder name and stable: the kind, and the fingerprint and the marks of the training stage."""
        marks = self.stages[0].marks
        return self.training + (f"-{fingerprint(marks, 6)}" if marks else "")

    @property
    def training(self) -> str:
        """The beginning of the names of all jobs of the same training, for whatever marks."""
        return f"{self.kind}-{self.stages[0].fingerprint}"

    def missing(self) -> list[Stage]:
        """The stages of the job that have no record."""
        return [stage for stage in self.stages if stage.record() is None]


@dataclass(frozen=True)
class Plan:
    """All runs of one ablation at one scale, and the jobs that compute them."""

    ablation: str
    question: str
    study: str
    scale: Scale
    data: DataSpec
    runs: tuple[Planned, ...]
    jobs: tuple[Job, ...]
    missing: tuple[str, ...] = ()  # what it needs and this machine lacks, one line each
    factors: Factors = field(default_factory=dict)  # the ablation's FACTORS
    base: str = ""  # the ablation's BASE

    @property
    def compute(self) -> Compute:
        return self.jobs[0].stages[0].spec.compute

    @property
    def stages(self) -> list[Stage]:
        return list(dict.fromkeys(stage for job in self.jobs for stage in job.stages))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that the options of a command resolve to, except the ablation."""

    scale: Scale
    data: DataSpec
    compute: Compute
    study: str
    missing: tuple[str, ...] = ()  # what the study needs and this machine lacks, one line each
