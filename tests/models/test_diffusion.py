import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from waves import wave

from models.diffusion import Chain, ancestral, bound_bits, chain, gaussian_diffusion_loss, noise_function
from models.sampler import Guidance


def network(state, timesteps, labels=None):
    n = timesteps.view(-1, 1, 1, 1) / 1000
    return torch.cat([0.98 * n**0.5 * state + 0.1 * torch.sin(3 * state), torch.cos(3 * state) - n], dim=1)


def double(*shape, k):
    return 2 * wave(*shape, k=k).double()


# The chain


def test_the_chain_is_linear_in_beta_and_respaced_to_all_timesteps_the_same():
    full = chain()
    assert full.timesteps == tuple(range(1000))
    expected = torch.tensor([1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(full.betas, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(chain(1000).betas, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("steps", [2, 21, 250, 999])
def test_a_respaced_chain_skips_timesteps_and_keeps_what_they_mean(steps):
    part = chain(steps)
    assert len(set(part.timesteps)) == steps
    assert (part.timesteps[0], part.timesteps[-1]) == (0, 999)
    torch.testing.assert_close((1 - part.betas).cumprod(0), chain().alpha_bars[list(part.timesteps)], rtol=1e-9, atol=0)


def test_halves_are_rounded_as_published():
    """Place 10 of 21 is 499.5, summed a little less. Recorded from DiT's respacing; all of 2 to 1000 steps agreed."""
    assert chain(3).timesteps == (0, 500, 999)
    assert chain(7).timesteps == (0, 166, 333, 500, 666, 832, 999)
    assert chain(21).timesteps[9:12] == (450, 499, 549)


@pytest.mark.parametrize("steps", [-1, 0, 1, 1001])
def test_a_chain_of_other_lengths_is_refused(steps):
    with pytest.raises(ValueError, match=f"1000 timesteps to step through, and at least 2; got steps {steps}"):
        chain(steps)


@pytest.mark.parametrize("steps", [1000, 50])
def test_the_posterior_is_bayes(steps):
    """x_{i-1} ~ N(sqrt(a') x_0, 1 - a') and x_i ~ N(sqrt(1 - beta) x_{i-1}, beta): precisions add."""
    walk = chain(steps)
    i = torch.tensor([1, 2, steps // 2, steps - 1])
    data, state = double(4, 2, 2, 2, k=0.7), double(4, 2, 2, 2, k=1.3)
    found = walk.posterior(data, state, i)
    for image, place in enumerate(i.tolist()):
        alpha_bar = float(torch.prod(1 - walk.betas[:place]))
        beta = float(walk.betas[place])
        precision = 1 / (1 - alpha_bar) + (1 - beta) / beta
        mean = (math.sqrt(alpha_bar) * data[image] / (1 - alpha_bar) + math.sqrt(1 - beta) * state[image] / beta) / (
            precision
        )
        torch.testing.assert_close(found.mean[image], mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.log_variance[image].exp().unique(), torch.tensor([1 / precision]).double())
    at_data = walk.posterior(data[:1], state[:1], torch.tensor([0]))
    torch.testing.assert_close(at_data.mean, data[:1])
    assert torch.equal(at_data.log_variance, walk.posterior(data[:1], state[:1], torch.tensor([1])).log_variance)


def test_noising_has_the_chains_mean_and_variance():
    data, noise = double(3, 2, 2, 2, k=0.7), double(3, 2, 2, 2, k=1.3)
    i = torch.tensor([0, 500, 999])
    for image, place in enumerate(i.tolist()):
        kept = float(torch.prod(1 - chain().betas[: place + 1]))
        expected = math.sqrt(kept) * data[image] + math.sqrt(1 - kept) * noise[image]
        torch.testing.assert_close(chain().noised(data, noise, i)[image], expected, rtol=1e-9, atol=1e-9)


# The loss


def test_values_of_the_reference():
    """Recorded from DiT's published diffusion/ with this network; both agreed bit for bit, gradients to 1e-8."""
    data, noise = 2 * wave(4, 3, 2, 2, k=0.7), 2 * wave(4, 3, 2, 2, k=1.3)
    timesteps = torch.tensor([0, 1, 500, 999])
    loss = gaussian_diffusion_loss(network, data, noise, timesteps, torch.zeros(4))
    assert loss.tolist() == pytest.approx([3.722398, 3.168417, 0.379667, 0.00804607], rel=1e-5)
    fresh = iter(wave(2, 3, 4, 4, k=0.31 + 0.07 * i) for i in range(10))
    out = ancestral(
        lambda state, n: network(state, torch.full((2,), n)), wave(2, 3, 4, 4, k=0.5), steps=10,
        fresh_noise=lambda: next(fresh),
    )  # fmt: skip
    assert out.flatten()[[1, 17, 50, 95]].tolist() == pytest.approx([1.684575, 0.320944, 0.00113, -1.396047], abs=1e-5)


def test_a_term_of_the_bound_is_the_analytic_kl():
    """With torch's distributions; the mean by the formula of Ho et al. (eq. 11), which does not contain x_0."""
    timesteps = torch.tensor([1, 10, 500, 999])
    data, state = double(4, 2, 2, 2, k=0.7), double(4, 2, 2, 2, k=1.3)
    noise, share = double(4, 2, 2, 2, k=0.9), wave(4, 2, 2, 2, k=0.4).double()
    found = bound_bits(torch.cat([noise, share], dim=1), data, state, timesteps)
    walk = chain()
    for image, n in enumerate(timesteps.tolist()):
        beta, kept, before = walk.betas[n], walk.alpha_bars[n], walk.alpha_bars[n - 1]
        mean = (state[image] - beta / (1 - kept).sqrt() * noise[image]) / (1 - beta).sqrt()
        lower = beta * (1 - before) / (1 - kept)
        spread = (beta ** ((share[image] + 1) / 2) * lower ** ((1 - share[image]) / 2)).sqrt()
        q = walk.posterior(data, state, timesteps)
        nats = kl_divergence(Normal(q.mean[image], lower.sqrt()), Normal(mean, spread)).mean()
        assert found[image].item() == pytest.approx(float(nats) / math.log(2), rel=1e-6)


def test_the_decoder_is_a_distribution_over_256_values_and_close_to_the_normal():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64).view(-1, 1, 1, 1)
    state, n = torch.full_like(values, 0.3), torch.zeros(256, dtype=torch.long)
    output = torch.cat([torch.zeros_like(values), torch.full_like(values, 1.0)], dim=1)
    probability = 2 ** -bound_bits(output, values, state, n)
    assert probability.sum().item() == pytest.approx(1, abs=1e-9)
    p = chain().predicted(output, state, n)
    normal = Normal(p.mean.flatten(), (0.5 * p.log_variance).exp().flatten())
    exact = normal.cdf(values.flatten() + 1 / 255) - normal.cdf(values.flatten() - 1 / 255)
    assert (probability - exact).abs().max() < 1e-3


def test_the_bound_teaches_the_variance_alone():
    data, noise = wave(2, 3, 2, 2, k=0.7), wave(2, 3, 2, 2, k=1.3)
    output = wave(2, 6, 2, 2, k=0.2).requires_grad_()
    loss = gaussian_diffusion_loss(lambda state, n, labels: output, data, noise, torch.tensor([0, 400]), torch.zeros(2))
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    torch.testing.assert_close(gradient[:, :3], 2 / 12 * (output[:, :3] - noise).detach())
    assert (gradient[:, 3:] != 0).all()


def test_the_loss_is_float32_per_image_and_the_network_is_told_its_timestep():
    told = []

    def recording(state, timesteps, labels):
        told.append(timesteps.tolist())
        return network(state, timesteps).bfloat16()

    data = wave(2, 3, 2, 2, k=0.7)
    loss = gaussian_diffusion_loss(recording, data, data, torch.tensor([3, 977]), torch.zeros(2))
    assert (loss.shape, loss.dtype, told) == ((2,), torch.float32, [[3, 977]])
    with pytest.raises(ValueError, match="gives 6 channels, got 3"):
        gaussian_diffusion_loss(lambda state, n, labels: state, data, data, torch.tensor([3, 977]), torch.zeros(2))


# Sampling


def exact_prediction(walk: Chain, mean: float, std: float):
    """Noise and variance of the true reverse process for data N(mean, std^2), where everything is Gaussian.

    Given x_i, x_0 is Gaussian: its mean gives the noise; the reverse variance is the posterior's plus the posterior's
    weight of x_0, squared, times the variance of x_0. At i = 0 the sampler adds none.
    """

    def predict(state, n):
        i = walk.timesteps.index(n)
        kept, beta = walk.alpha_bars[i], walk.betas[i]
        total = kept * std**2 + 1 - kept
        noise = (1 - kept).sqrt() * (state - kept.sqrt() * mean) / total
        before = walk.alpha_bars[i - 1] if i else torch.ones((), dtype=torch.float64)
        lower = beta * (1 - before) / (1 - kept)
        variance = lower + (beta * before.sqrt() / (1 - kept)) ** 2 * std**2 * (1 - kept) / total
        share = 2 * (variance / lower).log() / (beta / lower).log() - 1 if i else torch.zeros(())
        return torch.cat([noise, share.expand_as(noise)], dim=1)

    return predict


@pytest.mark.parametrize(("steps", "mean", "std"), [(5, 1.5, 0.4), (250, -0.7, 2.0)])
def test_the_exact_prediction_draws_the_data(steps, mean, std):
    rng = torch.Generator().manual_seed(0)

    def fresh():
        return torch.randn(40_000, 1, 1, 1, generator=rng, dtype=torch.float64)

    out = ancestral(exact_prediction(chain(steps), mean, std), fresh(), steps=steps, fresh_noise=fresh)
    assert out.mean().item() == pytest.approx(mean, abs=5 * std / 200)  # five standard errors
    assert out.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * 40_000))


def test_steps_walk_down_and_the_last_adds_no_noise():
    walked, drawn = [], []

    def predict(state, n):
        walked.append(n)
        return torch.zeros(1, 2, 1, 1)

    def fresh():
        drawn.append(1)
        return torch.zeros(1, 1, 1, 1)

    ancestral(predict, torch.ones(1, 1, 1, 1), steps=3, fresh_noise=fresh)
    assert walked == [999, 500, 0]
    assert len(drawn) == 2


def test_guidance_moves_the_noise_and_never_the_variance():
    """null + 2 (conditional - null): 10 + 2 (2 - 10) = -6; on three of four latent channels, or all; t = 1 is data."""

    def labelled(state, timesteps, labels):
        assert set(timesteps.tolist()) <= {0.0, 400.0, 999.0}
        return labels.view(-1, 1, 1, 1).expand(-1, 8, 1, 1).float()

    state, label = torch.zeros(1, 4, 1, 1), torch.tensor([2])
    three = noise_function(labelled, label, 10, Guidance(scale=2.0, channels=3))
    assert three(state, 400).flatten().tolist() == [-6.0] * 3 + [2.0] * 5
    everywhere = noise_function(labelled, label, 10, Guidance(scale=2.0))
    assert everywhere(state, 400).flatten().tolist() == [-6.0] * 4 + [2.0] * 4
    late = noise_function(labelled, label, 10, Guidance(scale=2.0, interval=(0.5, 1.0)))
    assert [late(state, n).flatten()[0].item() for n in (999, 400, 0)] == [2.0, -6.0, -6.0]
