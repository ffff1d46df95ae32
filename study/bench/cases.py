"""The cases that the benchmark times: every part of a study at a scale's shapes, as functions that run it once.

Pictures, latents and most weights are random, because speed does not depend on them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import autoencoder, discriminator
from models.autoencoder import Autoencoder
from models.configs import TRANSFORMERS, AutoencoderConfig, GeneratorConfig, generator_config
from models.costs import autoencoder_flops, flops_per_image, foundation_flops, projector_flops
from models.discriminator import Discriminator, hinge_discriminator_loss, hinge_generator_loss
from models.foundation import FoundationModel, foundation_model
from models.lightningdit import LightningDiT
from models.lpips import LPIPS
from models.regularisation import REGULARISERS
from models.regularisers import Draws, Regularisers, Step, after_encoding, before_encoding
from models.sampler import Guidance, integrate, time_grid, velocity_function
from models.vf_loss import GAN_WEIGHT_LIMIT, VF_WEIGHT_LIMIT, adaptive_weight, projection, vf_loss
from study.bench.timing import Case, Measured, ProductRecorder, flops_of, measure
from study.core.compute import Compute, autocast
from study.core.distributed import average
from study.core.files import load_tensors, save_tensors
from study.core.randomness import batch_indices, make_rng
from study.data.latents import SHARD_IMAGES, Latents
from study.judge.frechet import frechet_distance, self_test, square_root, statistics
from study.judge.judges import BATCH, features
from study.judge.judges import build_judge as build_judge
from study.plan.data_spec import GIVEN_AS_FOLDER, DataSpec
from study.plan.estimate import FORWARD_AND_BACKWARD
from study.plan.features import feature_width
from study.plan.judge_spec import judge_spec
from study.plan.networks import network_config
from study.plan.scales import Scale
from study.plan.specs import REPA, FitGenerator, FoundationRecipe, Repa, TokenizerRecipe
from study.stages import encode
from study.stages.fit_generator import build, step_function
from study.stages.fit_tokenizer import Networks, gradients
from study.stages.sample import for_sampling
from study.train.foundation_features import FoundationFeatures, resized
from study.train.perceptual_net import perceptual_net

# Images that one GPU takes at once at the sizes of imagenet256: a part of the recipe's batch
GPU_IMAGES = {"generator": 64, "tokenizer": 16, "sampling": 64}
LOADER_IMAGES = 2 * SHARD_IMAGES  # stored at most, so that there are several shards
LOADER_BATCHES = 64  # in one run
# The released guidance (configs/lightningdit_xl_vavae_f16d32.yaml) with fewer steps: 6 of 20 unguided, there 73 of 249
GUIDANCE = Guidance(scale=10.0, interval=(0.11, 1.0), channels=3)
SHIFT, STEPS = 0.3, 20


@dataclass(frozen=True)
class Workload:
    """The shapes to time: those of a scale on a device.

    Args:
        batch: images per step of a generator; None: the recipe's, as far as they fit.
        data: whose pictures and classes are made up; None: those of the scale.
        whole: batches are the recipe's on a GPU too, whether they fit or not.
    """

    scale: Scale
    compute: Compute
    repeats: int
    batch: int | None = None
    data: DataSpec | None = None
    whole: bool = False

    @property
    def channels(self) -> int:
        """Channels of the pictures."""
        return self._data_field("channels", 1)

    @property
    def flip(self) -> bool:
        return bool(self._data_field("flip", 0))

    def _data_field(self, field: str, fashion_mnist: int) -> int:
        data = self.data or GIVEN_AS_FOLDER.get(self.scale.data)
        return getattr(data, field) if data else fashion_mnist

    @property
    def tokenizer(self) -> AutoencoderConfig:
        scale = self.scale
        width = scale.latent_channels[len(scale.latent_channels) // 2]
        return network_config(
            scale.autoencoder, channels=self.channels, resolution=scale.resolution, latent_channels=width
        )

    @property
    def architecture(self) -> GeneratorConfig:
        tokenizer = self.tokenizer
        return generator_config(
            self.scale.generators[-1],
            grid=tokenizer.grid,
            in_channels=tokenizer.z_channels,
            num_classes=self._data_field("classes", 10),
            **self.scale.network_options,
        )

    def images(self, part: str, recipe: int) -> int:
        """Images per batch of this part: the recipe's number, or at most what one GPU holds."""
        return min(recipe, GPU_IMAGES[part]) if self.compute.device == "cuda" and not self.whole else recipe

    @property
    def generator_images(self) -> int:
        return self.batch or self.images("generator", self.scale.generator.batch_images)

    @property
    def rng(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)


