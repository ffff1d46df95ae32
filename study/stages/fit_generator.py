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
from torch.nn.attention import SDPBackend
from torch.nn.parallel import DistributedDataParallel

from models.attention import by_products
from models.diffusion import TIMESTEPS, gaussian_diffusion_loss
from models.flow import logit_normal_times, rectified_flow_loss, shifted_times
from models.lightningdit import LightningDiT, drop_labels
from models.repa import ProjectedGenerator, Projector, mean_cosine, spatially_normalised
from study.core.compute import apply, autocast, no_compiler_because
from study.core.distributed import on_rank_zero, slice_of_batch, world_size
from study.core.files import load_metadata, load_tensors, save_tensors
from study.core.randomness import batch_indices, make_rng
from study.core.workspace import Record, Workspace
from study.data.latents import SAME_ENCODING, Latents, latent_statistics, read_latents, same_statistics
from study.plan.features import feature_width
from study.plan.specs import Encode, FitGenerator, GeneratorRecipe
from study.plan.stage import Stage, snapshot_file
from study.train import pretrained
from study.train.batch_prefetch import prefetched_batches
from study.train.foundation_features import FoundationFeatures, generator_features
from study.train.loop import learning_rate, train, update


def build(spec: FitGenerator) -> dict[str, Any]:
    """The initial state of a training: generator, EMA copy, with REPA the projector, and optimizer. Depends on the seed
    alone."""
    rng = make_rng(spec.seed, "generator weights", 0)
    network = LightningDiT(spec.architecture, rng, checkpointing=spec.compute.checkpointing).to(spec.compute.device)
    recipe, trained = spec.recipe, [p for p in network.parameters() if p.requires_grad]
    beside: dict[str, Any] = {}
    if recipe.repa is not None and spec.foundation is not None:
        width = feature_width(recipe.repa.model, spec.foundation)
        rng = make_rng(spec.seed, "projector weights", 0)
        beside["projector"] = Projector(recipe.repa.projector, spec.architecture.width, width, rng)
        trained += beside["projector"].to(spec.compute.device).parameters()
    optimizer = torch.optim.AdamW(
        trained,
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    ema = copy.deepcopy(network).requires_grad_(False)
    return {"generator": network, "ema": ema, **beside, "optimizer": optimizer}


def compile_blocks(network: LightningDiT, device: str) -> None:
    """Compile a generator's blocks, in place, so that parameter names do not change.

    All blocks share what is compiled, once for each shape of their input. Compiled with deterministic algorithms on,
    kernels are chosen by rules, not by timing them, so that a training that goes on in another process has the same
    ones.

    Raises:
        ValueError: this machine cannot compile, in one line that says what it lacks.
    """
    if because := no_compiler_because(device):
        raise ValueError(f"blocks cannot be compiled here without {because} (--set execution.compile=False)")
    for block in network.blocks:
        block.compile(dynamic=False)


def loss_function(recipe: GeneratorRecipe) -> Callable[..., Tensor]:
    """The objective: (network, data, noise, times, labels) -> loss per image (B,)."""
    if recipe.objective == "gaussian-diffusion":
        return gaussian_diffusion_loss
    return functools.partial(rectified_flow_loss, direction_weight=recipe.direction_weight)


def training_times(recipe: GeneratorRecipe, images_seen: int, count: int, rng: torch.Generator) -> Tensor:
    """Times of a batch's images (count,): t in [0, 1) from noise to data, or timesteps of diffusion."""
    if recipe.objective == "gaussian-diffusion":
        return torch.randint(TIMESTEPS, (count,), generator=rng)
    end = recipe.logit_normal_end_images
    if recipe.logit_normal and (end is None or images_seen < end):
        normal = torch.randn(count, generator=rng)
        return logit_normal_times(normal, recipe.logit_normal_mean, recipe.logit_normal_std)
    return torch.rand(count, generator=rng)


def step_function(
    spec: FitGenerator,
    state: dict[str, Any],
    latents: Latents,
    scalars: dict[str, Tensor | float] | None = None,
    features: FoundationFeatures | None = None,
) -> Callable[[int], Tensor]:
    """Function that makes one update of the generator and its EMA, or none where the gradient is not finite. It returns
    the loss of the objective alone, so that runs with and without REPA can be compared.

    Args:
        scalars: receives further measurements of each step: learning rate, norm of the gradient before clipping, with
            REPA the mean cosine.
        features: of the images behind the latents; given if and only if the recipe has REPA.
    """
    recipe, architecture, device, repa = spec.recipe, spec.architecture, spec.compute.device, spec.recipe.repa
    network, ema, optimizer = state["generator"], state["ema"], state["optimizer"]
    trained = [p for p in network.parameters() if p.requires_grad]
    trained_ema = [e for e, p in zip(ema.parameters(), network.parameters(), strict=True) if p.requires_grad]
    if spec.compute.compile:
        compile_blocks(network, device)
    clipped, module = trained, network
    if repa is not None:
        clipped = [*trained, *state["projector"].parameters()]
        module = ProjectedGenerator(network, state["projector"], repa.depth)
    ddp_network = None
    if world_size() > 1:
        ddp_network = DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)
    loss_per_image = loss_function(recipe)
    projected: list[Tensor] = []  # by the last prediction, with REPA

    def predict(x_t: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        with autocast(spec.compute):
            output = (ddp_network or module)(x_t, times, labels)
        if repa is None:
            return output
        projected[:] = [output[1]]
        return output[0]

    def similarity(given: Tensor) -> Tensor:
        """Mean cosine of the last prediction's projected tokens and the features."""
        assert features is not None and repa is not None
        target = features.of(given, architecture.grid // architecture.patch)
        if repa.spatial_norm:
            target = spatially_normalised(target, repa.spatial_norm)
        return mean_cosine(projected.pop(), target)

    latents = latents.on(device)

    def draw_noise(rng: torch.Generator) -> list[Tensor]:
        """Noise of the whole batch for the posteriors, and for the objective."""
        shape = (recipe.batch_images, *latents.shape)
        return [torch.randn(shape, generator=rng) for _ in range(2)]

    def prepare(images_seen: int) -> tuple[Tensor, ...]:
        # every process draws for the whole batch, so results do not depend on the number of processes
        indices = batch_indices(spec.seed, len(latents.labels), images_seen, recipe.batch_images)
        rng = make_rng(spec.seed, "generator step", images_seen)
        view = torch.randint(latents.views, (len(indices),), generator=rng)
        noise = draw_noise(rng)  # on the CPU everywhere: the same numbers on every device
        times = training_times(recipe, images_seen, len(indices), rng)
        if spec.timestep_shift != 1:
            times = shifted_times(times, spec.timestep_shift)
        dropped = torch.rand(len(indices), generator=rng) < architecture.label_dropout
        labels = drop_labels(latents.labels[torch.from_numpy(indices)], dropped, architecture.num_classes)
        indices, view = slice_of_batch(indices), slice_of_batch(view)
        aligned = () if features is None else (features.given(indices, view == 1),)
        return *map(slice_of_batch, (times, labels, *noise)), *aligned, *latents.stored(indices, view)

    batch = prefetched_batches(prepare, recipe.batch_images, device)

    def step(images_seen: int) -> Tensor:
        times, labels, posterior_noise, noise, *stored = batch(images_seen)
        aligned = [] if features is None else [stored.pop(0)]
        data = latents.normalised(stored, posterior_noise)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(images_seen, peak=recipe.learning_rate, warmup=recipe.warmup_images)
        optimizer.zero_grad(set_to_none=True)
        count = len(data) // (spec.compute.microbatch_images or len(data))
        losses: list[Tensor] = []
        cosines: list[Tensor] = []
        parts = (data, noise, times, labels, *aligned)
        for microbatch in zip(*(tensor.chunk(count) for tensor in parts), strict=True):
            last = len(losses) == count - 1
            with contextlib.nullcontext() if ddp_network is None or last else ddp_network.no_sync():
                total = loss = loss_per_image(predict, *microbatch[:4]).mean()
                if repa is not None:
                    cosine = similarity(microbatch[4])
                    total = loss - repa.weight * cosine
                    cosines.append(cosine.detach())
                (total / count if count > 1 else total).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(clipped, recipe.gradient_clip, foreach=True)
        update(optimizer, norm)
        weight = (1 - recipe.ema_decay) * norm.isfinite()  # 0 after a skipped step; the host waits for no device
        torch._foreach_lerp_(trained_ema, trained, [weight] * len(trained))
        if scalars is not None:
            scalars.update(learning_rate=optimizer.param_groups[0]["lr"], gradient_norm=norm.detach())
            if cosines:
                scalars["repa_cosine"] = torch.stack(cosines).mean()
        return torch.stack(losses).mean() + 0 * norm  # not finite where the gradient is not

    return step


def attention_kernel(spec: FitGenerator) -> str:
    """What computes the generator's attention on this device: "products", or torch's kernel, as "flash_attention"."""
    network, dtype = spec.architecture, torch.bfloat16 if spec.compute.precision == "bfloat16" else torch.float32
    shape = (1, network.heads, network.tokens, network.width // network.heads)  # of one image: the choice is the same
    like = torch.empty(shape, dtype=dtype, device=spec.compute.device)
    return "products" if by_products(like) else SDPBackend(torch._fused_sdp_choice(like, like, like)).name.lower()


def run(spec: FitGenerator, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Train a generator, or take pretrained weights.

    Writes `ema-*.safetensors`, if trained here `raw-*.safetensors`, and a record at every mark of the spec.
    """
    apply(spec.compute)
    metadata = {"latents": json.dumps(latent_statistics(inputs["latents"]))}
    if spec.pretrained is not None:
        on_rank_zero(lambda: pretrained.write_generator(spec, metadata, out))
        return {}
    encode = inputs["latents"].spec
    assert isinstance(encode, Encode)
    features = generator_features(
        spec, encode, lambda done, total: out.preparing("foundation model's features", done, total)
    )
    state, latents = build(spec), read_latents(inputs["latents"])
    parameters, attention = sum(p.numel() for p in state["generator"].parameters()), attention_kernel(spec)

    def write(images_seen: int, cost: Record) -> None:
        for weights, network in (("ema", "ema"), ("raw", "generator")):
            path = snapshot_file(out.folder, weights, images_seen)
            save_tensors(path, dict(state[network].state_dict()), metadata)
        out.write_record({"attention": attention, "cost": {**cost, "parameters": parameters}}, images_seen)

    scalars: dict[str, Tensor | float] = {}
    train(
        out,
        state,
        step_function(spec, state, latents, scalars, features),
        budget_images=spec.recipe.budget_images,
        batch_images=spec.recipe.batch_images,
        device=spec.compute.device,
        marks={mark: functools.partial(write, mark) for mark in spec.recipe.marks},
        keep_states=spec.compute.keep_states,
        scalars=scalars,
    )
    return {}


def trained_generator(stage: Stage, images_seen: int, weights: str) -> LightningDiT:
    """The generator of a fit_generator stage after this number of images, frozen, on the stage's device.

    Raises:
        SafetensorError: the snapshot is damaged.
        ValueError: it was trained on latents with another mean and std than its encode stage has now.
    """
    spec, latents = stage.spec, stage.inputs["latents"]
    assert isinstance(spec, FitGenerator)
    path = snapshot_file(stage.folder, weights, images_seen)
    network = LightningDiT(spec.architecture)
    network.load_state_dict(load_tensors(path), strict=True)
    trained_on, current = json.loads(load_metadata(path)["latents"]), latent_statistics(latents)
    same_tokenizer = trained_on["tokenizer"] == current["tokenizer"]
    if not same_tokenizer or not same_statistics(trained_on, current, SAME_ENCODING):
        raise ValueError(
            f"{path} was trained on latents of tokenizer {trained_on['tokenizer']} with another mean and std than "
            f"those of {latents.folder / 'record.json'} (tokenizer {current['tokenizer']}): restore the right "
            f"record, or delete {stage.folder} to train again"
        )
    return network.to(spec.compute.device).eval().requires_grad_(False)
