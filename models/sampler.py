"""From noise to samples: guidance, time grids and solvers.

Source: `hustvl/LightningDiT`, models/lightningdit.py (forward_with_cfg) and transport/integrators.py. t = 0
is noise. Deviations: guidance costs nothing outside its interval; only the last state is kept; `steps` counts
steps, while the released code counts grid points (its 250 are 249 steps); no shift is written 1, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.configs import SOLVERS
from models.names import nearest

Velocity = Callable[[Tensor, float], Tensor]
"""(state (B, ...), t) -> velocity (B, ...); t is one number for the whole batch."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: null + scale * (conditional - null).

    scale 1: no guidance. interval (start, end): guidance is ON for start <= t <= end; the released
    `cfg_interval_start` is start, with end 1. channels: only this number of latent channels is guided, the first ones
    (3 as released, and in DiT); None: all. Raises ValueError for invalid values.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def __post_init__(self) -> None:
        start, end = self.interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"the guidance interval is where it is on, 0 <= start <= end <= 1; got {self.interval}")
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance scale must be finite, got {self.scale}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance must act on at least one channel, or None for all; got {self.channels}")

    def is_on(self, t: float) -> bool:
        """Whether guidance acts at time t; t > 1, which solvers use to interpolate, counts as 1."""
        return self.scale != 1.0 and self.interval[0] <= min(t, 1.0) <= self.interval[1]


def velocity_function(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor],
    labels: Tensor,
    null_label: int,
    guidance: Guidance,
) -> Velocity:
    """The velocity field of a generator for fixed labels (B,) long.

    generator(latent (B, C, h, w), t (B,), labels (B,)) -> velocity. While guidance is on it sees 2B images
    (conditional, then null), else B. The velocity returned has the state's dtype.
    """

    def velocity(latent: Tensor, t: float) -> Tensor:
        return guided(generator, latent, t, labels, null_label, guidance if guidance.is_on(t) else None)

    return velocity


def guided(
    generator: Callable[[Tensor, Tensor, Tensor], Tensor],
    latent: Tensor,
    time: float,
    labels: Tensor,
    null_label: int,
    guidance: Guidance | None,
) -> Tensor:
    """One prediction of a generator, guided unless guidance is None, in the latent's dtype.

    Channels past the latent's (a learned variance) are never guided: they are the conditional prediction's.
    """
    times = latent.new_full((len(latent),), time)
    if guidance is None:
        return generator(latent, times, labels).to(latent.dtype)
    null = torch.full_like(labels, null_label)
    if latent.device.type == "cpu":  # 2B images at once leave its cache: LightningDiT-XXS/2 took 13% longer for 100
        conditional, unconditional = (generator(latent, times, of).to(latent.dtype) for of in (labels, null))
    else:
        both = generator(torch.cat([latent, latent]), times.repeat(2), torch.cat([labels, null]))
        conditional, unconditional = both.to(latent.dtype).chunk(2)
    mixed = unconditional + guidance.scale * (conditional - unconditional)
    channels = guidance.channels or latent.shape[1]
    return torch.cat([mixed[:, :channels], conditional[:, channels:]], dim=1)


def time_grid(steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 times from 0 to 1: even ones, mapped by s t / (1 + (s - 1) t). A shift below 1 moves them toward 0.

    Raises ValueError unless steps >= 1 and shift > 0.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"a time grid needs steps >= 1 and shift > 0 (1 is none), got steps {steps}, shift {shift}")
    even = [i / steps for i in range(steps + 1)]
    return [shift * t / (shift * t + (1 - t)) for t in even]  # the same formula; exactly 1 at the end


@torch.no_grad()
def integrate(
    velocity: Velocity,
    noise: Tensor,
    *,
    solver: str,
    steps: int | None = None,
    shift: float = 1.0,
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> Tensor:
    """Follow the velocity from noise (B, ...) at t = 0 to t = 1; only the current state is kept.

    euler takes `steps` evaluations, heun (trapezoid) twice as many. dopri5 is adaptive: it uses rtol and
    atol (released defaults) on the norm over the whole batch, so the images of a batch influence each
    other's steps; steps and shift do not apply to it. Raises ValueError for an unknown solver, or a solver with fixed
    steps if `steps` is None.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; {nearest(solver, SOLVERS)}")
    if solver == "dopri5":
        return _dopri5(velocity, noise, rtol, atol)
    if steps is None:
        raise ValueError(f"solver {solver!r} has fixed steps: say how many")
    grid = time_grid(steps, shift)
    state = noise
    for t, t_next in pairwise(grid):
        dt = t_next - t
        slope = velocity(state, t)
        if solver == "heun":
            slope = (slope + velocity(state + dt * slope, t_next)) / 2
        state = state + dt * slope
    return state


def _dopri5(velocity: Velocity, noise: Tensor, rtol: float, atol: float) -> Tensor:
    from torchdiffeq import odeint  # 0.5 s, and only one of the solvers needs it

    ends = torch.tensor([0.0, 1.0], dtype=noise.dtype, device=noise.device)
    return odeint(lambda t, x: velocity(x, float(t)), noise, ends, method="dopri5", rtol=rtol, atol=atol)[-1]
