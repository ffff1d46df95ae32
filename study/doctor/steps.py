"""A few real steps of every stage of a plan at its full size, on made-up pictures with random weights: do they fit, and
how fast are they?"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from models import autoencoder
from models.autoencoder import Autoencoder
from models.configs import parse_tokenizer
from models.costs import autoencoder_flops, flops_per_image
from models.lightningdit import LightningDiT
from study.bench.cases import Workload, generator_spec, generator_step, random_latents, tokenizer_step
from study.bench.timing import synchronize
from study.core import compute
from study.core.compute import Compute
from study.core.workspace import peak_memory_gib
from study.judge.judges import BATCH as JUDGED
from study.judge.judges import build_judge, features
from study.plan.data_spec import DataSpec
from study.plan.estimate import FIRST_GUESS, title_of, training_flops, work
from study.plan.judge_spec import FLOPS_PER_PIXEL
from study.plan.memory import stage_bytes
from study.plan.runs import Plan
from study.plan.scales import Scale
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Judge, Reconstruct, Sample
from study.plan.stage import Stage
from study.stages import encode
from study.stages.decoding import decoded, piece
from study.stages.fit_generator import build
from study.stages.sample import make_sampler

STEPS, SECONDS = 4, 5.0  # timed, at most, after one that is not
LONGEST_SECONDS = 10.0  # that a step on a processor may take by the estimate; a longer one is not tried
MADE_UP_LATENTS = 512
SAMPLING_STEPS = 4  # of a solver, at most, before the samples are decoded
Step = Callable[[], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of a step.

    Args:
        title: of the work, such as "fit_generator LightningDiT-S/1".
        images: that went through at a time, as the plan has it, or as they fit.
        seconds: of one step; 0: it was not made.
        gflops: GFLOP/s.
        peak_gib: of GPU memory; None on a processor.
        estimated_gib: of what the stage holds, by the estimate.
        skipped: why it was not tried, though nothing is lacking.
        lacking: why it cannot be done as planned, with what mends it.
    """

    title: str
    images: int = 0
    seconds: float = 0.0
    gflops: float = 0.0
    peak_gib: float | None = None
    estimated_gib: float = 0.0
    skipped: str = ""
    lacking: str = ""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A step to be made: its images, FLOPs of one of them, and a function that builds its networks and returns it."""

    images: int
    flops: float
    make: Callable[[], Step]


class Skipped(Exception):
    """A step cannot be made here, though nothing is lacking; says why."""


def distinct(stages: Iterable[Stage]) -> list[Stage]:
    """The first stage of each kind of work."""
    return list({work(stage): stage for stage in reversed(list(stages))}.values())[::-1]


def try_steps(plan: Plan) -> Iterator[tuple[Stage, Tried]]:
    """Make the steps of a plan, one kind of work after the other, on the device of the plan."""
    for stage in distinct(plan.stages):
        yield stage, _tried(stage, plan)


def _tried(stage: Stage, plan: Plan) -> Tried:
    spec, title = stage.spec, title_of(stage)
    estimated = stage_bytes(stage) / 2**30
    device = spec.compute.device
    compute.apply(spec.compute)
    try:
        with tempfile.TemporaryDirectory() as folder:
            attempt, smaller = _attempt(stage, plan, Path(folder))
            expected = attempt.images * attempt.flops / (FIRST_GUESS[device][stage.kind] * 1e9)
            if device == "cpu" and (expected > LONGEST_SECONDS or estimated > available_gib()):
                raise Skipped(f"a step of {attempt.images:,} images is too much for this processor")
            remedy = ""
            while True:
                try:
                    seconds, peak = _timed(attempt.make, device)
                    break
                except torch.OutOfMemoryError:
                    fewer = smaller(attempt.images) if smaller is not None else None
                    if fewer is None:
                        raise
                    attempt, remedy = fewer
    except Skipped as skipped:
        return Tried(title=title, estimated_gib=estimated, skipped=str(skipped))
    except Exception as error:  # whatever it is would end the stage too
        reason = (str(error).strip().splitlines() or [""])[0]
        return Tried(title=title, estimated_gib=estimated, lacking=f"{title}: {type(error).__name__}: {reason}")
    finally:
        if spec.compute.compile:
            torch.compiler.reset()  # one process compiles a block for eight shapes at most, and here are many networks
    return Tried(
        title=title,
        images=attempt.images,
        seconds=seconds,
        gflops=attempt.images * attempt.flops / seconds / 1e9,
        peak_gib=peak,
        estimated_gib=estimated,
        lacking=f"{title} runs out of GPU memory as planned; it fits with --set {remedy}" if remedy else "",
    )


def available_gib() -> float:
    """Memory of this machine that is free or can be freed."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    except (OSError, StopIteration, ValueError):
        return float("inf")


