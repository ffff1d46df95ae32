"""From an ablation and a scale to runs, stages and jobs. Torch-free; nothing is computed here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from models.specs import (
    EXTERNAL_TOKENIZERS,
    AutoencoderConfig,
    generator_config,
    parse_generator,
    parse_tokenizer,
)
from results.labels import BREAKS
from study.checks import check_scale
from study.compute import Compute, Execution
from study.data import DataSpec
from study.factors import Factors
from study.judges import JudgeSpec, judge_spec
from study.scales import AutoencoderShape, Scale
from study.settings import change, nearest
from study.specs import (
    Encode,
    FitGenerator,
    FitTokenizer,
    FoundationRecipe,
    Generate,
    GeneratorRecipe,
    Given,
    Phase,
    Reconstruct,
    Sampling,
    Stage,
    TokenizerRecipe,
)
from study.weights import content_hash, entry

# parts of a scale that a single run may change; the others are common to a study
CHANGEABLE = (
    "train_images", "autoencoder", "foundation", "tokenizer", "generator", "sampling", "evaluation", "execution",
)  # fmt: skip
SMALLEST_FOR_GAN = 24  # pixels: three halvings and two kernels of 4


@dataclass(frozen=True, kw_only=True)
class Released:
    """Weights that take the place of a training.

    name: in FILES of study/weights.py, or of a file in its folder. images_seen: in their training, as their authors
    say; the file does not.
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
        given_tokenizer, given_generator: weights that are not trained but given; None for a training.
        given_statistics: name of the file with the latents' statistics that a given generator was trained with.
        label: what the ablation calls the run, such as `+ rectified flow`; moves no fingerprint and no name.
    """

    tokenizer: str
    generator: str | None = None
    tokenizer_seed: int = 0
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    judged_at: tuple[int, ...] = ()
    given_tokenizer: Released | None = None
    given_generator: Released | None = None
    given_statistics: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if set(self.label) & set(BREAKS) or self.label != " ".join(self.label.split()):
            raise ValueError(f"a run's label is one line without semicolons and brackets, got {self.label!r}")
        if (self.given_generator is None) == bool(self.given_statistics):
            raise ValueError(f"{self.name}: a given generator and the statistics of its latents are given together")
        if self.given_generator and not (self.generator and self.given_tokenizer):
            raise ValueError(f"{self.name}: a given generator needs its name, and the tokenizer that it was trained on")
        if self.tokenizer in EXTERNAL_TOKENIZERS and self.given_tokenizer is None:
            raise ValueError(f"{self.name}: nobody trains this tokenizer here, so its weights are given")
        for given, seed in ((self.given_tokenizer, self.tokenizer_seed), (self.given_generator, self.seed)):
            if given and seed:
                raise ValueError(f"{self.name}: weights that are given have no seed, got {seed}")

    @property
    def name(self) -> str:
        parts = [_named(self.tokenizer, self.tokenizer_seed, self.given_tokenizer)]
        if self.generator:
            parts.append(_named(self.generator, self.seed, self.given_generator))
        changed = [f"{key}={value}" for key, value in {**self.options, **self.changes}.items()]
        return " + ".join(parts + changed)

    @property
    def title(self) -> str:
        """The label, with seeds, or else the name."""
        seeds = [f"seed {seed}" for seed in dict.fromkeys((self.tokenizer_seed, self.seed)) if seed]
        return " ".join([self.label, *([f"({' and '.join(seeds)})"] if seeds else [])]) if self.label else self.name


def _named(spec: str, seed: int, given: Released | None) -> str:
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


def network_config(
    shape: AutoencoderShape, *, channels: int, resolution: int, latent_channels: int
) -> AutoencoderConfig:
    """The tokenizer's network of a scale for pictures of this size."""
    return AutoencoderConfig(
        in_channels=channels,
        resolution=resolution,
        ch=shape.ch,
        ch_mult=shape.ch_mult,
        num_res_blocks=shape.num_res_blocks,
        attn_resolutions=shape.attention_grids,
        z_channels=latent_channels,
        unshuffle=shape.unshuffle,
        norm_groups=shape.norm_groups,
    )


