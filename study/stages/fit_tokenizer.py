"""Stage fit_tokenizer: images -> tokenizer weights, plain or aligned with a foundation model (VF loss), with or without
regularisers of the latent; or of a representation autoencoder, whose decoder alone is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import autoencoder, discriminator
from models.autoencoder import Autoencoder
from models.discriminator import Discriminator, hinge_discriminator_loss, hinge_generator_loss
from models.lpips import LPIPS
from models.perceptual import PerceptualDistance
from models.regularisers import Draws, Regularisers, Step, after_encoding, before_encoding
from models.representation_autoencoder import RepresentationAutoencoder
from models.sd_vae import SDVAE
from models.vf_loss import GAN_WEIGHT_LIMIT, VF_WEIGHT_LIMIT, gradient_norm_ratio, projection, vf_loss
from study.core.compute import Compute, apply, autocast
from study.core.distributed import average, average_gradients, on_rank_zero, rank, slice_of_batch
from study.core.files import load_tensors, save_tensors
from study.core.randomness import batch_indices, make_rng
from study.core.workspace import Record, Workspace
from study.data.datasets import load_images
from study.plan.specs import FitTokenizer, TokenizerRecipe
from study.plan.stage import TOKENIZER_WEIGHTS, Stage
from study.train import pretrained
from study.train.batch_prefetch import prefetched_batches
from study.train.foundation_features import FoundationFeatures, tokenizer_features
from study.train.loop import decayed_learning_rate, gradient_norm, train, update
from study.train.perceptual_net import perceptual_net
from study.train.representation import feature_statistics, representation_autoencoder


@dataclasses.dataclass
class Networks:
    """The trained networks of a tokenizer's training, and the frozen ones that its losses need."""

    tokenizer: Autoencoder
    foundation: FoundationFeatures | None = None
    linear_proj: nn.Conv2d | None = None  # latent -> foundation model's width, as released
    mask_token: nn.Embedding | None = None  # in place of masked cells, of the regulariser `mask`
    discriminator: Discriminator | None = None
    perceptual: PerceptualDistance | LPIPS | None = None


