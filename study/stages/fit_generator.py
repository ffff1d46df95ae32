"""Stage fit_generator: latents -> snapshots of a generator and of its moving average (EMA)."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.diffusion import TIMESTEPS, gaussian_diffusion_loss
from models.flow import logit_normal_times, rectified_flow_loss
from models.lightningdit import LightningDiT, drop_labels
from study.core.compute import apply, autocast
from study.core.distributed import on_main, processes, slice_of_batch
from study.core.files import load_metadata, load_tensors, save_tensors
from study.core.randomness import batch_indices, make_rng
from study.core.workspace import Record, Workspace
from study.data.latents import SAME_ENCODING, Latents, latent_statistics, read_latents, same_statistics
from study.plan.specs import FitGenerator, GeneratorRecipe
from study.plan.stage import Stage, snapshot_file
from study.train import pretrained
from study.train.batch_prefetch import prefetched_batches
from study.train.loop import learning_rate, train, update


def build(spec: FitGenerator) -> dict[str, Any]:
    """Generator, EMA copy and optimizer at the start of a training: a function of the seed."""
    rng = make_rng(spec.seed, "generator weights", 0)
    network = LightningDiT(spec.architecture, rng, checkpointing=spec.compute.checkpointing).to(spec.compute.device)
    recipe = spec.recipe
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    return {"generator": network, "ema": copy.deepcopy(network).requires_grad_(False), "optimizer": optimizer}


def loss_function(recipe: GeneratorRecipe) -> Callable[..., Tensor]:
    """The objective: (network, data, noise, times, labels) -> loss per image (B,)."""
    if recipe.objective == "gaussian-diffusion":
        return gaussian_diffusion_loss
    return functools.partial(rectified_flow_loss, direction_weight=recipe.direction_weight)


def training_times(recipe: GeneratorRecipe, images_seen: int, count: int, rng: torch.Generator) -> Tensor:
    """Where each image of a batch is between noise and data: t in [0, 1), or a timestep of diffusion, (count,)."""
    if recipe.objective == "gaussian-diffusion":
        return torch.randint(TIMESTEPS, (count,), generator=rng)
    end = recipe.logit_normal_end_images
    if recipe.logit_normal and (end is None or images_seen < end):
        normal = torch.randn(count, generator=rng)
        return logit_normal_times(normal, recipe.logit_normal_mean, recipe.logit_normal_std)
    return torch.rand(count, generator=rng)


def step_function(
    spec: FitGenerator, state: dict[str, Any], latents: Latents, scalars: dict[str, Tensor | float] | None = None
) -> Callable[[int], Tensor]:
    """One update of the generator and of its EMA.

    Args:
        scalars: takes what each step says of itself beside its loss: learning rate, norm of the gradient unclipped.
    """
    recipe, architecture, device = spec.recipe, spec.architecture, spec.compute.device
    network, ema, optimizer = state["generator"], state["ema"], state["optimizer"]
    moved = [p for p in network.parameters() if p.requires_grad]
    moved_ema = [e for e, p in zip(ema.parameters(), network.parameters(), strict=True) if p.requires_grad]
    if spec.compute.compile:
        for block in network.blocks:
            block.compile()  # in place: names and the copy that averages stay as they are
    spread = None
    if processes() > 1:
        spread = DistributedDataParallel(network, gradient_as_bucket_view=True, broadcast_buffers=False)
    losses_of = loss_function(recipe)

    def predict(x_t: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        with autocast(spec.compute):
            return (spread or network)(x_t, times, labels)

    latents = latents.on(device)

    def noises(rng: torch.Generator) -> list[Tensor]:
        """For the posteriors and for the flow, of the whole batch."""
        shape = (recipe.batch_images, *latents.shape)
        return [torch.randn(shape, generator=rng, device=rng.device) for _ in range(2)]

    def prepare(images_seen: int) -> tuple[Tensor, ...]:
        # every process draws for the whole batch, so that their number moves no number
        indices = batch_indices(spec.seed, len(latents.labels), images_seen, recipe.batch_images)
        rng = make_rng(spec.seed, "generator step", images_seen)
        view = torch.randint(latents.views, (len(indices),), generator=rng)
        drawn = noises(rng) if device == "cpu" else []  # a GPU draws them faster than they could be brought there
        times = training_times(recipe, images_seen, len(indices), rng)
        dropped = torch.rand(len(indices), generator=rng) < architecture.label_dropout
        labels = drop_labels(latents.labels[torch.from_numpy(indices)], dropped, architecture.num_classes)
        stored = latents.stored(slice_of_batch(indices), slice_of_batch(view))
        return *map(slice_of_batch, (times, labels, *drawn)), *stored

    batch = prefetched_batches(prepare, recipe.batch_images, device)

    def step(images_seen: int) -> Tensor:
        times, labels, *rest = batch(images_seen)
        if device != "cpu":
            drawn = noises(make_rng(spec.seed, "generator step", images_seen, device))
            rest = [*map(slice_of_batch, drawn), *rest]
        posterior_noise, noise, *stored = rest
        data = latents.normalised(stored, posterior_noise)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                images_seen, peak=recipe.learning_rate, budget=recipe.budget_images, warmup=recipe.warmup_images
            )
        optimizer.zero_grad(set_to_none=True)
        pieces = len(data) // (spec.compute.microbatch_images or len(data))
        losses: list[Tensor] = []
        for piece in zip(*(drawn.chunk(pieces) for drawn in (data, noise, times, labels)), strict=True):
            last = len(losses) == pieces - 1
            with contextlib.nullcontext() if spread is None or last else spread.no_sync():
                loss = losses_of(predict, *piece).mean()
                (loss / pieces if pieces > 1 else loss).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(moved, recipe.gradient_clip, foreach=True)
        update(optimizer, norm)
        torch._foreach_lerp_(moved_ema, moved, 1 - recipe.ema_decay)
        if scalars is not None:
            scalars.update(learning_rate=optimizer.param_groups[0]["lr"], gradient_norm=norm.detach())
        return torch.stack(losses).mean() + 0 * norm  # not finite where the gradient is not

    return step


def run(spec: FitGenerator, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Train a generator, or take the given one; leaves `ema-*.safetensors` and, if trained, `raw-*.safetensors` at
    every mark."""
    apply(spec.compute)
    about = {"latents": json.dumps(latent_statistics(inputs["latents"]))}
    if spec.given is not None:
        return on_main(lambda: pretrained.generator(spec, about, out))
    state, latents = build(spec), read_latents(inputs["latents"])

    def keep(images_seen: int) -> Callable[[], None]:
        def write() -> None:
            for weights, part in (("ema", "ema"), ("raw", "generator")):
                save_tensors(snapshot_file(out.folder, weights, images_seen), dict(state[part].state_dict()), about)

        return write

    scalars: dict[str, Tensor | float] = {}
    cost = train(
        out,
        state,
        step_function(spec, state, latents, scalars),
        budget_images=spec.recipe.budget_images,
        batch_images=spec.recipe.batch_images,
        device=spec.compute.device,
        snapshots={mark: keep(mark) for mark in spec.recipe.snapshot_images},
        scalars=scalars,
    )
    return {"cost": {**cost, "parameters": sum(p.numel() for p in state["generator"].parameters())}}


def trained_generator(stage: Stage, images_seen: int, weights: str) -> LightningDiT:
    """The generator that a fit_generator stage had after so many images, frozen, on the stage's device.

    Raises:
        SafetensorError: the snapshot is torn.
        ValueError: it was trained on latents with another mean and spread than its encode stage has now.
    """
    spec, latents = stage.spec, stage.inputs["latents"]
    assert isinstance(spec, FitGenerator)
    path = snapshot_file(stage.folder, weights, images_seen)
    network = LightningDiT(spec.architecture)
    network.load_state_dict(load_tensors(path), strict=True)
    about = load_metadata(path).get("latents")  # the first snapshots said nothing of their latents
    if about is not None:
        then, now = json.loads(about), latent_statistics(latents)
        if then["tokenizer"] != now["tokenizer"] or not same_statistics(then, now, SAME_ENCODING):
            raise ValueError(
                f"{path} was trained on latents of tokenizer {then['tokenizer']} with another mean and spread than "
                f"those of {latents.folder / 'record.json'} (tokenizer {now['tokenizer']}): bring the right record "
                f"back, or delete {stage.folder} to train again"
            )
    return network.to(spec.compute.device).eval().requires_grad_(False)