def autoencoder_config(spec: str, scale: Scale, data: DataSpec) -> AutoencoderConfig:
    """The network of this tokenizer spec; ValueError when the scale or the picture size does not fit it."""
    name = parse_tokenizer(spec)
    if name.external:
        theirs = EXTERNAL_TOKENIZERS[spec].config
        attended = tuple(side * data.resolution // theirs.resolution for side in theirs.attn_resolutions)
        return dataclasses.replace(
            theirs, in_channels=data.channels, resolution=data.resolution, attn_resolutions=attended
        )
    config = network_config(
        scale.autoencoder, channels=data.channels, resolution=data.resolution, latent_channels=name.channels
    )
    if config.downsampling != name.downsampling:
        raise ValueError(
            f"{spec} downsamples {name.downsampling} times, but scale {scale.name} builds tokenizers that "
            f"downsample {config.downsampling} times: ask for f{config.downsampling}d{name.channels}"
        )
    return config


def check_grid(scale: Scale, resolution: int) -> None:
    """ValueError, naming sizes that fit, unless every generator's patches tile the latent of this picture size."""
    patches = [parse_generator(generator)[2] for generator in scale.generators]
    unit = scale.downsampling * max(patches)
    if resolution % unit or resolution < 2 * unit:
        near = max(2, round(resolution / unit)) * unit
        fits = sorted({max(2 * unit, near - unit), near, near + unit})
        raise ValueError(
            f"pictures of {resolution} px do not fit the grid of scale {scale.name} (downsampling "
            f"{scale.downsampling}, patch {max(patches)}: multiples of {unit} from {2 * unit} px); nearest that fit: "
            f"{', '.join(map(str, fits))} (choose one with --resolution)"
        )


def _check_budgets(scale: Scale, data: DataSpec) -> None:
    """ValueError for budgets that no training could keep."""
    for name, recipe in (("tokenizer", scale.tokenizer), ("generator", scale.generator)):
        if recipe.batch_images < 1 or recipe.budget_images < 1 or recipe.budget_images % recipe.batch_images:
            raise ValueError(
                f"{name}.budget_images {recipe.budget_images} must be a multiple of "
                f"{name}.batch_images {recipe.batch_images}"
            )
        shares, pieces = scale.execution.processes, scale.execution.microbatch_images
        if recipe.batch_images % shares:
            raise ValueError(
                f"{name}.batch_images {recipe.batch_images} must be a multiple of execution.processes {shares}"
            )
        if name == "generator" and pieces and recipe.batch_images // shares % pieces:
            raise ValueError(
                f"execution.microbatch_images {pieces} must divide the {recipe.batch_images // shares} images of a "
                "process's share"
            )
    generator = scale.generator
    wrong = [m for m in generator.snapshot_images if m % generator.batch_images or not 0 < m <= generator.budget_images]
    if wrong or not generator.snapshot_images:
        raise ValueError(
            f"generator.snapshot_images {generator.snapshot_images} must name multiples of generator.batch_images "
            f"{generator.batch_images}, none past generator.budget_images {generator.budget_images}"
        )
    starts = [phase.from_images for phase in scale.tokenizer.phases]
    batch, budget = scale.tokenizer.batch_images, scale.tokenizer.budget_images
    if any(start % batch or not 0 < start < budget for start in starts):
        raise ValueError(
            f"tokenizer.phases must start at multiples of tokenizer.batch_images {batch}, above 0 and below "
            f"tokenizer.budget_images {budget}; got {', '.join(map(str, starts))}"
        )
    if scale.tokenizer.gan_weight and data.resolution < SMALLEST_FOR_GAN:
        raise ValueError(
            f"the discriminator needs pictures of at least {SMALLEST_FOR_GAN} px, not {data.resolution}: "
            "set tokenizer.gan_weight to 0"
        )


def _used_recipe(recipe: TokenizerRecipe, *, aligned: bool) -> TokenizerRecipe:
    """The recipe with every field that this tokenizer does not use at its default: such a field moves no number,
    so it must not move the fingerprint either.

    Phases of a plain tokenizer keep their starts: the optimizers' restart moves its numbers too, and it has to have
    the aligned one's to be compared with it.
    """
    unused = [] if aligned else ["vf_"]
    unused += [] if recipe.gan_weight else ["gan_"]
    unused += [] if recipe.perceptual_weight else ["perceptual_"]
    defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(recipe) if f.name.startswith(tuple(unused))
    }
    if not aligned:
        defaults["phases"] = tuple(Phase(from_images=phase.from_images) for phase in recipe.phases)
    return dataclasses.replace(recipe, **defaults)


def _used_foundation(name: str | None, recipe: FoundationRecipe) -> FoundationRecipe | None:
    """How the foundation model is used; only lite0's input and stride can be chosen, the others own theirs."""
    if name is None:
        return None
    if name == "lite0":
        return dataclasses.replace(recipe, own_statistics=False)
    return dataclasses.replace(recipe, input_size=0, stride=0)


