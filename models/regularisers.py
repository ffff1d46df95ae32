"""Regularisers: what the training of a tokenizer does to its latents so that generators learn them more easily.

Each is a function of a step, its strengths (models/regularisation.py) and random draws. It returns the step with
another latent or target, or with more losses. They act in the order of the registry, each on what those before it left.
Encoding, reconstruction and sampling do not know them.

Resizing, blurring and the cosine transform are products with small matrices: they repeat bit for bit on every device,
which the gradient of an interpolation on a GPU does not. The host does not wait until a GPU has received them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.regularisation import (
    ChannelPrefix,
    Equivariance,
    LatentMask,
    LatentNoise,
    LocalCorrelation,
    Regularisation,
    ScaleEquivariance,
    SpectrumMatching,
)


@dataclass(frozen=True)
class Pair:
    """A latent (B, d, h, w) to be decoded, and the pixels (B, C, H, W) that its reconstruction is compared with."""

    name: str
    latent: Tensor
    target: Tensor
    weight: float  # of the reconstruction loss


@dataclass(frozen=True)
class Term:
    """A further loss, the mean over the images of this process; adaptive: its weight is multiplied by the ratio of
    gradients at the encoder's last convolution, as that of the VF loss."""

    name: str
    loss: Tensor
    weight: float
    adaptive: bool = False


@dataclass(frozen=True)
class Step:
    """A step of a tokenizer's training between encoding and decoding.

    pixels: (B, C, H, W), as encoded. mean: of the posterior, (B, d, h, w); latent_raw: its sample. The VF loss and the
    KL divergence are of these. latent, target: what is decoded, and what that is compared with by the reconstruction
    loss and by the discriminator. pairs: decoded and compared too, without the discriminator. mask_token: (1, d),
    learned; for `mask` alone.
    """

    pixels: Tensor
    mean: Tensor
    latent_raw: Tensor
    latent: Tensor
    target: Tensor
    pairs: tuple[Pair, ...] = ()
    terms: tuple[Term, ...] = ()
    mask_token: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """Random numbers of one regulariser in one step, and what it must know of the other processes.

    All are drawn on the CPU for the whole batch, so they depend neither on the device nor on the number of processes.
    images: in the whole batch. own: this process's rows of a tensor for the whole batch, on its device. average: of
    tensors over the processes.
    """

    rng: torch.Generator
    images: int
    own: Callable[[Tensor], Tensor]
    average: Callable[..., tuple[Tensor, ...]]

    def number(self) -> float:
        """Uniform in [0, 1), the same for all images."""
        return torch.rand((), generator=self.rng).item()

    def choice(self, number: int) -> int:
        """One of the first `number` integers, all equally likely, the same for all images."""
        return int(self.number() * number)


# On the latent alone


def spectrum(step: Step, strengths: SpectrumMatching, draws: Draws) -> Step:
    """Divergence between the radial spectra of the image, shrunk to the latent's grid, and of the latent.

    Encoding spectrum matching, arXiv 2603.14645; forever208/SpectrumMatching, utils_DCT.py (latent_spectral_reg_dct).
    The power of the cosine transform without its constant is averaged over channels and over rings of frequency, the
    image's multiplied by ring^tilt; both go through log(1 + .) and are normalised to distributions, per image. The
    image is blurred before it shrinks, except to a grid of 32 cells, as released. There it takes the place of the KL
    divergence, and so it does here (study/plan/resolve.py).

    On small grids a ring holds few frequencies, on 8 x 8 cells one to eight; on 4 x 4 seven of 16 are empty, which adds
    nothing.
    """
    side = step.latent_raw.shape[-1]
    of = functools.partial(_radial_spectrum, bins=strengths.bins)
    shrink = _smaller(step.pixels.shape[-1], side, step.pixels.device)
    image = of(shrink @ step.pixels @ shrink.T)
    rings = torch.arange(1, strengths.bins + 1, device=image.device)
    p, q = (_normalised(torch.log(power + EPS + 1)) for power in (image * rings**strengths.tilt, of(step.latent_raw)))
    loss = (p * (torch.log(p + EPS) - torch.log(q + EPS))).sum(1).mean()
    # reconstruction losses are sums over an image's values here
    term = Term("spectrum", loss, strengths.weight * step.pixels[0].numel())
    return replace(step, terms=(*step.terms, term))


