"""Checks of a scale and its data before a study starts: an invalid value gives one clear line, not a failed job."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from models.configs import (
    DIFFUSION_TIMESTEPS,
    EXTERNAL_TOKENIZERS,
    FOUNDATIONS,
    LITE0_WIDTHS,
    OBJECTIVES,
    PROJECTORS,
    TRANSFORMERS,
    VF_PARTS,
    AutoencoderConfig,
    GeneratorConfig,
    parse_generator,
    parse_tokenizer,
)
from models.names import nearest
from models.regularisation import REGULARISERS
from results.schema import PUBLISHED_STUDIES, SELECTION_SEED
from study.plan.data_spec import DataSpec
from study.plan.runs import Run
from study.plan.scales import Scale
from study.plan.specs import FitTokenizer, Phase, Repa, Sampling, TokenizerRecipe
from study.plan.weight_files import FILES, REFERENCES, RELEASED_GENERATOR

PERCEPTUAL_NETS = ("lite0", "lite2", "vgg")
LABEL_SCHEMES = ("equal", "random")
WEIGHTS = ("ema", "raw")
STORED_LATENTS = ("posterior", "sample")
PRECISIONS = ("float32", "bfloat16")
TOKENIZER_PRECISIONS = ("float32", "tf32", "bfloat16")
FEWEST_SAMPLES = 4  # precision and recall use the three nearest neighbours
SMALLEST_FOR_SSIM = 6  # pixels: half of its window is mirrored at each edge
SMALLEST_FOR_VGG = 16  # pixels: it halves four times

Check = tuple[Callable[[Any], bool], str]  # whether a value is valid, and the requirement in words

_positive: Check = (lambda v: 0 < v < float("inf"), "above 0")
_not_negative: Check = (lambda v: 0 <= v < float("inf"), "0 or more")
_share: Check = (lambda v: 0 <= v <= 1, "between 0 and 1")
_decay: Check = (lambda v: 0 <= v < 1, "at least 0 and below 1")
_betas: Check = (lambda v: all(0 <= b < 1 for b in v), "two numbers at least 0 and below 1")
_distinct: Check = (lambda v: len(set(v)) == len(v) > 0, "at least one, none twice")
_shares: Check = (lambda v: len(v) > 0 and all(0 <= share <= 1 for share in v), "at least one number, each 0 to 1")


def _one_of(valid: tuple[Any, ...]) -> Check:
    return (lambda v: v in valid), f"one of {', '.join(map(str, valid))}"


def _valid_phases(phases: tuple[Phase, ...]) -> bool:
    starts = [phase.from_images for phase in phases]
    margins = [m for phase in phases for m in (phase.vf_cosine_margin, phase.vf_distance_margin)]
    weights = [phase.vf_weight for phase in phases]
    return starts == sorted(set(starts)) and all(map(_share[0], margins)) and all(map(_not_negative[0], weights))


CHECKS: dict[str, Check] = {
    "device": _one_of(("any", "cpu", "cuda")),
    "train_images": _positive,
    "downsampling": _positive,
    "latent_channels": _distinct,
    "generators": _distinct,
    "tokenizer_seeds": _distinct,
    "seeds": _distinct,
    "autoencoder.ch": _positive,
    "autoencoder.ch_mult": (lambda v: len(v) > 0 and min(v) > 0, "at least one number above 0"),
    "autoencoder.num_res_blocks": _positive,
    "autoencoder.unshuffle": _positive,
    "autoencoder.norm_groups": _positive,
    "foundation.input_size": (lambda v: v >= 32, "at least 32"),
    "foundation.stride": _one_of(tuple(LITE0_WIDTHS)),
    "tokenizer.learning_rate": _positive,
    "tokenizer.betas": _betas,
    "tokenizer.warmup_images": _not_negative,
    "tokenizer.final_learning_rate": _share,
    "tokenizer.l1_weight": _not_negative,
    "tokenizer.l2_weight": _not_negative,
    "tokenizer.perceptual_weight": _not_negative,
    "tokenizer.perceptual_net": _one_of(PERCEPTUAL_NETS),
    "tokenizer.perceptual_size": (lambda v: v >= 8, "at least 8"),
    "tokenizer.kl_weight": _not_negative,
    "tokenizer.gan_weight": _not_negative,
    "tokenizer.gan_start_images": _not_negative,
    "tokenizer.gan_width": _positive,
    "tokenizer.vf_weight": _not_negative,
    "tokenizer.vf_cosine_weight": _not_negative,
    "tokenizer.vf_distance_weight": _not_negative,
    "tokenizer.vf_cosine_margin": _share,
    "tokenizer.vf_distance_margin": _share,
    "tokenizer.phases": (_valid_phases, "phases in the order of their from_images, with weights and margins as above"),
    "representation_autoencoders": (lambda v: len(set(v)) == len(v), "none twice"),
    "regularisers": (lambda v: len(set(v)) == len(v), "none twice"),
    "latent_regularisers": (
        lambda v: len(set(v)) == len(v) and set(v) <= {*VF_PARTS, *REGULARISERS},
        f"some of {', '.join((*VF_PARTS, *REGULARISERS))}, none twice",
    ),
    "deciding_repeats": _positive,
    "regularisation.spectrum.weight": _not_negative,
    "regularisation.spectrum.tilt": (math.isfinite, "a finite number"),
    "regularisation.spectrum.bins": (lambda v: v >= 2, "at least 2"),
    "regularisation.local.weight": _not_negative,
    "regularisation.local.threshold": (lambda v: -1 <= v <= 1, "between -1 and 1"),
    "regularisation.prefix.fewest": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "regularisation.mask.ratios": _shares,
    "regularisation.mask.probabilities": (
        lambda v: _shares[0](v) and abs(sum(v) - 1) < 1e-6,
        "numbers from 0 to 1 that add up to 1",
    ),
    "regularisation.noise.strength": _not_negative,
    "regularisation.scale.weight": _not_negative,
    "regularisation.scale.factors": (lambda v: _distinct[0](v) and min(v) > 1, "numbers above 1, none twice"),
    "regularisation.eq.probability": _share,
    "regularisation.eq.shrink_probability": _share,
    "regularisation.eq.smallest": (lambda v: 0 < v < 1, "above 0 and below 1"),
    "generator.snapshot_images": _distinct,
    "generator.learning_rate": _positive,
    "generator.betas": _betas,
    "generator.weight_decay": _not_negative,
    "generator.warmup_images": _not_negative,
    "generator.gradient_clip": _positive,
    "generator.ema_decay": _decay,
    "generator.direction_weight": _not_negative,
    "generator.objective": _one_of(tuple(OBJECTIVES)),
    "generator.repa.weight": _not_negative,
    "generator.repa.model": (lambda v: v in ("", *FOUNDATIONS), f"one of {', '.join(FOUNDATIONS)}, or empty"),
    "generator.repa.depth": _not_negative,
    "generator.repa.projector": _one_of(PROJECTORS),
    "generator.repa.spatial_norm": _share,
    "generator.logit_normal_mean": (math.isfinite, "a finite number"),
    "generator.logit_normal_std": _positive,
    "generator.logit_normal_end_images": (lambda v: v is None or v >= 0, "None, or 0 or more"),
    "generator.shift_base": (lambda v: v is None or v > 0, "None, or above 0"),
    "sampling.samples": (lambda v: v >= FEWEST_SAMPLES, f"at least {FEWEST_SAMPLES}"),
    "sampling.chunk": _positive,
    "sampling.solver": _one_of(tuple(solver for solvers in OBJECTIVES.values() for solver in solvers)),
    "sampling.steps": _positive,
    "sampling.timestep_shift": _positive,
    "sampling.guidance_scale": _not_negative,
    "sampling.guidance_interval": (lambda v: 0 <= v[0] <= v[1] <= 1, "two times 0 <= start <= end <= 1"),
    "sampling.guidance_channels": _not_negative,
    "sampling.label_scheme": _one_of(LABEL_SCHEMES),
    "sampling.weights": _one_of(WEIGHTS),
    "sampling.seed": _not_negative,
    "stored_latents": _one_of(STORED_LATENTS),
    "precision": _one_of(PRECISIONS),
    "tokenizer_precision": _one_of(TOKENIZER_PRECISIONS),
    "guidance_scales": (
        lambda v: 1 in v and len(v) > 1 and len(set(v)) == len(v) and all(0 <= s < float("inf") for s in v),
        "1 and at least one other number, all 0 or more and none twice",
    ),
    "execution.processes": _positive,
    "execution.microbatch_images": _not_negative,
    "evaluation.reference_images": (lambda v: v >= FEWEST_SAMPLES, f"at least {FEWEST_SAMPLES}"),
    "evaluation.reconstruct_images": (lambda v: v >= 2, "at least 2"),
    "evaluation.perceptual_net": _one_of(PERCEPTUAL_NETS),
    "evaluation.perceptual_size": (lambda v: v >= 8, "at least 8"),
    "evaluation.reference": (lambda v: v in ("", *REFERENCES), f"one of {', '.join(REFERENCES)}, or empty"),
}


def check_study(name: str) -> str:
    """The name; ValueError unless it is a plain folder name that is not reserved for published results."""
    if not name or name in (".", "..", *PUBLISHED_STUDIES) or set(name) & set("/\\"):
        reserved = " and ".join(map(repr, PUBLISHED_STUDIES))
        raise ValueError(f"--study must be a plain folder name other than {reserved}, got {name!r}")
    return name


def check_scale(scale: Scale) -> None:
    """ValueError for the first invalid value; it names the field, the value and the requirement."""
    for field, (is_valid, requirement) in CHECKS.items():
        group: Any = scale
        *groups, name = field.split(".")
        for each in groups:
            group = None if group is None else getattr(group, each)  # None: a group of fields that is off
        if group is None:
            continue
        value = getattr(group, name)
        if not is_valid(value):
            choices = requirement.removeprefix("one of ").split(", ")
            hint = f"; {nearest(value, choices)}" if isinstance(value, str) else ""
            raise ValueError(f"{field} must be {requirement}, got {value!r}{hint}")
    solver, objective = scale.sampling.solver, scale.generator.objective
    if solver not in OBJECTIVES[objective]:
        raise ValueError(
            f"sampling.solver {solver} cannot draw from generator.objective {objective}: set sampling.solver to "
            f"{' or '.join(OBJECTIVES[objective])}"
        )
    if solver == "ddpm" and not 2 <= scale.sampling.steps <= DIFFUSION_TIMESTEPS:
        raise ValueError(
            f"sampling.steps must be 2 to {DIFFUSION_TIMESTEPS} with sampling.solver ddpm, got {scale.sampling.steps}"
        )
    recipe = scale.tokenizer
    if not (recipe.l1_weight or recipe.l2_weight or recipe.perceptual_weight):
        raise ValueError(
            "tokenizer.l1_weight, tokenizer.l2_weight and tokenizer.perceptual_weight are all 0, so no tokenizer would "
            "learn to reconstruct: set one above 0"
        )
    if len(scale.tokenizer_seeds) > len(scale.seeds):
        raise ValueError(
            f"seeds use tokenizer_seeds in turn, so there cannot be more of them: {len(scale.tokenizer_seeds)} "
            f"tokenizer_seeds for {len(scale.seeds)} seeds; set both, such as seeds=0,1 and tokenizer_seeds=0,1"
        )
    names = [name for name, _ in scale.judges]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"judges must name at least one judge and none twice, got {names}")
    reference, others = scale.evaluation.reference, [name for name in names if name != "inception"]
    if reference and others:
        raise ValueError(
            f"evaluation.reference {reference} holds statistics of Inception features, which the judge {others[0]} "
            "cannot use; --set evaluation.reference= compares with training images"
        )


def check_sampling_seed(sampling: Sampling) -> None:
    """ValueError if samples with a scale's own seed would count as samples that only choose a setting."""
    if sampling.seed >= SELECTION_SEED:
        raise ValueError(
            f"sampling.seed must be below {SELECTION_SEED}, got {sampling.seed}: samples with seeds from there on only "
            "choose a setting, and count in no result"
        )


