"""Each regulariser: a value by hand, nothing at strength 0, gradients where they belong, the released code's number.

The released code was run on the same made tensors and, where it draws, with the same seed.
"""

import math
from dataclasses import replace

import pytest
import torch
from waves import wave

from models import regularisers
from models.regularisation import (
    REGULARISERS,
    ChannelPrefix,
    Equivariance,
    LatentMask,
    LatentNoise,
    LocalCorrelation,
    Regularisation,
    ScaleEquivariance,
    SpectrumMatching,
)
from models.regularisers import (
    Draws,
    Regularisers,
    Step,
    after_encoding,
    before_encoding,
    eq,
    eq_pixels,
    local,
    mask,
    noise,
    prefix,
    scale,
    spectrum,
)


def draws(images=2, seed=0):
    return Draws(torch.Generator().manual_seed(seed), images, lambda drawn: drawn, lambda *tensors: tensors)


def step(latent, pixels=None, **more):
    pixels = wave(len(latent), 1, 2 * latent.shape[2], 2 * latent.shape[3], k=0.13) if pixels is None else pixels
    return Step(pixels, latent, latent, latent, pixels, **more)


class Drawn(Draws):
    """Draws whose numbers for all images are given."""

    def __new__(cls, *numbers):
        given, found = iter(numbers), object.__new__(cls)
        object.__setattr__(found, "number", lambda: next(given))
        return found

    def __init__(self, *numbers):
        super().__init__(torch.Generator().manual_seed(0), 2, lambda drawn: drawn, lambda *tensors: tensors)


def test_every_name_has_its_function():
    assert tuple(regularisers.REGULARISERS) == REGULARISERS


# spectrum


@pytest.mark.parametrize(
    ("grid", "tilt", "expected"),
    [(8, 1.0, 0.33834416), (8, 0.0, 0.56034428), (4, 1.0, 0.88575864), (32, 1.0, 2.22844100)],
)
def test_spectrum_of_the_released_code(grid, tilt, expected):
    """latent_spectral_reg_dct with loss_type kl; a grid of 32 is not blurred there, one of 4 has empty rings."""
    found = spectrum(
        step(wave(2, 5, grid, grid, k=0.71), wave(2, 3, 64, 64, k=0.0137)), SpectrumMatching(tilt=tilt), draws()
    )
    (term,) = found.terms
    assert term.loss.item() == pytest.approx(expected, rel=2e-6)
    assert (term.weight, term.adaptive) == (pytest.approx(0.01 * 3 * 64 * 64), False)


def test_spectrum_by_hand():
    """Four rings on 2 x 2 cells: the constant, which does not count; none; the two first frequencies; the highest. An
    image of columns 1, -1 has its power of 4 in one of the two of the third ring; a checkerboard in the last."""
    columns = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).view(1, 1, 2, 2)
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(1, 1, 2, 2)
    power = regularisers._radial_spectrum(torch.cat([columns, checkerboard]), bins=4)
    expected = torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 4.0]])
    torch.testing.assert_close(power, expected, atol=1e-6, rtol=1e-6)


def test_a_latent_with_the_images_own_spectrum_costs_nothing_and_any_other_is_pulled():
    """On a grid as large as the image, and 32, nothing is blurred or shrunk."""
    pixels, latent = wave(2, 1, 32, 32, k=0.0137), wave(2, 3, 32, 32, k=0.71).requires_grad_()
    own = Step(pixels, latent, torch.cat([pixels] * 3, 1), latent, pixels)
    (term,) = spectrum(own, SpectrumMatching(tilt=0.0), draws()).terms
    assert term.loss.item() == pytest.approx(0, abs=1e-6)
    (term,) = spectrum(step(latent, pixels), SpectrumMatching(tilt=0.0), draws()).terms
    (gradient,) = torch.autograd.grad(term.loss, latent)
    assert term.loss > 0.1 and gradient.any()


# local


