"""Gaussian diffusion with learned variance: the training objective of DiT, and its sampler.

Source: Ho et al. 2020 (arXiv 2006.11239), Nichol and Dhariwal 2021 (arXiv 2102.09672, section 3.1), as in DiT (arXiv
2212.09748; `facebookresearch/DiT`, diffusion/): 1000 timesteps, linear betas, the noise predicted, the variance between
the two bounds of its logarithm, loss MSE + variational bound. Timestep n runs opposite to the t of this package: 0 is
nearly data, 999 nearly noise, and the network gets n itself. Only guidance's interval is in t = 1 - n / 999.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from models.configs import DIFFUSION_TIMESTEPS as TIMESTEPS
from models.sampler import Guidance, guided

BETAS = (1e-4, 0.02)  # of the first and of the last timestep
BIN = 1 / 255  # half a bin of the discretised decoder, as if values were pixels in [-1, 1]; DiT keeps it for latents
EDGE = 0.999  # values beyond it belong to the outermost bins, which are unbounded
SMALLEST_PROBABILITY = 1e-12

Prediction = Callable[[Tensor, int], Tensor]
"""(state (B, C, h, w), timestep) -> noise and variance (B, 2C, h, w); one timestep for the whole batch."""


class Gaussian(NamedTuple):
    """Independent Gaussians, one per value: mean and log variance, of one shape or broadcast to it."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Chain:
    """Some or all of the timesteps, and the betas between successive ones.

    timesteps: S of them, ascending. betas, alpha_bars: (S,) float64; x_i given x_0 is
    N(sqrt(alpha_bar_i) x_0, 1 - alpha_bar_i). Methods take positions i (B,) long in the chain, and tensors (B, ...).
    """

    timesteps: tuple[int, ...]
    betas: Tensor
    alpha_bars: Tensor

    def noised(self, data: Tensor, noise: Tensor, i: Tensor) -> Tensor:
        """x_i from x_0 and standard normal noise."""
        _, alpha_bar, _ = self._at(i)
        return _as(data, alpha_bar.sqrt()) * data + _as(data, (1 - alpha_bar).sqrt()) * noise

    def posterior(self, data: Tensor, state: Tensor, i: Tensor) -> Gaussian:
        """q(x_{i-1} | x_i, x_0). Its variance is 0 at i = 0; there the log variance is that of i = 1."""
        before, alpha_bar, beta = self._at(i)
        of_data = beta * before.sqrt() / (1 - alpha_bar)
        of_state = (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar)
        before, alpha_bar, beta = self._at(i.clamp(min=1))
        log_variance = (beta * (1 - before) / (1 - alpha_bar)).log()
        return Gaussian(_as(data, of_data) * data + _as(data, of_state) * state, _as(data, log_variance))

    def predicted(self, output: Tensor, state: Tensor, i: Tensor) -> Gaussian:
        """p(x_{i-1} | x_i) from the network's output (B, 2C, ...): the noise, and the position of the log variance
        between its bounds, from -1 (that of the posterior) to 1 (beta)."""
        noise, share = output.chunk(2, dim=1)
        _, alpha_bar, beta = self._at(i)
        data = _as(state, (1 / alpha_bar).sqrt()) * state - _as(state, (1 / alpha_bar - 1).sqrt()) * noise
        mean, lower = self.posterior(data, state, i)
        share = (share + 1) / 2
        return Gaussian(mean, share * _as(state, beta.log()) + (1 - share) * lower)

    def _at(self, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_bar_{i-1} (1 at i = 0: data itself), alpha_bar_i and beta_i, each (B,)."""
        return torch.where(i > 0, self.alpha_bars[i - 1], 1.0), self.alpha_bars[i], self.betas[i]


@functools.cache  # so that no step waits for a copy of the tables to the GPU
def chain(steps: int = TIMESTEPS, device: torch.device | str = "cpu") -> Chain:
    """The chain of all timesteps, or respaced: `steps` of them, evenly from 0 to 999, with the same alpha_bars.

    Raises ValueError unless 2 <= steps <= 1000.
    """
    if not 2 <= steps <= TIMESTEPS:
        raise ValueError(f"diffusion has {TIMESTEPS} timesteps to step through, and at least 2; got steps {steps}")
    stride = (TIMESTEPS - 1) / (steps - 1)
    places = accumulate([stride] * (steps - 1), initial=0.0)  # a product would round some halves the other way
    timesteps = tuple(round(place) for place in places)
    full = torch.linspace(*BETAS, TIMESTEPS, dtype=torch.float64)
    alpha_bars = (1 - full).cumprod(0)[list(timesteps)]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    return Chain(timesteps, (1 - alpha_bars / before).to(device), alpha_bars.to(device))


def _as(like: Tensor, values: Tensor) -> Tensor:
    """One value per image (B,), to be broadcast over tensors such as `like` (B, ...)."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


# Training


def gaussian_diffusion_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], data: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor
) -> Tensor:
    """Loss per image, (B,) float32: mean squared error of the noise plus the variational bound in bits per value.

    network(x (B, C, h, w), timesteps (B,), labels (B,)) -> (B, 2C, h, w); data, noise: (B, C, h, w); timesteps: (B,)
    long in [0, 1000). The bound teaches the variance alone: the mean is held fixed in it.
    """
    state = chain(device=data.device).noised(data, noise, timesteps)
    output = network(state, timesteps, labels).float()
    if output.shape[1] != 2 * data.shape[1]:
        raise ValueError(f"a network with learned variance gives {2 * data.shape[1]} channels, got {output.shape[1]}")
    predicted, share = output.chunk(2, dim=1)
    mse = (predicted - noise).square().flatten(1).mean(1)
    return mse + bound_bits(torch.cat([predicted.detach(), share], dim=1), data, state, timesteps)


