"""Estimates of a plan's run time (FLOPs divided by the rate that this machine reached before) and disk use.

Rates are measured on finished stages and by study.doctor, per device and precision: of this work if it was done there
before, else of a stage of its kind; without any, assumed ones are used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from models.configs import parse_tokenizer
from models.costs import (
    autoencoder_flops,
    autoencoder_parameters,
    flops_per_image,
    generator_parameters,
    projector_flops,
    projector_parameters,
)
from study.core.cards import cards
from study.core.compute import Compute, device_name
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.plan.data_spec import DataSpec
from study.plan.features import feature_width, repa_flops
from study.plan.judge_spec import FLOPS_PER_PIXEL
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Judge, Reconstruct, Sample
from study.plan.stage import Stage
from study.plan.trajectory import images_left

# GFLOP/s of one process, used until a stage of this kind has run on this machine. A GPU is assumed to be an H100; its
# rate for generators is that of the released code (284 images/s of LightningDiT-XL/1 per GPU, 712 GFLOP each), the
# other GPU rates are guesses.
GUESSED_GPU, GUESSED_GIB = "H100", 79.0
FIRST_GUESS: dict[str, dict[str, float]] = {
    "cpu": {"fit_tokenizer": 25, "reconstruct": 10, "encode": 40, "fit_generator": 40, "sample": 40, "judge": 10},
    "cuda": {
        "fit_tokenizer": 25e3, "reconstruct": 5e3, "encode": 20e3, "fit_generator": 200e3, "sample": 60e3, "judge": 1e3,
    },
}  # fmt: skip
SHORTEST_SECONDS = 10.0
LEAST_WORK_SECONDS = 2.0  # that a stage takes at the assumed rates, however slow the machine is
CLUSTER = "cluster.json"  # which device the cluster has
CHECKPOINTS_KEPT = 2  # of each training while it runs, as in study/train/checkpoint.py
FORWARD_AND_BACKWARD = 3  # in forward passes: a backward pass costs two


def training_flops(stage: Stage) -> int:
    """FLOPs per training image, forward and backward, of the network that a fit stage trains; with REPA's projector."""
    spec = stage.spec
    if isinstance(spec, FitTokenizer):
        encode, decode = autoencoder_flops(spec.architecture)
        encoded, decoded = _coded(spec)
        of_encoder = 1 if spec.architecture.frozen_encoder else FORWARD_AND_BACKWARD
        return round(of_encoder * encoded * encode + FORWARD_AND_BACKWARD * decoded * decode)
    assert isinstance(spec, FitGenerator)
    flops, repa = flops_per_image(spec.architecture), spec.recipe.repa
    if repa is not None and spec.foundation is not None:
        flops += projector_flops(repa.projector, spec.architecture, feature_width(repa.model, spec.foundation))
    return FORWARD_AND_BACKWARD * flops


def _coded(spec: FitTokenizer) -> tuple[float, float]:
    """How many images the encoder and the decoder take on average per training image, by their area."""
    used, grid = {} if spec.regularisation is None else spec.regularisation.used(), spec.architecture.grid
    encoded = decoded = 1.0
    if "eq" in used:
        sides = range(used["eq"].smallest_side(grid), grid)
        area = sum(side**2 for side in sides) / len(sides) / grid**2
        transformed, shrunk = used["eq"].probability, (1 - used["eq"].probability) * used["eq"].shrink_probability
        encoded = 1 - shrunk * (1 - area)
        decoded = encoded - transformed * (1 - area)
    if "scale" in used:
        factors = used["scale"].factors
        decoded += encoded * sum(factor**-2 for factor in factors) / len(factors)
    return encoded, decoded


def stage_flops(stage: Stage) -> float:
    """FLOPs of a whole stage; of a judge those of its network, whose measured rate contains the metrics too."""
    spec = stage.spec
    if isinstance(spec, Judge):
        (pictures,) = stage.inputs.values()
        made = pictures.spec
        assert isinstance(made, (Reconstruct, Sample))
        return float(FLOPS_PER_PIXEL[spec.judge.name] * spec.judge.size**2 * made.images)
    if isinstance(spec, (FitTokenizer, Encode, FitGenerator)) and spec.pretrained:
        return 0.0
    if isinstance(spec, (FitTokenizer, FitGenerator)):
        latents = stage.inputs["latents"].spec if isinstance(spec, FitGenerator) else None
        features = repa_flops(spec, latents) if isinstance(spec, FitGenerator) and isinstance(latents, Encode) else 0
        return float(training_flops(stage) + features) * spec.recipe.budget_images
    tokenizer = stage.inputs["tokenizer"].spec
    assert isinstance(tokenizer, FitTokenizer)
    encode, decode = autoencoder_flops(tokenizer.architecture)
    if isinstance(spec, Encode):
        return float(encode) * spec.train_images * (2 if spec.data.flip else 1)
    if isinstance(spec, Reconstruct):
        return float(encode + decode) * spec.images
    fit = stage.inputs["generator"].spec
    assert isinstance(spec, Sample) and isinstance(fit, FitGenerator)
    steps = spec.sampling.steps
    evaluations = {"euler": steps, "heun": 2 * steps, "dopri5": 100, "ddpm": steps}
    passes = 1 if spec.sampling.guidance_scale == 1 else 2  # guidance needs a second one without the label
    sample = flops_per_image(fit.architecture) * evaluations[spec.sampling.solver] * passes
    return float(sample + decode) * spec.sampling.samples


