import math

import pytest
import torch
from waves import wave

from models.flow import flow_loss, interpolate, logit_normal_times, shifted_times, velocity_target
from models.sampler import time_grid


def test_the_path_runs_from_noise_to_data_at_its_velocity():
    data, noise = wave(3, 4, 2, 2, k=0.7), wave(3, 4, 2, 2, k=1.3)
    assert torch.equal(interpolate(data, noise, torch.zeros(3)), noise)
    assert torch.equal(interpolate(data, noise, torch.ones(3)), data)
    a, b = (interpolate(data, noise, torch.full((3,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((b - a) / 0.5, velocity_target(data, noise))


def test_values_of_the_reference():
    """Recorded from the released training losses; both agreed to 1e-6."""
    data, noise = wave(3, 4, 2, 2, k=0.7), wave(3, 4, 2, 2, k=1.3)
    t = torch.tensor([0.1, 0.5, 0.9])
    x = interpolate(data, noise, t)
    loss = flow_loss(torch.sin(3 * x) + t.view(3, 1, 1, 1), velocity_target(data, noise))
    assert loss.mse.tolist() == pytest.approx([2.332403, 1.638107, 1.473599], abs=2e-6)
    assert loss.direction.tolist() == pytest.approx([1.601262, 1.037023, 0.701775], abs=2e-6)


def test_direction_ignores_length_and_mse_does_not():
    target = wave(2, 4, 2, 2, k=0.9)
    exact, doubled, reversed_ = (flow_loss(s * target, target) for s in (1, 2, -1))
    assert exact.mse.tolist() == [0, 0]
    torch.testing.assert_close(doubled.direction, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(doubled.mse, target.square().flatten(1).mean(1))
    torch.testing.assert_close(reversed_.direction, torch.full((2,), 2.0))


def test_losses_are_float32_per_image():
    loss = flow_loss(torch.zeros(2, 3, 2, 2, dtype=torch.bfloat16), torch.ones(2, 3, 2, 2))
    assert loss.mse.dtype == loss.direction.dtype == torch.float32
    assert loss.mse.tolist() == [1, 1]


def test_logit_normal_times_by_hand():
    assert logit_normal_times(torch.zeros(1)).item() == 0.5
    assert logit_normal_times(torch.ones(1), mean=1.0, std=2.0).item() == pytest.approx(0.9525741)  # sigmoid(3)
    with pytest.raises(ValueError, match="positive"):
        logit_normal_times(torch.zeros(1), std=0.0)


def test_shapes_must_match():
    with pytest.raises(ValueError, match="one time per image"):
        interpolate(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="differ in shape"):
        flow_loss(torch.zeros(2, 1), torch.zeros(2, 2))


def test_shifted_times_are_those_of_the_released_representation_autoencoder():
    """There t = 0 is data and a = sqrt(196,608 / 4,096) = 6.93 maps 0.5 to 0.874; 1 - t is ours."""
    a = math.sqrt(16 * 16 * 768 / 4096)
    assert a * 0.5 / (1 + (a - 1) * 0.5) == pytest.approx(0.8739, abs=1e-4)
    theirs = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = 1 - a * theirs / (1 + (a - 1) * theirs)
    found = shifted_times(1 - theirs, 1 / a)
    torch.testing.assert_close(found, expected)
    assert found[5].item() == pytest.approx(1 - 0.8739, abs=1e-4)
    torch.testing.assert_close(found.flip(0), torch.tensor(time_grid(10, 1 / a), dtype=torch.float64))
    twice = shifted_times(shifted_times(theirs, 0.5), 0.3)  # in turn they are one by their product
    torch.testing.assert_close(twice, shifted_times(theirs, 0.15))
    with pytest.raises(ValueError, match="shift must be positive"):
        shifted_times(theirs, 0.0)