def gradients(
    networks: Networks,
    recipe: TokenizerRecipe,
    compute: Compute,
    pixels: Tensor,
    noise: Tensor,
    features: Tensor | None,
    gan_on: bool,
    regularisers: Regularisers | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Accumulate the gradients of the released objective into the tokenizer and the projection.

    With several processes, the gradients are those of this process's share of the batch, and the adaptive weights those
    of the whole batch.

    L = rec + kl_weight KL + gan_weight a_gan G + vf_weight a_vf VF + losses of regularisers, where the adaptive weights
    a are ratios of the norms of gradients: |d rec| / |d G| at the decoder's last convolution, |d rec| / |d VF| at the
    encoder's (LightningDiT, vavae/ldm/modules/losses/contperceptual.py). The graph is cut at the reconstruction and at
    the encoder's output, so each network needs one backward pass: one of the decoder (a second, without weight
    gradients, while both adaptive weights are needed) and one of the encoder.

    Regularisers can change what is decoded and what that is compared with: rec and G are of that pair, and so are both
    adaptive weights; VF and KL are of the latent as it was encoded. Further pairs of theirs add their reconstruction
    losses, without discriminator and adaptive weight.

    Encoder, decoder and discriminator run in the precision of `compute`; the posterior, the projection, all losses and
    their gradients are float32.

    Args:
        pixels: (B, C, H, W) in [-1, 1].
        noise: of the latent's shape; the posterior is sampled with it.
        features: (B, D, h, w) of the foundation model, or None.
        gan_on: whether the adversarial term has started.
        regularisers: those of this step, if any.

    Returns:
        The loss terms, detached scalars per image, and what the discriminator compares: the detached reconstruction and
        its target.
    """
    tokenizer = networks.tokenizer
    if regularisers is not None:
        pixels, noise, features = before_encoding(regularisers, pixels, noise, features)
    with autocast(compute):
        moments = tokenizer.encoder(pixels)
    leaf = moments.detach().float().requires_grad_()  # (B, 2d, h, w)
    posterior = tokenizer.posterior(leaf)
    latent_raw = posterior.sample(noise)
    mask_token = None if networks.mask_token is None else networks.mask_token.weight
    step = Step(pixels, posterior.mean, latent_raw, latent_raw, pixels, mask_token=mask_token)
    if regularisers is not None:
        step = after_encoding(regularisers, step)
    decoded, reconstruction, at_output, cotangent, terms = _at_output(networks, recipe, compute, step, gan_on)

    losses = _adaptive_losses(networks, recipe, step, features, leaf)
    rec_at_leaf = None
    if losses and cotangent is not at_output:  # their weights compare with the reconstruction term alone
        rec_at_leaf = torch.autograd.grad(decoded, leaf, at_output.to(decoded.dtype), retain_graph=True)[0]
    torch.autograd.backward(decoded, cotangent.to(decoded.dtype), retain_graph=True)
    if losses:
        rec_at_leaf = _gradient(leaf).clone() if rec_at_leaf is None else rec_at_leaf
        terms |= _add_adaptive(losses, rec_at_leaf, moments, tokenizer.encoder.conv_out.weight)

    for pair in step.pairs:
        with autocast(compute):
            decoded = tokenizer.decode(pair.latent)
        reconstructed = decoded.detach().float().requires_grad_()
        rec, _ = _reconstruction_loss(networks, recipe, reconstructed, pair.target)
        (at_output,) = torch.autograd.grad(pair.weight * rec, reconstructed)
        torch.autograd.backward(decoded, at_output.to(decoded.dtype), retain_graph=True)
        terms[f"rec_{pair.name}"] = rec.detach()

    kl = posterior.kl().mean()
    terms["kl"] = kl.detach()
    of_latent = recipe.kl_weight * kl
    for term in step.terms:
        if not term.adaptive:
            of_latent = of_latent + term.weight * term.loss
            terms[term.name] = term.loss.detach()
    of_latent.backward()
    torch.autograd.backward(moments, _gradient(leaf).to(moments.dtype))
    return terms, reconstruction.detach(), step.target


@dataclasses.dataclass(frozen=True)
class _AdaptiveLoss:
    """A loss behind the encoder's output, whose weight is multiplied by the ratio of gradients at the encoder's last
    convolution. inputs: what it has gradients for, the encoder's output first."""

    name: str
    loss: Tensor
    weight: float
    inputs: list[Tensor]


def _adaptive_losses(
    networks: Networks, recipe: TokenizerRecipe, step: Step, features: Tensor | None, leaf: Tensor
) -> list[_AdaptiveLoss]:
    """The VF loss, if there are features (B, D, h, w), and those of regularisers; `leaf` is the encoder's output."""
    behind = [leaf, *networks.tokenizer.quant_conv.parameters()]
    losses = [_AdaptiveLoss(term.name, term.loss, term.weight, behind) for term in step.terms if term.adaptive]
    if features is None or networks.linear_proj is None:
        return losses
    vf = vf_loss(
        networks.linear_proj(step.latent_raw),
        features,
        cosine_margin=recipe.vf_cosine_margin,
        distance_margin=recipe.vf_distance_margin,
        cosine_weight=recipe.vf_cosine_weight,
        distance_weight=recipe.vf_distance_weight,
    )
    inputs = [*behind, *networks.linear_proj.parameters()]
    return [_AdaptiveLoss("vf", vf.total, recipe.vf_weight, inputs), *losses]


def _add_adaptive(losses: list[_AdaptiveLoss], rec_at_leaf: Tensor, moments: Tensor, last: Tensor) -> dict[str, Tensor]:
    """Add the gradients of these losses to those of their inputs; returns the losses and their weights.

    Args:
        rec_at_leaf: the gradient of the reconstruction term at the encoder's output.
        moments: the encoder's output, with its graph.
        last: weight of the encoder's last convolution.
    """
    found = [torch.autograd.grad(one.loss, one.inputs, retain_graph=True) for one in losses]
    at_last = (
        torch.autograd.grad(moments, last, g.to(moments.dtype), retain_graph=True)[0]
        for g in (rec_at_leaf, *(of_loss[0] for of_loss in found))
    )
    rec_at_last, *others_at_last = average(*at_last)
    terms: dict[str, Tensor] = {}
    for one, of_loss, loss_at_last in zip(losses, found, others_at_last, strict=True):
        weight = one.weight * gradient_norm_ratio(rec_at_last, loss_at_last, VF_WEIGHT_LIMIT)
        for tensor, gradient in zip(one.inputs, of_loss, strict=True):
            tensor.grad = weight * gradient if tensor.grad is None else tensor.grad + weight * gradient
        terms |= {one.name: one.loss.detach(), f"{one.name}_adaptive": weight}
    return terms