def _timed(make: Callable[[], Step], device: str) -> tuple[float, float | None]:
    """Seconds of a step, and peak GPU memory in GiB."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = make()
    step()
    synchronize(device)
    began, made = time.perf_counter(), 0
    while made < STEPS and (made == 0 or time.perf_counter() - began < SECONDS):
        step()
        synchronize(device)
        made += 1
    seconds = (time.perf_counter() - began) / made
    return seconds, peak_memory_gib(device) if device == "cuda" else None


Smaller = Callable[[int], tuple[Attempt, str] | None]
"""From images that do not fit to half as many, with the setting that asks for them; None where that is no way out."""


def _attempt(stage: Stage, plan: Plan, folder: Path) -> tuple[Attempt, Smaller | None]:
    """The step of a stage, and what may fit where it does not.

    Raises:
        Skipped: it cannot be made from made-up data, or is none.
    """
    spec = stage.spec
    if isinstance(spec, (FitTokenizer, FitGenerator, Encode)) and spec.pretrained:
        raise Skipped("its weights are published, and nothing is trained")
    if isinstance(spec, FitGenerator):
        return _of_generator(stage, plan, folder)
    if isinstance(spec, FitTokenizer):
        return _of_tokenizer(stage, plan)
    if isinstance(spec, Judge):
        return _of_judge(spec, plan.data), None
    tokenizer = stage.inputs["tokenizer"].spec
    assert isinstance(tokenizer, FitTokenizer)
    network = tokenizer.architecture
    if network.frozen_encoder or network.library:
        raise Skipped("its tokenizer's network is loaded from published weights")
    device, encoding = spec.compute.device, autoencoder_flops(network)

    def random_tokenizer() -> Autoencoder:
        made = Autoencoder(network)
        autoencoder.initialize(made, torch.Generator().manual_seed(0))
        return made.to(memory_format=torch.channels_last).to(device).eval().requires_grad_(False)

    def pictures(count: int) -> torch.Tensor:
        return torch.rand(count, network.in_channels, network.resolution, network.resolution).to(device) * 2 - 1

    if isinstance(spec, Encode):
        images = min(encode.BATCH, spec.train_images)

        def encoding_step() -> Step:
            made, pixels = random_tokenizer(), pictures(images)
            return torch.inference_mode()(lambda: made.encode(pixels).mean.half().cpu())

        return Attempt(images, encoding[0], encoding_step), None
    if isinstance(spec, Reconstruct):
        images = min(piece(network.resolution), spec.images)

        def reconstruct_step() -> Step:
            made, pixels = random_tokenizer(), pictures(images)
            return torch.inference_mode()(lambda: decoded(made, made.encode(pixels).mean))

        return Attempt(images, sum(encoding), reconstruct_step), None
    assert isinstance(spec, Sample)
    fit = stage.inputs["generator"].spec
    assert isinstance(fit, FitGenerator)
    sampling = dataclasses.replace(
        spec.sampling,
        solver="ddpm" if spec.sampling.solver == "ddpm" else "euler",
        steps=min(spec.sampling.steps or SAMPLING_STEPS, SAMPLING_STEPS),
        guidance_interval=(0.0, 1.0),
    )
    passes = sampling.steps * (1 if sampling.guidance_scale == 1 else 2)

    def sampling_step() -> Step:
        generator = LightningDiT(fit.architecture, torch.Generator().manual_seed(0)).to(device).eval()
        draw = make_sampler(generator, random_tokenizer(), lambda latent: latent, sampling, spec.compute)
        return lambda: draw(0)

    flops = flops_per_image(fit.architecture) * passes + encoding[1]
    return Attempt(sampling.chunk, flops, sampling_step), None


def _workload(scale: Scale, data: DataSpec, compute: Compute, **shapes: Any) -> Workload:
    scale = dataclasses.replace(scale, resolution=data.resolution, **shapes)
    return Workload(scale, dataclasses.replace(compute, processes=1), repeats=0, data=data, whole=True)


def _of_generator(stage: Stage, plan: Plan, folder: Path) -> tuple[Attempt, Smaller]:
    spec = stage.spec
    assert isinstance(spec, FitGenerator)
    network, share = spec.architecture, spec.recipe.batch_images // spec.compute.processes
    shapes = {"generators": (network.name,), "latent_channels": (network.in_channels,)}

    def with_microbatch(images: int) -> Attempt:
        pieces = dataclasses.replace(spec.compute, microbatch_images=images)
        workload = _workload(plan.scale, plan.data, pieces, **shapes)
        workload = dataclasses.replace(workload, batch=share)

        def make() -> Step:
            latents = random_latents(workload, folder, min(MADE_UP_LATENTS, spec.recipe.batch_images))
            return generator_step(workload, build(generator_spec(workload)), latents)

        return Attempt(share, training_flops(stage), make)

    pieces = [spec.compute.microbatch_images or share]

    def smaller(images: int) -> tuple[Attempt, str] | None:
        if pieces[-1] % 2:
            return None
        pieces.append(pieces[-1] // 2)
        return with_microbatch(pieces[-1]), f"execution.microbatch_images={pieces[-1]}"

    return with_microbatch(spec.compute.microbatch_images), smaller


def _of_tokenizer(stage: Stage, plan: Plan) -> tuple[Attempt, Smaller]:
    spec = stage.spec
    assert isinstance(spec, FitTokenizer)
    name = parse_tokenizer(spec.tokenizer)
    if name.encoder:
        raise Skipped("its encoder is loaded from published weights")
    shapes: dict[str, Any] = {"latent_channels": (spec.architecture.z_channels,)}
    if name.foundation:
        shapes["foundation_models"] = (name.foundation,)

    def of(images: int) -> Attempt:
        recipe = dataclasses.replace(spec.recipe, batch_images=images)
        workload = _workload(plan.scale, plan.data, spec.compute, **shapes)
        aligned = name.foundation is not None
        return Attempt(images, training_flops(stage), lambda: tokenizer_step(workload, recipe, aligned=aligned))

    def smaller(images: int) -> tuple[Attempt, str] | None:
        if images % 2:
            return None
        processes = 2 * spec.recipe.batch_images // images
        return of(images // 2), f"execution.processes={processes}, a GPU each: a tokenizer's batch is not split further"

    return of(spec.recipe.batch_images // spec.compute.processes), smaller


def _of_judge(spec: Judge, data: DataSpec) -> Attempt:
    if spec.judge.name == "classifier":
        raise Skipped("it is trained on the data first")
    device = spec.compute.device
    if not spec.judge.weights:
        raise Skipped("its weights are missing")
    images, side = JUDGED[device], data.resolution
    pictures = torch.randint(256, (images, data.channels, side, side), dtype=torch.uint8)

    def make() -> Step:
        extractor = build_judge(spec.judge, None, device)
        return lambda: features(extractor, pictures)

    return Attempt(images, FLOPS_PER_PIXEL[spec.judge.name] * spec.judge.size**2, make)