def check_data(scale: Scale, data: DataSpec) -> None:
    """ValueError for too few or too small pictures to train on or to judge with."""
    if data.test_images < 2 or data.train_images < FEWEST_SAMPLES:
        raise ValueError(
            f"{data.name} has {data.train_images} pictures to train on and {data.test_images} to test with; "
            f"a study needs at least {FEWEST_SAMPLES} and 2"
        )
    if data.resolution < SMALLEST_FOR_SSIM:
        raise ValueError(
            f"pictures of {data.resolution} px are too small for SSIM, which needs {SMALLEST_FOR_SSIM}: "
            "choose a larger --resolution"
        )
    for group, part in (("tokenizer", scale.tokenizer), ("evaluation", scale.evaluation)):
        used = group == "evaluation" or scale.tokenizer.perceptual_weight
        if used and part.perceptual_net == "vgg" and max(part.perceptual_size, data.resolution) < SMALLEST_FOR_VGG:
            raise ValueError(
                f"{group}.perceptual_net vgg needs {SMALLEST_FOR_VGG} px, and pictures of {data.resolution} px are "
                f"enlarged to {group}.perceptual_size {part.perceptual_size}: set it to {SMALLEST_FOR_VGG} or more"
            )


def check_reference(scale: Scale, data: DataSpec) -> None:
    """ValueError for published statistics of other classes or another size."""
    reference = REFERENCES.get(scale.evaluation.reference)
    if reference is not None and (data.resolution, data.classes) != (reference.resolution, reference.classes):
        raise ValueError(
            f"evaluation.reference {scale.evaluation.reference} has {reference.classes} classes at "
            f"{reference.resolution} px, {data.name} has {data.classes} at {data.resolution} px: "
            "--set evaluation.reference= compares with training images"
        )