def bound_bits(output: Tensor, data: Tensor, state: Tensor, timesteps: Tensor) -> Tensor:
    """A term of the variational bound per image, (B,), in bits per value: KL(q || p) of x_{n-1} given x_n; at timestep
    0 minus the log probability of x_0 by the discretised decoder."""
    full = chain(device=data.device)
    p = full.predicted(output, state, timesteps)
    bits = _kl(full.posterior(data, state, timesteps), p).flatten(1).mean(1) / math.log(2)
    decoder = -_log_probability(data, p).flatten(1).mean(1) / math.log(2)
    return torch.where(timesteps == 0, decoder, bits)


def _kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) per value, in nats."""
    gap = q.log_variance - p.log_variance
    return 0.5 * (gap.exp() - 1 - gap + (q.mean - p.mean).square() * (-p.log_variance).exp())


def _log_probability(data: Tensor, p: Gaussian) -> Tensor:
    """Log probability of each value's bin under p, in nats."""
    scale = (-0.5 * p.log_variance).exp()
    below, above = (_normal_cdf(scale * (data - p.mean + edge)) for edge in (-BIN, BIN))
    probability = torch.where(data < -EDGE, above, torch.where(data > EDGE, 1 - below, above - below))
    return probability.clamp(min=SMALLEST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """CDF of the standard normal, in the tanh approximation that DiT's loss uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# Sampling


def noise_function(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Tensor, null_label: int, guidance: Guidance
) -> Prediction:
    """What a generator trained on gaussian_diffusion_loss predicts for fixed labels (B,) long, guided or not.

    Guidance acts on the noise; the variance is always the conditional one's.
    """

    def predict(state: Tensor, timestep: int) -> Tensor:
        on = guidance.is_on(1 - timestep / (TIMESTEPS - 1))
        return guided(generator, state, float(timestep), labels, null_label, guidance if on else None)

    return predict


@torch.no_grad()
def ancestral(predict: Prediction, noise: Tensor, *, steps: int, fresh_noise: Callable[[], Tensor]) -> Tensor:
    """From noise (B, C, h, w) to data by `steps` draws from p(x_{i-1} | x_i) along the respaced chain.

    fresh_noise() -> standard normal (B, C, h, w); called once per step but the last, which takes the mean. Raises
    ValueError unless 2 <= steps <= 1000.
    """
    walk, state = chain(steps, noise.device), noise
    for i in reversed(range(steps)):
        output = predict(state, walk.timesteps[i])
        mean, log_variance = walk.predicted(output, state, torch.full((len(state),), i, device=noise.device))
        state = mean + (0.5 * log_variance).exp() * fresh_noise() if i else mean
    return state
