"""Resolves an ablation and a scale to runs, stages and jobs. Does not import torch; nothing is computed here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from models.configs import (
    VF_PARTS,
    AutoencoderConfig,
    GeneratorConfig,
    TokenizerName,
    generator_config,
    parse_tokenizer,
)
from models.names import nearest
from models.regularisation import Regularisation
from study.core.compute import Compute, Execution, no_compiler_because
from study.core.garbage import uncollected
from study.core.settings import change
from study.plan import features
from study.plan.checks import (
    check_alignment,
    check_budgets,
    check_data,
    check_grid,
    check_guidance,
    check_pretrained_generator,
    check_pretrained_tokenizer,
    check_reference,
    check_regularisation,
    check_repa,
    check_sampling_seed,
    check_scale,
)
from study.plan.data_spec import DataSpec
from study.plan.estimate import guessed_seconds
from study.plan.judge_spec import JudgeSpec, judge_spec
from study.plan.networks import autoencoder_config
from study.plan.runs import Job, Plan, Planned, Result, Run
from study.plan.scales import Scale
from study.plan.specs import (
    Encode,
    FitGenerator,
    FitTokenizer,
    ForeignFile,
    FoundationRecipe,
    GeneratorRecipe,
    Judge,
    Phase,
    Reconstruct,
    Repa,
    Sample,
    Sampling,
    TokenizerRecipe,
)
from study.plan.stage import Stage
from study.plan.weight_files import content_hash, network_hash, weight_file

COMPILE_SECONDS = 600.0  # by FIRST_GUESS, from which on a stage of a GPU repays the minute that compiling takes
KEPT_BYTES = 2**30  # up to which the pictures of a run stay once they are judged

# fields of a scale that a single run may change; the others are the same for a whole study
CHANGEABLE = (
    "train_images", "autoencoder", "foundation", "tokenizer", "regularisation", "generator", "sampling", "evaluation",
    "execution",
)  # fmt: skip


def _used_recipe(
    recipe: TokenizerRecipe, name: TokenizerName, regularisation: Regularisation | None, resolution: int
) -> TokenizerRecipe:
    """The recipe with its defaults for all fields that this tokenizer does not use: they affect no result, so they must
    not affect the fingerprint either.

    Phases of a plain tokenizer keep their starts: restarting the optimizers there changes its results too, and it must
    restart where the aligned tokenizer does to be comparable with it. Only images that are smaller than the perceptual
    net's size are enlarged to it; a regulariser may shrink them below it.

    Where the name keeps one part of the VF loss, the other has no weight, as if the recipe said so. The KL divergence
    has none beside spectrum matching, as published, nor where the encoder is frozen.
    """
    aligned, parts = name.foundation is not None, [part for part in VF_PARTS if part in name.regularisers]
    unused_prefixes = [] if aligned else ["vf_"]
    unused_prefixes += [] if recipe.gan_weight else ["gan_"]
    unused_prefixes += [] if recipe.perceptual_weight else ["perceptual_"]
    defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(recipe) if f.name.startswith(tuple(unused_prefixes))
    }
    if not aligned:
        defaults["phases"] = tuple(Phase(from_images=phase.from_images) for phase in recipe.phases)
    recipe = dataclasses.replace(recipe, **defaults)
    for part in parts:
        (other,) = set(VF_PARTS) - {part}
        without: dict[str, Any] = {f"vf_{other}_weight": 0.0}
        recipe = dataclasses.replace(recipe, **without)
    for part in VF_PARTS:
        if aligned and not getattr(recipe, f"vf_{part}_weight"):
            unused: dict[str, Any] = {f"vf_{part}_margin": 0.0}
            phases = tuple(dataclasses.replace(phase, **unused) for phase in recipe.phases)
            recipe = dataclasses.replace(recipe, **unused, phases=phases)
    used = {} if regularisation is None else regularisation.used()
    if recipe.perceptual_weight and not {"scale", "eq"} & set(used):
        recipe = dataclasses.replace(recipe, perceptual_size=max(recipe.perceptual_size, resolution))
    if name.encoder or ("spectrum" in used and used["spectrum"].weight):
        recipe = dataclasses.replace(recipe, kl_weight=0.0)
    return recipe


def _used_foundation(name: TokenizerName, recipe: FoundationRecipe, grid: int) -> FoundationRecipe | None:
    """The foundation recipe without unused fields; None without a model.

    As the encoder of a representation autoencoder lite0 sees pictures in the size that gives the latent's grid; others
    see pixels as they were trained on, as released. Features are standardised per channel and place there, not here,
    and are strict float32, as all that is encoded.
    """
    if name.foundation_network is None:
        return None
    if name.encoder:
        recipe = dataclasses.replace(
            recipe, standardise=False, own_statistics=True, bfloat16=None, input_size=grid * recipe.stride
        )
    return features.used_recipe(name.foundation_network, recipe)


def _used_sampling(sampling: Sampling) -> Sampling:
    """The sampling protocol with fixed values in the fields that its solver or its guidance ignores."""
    if sampling.guidance_scale == 1:
        sampling = dataclasses.replace(sampling, guidance_interval=(0.0, 1.0), guidance_channels=0)
    if sampling.solver == "dopri5":
        return dataclasses.replace(sampling, steps=0, timestep_shift=1.0)
    if sampling.solver == "ddpm":
        return dataclasses.replace(sampling, timestep_shift=1.0)
    return sampling


def _foreign_file(name: str) -> ForeignFile:
    """The file of this name in the weights folder; its hash is empty when it is missing, which the plan reports.

    Raises:
        ValueError: the name contains a path.
    """
    file = weight_file(name).file
    if file != Path(file).name:
        raise ValueError(f"{name!r} must be the name of a file in the folder named by STUDY_WEIGHTS, without a path")
    sha256 = content_hash(name)
    return ForeignFile(name=name, sha256=sha256, missing="" if sha256 else name)


def _fit_tokenizer(run: Run, scale: Scale, data: DataSpec, compute: Compute) -> FitTokenizer:
    name = parse_tokenizer(run.tokenizer)
    regularisation = scale.regularisation.only(("noise",) if name.encoder else name.regularisers)
    architecture = autoencoder_config(run.tokenizer, scale, data)
    spec = FitTokenizer(
        data=data,
        train_images=min(scale.train_images, data.train_images),
        tokenizer=run.tokenizer,
        architecture=architecture,
        foundation=_used_foundation(name, scale.foundation, architecture.grid),
        foundation_weights=network_hash(name.foundation_network) if name.foundation_network else "",
        perceptual_weights=network_hash(scale.tokenizer.perceptual_net) if scale.tokenizer.perceptual_weight else "",
        recipe=_used_recipe(scale.tokenizer, name, regularisation, data.resolution),
        regularisation=regularisation,
        seed=run.tokenizer_seed,
        compute=_training(
            dataclasses.replace(compute, precision=scale.tokenizer_precision), scale.execution, generator=False
        ),
    )
    if run.pretrained_tokenizer is None:
        check_alignment(run.tokenizer, spec.recipe, data)
        check_regularisation(spec)
        return spec
    check_pretrained_tokenizer(run.name, run.pretrained_tokenizer.name, run.tokenizer, spec.architecture)
    recipe = TokenizerRecipe(budget_images=run.pretrained_tokenizer.images_seen, batch_images=0, learning_rate=0.0)
    weights = _foreign_file(run.pretrained_tokenizer.name)
    return dataclasses.replace(
        spec, train_images=0, foundation=None, foundation_weights="", perceptual_weights="", recipe=recipe,
        regularisation=None, compute=_exact(compute), pretrained=weights,
    )  # fmt: skip


def _encode(run: Run, scale: Scale, data: DataSpec, compute: Compute) -> Encode:
    if run.pretrained_statistics:
        pretrained = _foreign_file(run.pretrained_statistics)
        return Encode(data=data, train_images=0, compute=_exact(compute), pretrained=pretrained)
    return Encode(
        data=data,
        train_images=min(scale.train_images, data.train_images),
        compute=_exact(compute),
        stored="sample" if parse_tokenizer(run.tokenizer).encoder else scale.stored_latents,  # no spread to be kept
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
        **{**scale.network_options, **run.options},
    )
    repa = _used_repa(run, scale, network, data)
    spec = FitGenerator(
        tokenizer=run.tokenizer,
        architecture=dataclasses.replace(network, learned_variance=recipe.objective == "gaussian-diffusion"),
        recipe=dataclasses.replace(recipe, repa=repa),
        seed=run.seed,
        compute=_training(compute, scale.execution, generator=True),
        foundation=features.used_recipe(repa.model, scale.foundation) if repa else None,
        foundation_weights=network_hash(repa.model) if repa else None,
    )
    if run.pretrained_generator is None:
        return spec
    if scale.sampling.weights != "ema":
        raise ValueError(f"{run.name}: a pretrained generator has EMA weights only, so sampling.weights must be ema")
    check_pretrained_generator(run.name, run.pretrained_generator.name, spec.architecture)
    mark = run.pretrained_generator.images_seen
    recipe = GeneratorRecipe(budget_images=mark, snapshot_images=(mark,), batch_images=0, learning_rate=0.0)
    pretrained = _foreign_file(run.pretrained_generator.name)
    return dataclasses.replace(spec, recipe=recipe, compute=_exact(compute), pretrained=pretrained)


def _used_generator_recipe(recipe: GeneratorRecipe) -> GeneratorRecipe:
    """The recipe with fixed values in the fields that its objective ignores."""
    if recipe.objective == "gaussian-diffusion":
        recipe = dataclasses.replace(recipe, logit_normal=False, direction_weight=0.0, shift_base=None)
    if recipe.logit_normal:
        return recipe
    return dataclasses.replace(recipe, logit_normal_end_images=None, logit_normal_mean=0.0, logit_normal_std=1.0)


def _used_repa(run: Run, scale: Scale, network: GeneratorConfig, data: DataSpec) -> Repa | None:
    """The alignment of a generator with its model and its depth; None without weight."""
    repa = scale.generator.repa
    if repa is None or not repa.weight:
        return None
    model = repa.model or next(reversed(scale.foundation_models), "")
    repa = dataclasses.replace(repa, model=model, depth=repa.blocks_of(network.depth))
    check_repa(run, repa, network, data)
    return repa


def _exact(compute: Compute) -> Compute:
    """Compute of a stage that is strict float32 at every scale, whose precisions therefore must not identify it: a
    trained tokenizer encodes alike for its rFID and for the generators."""
    return dataclasses.replace(compute, precision="float32")


def _training(compute: Compute, execution: Execution, *, generator: bool) -> Compute:
    """Compute of a training stage: the others need no such spreading."""
    if not generator:  # a discriminator uses batch statistics, so its batch is never split into microbatches
        return dataclasses.replace(compute, processes=execution.processes)
    spread = {name: value for name, value in dataclasses.asdict(execution).items() if name != "compile"}
    return dataclasses.replace(compute, **spread)


def _compiled(stage: Stage, asked: bool | None) -> Stage:
    """A stage that runs a generator, with its blocks compiled if that is `asked`; None asks for it on a GPU, where this
    machine can compile and the stage takes COMPILE_SECONDS."""
    spec = stage.spec
    assert isinstance(spec, (FitGenerator, Sample))
    device = spec.compute.device
    if isinstance(spec, FitGenerator) and spec.pretrained is not None:
        return stage
    if asked is None:
        repays = device == "cuda" and guessed_seconds(stage) >= COMPILE_SECONDS
        asked = repays and not no_compiler_because(device)
    compute = dataclasses.replace(spec.compute, compile=asked)
    return dataclasses.replace(stage, spec=dataclasses.replace(spec, compute=compute))


def _planned(
    run: Run, base: Scale, data: DataSpec, compute: Compute, judges: Sequence[JudgeSpec]
) -> tuple[Planned, Stage, Planned | None]:
    """The run of a tokenizer with its encode stage, and that of the generator on it if there is one."""
    scale = base
    for key, value in run.changes.items():
        if key.partition(".")[0] not in CHANGEABLE:
            raise ValueError(f"a run cannot change {key}; {nearest(key, CHANGEABLE)}")
        scale = change(scale, key, value)
    if run.changes:
        check_scale(scale)
    if scale.evaluation.reference != base.evaluation.reference:
        check_reference(scale, data)
    check_data(scale, data)
    check_budgets(scale, data)
    tokenizer = _fit_tokenizer(run, scale, data, compute)
    architecture = tokenizer.architecture
    fit = Stage("fit_tokenizer", tokenizer)
    tested = min(scale.evaluation.reconstruct_images, data.test_images)
    reconstruct = Stage(
        "reconstruct",
        Reconstruct(
            data=data,
            images=tested,
            perceptual_net=scale.evaluation.perceptual_net,
            perceptual_size=max(scale.evaluation.perceptual_size, data.resolution),
            perceptual_weights=network_hash(scale.evaluation.perceptual_net),
            compute=_exact(compute),
            keep=_kept(tested, scale, data),
        ),
        {"tokenizer": fit},
    )
    tokenizer_run = Run(
        tokenizer=run.tokenizer,
        tokenizer_seed=run.tokenizer_seed,
        changes={k: v for k, v in run.changes.items() if not k.startswith(("generator.", "sampling."))},
        pretrained_tokenizer=run.pretrained_tokenizer,
    )
    judge = functools.partial(_judged, data=data, judges=judges, compute=_exact(compute))
    of_tokenizer = Planned(tokenizer_run, fit, (judge("reconstructions", reconstruct, reference_images=tested),))
    encode = Stage("encode", _encode(run, scale, data, compute), {"tokenizer": fit})
    if run.generator is None:
        return of_tokenizer, encode, None
    generator = _fit_generator(run, scale, data, compute, architecture)
    check_guidance(run.name, scale.sampling, generator.architecture)
    fit_generator = _compiled(Stage("fit_generator", generator, {"latents": encode}), scale.execution.compile)
    marks = generator.recipe.marks
    if unknown := [mark for mark in run.judged_at if mark not in marks]:
        raise ValueError(f"{run.name}: no snapshot at {unknown[0]} images seen; there are {', '.join(map(str, marks))}")
    judged_at, sampling = run.judged_at or marks, _used_sampling(scale.sampling)
    reference = _foreign_file(scale.evaluation.reference) if scale.evaluation.reference else None
    reference_images = 0 if reference else min(scale.evaluation.reference_images, data.train_images)
    results = []
    for mark in judged_at:
        keep = _kept(len(judged_at) * sampling.samples, scale, data)
        samples = Stage(
            "sample",
            Sample(images_seen=mark, sampling=sampling, compute=compute, keep=keep),
            {"generator": fit_generator.at([mark]), "latents": encode, "tokenizer": fit},
        )
        samples = _compiled(samples, scale.execution.compile)
        results.append(judge("samples", samples, reference_images=reference_images, reference=reference))
    return of_tokenizer, encode, Planned(run, fit_generator, tuple(results))


def _judged(
    name: str,
    pictures: Stage,
    *,
    data: DataSpec,
    judges: Sequence[JudgeSpec],
    compute: Compute,
    reference_images: int,
    reference: ForeignFile | None = None,
) -> Result:
    """Pictures, an input of this name, with a stage per judge."""
    specs = [
        Judge(data=data, judge=judge, reference_images=reference_images, compute=compute, reference=reference)
        for judge in judges
    ]
    return Result(pictures, tuple(Stage("judge", spec, {name: pictures}) for spec in specs))


def _kept(pictures: int, scale: Scale, data: DataSpec) -> bool:
    """Whether this many pictures of a run stay once they are judged."""
    return scale.evaluation.keep_samples or pictures * data.channels * data.resolution**2 <= KEPT_BYTES


@uncollected()
def make_plan(ablation: str, module: ModuleType, scale: Scale, data: DataSpec, compute: Compute, study: str) -> Plan:
    """Resolve every run of an ablation; each tokenizer becomes one run of its own, however many runs use it.

    Args:
        ablation: its name, as in the results table.
        module: declares `QUESTION`, `runs(scale) -> list[Run]` and optionally `FACTORS` and `BASE`, see
            study/plan/factors.py.
        scale, data, compute: already resolved; the precision of `compute` is that of generators.
        study: name of the results folder.

    Raises:
        ValueError: an invalid spec, option or size.
    """
    check_grid(scale, data.resolution)
    check_sampling_seed(scale.sampling)
    judges = [judge_spec(name, size, data) for name, size in scale.judges]
    planned: dict[tuple[Stage, ...], Planned] = {}
    jobs: dict[str, Job] = {}
    for run in module.runs(scale):
        of_tokenizer, encode, of_generator = _planned(run, scale, data, compute, judges)
        fit, (result,) = of_tokenizer.fit, of_tokenizer.results
        job = Job("tokenizer", of_tokenizer.run.name, (fit, result.pictures, encode, *result.judges))
        if existing := jobs.get(fit.fingerprint):
            job = dataclasses.replace(existing, stages=tuple(dict.fromkeys((*existing.stages, *job.stages))))
        jobs[fit.fingerprint] = job
        planned.setdefault((fit, *result.stages), of_tokenizer)
        if of_generator is not None:
            fit, pictures = of_generator.fit, [stage for result in of_generator.results for stage in result.stages]
            job = Job("generator", run.title, (fit, *pictures), after=job.name)
            if existing := jobs.get(fit.fingerprint):  # the same training, for other marks or protocols
                training = fit.at(sorted({*existing.stages[0].marks, *fit.marks}))
                together = dict.fromkeys((training, *existing.stages[1:], *pictures))
                job = dataclasses.replace(existing, stages=tuple(together))
            jobs[fit.fingerprint] = job
            planned.setdefault((fit, *pictures), of_generator)
    ordered = sorted(jobs.values(), key=lambda job: job.kind != "tokenizer")  # stable: tokenizers first
    return Plan(
        ablation, module.QUESTION, study, scale, data, tuple(planned.values()), tuple(ordered),
        factors=getattr(module, "FACTORS", {}), base=getattr(module, "BASE", ""),
    )  # fmt: skip
