"""How long a plan will take: floating-point operations over the rate this machine reached before.

Rates come from the records of this processor and precision; without any, from what two cores of a laptop reach.
"""

from __future__ import annotations

from pathlib import Path

from models.costs import autoencoder_flops, autoencoder_parameters, flops_per_image, generator_parameters
from study.core.compute import Compute
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.plan.data_spec import DataSpec
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Generate, Reconstruct
from study.plan.stage import Stage

# GFLOP/s of one process until a stage of this kind has been recorded here. A GPU is taken to be an H100; its rate for
# generators is what the released code reaches (284 images/s of LightningDiT-XL/1 a card, 712 GFLOP each), the others
# are guesses.
GUESSED_GPU = "H100"
FIRST_GUESS: dict[str, dict[str, float]] = {
    "cpu": {"fit_tokenizer": 25, "reconstruct": 10, "encode": 40, "fit_generator": 40, "generate": 20},
    "cuda": {"fit_tokenizer": 50e3, "reconstruct": 5e3, "encode": 40e3, "fit_generator": 200e3, "generate": 60e3},
}
SHORTEST_SECONDS = 10.0
KEPT = 2  # checkpoints of a training, as study/train/checkpoint.py keeps them
FORWARD_AND_BACKWARD = 3  # a backward pass costs two forward passes


def training_flops(stage: Stage) -> int:
    """FLOPs of one training image, forward and backward, of the network that a fit stage trains."""
    spec = stage.spec
    if isinstance(spec, FitTokenizer):
        return FORWARD_AND_BACKWARD * sum(autoencoder_flops(spec.architecture))
    assert isinstance(spec, FitGenerator)
    return FORWARD_AND_BACKWARD * flops_per_image(spec.architecture)


def stage_flops(stage: Stage) -> float:
    """FLOPs of a whole stage, of its own networks alone; the judges' share is in the rate."""
    spec = stage.spec
    if isinstance(spec, (FitTokenizer, Encode, FitGenerator)) and spec.given:
        return 0.0
    if isinstance(spec, (FitTokenizer, FitGenerator)):
        return float(training_flops(stage)) * spec.recipe.budget_images
    tokenizer = stage.inputs["tokenizer"].spec
    assert isinstance(tokenizer, FitTokenizer)
    encode, decode = autoencoder_flops(tokenizer.architecture)
    if isinstance(spec, Encode):
        return float(encode) * spec.train_images * (2 if spec.data.flip else 1)
    if isinstance(spec, Reconstruct):
        return float(encode + decode) * spec.images
    fit = stage.inputs["generator"].spec
    assert isinstance(spec, Generate) and isinstance(fit, FitGenerator)
    steps = spec.sampling.steps
    evaluations = {"euler": steps, "heun": 2 * steps, "dopri5": 100, "ddpm": steps}
    guided = 1 if spec.sampling.guidance_scale == 1 else 2
    velocity = flops_per_image(fit.architecture) * evaluations[spec.sampling.solver] * guided
    return float(velocity + decode) * spec.sampling.samples


def stage_parameters(stage: Stage) -> int:
    """Parameters of the network that a fit stage trains."""
    spec = stage.spec
    if isinstance(spec, FitTokenizer):
        return autoencoder_parameters(spec.architecture)
    assert isinstance(spec, FitGenerator)
    return generator_parameters(spec.architecture)


def disk_bytes(stage: Stage) -> int:
    """Bytes that a stage keeps when it is done, and while it trains: weights and checkpoints, latents, samples."""
    spec = stage.spec
    if isinstance(spec, (FitTokenizer, FitGenerator)) and spec.given:
        return 4 * stage_parameters(stage)
    if isinstance(spec, FitTokenizer):  # weights; in each checkpoint also Adam's two moments
        return 4 * stage_parameters(stage) * (1 + KEPT * 3)
    if isinstance(spec, FitGenerator):  # EMA and raw at each mark; in each checkpoint also the two moments
        return 4 * stage_parameters(stage) * (2 * len(spec.recipe.snapshot_images) + KEPT * 4)
    if isinstance(spec, Encode):  # mean and spread in float16, or a sample
        tokenizer = stage.inputs["tokenizer"].spec
        assert isinstance(tokenizer, FitTokenizer)
        values = tokenizer.architecture.z_channels * tokenizer.architecture.grid**2
        return spec.train_images * (2 if spec.data.flip else 1) * values * (2 if spec.stored == "sample" else 4)
    if isinstance(spec, Generate):
        return spec.sampling.samples * spec.data.channels * spec.data.resolution**2
    return 0


def data_bytes(data: DataSpec) -> int:
    """Bytes of a packed data set."""
    return (data.train_images + data.test_images) * data.channels * data.resolution**2


def _rates_file(compute: Compute, device: str) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in f"{device} {compute.precision} {compute.threads}")
    return study_root() / "rates" / f"{name}.json"


def has_rates(compute: Compute, device: str) -> bool:
    """Whether stages have been recorded on this machine, so that its estimates are not guesses."""
    return _rates_file(compute, device).exists()


def note_rate(stage: Stage, seconds: float, device: str) -> None:
    """Remember how fast a stage went on this device; short ones say more about start-up and are left out, and so are
    those that compute nothing."""
    if seconds < SHORTEST_SECONDS or not stage_flops(stage):
        return
    path = _rates_file(stage.spec.compute, device)
    rates = read_json(path) or {}
    rates[stage.kind] = stage_flops(stage) / max(seconds, 1e-3) / 1e9
    write_json(path, rates)


def estimated_seconds(stage: Stage, device: str) -> float:
    """Seconds that one process will need for a stage, roughly."""
    compute = stage.spec.compute
    rates = {**FIRST_GUESS[compute.device], **(read_json(_rates_file(compute, device)) or {})}
    return stage_flops(stage) / (rates[stage.kind] * 1e9)
