"""What in a plan is likely a mistake although it can be computed, and what is amiss with a measured tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from results.numbers import counted
from study.plan.judge_spec import WIDTHS
from study.plan.runs import Plan
from study.plan.scales import Scale
from study.plan.specs import FitGenerator, FitTokenizer, GeneratorRecipe, Reconstruct, Sample, TokenizerRecipe
from study.plan.stage import Stage

COLOUR_SHIFT = 2.0  # 1/255
MISMATCH_PSNR = 15.0  # dB; published tokenizers reconstruct at 20 and more


def plan_warnings(plan: Plan) -> list[str]:
    """One line for each likely mistake in the settings of a plan, with the number of runs that have it."""
    found: Counter[str] = Counter()
    for planned in plan.runs:
        spec, pictures = planned.fit.spec, planned.results[-1].pictures.spec
        if isinstance(spec, FitTokenizer):
            found.update(_of_tokenizer(spec))
            if isinstance(pictures, Reconstruct):
                found.update(_of_few_pictures(pictures, plan.scale))
        elif isinstance(spec, FitGenerator) and isinstance(pictures, Sample):
            found.update(_of_generator(spec, pictures))
    return [f"{line} ({counted(runs, 'run')})" for line, runs in found.items()]


def _of_tokenizer(spec: FitTokenizer) -> list[str]:
    recipe = spec.recipe
    lines = _of_warmup("tokenizer", recipe)
    start = min([recipe.gan_start_images, *(phase.from_images for phase in recipe.phases)])
    if recipe.gan_weight and start >= recipe.budget_images:
        lines.append(
            f"tokenizer.gan_start_images {start:,} is not below tokenizer.budget_images {recipe.budget_images:,}: the "
            "discriminator never plays; start it earlier, or set tokenizer.gan_weight to 0"
        )
    return lines


def _of_few_pictures(pictures: Reconstruct, scale: Scale) -> list[str]:
    """Of test pictures that are fewer than the scale asks for, and too few for a judge's features."""
    if pictures.images >= scale.evaluation.reconstruct_images:
        return []
    return [
        f"rFID by {judge} is of the {pictures.images:,} test pictures that there are, and it takes "
        f"{2 * WIDTHS[judge]:,} (twice its features) to be comparable, without which no claim uses it; give more, such "
        "as a folder test/ beside train/"
        for judge, _ in scale.judges
        if pictures.images < 2 * WIDTHS[judge]
    ]


def _of_warmup(network: str, recipe: TokenizerRecipe | GeneratorRecipe) -> list[str]:
    if recipe.warmup_images < recipe.budget_images:
        return []
    return [
        f"{network}.warmup_images {recipe.warmup_images:,} is not below {network}.budget_images "
        f"{recipe.budget_images:,}: the learning rate does not reach {recipe.learning_rate:g}; warm up for less, or "
        "train longer"
    ]


def _of_generator(spec: FitGenerator, last: Sample) -> list[str]:
    """Args: last: the samples after the most images seen."""
    network, sampling, lines = spec.architecture, last.sampling, _of_warmup("generator", spec.recipe)
    values = network.in_channels * network.patch**2
    if network.width < values and spec.pretrained is None:
        lines.append(
            f"{network.name} is {network.width} wide, less than the {values} values of a token (latent channels "
            f"{network.in_channels}, patch {network.patch}): choose a wider generator, a smaller patch or fewer "
            "channels"
        )
    if sampling.weights == "ema" and spec.pretrained is None:
        steps, decay = last.images_seen // spec.recipe.batch_images, spec.recipe.ema_decay
        if 1 / (1 - decay) > steps:
            lines.append(
                f"generator.ema_decay {decay:g} averages over {1 / (1 - decay):,.0f} steps, and the training has "
                f"{steps:,}: its EMA keeps {decay**steps:.0%} of the initial weights; train longer, lower it, or set "
                "sampling.weights to raw"
            )
    if sampling.label_scheme == "equal" and sampling.samples < network.num_classes:
        lines.append(
            f"sampling.samples {sampling.samples:,} is fewer than the {network.num_classes:,} classes, and "
            "sampling.label_scheme equal takes them in turn: the last classes are not drawn"
        )
    return lines


def reconstruction_warnings(*, psnr: float | None, colour_shift: float | None, pretrained: bool) -> list[str]:
    """What is amiss with a tokenizer by its reconstructions, a line each.

    Args:
        psnr: dB; None: an empty cell of a table.
        colour_shift: mean of reconstruction minus image over all pixels of a channel, in 1/255: the largest, without
            its sign; None: likewise.
        pretrained: whether its weights are published ones, which may expect other pixels than ours in [-1, 1].
    """
    lines = []
    if pretrained and psnr is not None and psnr < MISMATCH_PSNR:
        lines.append(
            f"its reconstructions reach {psnr:.1f} dB PSNR, below {MISMATCH_PSNR:g}: these weights likely expect "
            "pixels in another range or normalisation than [-1, 1], and generators on its latents would be wasted"
        )
    if colour_shift is not None and colour_shift > COLOUR_SHIFT:
        lines.append(
            f"its reconstructions are off in mean colour by {colour_shift:.1f}/255 in a channel, above "
            f"{COLOUR_SHIFT:g}/255"
        )
    return lines


def measured_warnings(stages: Iterable[Stage]) -> list[str]:
    """`reconstruction_warnings` of the tokenizers that these stages have reconstructed with so far, each with its
    name."""
    lines = []
    for stage in stages:
        if not isinstance(stage.spec, Reconstruct) or (record := stage.record()) is None:
            continue
        fit, metrics = stage.inputs["tokenizer"].spec, record["metrics"]
        assert isinstance(fit, FitTokenizer)
        name = f"pretrained {fit.pretrained.name}" if fit.pretrained else fit.tokenizer
        name += f" (seed {fit.seed})" if fit.seed else ""
        for line in reconstruction_warnings(
            psnr=metrics["psnr"], colour_shift=metrics["colour_shift"], pretrained=fit.pretrained is not None
        ):
            lines.append(f"tokenizer {name}: {line}")
    return lines