def stage_parameters(stage: Stage) -> int:
    """Parameters of the network that a fit stage trains."""
    spec = stage.spec
    if isinstance(spec, FitTokenizer):
        return autoencoder_parameters(spec.architecture)
    assert isinstance(spec, FitGenerator)
    return generator_parameters(spec.architecture)


def disk_bytes(stage: Stage) -> int:
    """Bytes on disk of a stage's outputs: weights, states, latents, samples."""
    spec = stage.spec
    if isinstance(spec, (FitTokenizer, FitGenerator)) and spec.pretrained:
        return 4 * stage_parameters(stage)
    if isinstance(spec, FitTokenizer):
        return 4 * stage_parameters(stage)
    if isinstance(spec, FitGenerator):  # EMA and raw weights at each mark
        weights = 4 * stage_parameters(stage) * 2 * len(spec.recipe.marks)
        return weights + kept_state_bytes(stage)
    if isinstance(spec, Encode):  # mean and standard deviation, or a sample; float16
        tokenizer = stage.inputs["tokenizer"].spec
        assert isinstance(tokenizer, FitTokenizer)
        values = tokenizer.architecture.z_channels * tokenizer.architecture.grid**2
        return spec.train_images * (2 if spec.data.flip else 1) * values * (2 if spec.stored == "sample" else 4)
    if isinstance(spec, (Reconstruct, Sample)):
        tokenizer = stage.inputs["tokenizer"].spec
        assert isinstance(tokenizer, FitTokenizer)
        return spec.images * tokenizer.architecture.in_channels * tokenizer.architecture.resolution**2
    return 0


def checkpoint_bytes(stages: Iterable[Stage], at_once: int) -> int:
    """Bytes of the checkpoints that are there while as many of these stages as run at once are training."""
    fits = [stage for stage in stages if isinstance(stage.spec, (FitTokenizer, FitGenerator))]
    each = (
        # weights and Adam's two moments, of a generator the EMA too
        12 * stage_parameters(stage) if isinstance(stage.spec, FitTokenizer) else _state_bytes(stage)
        for stage in fits
        if not stage.spec.pretrained  # type: ignore[union-attr]
    )
    return CHECKPOINTS_KEPT * sum(sorted(each, reverse=True)[:at_once])


def _state_bytes(stage: Stage) -> int:
    """Bytes of one state of a generator's training: weights, EMA and Adam's two moments, in float32; all but the EMA
    of REPA's projector."""
    spec, projector = stage.spec, 0
    assert isinstance(spec, FitGenerator)
    if (repa := spec.recipe.repa) is not None and spec.foundation is not None:
        width = feature_width(repa.model, spec.foundation)
        projector = projector_parameters(repa.projector, spec.architecture.width, width)
    return 4 * (4 * stage_parameters(stage) + 3 * projector)


def kept_state_bytes(stage: Stage) -> int:
    """Bytes of the states of a generator's training that stay."""
    spec = stage.spec
    assert isinstance(spec, FitGenerator)
    states = len(spec.recipe.marks) if spec.compute.keep_states else 1
    return 0 if spec.pretrained else _state_bytes(stage) * states


def data_bytes(data: DataSpec) -> int:
    """Bytes on disk of a packed data set."""
    return (data.train_images + data.test_images) * data.channels * data.resolution**2


@functools.cache
def _rates_name(compute: Compute, device: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in f"{device} {compute.precision} {compute.threads}") + ".json"


def _rates_file(compute: Compute, device: str) -> Path:
    return study_root() / "rates" / _rates_name(compute, device)


def training_of(stage: Stage) -> FitTokenizer | FitGenerator:
    """The training of the network that a stage, which is no judge, trains or runs."""
    spec = stage.inputs["generator"].spec if isinstance(stage.spec, Sample) else stage.spec
    if not isinstance(spec, (FitTokenizer, FitGenerator)):
        spec = stage.inputs["tokenizer"].spec
    assert isinstance(spec, (FitTokenizer, FitGenerator))
    return spec


def work(stage: Stage) -> str:
    """What a stage computes, as far as it decides the rate: its kind, and shape and size of its networks."""
    spec = stage.spec
    if isinstance(spec, Judge):
        return f"judge {spec.judge.name} {spec.judge.size}"
    fit = training_of(stage)
    if isinstance(fit, FitGenerator):
        return f"{stage.kind} {fit.architecture.name} {fit.architecture.tokens}"
    network = fit.architecture
    shape = f"{network.ch} {network.ch_mult} {network.num_res_blocks} {network.unshuffle} {network.resolution}"
    if isinstance(spec, FitTokenizer):
        recipe, frozen = spec.recipe, parse_tokenizer(spec.tokenizer).foundation_network
        shape += f" {recipe.perceptual_net if recipe.perceptual_weight else ''} {recipe.gan_weight > 0} {frozen or ''}"
    return f"{stage.kind} {shape}"


