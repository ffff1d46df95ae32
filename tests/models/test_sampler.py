import math
import weakref

import pytest
import torch
from waves import wave

from models.sampler import Guidance, integrate, time_grid, velocity_function


class Recorder:
    """A generator whose velocity is the label, and which records the size of each batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, latent, t, labels):
        assert t.shape == labels.shape == latent.shape[:1]
        self.batches.append(len(latent))
        return labels.view(-1, 1, 1, 1).expand_as(latent).to(latent.dtype)


LABELS, NULL = torch.tensor([2, 3]), 10


def test_guidance_by_hand():
    """null + s (conditional - null) = 10 + 2 (2 - 10) = -6, and 10 + 2 (3 - 10) = -4, on the guided
    channels."""
    field = velocity_function(Recorder(), LABELS, NULL, Guidance(scale=2.0, channels=3))
    velocity = field(torch.zeros(2, 5, 1, 1), 0.5)
    assert velocity.flatten(1).tolist() == [[-6.0] * 3 + [2.0] * 2, [-4.0] * 3 + [3.0] * 2]
    everywhere = velocity_function(Recorder(), LABELS, NULL, Guidance(scale=2.0))
    assert everywhere(torch.zeros(2, 5, 1, 1), 0.5).flatten(1).tolist() == [[-6.0] * 5, [-4.0] * 5]


def test_guidance_costs_only_where_it_is_on():
    recorder = Recorder()
    field = velocity_function(recorder, LABELS, NULL, Guidance(scale=3.0, interval=(0.25, 0.5)))
    for t in (0.0, 0.24, 0.25, 0.5, 0.51, 1.0):
        field(torch.zeros(2, 4, 1, 1), t)
    assert recorder.batches == [2] * 8  # twice at 0.25 and 0.5
    off = Recorder()
    integrate(velocity_function(off, LABELS, NULL, Guidance()), torch.zeros(2, 4, 1, 1), solver="euler", steps=5)
    assert off.batches == [2] * 5


def test_a_solver_past_the_end_is_still_guided():
    assert Guidance(scale=2.0).is_on(1.02)
    assert not Guidance(scale=2.0, interval=(0.0, 0.9)).is_on(1.02)


@pytest.mark.parametrize(
    "wrong", [{"interval": (0.5, 0.2)}, {"interval": (-0.1, 1.0)}, {"channels": 0}, {"scale": math.nan}]
)
def test_meaningless_guidance_is_refused(wrong):
    with pytest.raises(ValueError, match="guidance"):
        Guidance(**wrong)


def test_time_grid():
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]
    shifted = time_grid(249, 0.3)
    assert (shifted[0], shifted[-1], len(shifted)) == (0, 1, 250)
    assert time_grid(2, 0.3)[1] == pytest.approx(0.15 / 0.65)
    assert shifted == sorted(shifted)
    assert shifted[125] < 0.5  # more steps near noise
    for steps, shift in ((0, 1.0), (4, 0.0)):
        with pytest.raises(ValueError, match="steps >= 1 and shift > 0"):
            time_grid(steps, shift)


def gaussian_velocity(mean: float, std: float):
    """Data N(mean, std^2): x_t is Gaussian with mean t m and standard deviation s_t = sqrt((1-t)^2 + t^2
    std^2), so the flow keeps (x - t m) / s_t, which makes v = m + (s_t' / s_t) (x - t m) and x_1 = m + std
    x_0."""

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


def error(solver: str, steps: int | None, shift: float = 1.0) -> float:
    noise = wave(4, 3, 2, 2, k=0.9).double()
    out = integrate(gaussian_velocity(1.5, 0.4), noise, solver=solver, steps=steps, shift=shift)
    return (out - (1.5 + 0.4 * noise)).abs().max().item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 0.5])
def test_solvers_converge_at_their_order(solver, order, shift):
    coarse, fine = error(solver, 80, shift), error(solver, 160, shift)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_dopri5_meets_its_tolerance():
    """The released tolerance is loose: the error is about 0.01 here, and falls with the tolerance."""
    assert error("dopri5", None) < 0.02
    noise = wave(4, 3, 2, 2, k=0.9).double()
    tight = integrate(gaussian_velocity(1.5, 0.4), noise, solver="dopri5", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(tight, 1.5 + 0.4 * noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "steps", "shift", "expected"),
    [("euler", 9, 0.3, [0.0, 1.734496, 1.910671]), ("euler", 9, 1.0, [0.0, 1.725097, 1.920667]),
     ("dopri5", None, 1.0, [0.0, 1.749503, 1.933512])],
)  # fmt: skip
def test_values_of_the_reference(solver, steps, shift, expected):
    """Recorded from the released integrator (10 grid points; 50 for dopri5); both agreed to 2e-6."""
    noise = wave(2, 3, 4, 4, k=0.5)
    out = integrate(lambda x, t: torch.sin(2 * x) + t * x, noise, solver=solver, steps=steps, shift=shift)
    assert out.flatten()[:3].tolist() == pytest.approx(expected, abs=5e-6)


def test_evaluations_and_gradients():
    calls: list[float] = []

    def velocity(x, t):
        calls.append(t)
        return x * torch.nn.Parameter(torch.ones(()))

    for solver, count in (("euler", 6), ("heun", 12)):
        calls.clear()
        assert not integrate(velocity, torch.ones(1, 2), solver=solver, steps=6).requires_grad
        assert len(calls) == count


def test_one_state_is_kept_not_the_trajectory():
    states, alive = [], []

    def velocity(state, t):
        states.append(weakref.ref(state))
        alive.append(sum(ref() is not None for ref in states))
        return state * 0.5

    integrate(velocity, torch.ones(4, 8), solver="euler", steps=50)
    assert max(alive) <= 2  # the noise belongs to the caller


def test_wrong_solvers_are_answered_with_what_was_meant():
    with pytest.raises(ValueError, match="unknown solver 'Eular'; nearest: euler"):
        integrate(lambda x, t: x, torch.zeros(1), solver="Eular", steps=3)
    with pytest.raises(ValueError, match="say how many"):
        integrate(lambda x, t: x, torch.zeros(1), solver="heun")