def decoder_gradients(
    networks: Networks,
    recipe: TokenizerRecipe,
    compute: Compute,
    pixels: Tensor,
    latent_raw: Tensor,
    gan_on: bool,
    regularisers: Regularisers | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """As `gradients`, for a representation autoencoder: of the decoder alone, L = rec + gan_weight a_gan G.

    Args:
        latent_raw: of the pixels, (B, d, h, w), without gradient.
    """
    step = Step(pixels, latent_raw, latent_raw, latent_raw, pixels)
    if regularisers is not None:
        step = after_encoding(regularisers, step)
    decoded, reconstruction, _, cotangent, terms = _at_output(networks, recipe, compute, step, gan_on)
    torch.autograd.backward(decoded, cotangent.to(decoded.dtype))
    return terms, reconstruction.detach(), step.target


def _at_output(
    networks: Networks, recipe: TokenizerRecipe, compute: Compute, step: Step, gan_on: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """What the decoder makes of a step's latent, the same cut off from the graph in float32, the gradients there of the
    reconstruction term and of all that is decoded for, and the loss terms, detached."""
    tokenizer = networks.tokenizer
    with autocast(compute):
        decoded = tokenizer.decode(step.latent)
    reconstruction = decoded.detach().float().requires_grad_()
    rec, terms = _reconstruction_loss(networks, recipe, reconstruction, step.target)
    (at_output,) = torch.autograd.grad(rec, reconstruction)
    cotangent = at_output
    if gan_on and networks.discriminator is not None:
        with autocast(compute):
            logits = networks.discriminator(reconstruction)
        adversarial = hinge_generator_loss(logits)
        (gan_at_output,) = torch.autograd.grad(adversarial, reconstruction)
        last = tokenizer.decoder.conv_out.weight
        rec_at_last, gan_at_last = (
            torch.autograd.grad(decoded, last, g.to(decoded.dtype), retain_graph=True)[0]
            for g in (at_output, gan_at_output)
        )
        rec_at_last, gan_at_last = average(rec_at_last, gan_at_last)
        weight = gradient_norm_ratio(rec_at_last, gan_at_last, GAN_WEIGHT_LIMIT)
        cotangent = at_output + recipe.gan_weight * weight * gan_at_output
        terms |= {"gan": adversarial.detach(), "gan_adaptive": weight}
    return decoded, reconstruction, at_output, cotangent, terms


def _reconstruction_loss(
    networks: Networks, recipe: TokenizerRecipe, reconstruction: Tensor, target: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a reconstruction of this target, and its terms, detached."""
    batch, error = len(target), reconstruction - target
    rec = recipe.l1_weight * error.abs().sum() / batch
    if recipe.l2_weight:
        rec = rec + recipe.l2_weight * error.square().sum() / batch
    terms = {"rec": rec.detach()}
    if networks.perceptual is not None:
        distance = networks.perceptual(target, reconstruction).mean()
        terms["perceptual"] = distance.detach()
        rec = rec + recipe.perceptual_weight * distance * target[0].numel()  # times the number of values, as released
    return rec, terms


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _untrained(spec: FitTokenizer) -> Autoencoder:
    """The network of this spec, before weights are drawn or loaded."""
    if spec.architecture.frozen_encoder:
        return representation_autoencoder(spec)
    return (SDVAE if spec.architecture.library else Autoencoder)(spec.architecture)


def build(spec: FitTokenizer, report: Callable[[int, int], None] = lambda done, total: None) -> Networks:
    """The networks at the start of a training; initial weights depend on the seed alone.

    Args:
        report: see `FoundationFeatures` and `feature_statistics`.
    """
    recipe = spec.recipe
    rng = make_rng(spec.seed, "tokenizer weights", 0)
    networks = Networks(_untrained(spec))
    autoencoder.initialize(networks.tokenizer, rng)
    networks.tokenizer.to(memory_format=torch.channels_last)
    if recipe.perceptual_weight:  # before computing features, which can take hours: its weights may be missing
        networks.perceptual = perceptual_net(recipe.perceptual_net, recipe.perceptual_size, spec.perceptual_weights)
    if isinstance(networks.tokenizer, RepresentationAutoencoder):
        networks.tokenizer.normalise_by(*feature_statistics(spec, networks.tokenizer, report))
    elif spec.foundation is not None:
        networks.foundation = tokenizer_features(spec, report)
        networks.linear_proj = projection(spec.architecture.z_channels, networks.foundation.width)
        bound = spec.architecture.z_channels**-0.5
        nn.init.uniform_(networks.linear_proj.weight, -bound, bound, generator=rng)
    if recipe.gan_weight:
        networks.discriminator = Discriminator(spec.data.channels, width=recipe.gan_width)
        discriminator.initialize(networks.discriminator, rng)
    if spec.regularisation is not None and spec.regularisation.mask is not None:
        networks.mask_token = nn.Embedding(1, spec.architecture.z_channels)
        nn.init.normal_(networks.mask_token.weight, generator=rng)
    for network in vars(networks).values():
        if isinstance(network, nn.Module):
            network.to(spec.compute.device)
    return networks


def step_function(
    spec: FitTokenizer, networks: Networks, state: dict[str, Any], scalars: dict[str, Tensor | float] | None = None
) -> Callable[[int], Tensor]:
    """Function that makes one update of the tokenizer, and of the discriminator once it has started.

    Both optimizers have the same learning rate in every step, as in the released code (LightningDiT,
    vavae/ldm/models/autoencoder.py), where it is constant; warm-up and decay, which are ours, hold for both.

    Args:
        scalars: receives further measurements of each step: the loss terms, learning rate, norm of the gradient.
    """
    recipe, device, regularisation = spec.recipe, spec.compute.device, spec.regularisation
    images = load_images(spec.data, "train")
    grid, channels, frozen = spec.architecture.grid, spec.architecture.z_channels, spec.architecture.frozen_encoder
    noise_shape = () if frozen else (channels, grid, grid)  # no posterior, no noise for it
    optimizer, discriminator_optimizer = state["optimizer"], state.get("discriminator_optimizer")
    optimizers = [each for each in (optimizer, discriminator_optimizer) if each is not None]
    restarts = {phase.from_images for phase in recipe.phases}

    def prepare(images_seen: int) -> tuple[Tensor, ...]:
        indices = batch_indices(spec.seed, spec.train_images, images_seen, recipe.batch_images)
        rng = make_rng(spec.seed, "tokenizer step", images_seen)
        # every process draws for the whole batch, so results do not depend on the number of processes
        noise = torch.randn(len(indices), *noise_shape, generator=rng)
        flipped = torch.rand(len(indices), generator=rng) < (0.5 if spec.data.flip else 0.0)
        indices, noise, flipped = slice_of_batch(indices), slice_of_batch(noise), slice_of_batch(flipped)
        pixels = images.pixels(indices)
        if spec.data.flip:
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
        cached = () if networks.foundation is None else networks.foundation.cached(indices, flipped)
        return pixels.to(memory_format=torch.channels_last), noise, *cached

    batch = prefetched_batches(prepare, recipe.batch_images, device)

    def own(drawn: Tensor) -> Tensor:
        share = slice_of_batch(drawn)
        return share if device == "cpu" else share.pin_memory().to(device, non_blocking=True)

    def draws(images_seen: int, name: str) -> Draws:
        return Draws(make_rng(spec.seed, f"regulariser {name}", images_seen), recipe.batch_images, own, average)

    def step(images_seen: int) -> Tensor:
        pixels, noise, *cached = batch(images_seen)
        features = None if networks.foundation is None else networks.foundation.batch(pixels, grid, *cached)
        regularisers = None
        if regularisation is not None:
            regularisers = Regularisers(regularisation, functools.partial(draws, images_seen))

        rate = decayed_learning_rate(
            images_seen,
            peak=recipe.learning_rate,
            budget=recipe.budget_images,
            warmup=recipe.warmup_images,
            final=recipe.final_learning_rate,
        )
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = rate
            if images_seen in restarts:  # also when resumed here: the restored state belongs to the previous phase
                each.state.clear()
        current = recipe.at(images_seen)
        optimizer.zero_grad(set_to_none=True)
        gan_on = discriminator_optimizer is not None and images_seen >= current.gan_start_images
        if frozen:
            latent_raw = networks.tokenizer.encode(pixels).mean
            terms, reconstruction, target = decoder_gradients(
                networks, current, spec.compute, pixels, latent_raw, gan_on, regularisers
            )
        else:
            terms, reconstruction, target = gradients(
                networks, current, spec.compute, pixels, noise, features, gan_on, regularisers
            )
        average_gradients(p for group in optimizer.param_groups for p in group["params"])
        norm = gradient_norm(optimizer)
        update(optimizer, norm)
        if gan_on and discriminator_optimizer is not None and networks.discriminator is not None:
            discriminator_optimizer.zero_grad(set_to_none=True)  # also drops gradients of the tokenizer's GAN term
            with autocast(spec.compute):  # two passes, because batch norm must not mix real and fake
                real, fake = networks.discriminator(target), networks.discriminator(reconstruction)
            hinge_discriminator_loss(real, fake).backward()
            average_gradients(networks.discriminator.parameters())
            update(discriminator_optimizer, gradient_norm(discriminator_optimizer))
        if scalars is not None:
            scalars.update(terms, learning_rate=rate, gradient_norm=norm.detach())
        return terms["rec"] + 0 * norm  # the reconstruction term; not finite where the gradient is not

    return step


def training_state(spec: FitTokenizer, networks: Networks) -> dict[str, Any]:
    """The state of this training, which its checkpoints hold."""
    recipe = spec.recipe
    state: dict[str, Any] = {"tokenizer": networks.tokenizer}
    trained = list(networks.tokenizer.parameters())
    if networks.linear_proj is not None:
        state["linear_proj"] = networks.linear_proj
        trained += networks.linear_proj.parameters()
    if networks.mask_token is not None:
        state["mask_token"] = networks.mask_token
        trained += networks.mask_token.parameters()
    state["optimizer"] = torch.optim.Adam(trained, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    if networks.discriminator is not None:
        state["discriminator"] = networks.discriminator
        state["discriminator_optimizer"] = torch.optim.Adam(
            networks.discriminator.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True
        )
    return state


def run(spec: FitTokenizer, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Train a tokenizer, or take pretrained weights; writes `tokenizer.safetensors` with released parameter names."""
    apply(spec.compute)
    if spec.pretrained is not None:
        return on_rank_zero(lambda: pretrained.write_tokenizer(spec, out))
    out.preparing("networks")
    networks = build(spec, lambda done, total: out.preparing("foundation model's features", done, total))
    state = training_state(spec, networks)
    scalars: dict[str, Tensor | float] = {}
    cost = train(
        out,
        state,
        step_function(spec, networks, state, scalars),
        budget_images=spec.recipe.budget_images,
        batch_images=spec.recipe.batch_images,
        device=spec.compute.device,
        scalars=scalars,
    )
    if rank() == 0:
        _save(networks, out.folder / TOKENIZER_WEIGHTS)
    return {"cost": {**cost, "parameters": sum(p.numel() for p in networks.tokenizer.parameters())}}


def _save(networks: Networks, path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in networks.tokenizer.state_dict().items()}
    if networks.linear_proj is not None:
        weights["linear_proj.weight"] = networks.linear_proj.weight
    save_tensors(path, weights)


def trained_tokenizer(stage: Stage) -> Autoencoder:
    """The tokenizer of a fit_tokenizer stage, frozen, on the stage's device; a representation autoencoder loads its
    encoder when it first encodes."""
    spec = stage.spec
    assert isinstance(spec, FitTokenizer)
    tokenizer = _untrained(spec)
    weights = load_tensors(stage.folder / TOKENIZER_WEIGHTS)
    weights.pop("linear_proj.weight", None)
    tokenizer.load_state_dict(weights, strict=True)
    tokenizer.to(memory_format=torch.channels_last).to(spec.compute.device)
    return tokenizer.eval().requires_grad_(False)
