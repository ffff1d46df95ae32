"""How much memory of a GPU a stage takes, estimated without torch: by it trainings share a GPU.

Of trainings it is state and saved tensors, which tests compare with those of a CPU; of what draws, encodes and judges
the largest layers of a batch. The allocator's slack, and what CUDA takes itself, are allowances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from models.configs import TRANSFORMERS, AutoencoderConfig
from models.costs import (
    DISCRIMINATOR_SAVED_BYTES,
    DISCRIMINATOR_WIDTH,
    PERCEPTUAL_SAVED_BYTES,
    autoencoder_parameters,
    autoencoder_saved_bytes,
    generator_parameters,
    generator_saved_bytes,
)
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Judge, Reconstruct, Sample
from study.plan.stage import Stage

CONTEXT_GIB = 0.8  # of each process: CUDA's context, libraries' workspaces
SLACK = 1.1  # of what the allocator holds to what is in use
COMPILED = 0.65  # of what is saved, where blocks are compiled: norms and modulation are computed again
HALVES = 0.85  # of what a tokenizer saves under autocast, whose norms stay float32
ENCODED, JUDGED, DECODED_PIXELS = 128, 250, 2**20  # images, or pixels, at a time: BATCH and PIECE_PIXELS of the stages
LIVE = 4  # largest layers of a network that are there at once, without gradients
MOST_DOUBLINGS = 7  # of the processes of a training, where fewer do not fit
JUDGE_BYTES = 100  # of a judge's largest layers, per pixel of a picture


def largest_gib(stages: Iterable[Stage]) -> float:
    """GPU memory of a process that runs these stages in turn, in GiB."""
    return CONTEXT_GIB + SLACK * max((stage_bytes(stage) for stage in stages), default=0.0) / 2**30


def execution_that_fits(stages: Iterable[Stage], gib: float) -> dict[str, int]:
    """Fields of `execution` by which trainings that take more fit into this much memory of a GPU: the fewest processes
    that tokenizers need, whose batch is not split otherwise, then the largest pieces of a generator's share of a batch.

    Empty where nothing needs to be changed, or nothing is enough.
    """
    stages = list(stages)
    fits = [stage for stage in stages if isinstance(stage.spec, (FitTokenizer, FitGenerator))]
    if not fits or largest_gib(stages) <= gib:
        return {}
    batches = [stage.spec.recipe.batch_images for stage in fits]  # type: ignore[union-attr]
    fewest = fits[0].spec.compute.processes
    for processes in (fewest * 2**power for power in range(MOST_DOUBLINGS)):
        if any(batch % processes for batch in batches):
            return {}
        whole = max(batch // processes for batch in batches)
        for pieces in (0, *(whole // 2**power for power in range(1, whole.bit_length()))):
            changed = {"processes": processes} | ({"microbatch_images": pieces} if pieces else {})
            if largest_gib(_executed(stage, changed) for stage in stages) <= gib:
                return {name: value for name, value in changed.items() if (name, value) != ("processes", fewest)}
            if largest_gib(_executed(stage, changed) for stage in fits if isinstance(stage.spec, FitTokenizer)) > gib:
                break  # only more processes help these
    return {}


def _executed(stage: Stage, changed: Mapping[str, Any]) -> Stage:
    spec = dataclasses.replace(stage.spec, compute=dataclasses.replace(stage.spec.compute, **changed))
    return Stage(stage.kind, spec, stage.inputs, noted=stage.noted)


def stage_bytes(stage: Stage) -> float:
    """Bytes that one process of a stage holds on its GPU at the same time."""
    spec = stage.spec
    if isinstance(spec, (FitTokenizer, FitGenerator)) and spec.pretrained:
        return 0.0
    if isinstance(spec, FitGenerator):
        return generator_bytes(spec, spec.compute.microbatch_images)
    if isinstance(spec, FitTokenizer):
        return _tokenizer_bytes(spec)
    if isinstance(spec, Judge):
        return float(JUDGED * spec.judge.size**2 * JUDGE_BYTES)
    tokenizer = stage.inputs["tokenizer"].spec
    assert isinstance(tokenizer, FitTokenizer)
    weights = 4 * autoencoder_parameters(tokenizer.architecture)
    if isinstance(spec, Encode):
        return weights + _largest_layers(tokenizer.architecture, ENCODED)
    decoding = weights + _largest_layers(
        tokenizer.architecture, max(1, DECODED_PIXELS // tokenizer.architecture.resolution**2)
    )
    if isinstance(spec, Reconstruct):
        return decoding
    fit = stage.inputs["generator"].spec
    assert isinstance(spec, Sample) and isinstance(fit, FitGenerator)
    network, chunk = fit.architecture, spec.sampling.chunk * (1 if spec.sampling.guidance_scale == 1 else 2)
    per_token = 8 * network.width + 4 * network.mlp_width
    return decoding + 4 * generator_parameters(network) + 4.0 * chunk * network.tokens * per_token


def generator_bytes(spec: FitGenerator, microbatch_images: int) -> float:
    """Bytes of a generator's training in a process: weights, gradients, EMA and two moments, saved tensors.

    Args:
        microbatch_images: that go through at a time; 0: the process's whole share of a batch.
    """
    network, compute = spec.architecture, spec.compute
    images = microbatch_images or spec.recipe.batch_images // compute.processes
    parameters, half = generator_parameters(network), compute.precision == "bfloat16"
    buckets, cast = 4 if compute.processes > 1 else 0, 2 if half else 0
    state = parameters * (20 + buckets + cast)
    saved = float(generator_saved_bytes(network, half=half)) * (COMPILED if compute.compile else 1.0)
    if compute.checkpointing:  # the input of each block, and all of one
        saved = 4 * network.depth * network.tokens * network.width + saved / network.depth
    aligned = spec.recipe.repa.model if spec.recipe.repa is not None else None
    return state + images * saved + _foundation_bytes(aligned)


def _tokenizer_bytes(spec: FitTokenizer) -> float:
    recipe, network = spec.recipe, spec.architecture
    images, pixels = recipe.batch_images // spec.compute.processes, network.resolution**2
    halves = HALVES if spec.compute.precision == "bfloat16" else 1.0
    beside = [0.0]  # beside encoder and decoder, one after the other
    if recipe.perceptual_weight:
        side = max(recipe.perceptual_size, network.resolution)
        beside.append(PERCEPTUAL_SAVED_BYTES[recipe.perceptual_net] * side**2)
    if recipe.gan_weight:
        beside.append(DISCRIMINATOR_SAVED_BYTES * recipe.gan_width / DISCRIMINATOR_WIDTH * pixels)
    saved = halves * sum(autoencoder_saved_bytes(network)) + max(beside)
    aligned = spec.tokenizer.partition("-")[2].partition("+")[0] if spec.foundation is not None else None
    return 16 * autoencoder_parameters(network) + images * saved + _foundation_bytes(aligned)


def _foundation_bytes(model: str | None) -> float:
    """Bytes of a foundation model with its layers of a batch; those of lite0 are computed before the training."""
    return 2e6 * TRANSFORMERS[model].megabytes if model in TRANSFORMERS else 0.0


def _largest_layers(network: AutoencoderConfig, images: int) -> float:
    sides = network.level_sides()
    cells = max(side**2 * network.ch * mult for side, mult in zip(sides, network.ch_mult, strict=True))
    return 4.0 * LIVE * images * cells