@pytest.mark.parametrize(("k", "expected"), [(0.71, 0.016722739), (0.05, 0.0)])
def test_local_correlation_of_the_released_code(k, expected):
    """0.75 minus windowed_localcorr_z of the standardised mean: 0.7332773 and, above the threshold, 0.8077869."""
    (term,) = local(step(wave(2, 5, 8, 8, k=k)), LocalCorrelation(), draws()).terms
    assert term.loss.item() == pytest.approx(expected, abs=2e-6)
    assert (term.weight, term.adaptive) == (0.002, True)


def test_local_correlation_by_hand():
    """Three of four cells are alike over channels, the fourth is their opposite: of six pairs three have correlation 1
    and three -1, so the mean is 0."""
    cell = torch.tensor([1.0, -1.0, 0.0])
    window = torch.stack([cell, cell, cell, -cell], 1).view(1, 3, 2, 2)
    latent = torch.cat([window, -window])  # standardising per channel only scales it
    for threshold, expected in ((0.5, 0.5), (-0.5, 0.0)):
        (term,) = local(step(latent), LocalCorrelation(threshold=threshold), draws()).terms
        assert term.loss.item() == pytest.approx(expected, abs=1e-5)


def test_local_correlation_pulls_only_below_its_threshold_and_an_odd_border_is_left_out():
    latent = wave(2, 5, 9, 9, k=0.71).requires_grad_()
    for threshold, pulls in ((1.0, True), (-1.0, False)):
        (term,) = local(step(latent), LocalCorrelation(threshold=threshold), draws()).terms
        (gradient,) = torch.autograd.grad(term.loss, latent)
        assert bool(gradient.any()) is pulls
        assert not gradient[..., 8].any() and not gradient[..., 8, :].any()


def test_local_correlation_over_two_processes_is_that_of_the_whole_batch():
    latent = wave(4, 5, 4, 4, k=0.71)
    whole = local(step(latent), LocalCorrelation(threshold=1.0), draws(4)).terms[0].loss
    halves, losses, recorded = latent.chunk(2), [], {}

    def half(number):
        calls = iter(range(9))

        def average(tensor):
            found = recorded.setdefault(next(calls), {})
            found[number] = tensor
            return (sum(found.values()) / len(found),)

        return Draws(torch.Generator(), 4, lambda drawn: drawn, average)

    for _ in range(3):  # the second half knows the first one's means; repeated, both know both
        losses = [
            local(step(half_of), LocalCorrelation(threshold=1.0), half(n)).terms[0].loss
            for n, half_of in enumerate(halves)
        ]
    assert float(sum(losses)) / 2 == pytest.approx(float(whole), rel=1e-5)


# prefix


def test_the_first_channels_stay_and_all_numbers_from_the_fewest_on_are_drawn():
    latent = torch.ones(2, 8, 2, 2, requires_grad=True)
    kept = set()
    for seed in range(100):
        found = prefix(step(latent), ChannelPrefix(fewest=0.3), draws(seed=seed)).latent
        number = int(found[0, :, 0, 0].sum())
        assert torch.equal(found[:, :number], latent[:, :number]) and not found[:, number:].any()
        kept.add(number)
    assert kept == {3, 4, 5, 6, 7, 8}  # 0.3 of 8, rounded up
    found = prefix(step(latent), ChannelPrefix(), Drawn(0.0)).latent
    (gradient,) = torch.autograd.grad(found.sum(), latent)
    assert torch.equal(gradient[0, :, 0, 0], torch.tensor([1.0] + [0.0] * 7))


# mask


def test_the_drawn_share_of_each_images_cells_is_the_token():
    token = torch.tensor([[5.0, 7.0]], requires_grad=True)
    latent = torch.zeros(200, 2, 4, 4, requires_grad=True)
    found = mask(step(latent, mask_token=token), LatentMask(), draws(200)).latent
    masked = found[:, 0] == 5.0
    assert torch.equal(masked, found[:, 1] == 7.0)
    numbers = masked.sum((1, 2))
    assert set(numbers.tolist()) == {0, 4, 8, 12}
    assert (numbers == 0).float().mean().item() == pytest.approx(0.7, abs=0.1)
    assert len({tuple(image.flatten().tolist()) for image in masked[numbers == 4]}) > 1  # other cells in each
    (of_token, of_latent) = torch.autograd.grad(found.sum(), [token, latent])
    assert of_token.tolist() == [[numbers.sum(), numbers.sum()]]
    assert torch.equal(of_latent[:, 0] == 0, masked)