def guessed_seconds(stage: Stage) -> float:
    """How long a stage takes at the rate that is assumed for its kind, whatever was measured."""
    return stage_flops(stage) / (FIRST_GUESS[stage.spec.compute.device][stage.kind] * 1e9)


def title_of(stage: Stage) -> str:
    """Kind of a stage and its network, for people."""
    spec = stage.spec
    if isinstance(spec, Judge):
        return f"judge {spec.judge.name}"
    fit = training_of(stage)
    return f"{stage.kind} {fit.architecture.name if isinstance(fit, FitGenerator) else fit.tokenizer}"


def device_of(compute: Compute) -> str:
    """Name of the device for which times are estimated: this machine's; where stages run on GPUs and this machine has
    none, the GPU that study.doctor met on the cluster; "" without either."""
    return device_name(compute) or (read_json(study_root() / "rates" / CLUSTER) or {}).get("device", "")


def note_cluster(device: str, memory_gib: float) -> None:
    """Remember the GPU that study.doctor met, for plans that are made where there is none."""
    write_json(study_root() / "rates" / CLUSTER, {"device": device, "memory_gib": memory_gib})


def memory_of_gpu() -> tuple[str, float]:
    """Name and memory in GiB of the GPU that stages have to fit: this machine's smallest; without one, that which
    study.doctor met on the cluster; else the one that rates are assumed of."""
    if cards():
        card = min(cards(), key=lambda card: card.memory_gib)
        return card.name, card.memory_gib
    noted = read_json(study_root() / "rates" / CLUSTER) or {"device": GUESSED_GPU, "memory_gib": GUESSED_GIB}
    return noted["device"], noted["memory_gib"]


def has_rates(stages: Iterable[Stage], device: str) -> bool:
    """Whether the rates of all these stages were measured on this device, so that none is a guess."""
    by_compute: dict[Compute, dict[str, float]] = {}
    return all(_rate(stage, device, by_compute)[1] for stage in stages)


def _rate(stage: Stage, device: str, by_compute: dict[Compute, dict[str, float]]) -> tuple[float, bool]:
    """GFLOP/s of a stage, and whether they were measured. Args: by_compute: the files that were read."""
    compute = stage.spec.compute
    if compute not in by_compute:
        by_compute[compute] = read_json(_rates_file(compute, device)) or {}
    rates = by_compute[compute]
    measured = rates.get(work(stage)) or rates.get(stage.kind)
    return measured or FIRST_GUESS[compute.device][stage.kind], measured is not None


def note_rate(stage: Stage, seconds: float, device: str) -> None:
    """Store the rate of a finished stage on this device; stages that were short or had little to compute, as those of a
    smoke run on a slow machine, are ignored: start-up dominates them."""
    if seconds >= SHORTEST_SECONDS and guessed_seconds(stage) >= LEAST_WORK_SECONDS:
        gflops = stage_flops(stage) / max(seconds, 1e-3) / 1e9
        _keep(stage.spec.compute, device, {stage.kind: gflops, work(stage): gflops})


def note_measured_rates(gflops: Mapping[Stage, float], device: str) -> None:
    """Store rates in GFLOP/s that were measured on this device in other ways than by finished stages; where no stage of
    a kind has finished, for all of that kind."""
    for stage, rate in gflops.items():
        _keep(stage.spec.compute, device, {work(stage): rate}, {stage.kind: rate})


def _keep(
    compute: Compute, device: str, rates: Mapping[str, float], unless_known: Mapping[str, float] | None = None
) -> None:
    path = _rates_file(compute, device)
    write_json(path, {**(unless_known or {}), **(read_json(path) or {}), **rates})


def estimated_seconds(stages: Iterable[Stage], device: str) -> float:
    """Approximate seconds that one process needs for all of these stages."""
    return _seconds(dict.fromkeys(stages, 1.0), device)


def seconds_left(stages: Iterable[Stage], device: str) -> float:
    """Approximate seconds that one process needs for what these stages have not done; a training goes on from its last
    state."""
    missing = (stage for stage in stages if stage.record() is None)
    return _seconds({s: images_left(s) / max(s.marks) if s.marks else 1.0 for s in missing}, device)


def _seconds(shares: Mapping[Stage, float], device: str) -> float:
    """Approximate seconds that one process needs for these shares of stages."""
    by_compute: dict[Compute, dict[str, float]] = {}  # each file of rates is read once
    return sum(
        share * stage_flops(stage) / (_rate(stage, device, by_compute)[0] * 1e9) for stage, share in shares.items()
    )