def _used_sampling(sampling: Sampling) -> Sampling:
    """The protocol with the fields that its solver ignores at fixed values."""
    if sampling.solver == "dopri5":
        return dataclasses.replace(sampling, steps=0, timestep_shift=1.0)
    if sampling.solver == "ddpm":
        return dataclasses.replace(sampling, timestep_shift=1.0)
    return sampling


def _given(name: str) -> Given:
    """The file as it lies in the weights folder; without a hash when it does not, and the plan says that it is missing.

    Raises:
        ValueError: not the name of a file in that folder.
    """
    file = entry(name).file
    if file != Path(file).name:
        raise ValueError(f"{name!r} must be the name of a file in the folder named by STUDY_WEIGHTS, without a path")
    return Given(name=name, sha256=content_hash(name))


def _fit_tokenizer(run: Run, scale: Scale, data: DataSpec, compute: Compute) -> FitTokenizer:
    name = parse_tokenizer(run.tokenizer)
    spec = FitTokenizer(
        data=data,
        train_images=min(scale.train_images, data.train_images),
        tokenizer=run.tokenizer,
        architecture=autoencoder_config(run.tokenizer, scale, data),
        foundation=_used_foundation(name.foundation, scale.foundation),
        recipe=_used_recipe(scale.tokenizer, aligned=name.foundation is not None),
        seed=run.tokenizer_seed,
        compute=_training(compute, scale.execution, generator=False),
    )
    if run.given_tokenizer is None:
        return spec
    recipe = TokenizerRecipe(budget_images=run.given_tokenizer.images_seen, batch_images=0, learning_rate=0.0)
    given = _given(run.given_tokenizer.name)
    return dataclasses.replace(spec, train_images=0, foundation=None, recipe=recipe, compute=compute, given=given)


def _encode(run: Run, scale: Scale, data: DataSpec, compute: Compute) -> Encode:
    if run.given_statistics:
        return Encode(data=data, train_images=0, compute=compute, given=_given(run.given_statistics))
    return Encode(
        data=data,
        train_images=min(scale.train_images, data.train_images),
        compute=compute,
        stored=scale.stored_latents,
    )


def _fit_generator(
    run: Run, scale: Scale, data: DataSpec, compute: Compute, latents: AutoencoderConfig
) -> FitGenerator:
    assert run.generator is not None
    recipe = _used_generator_recipe(scale.generator)
    network = generator_config(
        run.generator,
        grid=latents.grid,
        in_channels=latents.z_channels,
        num_classes=data.classes,
        **run.options,
    )
    spec = FitGenerator(
        tokenizer=run.tokenizer,
        architecture=dataclasses.replace(network, learned_variance=recipe.objective == "gaussian-diffusion"),
        recipe=recipe,
        seed=run.seed,
        compute=_training(compute, scale.execution, generator=True),
    )
    if run.given_generator is None:
        return spec
    if scale.sampling.weights != "ema":
        raise ValueError(f"{run.name}: a given generator has its moving average alone, so sampling.weights is ema")
    seen = run.given_generator.images_seen
    recipe = GeneratorRecipe(budget_images=seen, snapshot_images=(seen,), batch_images=0, learning_rate=0.0)
    return dataclasses.replace(spec, recipe=recipe, compute=compute, given=_given(run.given_generator.name))


def _used_generator_recipe(recipe: GeneratorRecipe) -> GeneratorRecipe:
    """The recipe with the fields that its objective ignores at fixed values."""
    if recipe.objective == "gaussian-diffusion":
        recipe = dataclasses.replace(recipe, logit_normal=False, direction_weight=0.0)
    if recipe.logit_normal:
        return recipe
    return dataclasses.replace(recipe, logit_normal_end_images=None, logit_normal_mean=0.0, logit_normal_std=1.0)


def _training(compute: Compute, execution: Execution, *, generator: bool) -> Compute:
    """How a training is spread; the other stages come to the same numbers however many processes share them."""
    if not generator:  # a discriminator normalises by batch statistics, so its batch is never cut
        return dataclasses.replace(compute, processes=execution.processes)
    return dataclasses.replace(compute, **dataclasses.asdict(execution))


