"""Stage fit_generator: latents -> snapshots of a generator and of its moving average (EMA)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.flow import flow_loss, interpolate, logit_normal_times, velocity_target
from models.lightningdit import LightningDiT, drop_labels
from study.compute import apply, autocast
from study.files import load_tensors, save_tensors
from study.randomness import batch_indices, generator
from study.specs import FitGenerator, Stage
from study.stages.encode import Latents, read
from study.training import learning_rate, train
from study.workspace import Record, Workspace


def snapshot_file(folder: Path, weights: str, images_seen: int) -> Path:
    """File of a snapshot; `weights` is "ema" or "raw"."""
    return folder / f"{weights}-{images_seen:012d}.safetensors"


def build(spec: FitGenerator) -> dict[str, Any]:
    """Generator, EMA copy and optimizer at the start of a training: a function of the seed."""
    network = LightningDiT(spec.architecture, generator(spec.seed, "generator weights", 0)).to(spec.compute.device)
    recipe = spec.recipe
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    return {"generator": network, "ema": copy.deepcopy(network).requires_grad_(False), "optimizer": optimizer}


def step_function(spec: FitGenerator, parts: dict[str, Any], latents: Latents) -> Callable[[int], Tensor]:
    """One update of the generator and of its EMA."""
    recipe, architecture, device = spec.recipe, spec.architecture, spec.compute.device
    network, ema, optimizer = parts["generator"], parts["ema"], parts["optimizer"]
    moved = [p for p in network.parameters() if p.requires_grad]
    moved_ema = [e for e, p in zip(ema.parameters(), network.parameters(), strict=True) if p.requires_grad]

    def step(images_seen: int) -> Tensor:
        indices = batch_indices(spec.seed, len(latents.labels), images_seen, recipe.batch_images)
        rng = generator(spec.seed, "generator step", images_seen)
        shape = (len(indices), *latents.shape)
        view = torch.randint(latents.views, (len(indices),), generator=rng)
        data = latents.sample(indices, view, torch.randn(shape, generator=rng)).to(device)
        noise = torch.randn(shape, generator=rng).to(device)
        times = (
            logit_normal_times(torch.randn(len(indices), generator=rng))
            if recipe.logit_normal
            else torch.rand(len(indices), generator=rng)
        ).to(device)
        dropped = torch.rand(len(indices), generator=rng) < architecture.label_dropout
        labels = drop_labels(latents.labels[torch.from_numpy(indices)], dropped, architecture.num_classes).to(device)

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                images_seen, peak=recipe.learning_rate, budget=recipe.budget_images, warmup=recipe.warmup_images
            )
        optimizer.zero_grad(set_to_none=True)
        with autocast(spec.compute):
            prediction = network(interpolate(data, noise, times), times, labels)
        terms = flow_loss(prediction.float(), velocity_target(data, noise))
        loss = terms.mse.mean() + recipe.direction_weight * terms.direction.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moved, recipe.gradient_clip, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(moved_ema, moved, 1 - recipe.ema_decay)
        return loss.detach()

    return step


def run(spec: FitGenerator, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Train a generator; leaves `ema-*.safetensors` and `raw-*.safetensors` at every mark."""
    apply(spec.compute)
    parts, latents = build(spec), read(inputs["latents"])

    def keep(images_seen: int) -> Callable[[], None]:
        def write() -> None:
            for weights, part in (("ema", "ema"), ("raw", "generator")):
                save_tensors(snapshot_file(out.folder, weights, images_seen), dict(parts[part].state_dict()))

        return write

    cost = train(
        out,
        parts,
        step_function(spec, parts, latents),
        budget_images=spec.recipe.budget_images,
        batch_images=spec.recipe.batch_images,
        device=spec.compute.device,
        snapshots={mark: keep(mark) for mark in spec.recipe.snapshot_images},
    )
    return {"cost": {**cost, "parameters": sum(p.numel() for p in parts["generator"].parameters())}}


def trained(stage: Stage, images_seen: int, weights: str) -> LightningDiT:
    """The generator that a fit_generator stage had after so many images, frozen, on the stage's device."""
    spec = stage.spec
    assert isinstance(spec, FitGenerator)
    network = LightningDiT(spec.architecture)
    network.load_state_dict(load_tensors(snapshot_file(stage.folder, weights, images_seen)), strict=True)
    return network.to(spec.compute.device).eval().requires_grad_(False)