def test_a_share_that_is_less_than_a_cell_masks_one():
    token = torch.ones(1, 1)
    found = mask(
        step(torch.zeros(2, 1, 2, 2), mask_token=token), LatentMask(ratios=(0.1,), probabilities=(1.0,)), draws()
    )
    assert found.latent.sum((1, 2, 3)).tolist() == [1, 1]


# noise


def test_noise_of_the_released_codes():
    """RAE.noising, and DeTok.encode with gamma 3, after torch.manual_seed(0): the sum of their latents times a wave."""
    latent, weights = wave(2, 5, 4, 4, k=0.71), wave(2, 5, 4, 4, k=0.3)
    added = noise(step(latent), LatentNoise(), draws()).latent
    assert (added * weights).sum().item() == pytest.approx(-1.1082044, abs=1e-5)
    interpolated = noise(step(latent), LatentNoise(strength=3.0, interpolate=True), draws()).latent
    assert (interpolated * weights).sum().item() == pytest.approx(-7.4651051, abs=1e-5)


def test_noise_has_a_level_of_its_own_in_each_image_and_the_gradient_passes():
    latent = torch.zeros(500, 4, 8, 8, requires_grad=True)
    found = noise(step(latent), LatentNoise(strength=2.0), draws(500)).latent
    level = found.detach().std((1, 2, 3))
    assert level.min() < 0.1 and level.max() > 1.9 and level.mean().item() == pytest.approx(1.0, abs=0.1)
    (gradient,) = torch.autograd.grad(found.sum(), latent)
    assert torch.equal(gradient, torch.ones_like(gradient))


# scale


def test_a_second_pair_is_half_or_a_quarter_as_large():
    """Halving a side averages squares of four values."""
    latent, pixels = torch.arange(64.0).view(1, 1, 8, 8), torch.arange(256.0).view(1, 1, 16, 16)
    found = scale(step(latent, pixels), ScaleEquivariance(), Drawn(0.0))
    (pair,) = found.pairs
    assert torch.equal(pair.latent[0, 0, 0], torch.tensor([4.5, 6.5, 8.5, 10.5]))
    assert (pair.target.shape, pair.weight) == ((1, 1, 8, 8), 0.25)
    assert torch.equal(found.latent, latent) and torch.equal(found.target, pixels)
    (quarter,) = scale(step(latent, pixels), ScaleEquivariance(), Drawn(0.6)).pairs
    assert (quarter.latent.shape, quarter.target.shape) == ((1, 1, 2, 2), (1, 1, 4, 4))


# eq


@pytest.mark.parametrize(
    ("side", "quarters", "of_latent", "of_image"),
    [(13, 1, -10.0303144, 1.4176466), (31, 3, -0.0502470, 0.0666600), (8, 2, 0.2618835, -0.5967019)],
)
def test_transformations_of_the_released_code(side, quarters, of_latent, of_image):
    """EQ-VAE on a grid of 32 with scale side / 32: the sums of what it decodes and compares with, times a wave."""
    latent, pixels = wave(2, 4, 32, 32, k=0.71), wave(2, 3, 256, 256, k=0.0137)
    numbers = 0.0, (quarters - 0.5) / 3, (side - 8 + 0.5) / 24
    found = eq(step(latent, pixels), Equivariance(), Drawn(*numbers))
    assert (found.latent * wave(*found.latent.shape, k=0.3)).sum().item() == pytest.approx(of_latent, abs=1e-4)
    assert (found.target * wave(*found.target.shape, k=0.3)).sum().item() == pytest.approx(of_image, abs=1e-3)
    assert torch.equal(found.latent_raw, latent) and torch.equal(found.pixels, pixels)