SMALLEST_FOR_GAN = 24  # pixels: the discriminator halves three times, then has two kernels of size 4


def check_grid(scale: Scale, resolution: int) -> None:
    """ValueError unless every generator's patches tile the latent at this resolution; it names resolutions that do."""
    patches = [parse_generator(generator)[2] for generator in scale.generators]
    multiple = scale.downsampling * max(patches)
    if resolution % multiple or resolution < 2 * multiple:
        closest = max(2, round(resolution / multiple)) * multiple
        suggestions = sorted({max(2 * multiple, closest - multiple), closest, closest + multiple})
        raise ValueError(
            f"pictures of {resolution} px do not fit the grid of scale {scale.name} (downsampling "
            f"{scale.downsampling}, patch {max(patches)}: multiples of {multiple} from {2 * multiple} px); nearest "
            f"that fit: {', '.join(map(str, suggestions))} (choose one with --resolution)"
        )


def check_budgets(scale: Scale, data: DataSpec) -> None:
    """ValueError for training budgets, batches, snapshots and phases that do not fit together."""
    for name, recipe in (("tokenizer", scale.tokenizer), ("generator", scale.generator)):
        if recipe.batch_images < 1 or recipe.budget_images < 1 or recipe.budget_images % recipe.batch_images:
            raise ValueError(
                f"{name}.budget_images {recipe.budget_images} must be a multiple of "
                f"{name}.batch_images {recipe.batch_images}"
            )
        processes, microbatch = scale.execution.processes, scale.execution.microbatch_images
        if recipe.batch_images % processes:
            raise ValueError(
                f"{name}.batch_images {recipe.batch_images} must be a multiple of execution.processes {processes}"
            )
        if name == "generator" and microbatch and recipe.batch_images // processes % microbatch:
            raise ValueError(
                f"execution.microbatch_images {microbatch} must divide the {recipe.batch_images // processes} images "
                "of a process's share"
            )
    generator = scale.generator
    marks = generator.snapshot_images
    invalid = [mark for mark in marks if mark % generator.batch_images or not 0 < mark <= generator.budget_images]
    if invalid or not marks:
        raise ValueError(
            f"generator.snapshot_images {marks} must name multiples of generator.batch_images "
            f"{generator.batch_images}, none above generator.budget_images {generator.budget_images}"
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


def check_alignment(tokenizer: str, recipe: TokenizerRecipe, data: DataSpec) -> None:
    """ValueError if this tokenizer's VF loss has no part, or its foundation model cannot take pictures of this size."""
    name = parse_tokenizer(tokenizer)
    foundation = name.foundation
    if foundation is None:
        return
    if not (recipe.vf_cosine_weight or recipe.vf_distance_weight):
        others = tuple(regulariser for regulariser in name.regularisers if regulariser in REGULARISERS)
        plain = dataclasses.replace(name, foundation=None, regularisers=others)
        raise ValueError(
            f"tokenizer.vf_cosine_weight and tokenizer.vf_distance_weight are both 0, which leaves {tokenizer} nothing "
            f"to align by: set one above 0, or ask for {plain}"
        )
    _check_pictures(tokenizer, foundation, data)


def _check_pictures(asking: str, foundation: str, data: DataSpec) -> None:
    """ValueError if this foundation model cannot take pictures of this size."""
    model = TRANSFORMERS.get(foundation)
    if model is not None and model.resize is None and data.resolution % model.patch:
        lower = max(1, data.resolution // model.patch) * model.patch
        raise ValueError(
            f"{asking}: the foundation model {foundation} takes pictures in multiples of {model.patch} px, not "
            f"{data.resolution}: choose --resolution {lower} or {lower + model.patch}, or another foundation model"
        )


def check_regularisation(fit: FitTokenizer) -> None:
    """ValueError if this tokenizer's regularisers cannot act on its latents, or leave images too small for its nets."""
    used, grid = {} if fit.regularisation is None else fit.regularisation.used(), fit.architecture.grid
    if "mask" in used and len(used["mask"].ratios) != len(used["mask"].probabilities):
        raise ValueError(
            f"{fit.tokenizer}: regularisation.mask.ratios {used['mask'].ratios} needs as many "
            f"regularisation.mask.probabilities, got {used['mask'].probabilities}"
        )
    if "scale" in used and (odd := [factor for factor in used["scale"].factors if grid % factor]):
        raise ValueError(
            f"{fit.tokenizer}: regularisation.scale.factors {odd[0]} does not divide the grid of {grid} x {grid} cells"
        )
    smallest = used["eq"].smallest_side(grid) if "eq" in used else grid
    if smallest >= grid and "eq" in used:
        raise ValueError(
            f"{fit.tokenizer}: eq shrinks a grid of {grid} x {grid} cells to {smallest} at most, so nothing is left "
            "to draw: lower regularisation.eq.smallest, or choose larger pictures"
        )
    if "local" in used and grid < 2:
        raise ValueError(f"{fit.tokenizer}: local compares neighbouring cells, and the grid has one")
    side = smallest * fit.architecture.downsampling
    if fit.recipe.gan_weight and side < SMALLEST_FOR_GAN:
        share = math.ceil(SMALLEST_FOR_GAN / fit.architecture.downsampling) / grid
        mend = f"set regularisation.eq.smallest to {share:g}, or " if share < 1 else "set "
        raise ValueError(
            f"{fit.tokenizer}: eq shrinks pictures to {side} px, and the discriminator needs {SMALLEST_FOR_GAN}: "
            f"{mend}tokenizer.gan_weight to 0"
        )
    if "scale" in used:
        side = max(1, smallest // max(used["scale"].factors)) * fit.architecture.downsampling
    enlarged = max(side, fit.recipe.perceptual_size)
    if fit.recipe.perceptual_weight and fit.recipe.perceptual_net == "vgg" and enlarged < SMALLEST_FOR_VGG:
        raise ValueError(
            f"{fit.tokenizer}: tokenizer.perceptual_net vgg needs {SMALLEST_FOR_VGG} px, and regularisers shrink "
            f"pictures to {side} px: set tokenizer.perceptual_size to {SMALLEST_FOR_VGG} or more"
        )


def check_repa(run: Run, repa: Repa, generator: GeneratorConfig, data: DataSpec) -> None:
    """ValueError unless this generator can be aligned with its model."""
    if run.pretrained_generator is not None:
        raise ValueError(
            f"{run.name}: a pretrained generator is not trained, so it cannot have generator.repa: leave it out"
        )
    if not repa.model:
        raise ValueError(
            f"{run.name}: generator.repa needs a foundation model, and the scale aligns no tokenizer with one: set "
            f"generator.repa.model to one of {', '.join(FOUNDATIONS)}"
        )
    if repa.depth > generator.depth:
        raise ValueError(
            f"{run.name}: generator.repa.depth {repa.depth} is more than the {generator.depth} blocks of "
            f"{generator.name}"
        )
    if repa.spatial_norm and generator.tokens == 1:
        raise ValueError(
            f"{run.name}: generator.repa.spatial_norm compares the cells of an image, and {generator.name} has one "
            f"token for a grid of {generator.grid} x {generator.grid}: set it to 0, or choose a smaller patch"
        )
    _check_pictures(run.name, repa.model, data)


def check_guidance(run: str, sampling: Sampling, generator: GeneratorConfig) -> None:
    """ValueError if guidance needs a null label that this generator has not, or more channels than its latent has."""
    if sampling.guidance_scale != 1 and not generator.label_dropout:
        raise ValueError(
            f"{run}: sampling.guidance_scale {sampling.guidance_scale:g} needs a generator that was trained with label "
            "dropout, and its option label_dropout is 0: set that above 0, or sampling.guidance_scale to 1"
        )
    if sampling.guidance_channels > generator.in_channels:
        raise ValueError(
            f"{run}: sampling.guidance_channels {sampling.guidance_channels} is more than the {generator.in_channels} "
            "channels of the latent; 0 is all"
        )


def check_pretrained_tokenizer(run: str, name: str, tokenizer: str, planned: AutoencoderConfig) -> None:
    """ValueError unless weights in the released form can be those of the planned network.

    Args:
        name: of the weights; those of FILES hold a network that is known before they are read.
        tokenizer: its spec.
    """
    if planned.frozen_encoder:
        raise ValueError(f"{run}: {tokenizer} is trained here alone; pretrained weights are of other tokenizers")
    may_state = name.endswith(".safetensors")  # in its header, as study.export writes it
    if not planned.library and not may_state and (planned.unshuffle, planned.norm_groups) != (1, 32):
        raise ValueError(
            f"{run}: pretrained weights are those of a network with autoencoder.unshuffle 1 and "
            f"autoencoder.norm_groups 32, planned are {planned.unshuffle} and {planned.norm_groups}: set them, as at "
            "--scale imagenet256"
        )
    if name in FILES:
        external = EXTERNAL_TOKENIZERS.get(tokenizer)
        released = external.config if external else AutoencoderConfig(z_channels=planned.z_channels)
        _check_layout(run, name, released.layout(), planned.layout())


def check_pretrained_generator(run: str, name: str, planned: GeneratorConfig) -> None:
    """ValueError unless the released generators, where `name` is one of them, have the planned network."""
    if name in FILES:
        _check_layout(run, name, RELEASED_GENERATOR.layout(), planned.layout())


def _check_layout(run: str, name: str, released: dict[str, Any], planned: dict[str, Any]) -> None:
    different = [
        f"{key} {released[key]}, planned is {planned[key]}" for key in released if released[key] != planned[key]
    ]
    if different:
        raise ValueError(
            f"{run}: {name} is a network with {'; '.join(different)}: use the scale, the pictures and the options that "
            "it was trained with (--scale imagenet256)"
        )