# Tokenizer


def tokenizer_cases(workload: Workload) -> list[Case]:
    """A training step of a tokenizer: plain, aligned, and with all terms of the released objective; that also with the
    backward passes of the released code. Then plain with each regulariser.
    """
    recipe = workload.scale.tokenizer
    plain = dataclasses.replace(recipe, perceptual_weight=0.0)
    full = dataclasses.replace(recipe, perceptual_weight=recipe.perceptual_weight or 1.0, gan_weight=0.5)
    everything = "aligned, perceptual, discriminator"
    steps = {
        "plain": tokenizer_step(workload, plain, aligned=False),
        "aligned": tokenizer_step(workload, plain, aligned=True),
        everything: tokenizer_step(workload, full, aligned=True),
        "the same, a backward per adaptive weight": tokenizer_step(
            workload, full, aligned=True, backward=plain_gradients
        ),
        **{f"plain+{name}": tokenizer_step(workload, plain, aligned=False, regulariser=name) for name in REGULARISERS},
    }
    images, dtype = workload.images("tokenizer", recipe.batch_images), workload.compute.precision
    return [Case(name=name, run=step, images=images, flops=flops_of(step), dtype=dtype) for name, step in steps.items()]


def plain_gradients(
    networks: Networks,
    recipe: TokenizerRecipe,
    compute: Compute,
    pixels: Tensor,
    noise: Tensor,
    features: Tensor | None,
    gan_on: bool,
    regularisers: Regularisers | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The same as fit_tokenizer's `gradients` up to rounding, in the way of the released code.

    One graph holds everything; each adaptive weight takes a backward pass for both of its losses, then their sum one.
    """
    tokenizer = networks.tokenizer
    if regularisers is not None:
        pixels, noise, features = before_encoding(regularisers, pixels, noise, features)
    with autocast(compute):
        posterior = tokenizer.encode(pixels)
        latent = posterior.sample(noise)
        token = None if networks.mask_token is None else networks.mask_token.weight
        step = Step(pixels, posterior.mean, latent, latent, pixels, mask_token=token)
        if regularisers is not None:
            step = after_encoding(regularisers, step)
        reconstruction = tokenizer.decode(step.latent).float()
        others = [(pair, tokenizer.decode(pair.latent).float()) for pair in step.pairs]
    rec = _reconstruction_loss(networks, recipe, reconstruction, step.target)
    loss = rec + recipe.kl_weight * posterior.kl().mean()
    for pair, other in others:
        loss = loss + pair.weight * _reconstruction_loss(networks, recipe, other, pair.target)
    for term in step.terms:
        weight = torch.tensor(term.weight)
        if term.adaptive:
            weight = weight * adaptive_weight(rec, term.loss, tokenizer.encoder.conv_out.weight, VF_WEIGHT_LIMIT)
        loss = loss + weight * term.loss
    if gan_on and networks.discriminator is not None:
        with autocast(compute):
            logits = networks.discriminator(reconstruction)
        adversarial = hinge_generator_loss(logits)
        weight = adaptive_weight(rec, adversarial, tokenizer.decoder.conv_out.weight, GAN_WEIGHT_LIMIT)
        loss = loss + recipe.gan_weight * weight * adversarial
    if features is not None and networks.linear_proj is not None:
        vf = vf_loss(
            networks.linear_proj(latent),
            features,
            cosine_margin=recipe.vf_cosine_margin,
            distance_margin=recipe.vf_distance_margin,
            cosine_weight=recipe.vf_cosine_weight,
            distance_weight=recipe.vf_distance_weight,
        ).total
        weight = adaptive_weight(rec, vf, tokenizer.encoder.conv_out.weight, VF_WEIGHT_LIMIT)
        loss = loss + recipe.vf_weight * weight * vf
    loss.backward()
    return {"rec": rec.detach()}, reconstruction.detach(), step.target


def _reconstruction_loss(networks: Networks, recipe: TokenizerRecipe, reconstruction: Tensor, target: Tensor) -> Tensor:
    error = reconstruction - target
    rec = (recipe.l1_weight * error.abs() + recipe.l2_weight * error.square()).sum() / len(target)
    if networks.perceptual is not None:
        rec = rec + recipe.perceptual_weight * networks.perceptual(target, reconstruction).mean() * target[0].numel()
    return rec


def tokenizer_step(
    workload: Workload,
    recipe: TokenizerRecipe,
    *,
    aligned: bool,
    backward: Callable[..., tuple[Any, Tensor, Tensor]] = gradients,
    regulariser: str = "",
) -> Callable[[], None]:
    """One update as in fit_tokenizer, on random pictures and, where features are stored, random features.

    With a regulariser, each update draws anew: most cost the same in every step, `eq` does not.
    """
    config, device, rng = workload.tokenizer, workload.compute.device, workload.rng
    count, scale = workload.images("tokenizer", recipe.batch_images), workload.scale
    networks = Networks(Autoencoder(config))
    autoencoder.initialize(networks.tokenizer, rng)
    networks.tokenizer.to(memory_format=torch.channels_last)
    model = None
    if aligned:
        name = scale.foundation_models[-1]
        model = random_foundation(name, scale.foundation).to(device)
        networks.linear_proj = projection(config.z_channels, model.width)
    if regulariser == "mask":
        networks.mask_token = nn.Embedding(1, config.z_channels)
    if recipe.perceptual_weight:
        networks.perceptual = (
            LPIPS(None) if recipe.perceptual_net == "vgg" else perceptual_net("lite0", recipe.perceptual_size)
        )
    if recipe.gan_weight:
        networks.discriminator = Discriminator(workload.channels, width=recipe.gan_width)
        discriminator.initialize(networks.discriminator, rng)
    for network in vars(networks).values():
        if isinstance(network, nn.Module):
            network.to(device)
    trained = [*networks.tokenizer.parameters(), *(networks.linear_proj.parameters() if networks.linear_proj else ())]
    optimizer = torch.optim.Adam(trained, betas=recipe.betas, fused=True)
    strengths, updates = scale.regularisation.only([regulariser]), itertools.count()

    def draws(update: int, name: str) -> Draws:
        return Draws(make_rng(0, name, update), count, lambda drawn: drawn.to(device), average)

    critic, critic_optimizer = networks.discriminator, None
    if critic is not None:
        critic_optimizer = torch.optim.Adam(critic.parameters(), betas=recipe.betas, fused=True)
    pixels = torch.rand(count, workload.channels, config.resolution, config.resolution, generator=rng) * 2 - 1
    pixels = pixels.to(device, memory_format=torch.channels_last)
    noise = torch.randn(count, config.z_channels, config.grid, config.grid, generator=rng).to(device)
    stored = None  # features of large models do not fit on the disk and are computed in every step
    if model is not None and scale.foundation_models[-1] not in TRANSFORMERS:
        stored = torch.randn(count, model.width, config.grid, config.grid, generator=rng).to(device)

    def step() -> None:
        features = stored if stored is not None or model is None else model(pixels)
        optimizer.zero_grad(set_to_none=True)
        regularisers = None if strengths is None else Regularisers(strengths, functools.partial(draws, next(updates)))
        _, reconstruction, target = backward(
            networks, recipe, workload.compute, pixels, noise, features, critic is not None, regularisers
        )
        optimizer.step()
        if critic is not None and critic_optimizer is not None:
            critic_optimizer.zero_grad(set_to_none=True)
            with autocast(workload.compute):
                real, fake = critic(target), critic(reconstruction)
            hinge_discriminator_loss(real, fake).backward()
            critic_optimizer.step()

    return step


def coding_cases(workload: Workload) -> list[Case]:
    """Encoding as in the encode stage, and decoding as in the decoding of samples."""
    config, device = workload.tokenizer, workload.compute.device
    images = workload.images("sampling", encode.BATCH)
    network = Autoencoder(config)
    autoencoder.initialize(network, workload.rng)
    network = network.to(memory_format=torch.channels_last).to(device).eval()
    pixels = torch.rand(images, workload.channels, config.resolution, config.resolution)
    pixels = pixels.to(device, memory_format=torch.channels_last)
    latent = torch.randn(images, config.z_channels, config.grid, config.grid).to(device)

    def encoding() -> None:
        with torch.inference_mode():
            network.encode(pixels)

    def decoding() -> None:
        with torch.inference_mode():
            network.decode(latent)

    encoder_flops, decoder_flops = (images * flops for flops in autoencoder_flops(config))
    return [
        Case(name="encoding", run=encoding, images=images, flops=encoder_flops),
        Case(name="decoding", run=decoding, images=images, flops=decoder_flops),
    ]


# Generator


def random_latents(workload: Workload, folder: Path, count: int) -> Latents:
    """Random latents, written in shards and memory-mapped like those of a stage."""
    config, rng = workload.architecture, workload.rng
    shape = (2 if workload.flip else 1, config.in_channels, config.grid, config.grid)
    shards = []
    for start in range(0, count, SHARD_IMAGES):
        rows = min(SHARD_IMAGES, count - start)
        mean = torch.randn(rows, *shape, generator=rng).half()
        save_tensors(folder / f"latents-{start}.safetensors", {"mean": mean, "std": torch.full_like(mean, 0.1)})
        shards.append(load_tensors(folder / f"latents-{start}.safetensors"))
    return Latents(
        shards=tuple(shards),
        labels=torch.arange(count) % config.num_classes,
        channel_mean=torch.zeros(config.in_channels, 1, 1),
        channel_std=torch.ones(config.in_channels, 1, 1),
    )


def random_foundation(name: str, recipe: FoundationRecipe) -> FoundationModel:
    """The foundation model as the recipe uses it, with random weights."""
    return foundation_model(
        name, pretrained=False, bfloat16=bool(recipe.bfloat16), input_size=recipe.input_size, stride=recipe.stride
    )


class RandomFeatures(FoundationFeatures):
    """Stored random features, or those that a large model computes from random pixels in every step."""

    def __init__(self, workload: Workload, name: str) -> None:
        recipe, side = workload.scale.foundation, workload.scale.resolution
        network = random_foundation(name, recipe)
        self._network_of_bench = network.to(workload.compute.device) if name in TRANSFORMERS else None
        count, grid = workload.generator_images, network.grid_for(side)
        shape = (workload.channels, side, side) if name in TRANSFORMERS else (network.width, grid, grid)
        self._stored = torch.randn(count, *shape, generator=workload.rng)
        if name not in TRANSFORMERS:
            self._stored = self._stored.bfloat16()

    def given(self, indices: np.ndarray, flipped: Tensor) -> Tensor:
        return self._stored[torch.from_numpy(indices) % len(self._stored)]

    def of(self, given: Tensor, grid: int) -> Tensor:
        network = self._network_of_bench
        return resized(given.float() if network is None else network(given), grid)


def generator_spec(workload: Workload, repa: Repa | None = None) -> FitGenerator:
    recipe = dataclasses.replace(workload.scale.generator, batch_images=workload.generator_images, repa=repa)
    return FitGenerator(
        tokenizer="random", architecture=workload.architecture, recipe=recipe, seed=0, compute=workload.compute,
        foundation=workload.scale.foundation if repa else None,
    )  # fmt: skip


def aligned_case(workload: Workload, name: str, latents: Latents) -> Case:
    """A generator's training step with REPA or iREPA; its FLOPs are also those of projector and features."""
    images, network, recipe = workload.generator_images, workload.architecture, workload.scale.foundation
    model = workload.scale.foundation_models[-1]
    repa = dataclasses.replace(REPA[name], model=model, depth=REPA[name].blocks_of(network.depth))
    spec = generator_spec(workload, repa)
    step = generator_step(workload, build(spec), latents, repa, RandomFeatures(workload, model))
    flops = flops_per_image(network) + projector_flops(repa.projector, network, feature_width(model, recipe))
    flops *= FORWARD_AND_BACKWARD
    if model in TRANSFORMERS:
        flops += foundation_flops(model, TRANSFORMERS[model].resize or workload.scale.resolution)
    dtype = workload.compute.precision
    return Case(name=f"step with {name}", run=step, images=images, flops=images * flops, dtype=dtype)


def generator_step(
    workload: Workload,
    state: dict[str, Any],
    latents: Latents,
    repa: Repa | None = None,
    features: FoundationFeatures | None = None,
) -> Callable[[], None]:
    """A whole training step: data, forward, backward, clipping, AdamW, EMA."""
    spec = generator_spec(workload, repa)
    step, images_seen = step_function(spec, state, latents, features=features), 0

    def one_step() -> None:
        nonlocal images_seen
        step(images_seen)
        images_seen += spec.recipe.batch_images

    return one_step


def generator_cases(workload: Workload, latents: Latents, compiled: bool) -> list[Callable[[], list[Case]]]:
    """A generator's training step and its matrix products alone; the step with REPA; with iREPA; and, on request, with
    compiled blocks. Each is built when it is timed, because a GPU may hold the state of one training alone."""
    dtype, images = workload.compute.precision, workload.generator_images
    case = functools.partial(
        Case, images=images, flops=images * FORWARD_AND_BACKWARD * flops_per_image(workload.architecture), dtype=dtype
    )

    def plain() -> list[Case]:
        step = generator_step(workload, build(generator_spec(workload)), latents)
        step()
        with ProductRecorder() as recorder:
            step()
        return [case(name="step", run=step), case(name="its matrix products alone", run=recorder.replay)]

    def with_compiled_blocks() -> list[Case]:
        other = dataclasses.replace(workload, compute=dataclasses.replace(workload.compute, compile=True))
        step = generator_step(other, build(generator_spec(other)), latents)
        return [case(name="step, compiled", run=step)]

    aligned = [lambda name=name: [aligned_case(workload, name, latents)] for name in REPA]  # type: ignore[misc]
    groups: list[Callable[[], list[Case]]] = [plain, *aligned]
    return [*groups, with_compiled_blocks] if compiled else groups


def sampling_cases(workload: Workload, network: LightningDiT, compiled: bool) -> list[Case]:
    """Euler sampling without guidance, guided at every step, and guided from t = 0.11 on as released; on request the
    first two with compiled blocks.

    In the last case the unconditional half is skipped before t = 0.11.
    """
    architecture, device = workload.architecture, workload.compute.device
    images = workload.images("sampling", workload.scale.sampling.chunk)
    shape = (images, architecture.in_channels, architecture.grid, architecture.grid)
    noise = torch.randn(shape, generator=workload.rng).to(device)
    labels = (torch.arange(images) % architecture.num_classes).to(device)
    kinds = {
        "no guidance": Guidance(),
        "guided at every step": dataclasses.replace(GUIDANCE, interval=(0.0, 1.0)),
        f"guided from t = {GUIDANCE.interval[0]:.2f} on": GUIDANCE,
    }

    network = for_sampling(network, workload.compute)

    def case(name: str, guidance: Guidance, by: LightningDiT = network) -> Case:
        velocity = velocity_function(by, labels, architecture.num_classes, guidance)

        def run() -> None:
            with torch.inference_mode(), autocast(workload.compute):
                integrate(velocity, noise, solver="euler", steps=STEPS, shift=SHIFT)

        passes = sum(2 if guidance.is_on(t) else 1 for t in time_grid(STEPS, SHIFT)[:-1])
        flops = images * passes * flops_per_image(architecture)
        return Case(name=name, run=run, images=images, flops=flops, dtype=workload.compute.precision)

    cases = [case(name, guidance) for name, guidance in kinds.items()]
    if compiled:
        other = for_sampling(copy.deepcopy(network), dataclasses.replace(workload.compute, compile=True))
        cases += [case(f"{name}, compiled", guidance, other) for name, guidance in list(kinds.items())[:2]]
    return cases


def latent_batches(workload: Workload, latents: Latents) -> Callable[[], None]:
    """Draw LOADER_BATCHES batches of normalised posterior samples, as a generator's step does."""
    images, position = workload.generator_images, 0

    def run() -> None:
        nonlocal position
        for _ in range(LOADER_BATCHES):
            indices = batch_indices(0, len(latents.labels), position, images)
            rng = make_rng(0, "generator step", position)
            views = torch.randint(latents.views, (images,), generator=rng)
            latents.sample(indices, views, torch.randn((images, *latents.shape), generator=rng))
            position += images

    return run


def loader_cases(workload: Workload, latents: Latents) -> list[Case]:
    run = latent_batches(workload, latents)
    return [Case(name="batches of latents", run=run, images=LOADER_BATCHES * workload.generator_images)]


# Judging


def fid(workload: Workload) -> list[Measured]:
    """Time the features of the scale's first judge, and the Frechet distance of as many features as the reference has.

    Raises:
        ValueError: the judge's weights are missing here.
    """
    name, size = workload.scale.judges[0]
    device, count = workload.compute.device, workload.scale.evaluation.reference_images
    spec = judge_spec(name, size, None)
    extractor = build_judge(spec, None, device)
    images = 4 * BATCH[device]
    side = workload.scale.resolution
    pictures = torch.randint(256, (images, workload.channels, side, side), dtype=torch.uint8, generator=workload.rng)

    def judged() -> Tensor:
        return features(extractor, pictures)

    samples = torch.randn(count, spec.width, generator=workload.rng)
    target = statistics(torch.randn(count, spec.width, generator=workload.rng))
    target["root"] = square_root(target["sigma"])  # computed once per reference, so not timed
    self_test()
    cases = [Case(name=f"features, {name} at {spec.size} px", run=judged, images=images, flops=flops_of(judged))]
    distance = Case(
        name=f"distance of {count:,} features",
        run=lambda: frechet_distance(statistics(samples), target),
        images=count,
    )
    return [
        *measure(cases, workload.repeats, device),
        *measure([distance], min(workload.repeats, 3), device, warmups=0),
    ]