def test_latent_and_image_turn_alike_and_are_equally_large():
    """An image that is its own latent stays so."""
    latent = wave(2, 1, 8, 8, k=0.3).requires_grad_()
    found = eq(step(latent, latent.detach()), Equivariance(), draws())
    assert found.latent.shape[2] in range(2, 8)
    torch.testing.assert_close(found.latent, found.target)
    (gradient,) = torch.autograd.grad(found.latent.sum(), latent)
    assert gradient.sum().item() == pytest.approx(found.latent.numel(), rel=1e-5)


def test_steps_are_transformed_or_shrunk_before_encoding_or_neither():
    pixels, latent = wave(2, 1, 16, 16, k=0.3), wave(2, 1, 8, 8, k=0.3)
    kinds = []
    for seed in range(400):
        transformed = eq(step(latent, pixels), Equivariance(), draws(seed=seed)).latent.shape[2] < 8
        encoded = eq_pixels(pixels, 2, Equivariance(), draws(seed=seed))
        assert encoded.shape[2] in (range(4, 16, 2) if encoded is not pixels else [16])
        kinds.append((transformed, encoded is not pixels))
    assert {kind: pytest.approx(kinds.count(kind) / 400, abs=0.06) for kind in set(kinds)} == {
        (True, False): 0.5, (False, True): 0.125, (False, False): 0.375,
    }  # fmt: skip


@pytest.mark.parametrize("grid", [3, 8, 16, 32])
def test_sides_are_whole_cells_from_a_quarter_of_the_grid_on(grid):
    chosen = {regularisers._smaller_side(grid, Equivariance(), draws(seed=seed)) for seed in range(500)}
    assert chosen == set(range(max(2, math.ceil(grid / 4)), grid))


# all


ABSENT = {
    "prefix": ChannelPrefix(fewest=1.0),
    "mask": LatentMask(ratios=(0.0,), probabilities=(1.0,)),
    "noise": LatentNoise(strength=0.0),
    "eq": Equivariance(probability=0.0, shrink_probability=0.0),
}


@pytest.mark.parametrize("name", ABSENT)
def test_without_strength_what_is_decoded_stays_bit_for_bit(name):
    latent = wave(2, 4, 8, 8, k=0.71)
    given = step(latent, mask_token=torch.ones(1, 4))
    found = regularisers.REGULARISERS[name](given, ABSENT[name], draws())
    assert torch.equal(found.latent, latent) and found.target is given.target
    assert not found.pairs and not found.terms


def together(names, **strengths):
    return Regularisers(replace(Regularisation(), **strengths).only(names), lambda name: draws(seed=len(name)))


def test_regularisers_act_in_order_each_on_what_is_left():
    """A masked cell gets noise, and is turned and shrunk with the others."""
    certain = {"mask": LatentMask(ratios=(1.0,), probabilities=(1.0,)), "eq": Equivariance(probability=1.0)}
    token = torch.full((1, 4), 100.0)
    found = after_encoding(
        together(("mask", "noise", "eq"), **certain), step(torch.zeros(2, 4, 8, 8), mask_token=token)
    )
    assert found.latent.mean().item() == pytest.approx(100, abs=1) and found.latent.std() > 0.01
    assert found.latent.shape[2] < 8 and found.target.shape[2] == 2 * found.latent.shape[2]


def test_images_shrink_before_encoding_with_their_noise_and_features():
    certain = together(("eq",), eq=Equivariance(probability=0.0, shrink_probability=1.0))
    given = wave(2, 3, 32, 32, k=0.1), wave(2, 4, 8, 8, k=0.2), wave(2, 6, 8, 8, k=0.3)
    pixels, noise_, features = before_encoding(certain, *given)
    assert pixels.shape[2] == 4 * noise_.shape[2] < 32
    assert features.shape[2:] == noise_.shape[2:]
    assert torch.equal(noise_, given[1][..., : noise_.shape[2], : noise_.shape[3]])
    assert all(a is b for a, b in zip(before_encoding(together(("noise",)), *given), given, strict=True))