EPS = 1e-8  # as released


def _radial_spectrum(x: Tensor, bins: int) -> Tensor:
    """Mean power in rings of frequency, without the constant: (B, C, n, n) to (B, bins)."""
    side = x.shape[-1]
    transform = _cosines(side, x.device)
    power = (transform @ x @ transform.T).square().mean(1).clamp_min(EPS)
    return power.flatten(1) @ _rings(side, bins, x.device)


def _normalised(power: Tensor) -> Tensor:
    return power / (power.sum(1, keepdim=True) + EPS)


def local(step: Step, strengths: LocalCorrelation, draws: Draws) -> Step:
    """Neighbouring cells shall correlate: max(0, threshold - mean correlation) with the adaptive weight.

    Local correlation regularisation, arXiv 2512.05394; zai-org/SSVAE, ssvae/modules/autoencoding/regularizers
    (windowed_localcorr_z) and losses/loss_factory.py: Pearson correlations over channels of the pairs of cells in
    windows of 2 x 2, of the posterior's mean standardised per channel over the batch. The released weight is 0.1 times
    0.02. An odd last row or column of cells, which the released code refuses, is left out.
    """
    mean = step.mean
    values = draws.images * mean[0, 0].numel()
    (centre,) = draws.average(mean.detach().mean((0, 2, 3)))
    (variance,) = draws.average((mean.detach() - centre[:, None, None]).square().mean((0, 2, 3)))
    deviation = (variance * values / (values - 1)).sqrt()
    z = (mean - centre[:, None, None]) / (deviation[:, None, None] + 1e-6)
    z = z[..., : z.shape[2] // 2 * 2, : z.shape[3] // 2 * 2]
    z = z - z.mean(1, keepdim=True)
    z = z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + EPS)
    windows = z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, d, h/2, 2, w/2, 2)
    squares = windows.sum((3, 5)).square().sum(1) - windows.square().sum((1, 3, 5))  # every pair, twice
    correlation = squares.mean() / 12
    (of_batch,) = draws.average(correlation.detach())
    loss = torch.where(of_batch < strengths.threshold, strengths.threshold - correlation, 0 * correlation)
    return replace(step, terms=(*step.terms, Term("local", loss, strengths.weight, adaptive=True)))


# On what is decoded


def prefix(step: Step, strengths: ChannelPrefix, draws: Draws) -> Step:
    """Keep the first c channels of the latent and set the others to 0, c drawn in each step: channels become ordered.

    Structured latent space of DC-AE 1.5 (Chen et al., ICCV 2025), whose training is described and not released: there
    c is one of 16, 20, ..., 128 of 128 channels; here any number from that share on.
    """
    channels = step.latent.shape[1]
    fewest = math.ceil(strengths.fewest * channels)
    kept = fewest + draws.choice(channels - fewest + 1)
    keep = (torch.arange(channels, device=step.latent.device) < kept).view(-1, 1, 1)
    return replace(step, latent=step.latent * keep)


def mask(step: Step, strengths: LatentMask, draws: Draws) -> Step:
    """Replace a share of each image's cells by a learned token.

    Latent masked reconstruction, arXiv 2512.05394; zai-org/SSVAE, ssvae/models/autoencoder.py (apply_lmr). Deviation:
    share and cells are drawn per image, not per batch of a GPU. DeTok (Jiawei-Yang/DeTok, models/detok.py) masks the
    patches that its encoder sees instead.
    """
    assert step.mask_token is not None
    images, cells = draws.images, step.latent[0, 0].numel()
    limits = torch.tensor(strengths.probabilities, dtype=torch.float64).cumsum(0)[:-1]
    chosen = torch.bucketize(torch.rand(images, dtype=torch.float64, generator=draws.rng), limits, right=True)
    ratio = torch.tensor(strengths.ratios, dtype=torch.float64)[chosen]
    number = (ratio * cells).floor().clamp_min(1) * (ratio > 0)
    rank = torch.rand(images, cells, generator=draws.rng).argsort(1).argsort(1)
    masked = draws.own(rank < number[:, None]).view(-1, 1, *step.latent.shape[2:])
    return replace(step, latent=torch.where(masked, step.mask_token.view(1, -1, 1, 1), step.latent))