def _stages(run: Run, base: Scale, data: DataSpec, compute: Compute, judges: Sequence[JudgeSpec]) -> dict[str, Any]:
    scale = base
    for key, value in run.changes.items():
        if key.partition(".")[0] not in CHANGEABLE:
            raise ValueError(f"a run cannot change {key}; {nearest(key, CHANGEABLE)}")
        scale = change(scale, key, value)
    if run.changes:
        check_scale(scale)
    _check_budgets(scale, data)
    tokenizer = _fit_tokenizer(run, scale, data, compute)
    architecture = tokenizer.architecture
    fit = Stage("fit_tokenizer", tokenizer)
    reconstruct = Stage(
        "reconstruct",
        Reconstruct(
            data=data,
            images=min(scale.evaluation.reconstruct_images, data.test_images),
            perceptual_net=scale.evaluation.perceptual_net,
            perceptual_size=scale.evaluation.perceptual_size,
            judges=tuple(judges),
            compute=compute,
        ),
        {"tokenizer": fit},
    )
    encode = Stage("encode", _encode(run, scale, data, compute), {"tokenizer": fit})
    stages: dict[str, Any] = {"tokenizer": (fit, reconstruct, encode)}
    if run.generator is None:
        return stages
    if scale.sampling.guidance_channels > architecture.z_channels:
        raise ValueError(
            f"sampling.guidance_channels {scale.sampling.guidance_channels} is more than the "
            f"{architecture.z_channels} channels of {run.tokenizer}; 0 is all"
        )
    generator = _fit_generator(run, scale, data, compute, architecture)
    fit_generator = Stage("fit_generator", generator, {"latents": encode})
    marks = generator.recipe.snapshot_images
    if unknown := [mark for mark in run.judged_at if mark not in marks]:
        raise ValueError(f"{run.name}: no snapshot at {unknown[0]} images seen; there are {', '.join(map(str, marks))}")
    reference = _given(scale.evaluation.reference) if scale.evaluation.reference else None
    generate = tuple(
        Stage(
            "generate",
            Generate(
                data=data,
                images_seen=mark,
                sampling=_used_sampling(scale.sampling),
                reference_images=0 if reference else min(scale.evaluation.reference_images, data.train_images),
                judges=tuple(judges),
                compute=compute,
                reference=reference,
            ),
            {"generator": fit_generator, "latents": encode, "tokenizer": fit},
        )
        for mark in run.judged_at or marks
    )
    return {**stages, "generator": (fit_generator, *generate)}


def make_plan(ablation: str, module: ModuleType, scale: Scale, data: DataSpec, compute: Compute, study: str) -> Plan:
    """Resolve every run of an ablation; each tokenizer is planned as a run of its own, once.

    Args:
        ablation: its name, a column of the table.
        module: declares `QUESTION`, `runs(scale) -> list[Run]` and perhaps `FACTORS` and `BASE`, see
            study/factors.py.
        scale, data, compute: resolved.
        study: name of the results folder.

    Raises:
        ValueError: a spec, an option or a size that does not fit, before anything runs.
    """
    check_grid(scale, data.resolution)
    judges = [judge_spec(name, size, data) for name, size in scale.judges]
    planned: dict[tuple[Stage, ...], Planned] = {}
    jobs: dict[str, Job] = {}
    for run in module.runs(scale):
        stages = _stages(run, scale, data, compute, judges)
        fit, reconstruct, encode = stages["tokenizer"]
        tokenizer_run = Run(
            tokenizer=run.tokenizer,
            tokenizer_seed=run.tokenizer_seed,
            changes={k: v for k, v in run.changes.items() if not k.startswith(("generator.", "sampling."))},
            given_tokenizer=run.given_tokenizer,
        )
        tokenizer_job = Job("tokenizer", tokenizer_run.name, (fit, reconstruct, encode))
        if same := jobs.get(tokenizer_job.name):
            stages_of_both = dict.fromkeys((*same.stages, *tokenizer_job.stages))
            tokenizer_job = dataclasses.replace(same, stages=tuple(stages_of_both))
        jobs[tokenizer_job.name] = tokenizer_job
        planned.setdefault((fit, reconstruct), Planned(tokenizer_run, fit, (reconstruct,)))
        if run.generator is not None:
            fit_generator, *generate = stages["generator"]
            job = Job("generator", run.title, (fit_generator, *generate), after=tokenizer_job.name)
            if same := jobs.get(job.name):  # the same training, perhaps judged by another protocol
                job = dataclasses.replace(same, stages=tuple(dict.fromkeys((*same.stages, *job.stages))))
            jobs[job.name] = job
            planned.setdefault((fit_generator, *generate), Planned(run, fit_generator, tuple(generate)))
    ordered = sorted(jobs.values(), key=lambda job: job.kind != "tokenizer")  # stable: tokenizers first
    return Plan(
        ablation, module.QUESTION, study, scale, data, tuple(planned.values()), tuple(ordered),
        factors=getattr(module, "FACTORS", {}), base=getattr(module, "BASE", ""),
    )  # fmt: skip