def noise(step: Step, strengths: LatentNoise, draws: Draws) -> Step:
    """Normal noise on the latent, of a standard deviation drawn per image, uniform from 0 to the strength.

    Added as for the decoder of a representation autoencoder (bytetriper/RAE, src/stage1/rae.py, `noising`; arXiv
    2510.11690), or interpolated with the latent, (1 - u) z + u strength e, as in DeTok (Jiawei-Yang/DeTok,
    models/detok.py, `encode`; arXiv 2507.15856). Neither knows the latent's scale: a tokenizer whose KL weight is small
    can grow its latents until the noise does not matter.
    """
    shape = (draws.images, *step.latent.shape[1:])
    level = draws.own(torch.rand(draws.images, 1, 1, 1, generator=draws.rng))
    normal = draws.own(torch.randn(shape, generator=draws.rng))
    kept = (1 - level) * step.latent if strengths.interpolate else step.latent
    return replace(step, latent=kept + strengths.strength * level * normal)


# On latent and target alike


def scale(step: Step, strengths: ScaleEquivariance, draws: Draws) -> Step:
    """A smaller latent shall decode to the smaller image: a second reconstruction loss.

    Scale equivariance, arXiv 2502.14831: d(x, D(z)) + weight d(x', D(z')), where x' and z' are smaller by 2 or 4
    (bilinear) and d has the perceptual term. Its code could not be read; the weight is second hand.
    """
    grid = step.latent.shape[-1]
    side = max(1, grid // strengths.factors[draws.choice(len(strengths.factors))])
    latent, target = resized(step.latent, side), resized(step.target, side * _downsampling(step))
    return replace(step, pairs=(*step.pairs, Pair("scale", latent, target, strengths.weight)))


def eq(step: Step, strengths: Equivariance, draws: Draws) -> Step:
    """Latents that are resized and turned shall decode to images that are: the whole loss is of that pair.

    EQ-VAE, arXiv 2502.09509; zelaki/eqvae, train_eqvae/ldm/models/autoencoder.py (training_step): with a probability,
    z and x are resized to s / 32 of their side (s from 8 to 31, bilinear) and turned by one to three quarters, and
    reconstruction, perceptual and adversarial loss compare D(z') with x'; of the other steps a share shrinks x before
    it is encoded (`eq_pixels`). The discriminator sees x' and D(z'), the adaptive weights are of that reconstruction
    loss, and no loss is on the latent. One transformation per step, for all images, as released.

    Sides are drawn in whole cells here, from that share to one cell less than the grid: with 32 cells the released
    choices; with 16, 4 to 15; with 8, 2 to 7.
    """
    if draws.number() >= strengths.probability:
        return step
    quarters, side = 1 + draws.choice(3), _smaller_side(step.latent.shape[-1], strengths, draws)
    latent, target = resized(step.latent, side), resized(step.target, side * _downsampling(step))
    return replace(step, latent=latent.rot90(quarters, (3, 2)), target=target.rot90(quarters, (3, 2)))


def eq_pixels(pixels: Tensor, downsampling: int, strengths: Equivariance, draws: Draws) -> Tensor:
    """The images (B, C, H, W) that `eq` has encoded: shrunk in some of the steps that do not transform latents.

    Args:
        draws: a copy of those of `eq`, from the beginning.
    """
    if draws.number() < strengths.probability or draws.number() >= strengths.shrink_probability:
        return pixels
    side = _smaller_side(pixels.shape[-1] // downsampling, strengths, draws)
    return resized(pixels, side * downsampling).to(memory_format=torch.channels_last)


def _smaller_side(grid: int, strengths: Equivariance, draws: Draws) -> int:
    smallest = strengths.smallest_side(grid)
    return smallest + draws.choice(grid - smallest)


def _downsampling(step: Step) -> int:
    return step.target.shape[-1] // step.latent.shape[-1]


REGULARISERS: dict[str, Callable[[Step, Any, Draws], Step]] = {
    function.__name__: function for function in (spectrum, local, prefix, mask, noise, scale, eq)
}


@dataclass(frozen=True)
class Regularisers:
    """Those of a tokenizer, in one step. draws: gives those of one by its name, each time from the beginning."""

    strengths: Regularisation
    draws: Callable[[str], Draws]


def before_encoding(
    regularisers: Regularisers, pixels: Tensor, noise: Tensor, features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images (B, C, H, W), the posterior's noise (B, d, h, w) and features (B, D, h, w) for a step: all smaller where
    the images shrink before they are encoded."""
    strengths = regularisers.strengths.eq
    if strengths is None:
        return pixels, noise, features
    downsampling = pixels.shape[-1] // noise.shape[-1]
    pixels = eq_pixels(pixels, downsampling, strengths, regularisers.draws("eq"))
    side = pixels.shape[-1] // downsampling
    if features is not None and features.shape[-1] != side:
        features = F.interpolate(features, size=(side, side), mode="bilinear", antialias=True)
    return pixels, noise[..., :side, :side], features


def after_encoding(regularisers: Regularisers, step: Step) -> Step:
    """The step after all regularisers, in order."""
    for name, strengths in regularisers.strengths.used().items():
        step = REGULARISERS[name](step, strengths, regularisers.draws(name))
    return step


# Matrices


def resized(x: Tensor, side: int) -> Tensor:
    """(B, C, n, n) to (B, C, side, side), bilinear without anti-aliasing, as `interpolate` with align_corners off."""
    matrix = _interpolation(x.shape[-1], side, "linear", x.device)
    return matrix @ x @ matrix.T


@functools.cache
def _interpolation(before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """(after, before): resizes one dimension as `interpolate` does, linear or bicubic."""
    basis = torch.eye(before)
    if mode == "bicubic":
        matrix = F.interpolate(basis[None, None], size=(before, after), mode=mode)[0, 0].T
    else:
        matrix = F.interpolate(basis[None], size=after, mode=mode)[0].T
    return matrix.contiguous().to(device, non_blocking=True)


@functools.cache
def _smaller(before: int, after: int, device: torch.device) -> Tensor:
    """(after, before): blurs with a Gaussian of 7 pixels and standard deviation 1.2, and shrinks (bicubic)."""
    shrink = _interpolation(before, after, "bicubic", device)
    if after == 32:
        return shrink
    offsets = torch.arange(before)[:, None] - torch.arange(before)
    kernel = torch.exp(-offsets.square() / (2 * 1.2**2)) * (offsets.abs() <= 3)
    total = torch.exp(-torch.arange(-3, 4).square() / (2 * 1.2**2)).sum()  # also at the edges: beyond them is 0
    return shrink @ (kernel / total).to(device, non_blocking=True)


@functools.cache
def _cosines(side: int, device: torch.device) -> Tensor:
    """(side, side): the orthonormal cosine transform (DCT-II)."""
    k, n = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (2 * n + 1) / (2 * side)) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device, non_blocking=True)


@functools.cache
def _rings(side: int, bins: int, device: torch.device) -> Tensor:
    """(side * side, bins): means over rings of frequency; the constant counts in its ring, as 0."""
    place = torch.arange(side, dtype=torch.float32)
    radius = (place[:, None].square() + place.square()).sqrt()
    ring = (radius / radius.max() * bins).floor().long().clamp_max(bins - 1).flatten()
    members = F.one_hot(ring, bins).float()
    means = members / (members.sum(0).clamp_min(1) + EPS)
    means[0] = 0
    return means.to(device, non_blocking=True)
