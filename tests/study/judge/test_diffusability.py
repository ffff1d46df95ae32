"""Measures of whole latents that may foretell gFID: values by hand, what they do not depend on, and their edges."""

import math

import numpy as np
import pytest
import torch

from study.data.datasets import ImageSet
from study.data.latents import Latents, channel_statistics, shard_sums
from study.judge import diffusability, latent_diagnostics
from study.judge.diffusability import eq_error, lds_and_cds, lnc, sec, standard_deviations, viv
from study.judge.finite import MetricError
from study.judge.latent_diagnostics import PREDICTORS, chosen_images, predictors


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, channels: int, side: int) -> torch.Tensor:
    """Latents whose neighbouring cells are alike."""
    return torch.nn.functional.avg_pool2d(noise(count, channels, side + 2, side + 2), 3, 1)


def test_the_covariance_of_channels_and_cells_by_hand():
    """Of points at 2 and -2 on each of four axes, stretched by 1 and 2 in channels and by 1 and 3 in cells."""
    axes = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).view(8, 2, 2)
    stretched = torch.tensor([1.0, 2])[:, None] * axes * torch.tensor([1.0, 3])
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    for points in (stretched, turn @ stretched, stretched @ turn, stretched.flip(0)):
        assert standard_deviations(points + 7).sort().values.tolist() == pytest.approx([1, 2, 3, 6], rel=1e-4)
    constant = stretched * torch.tensor([0.0, 1])[:, None]
    assert standard_deviations(constant).sort().values.tolist() == pytest.approx([0, 0, 2, 6], abs=0.01)
    assert standard_deviations(torch.full((3, 2, 2), 5.0)).tolist() == [0, 0, 0, 0]


def test_viv_of_white_noise_is_half_pi_whatever_the_width_the_grid_and_the_images_of_a_class():
    for channels, side, of_class, classes in (
        (2, 4, 20, 20),
        (8, 4, 20, 10),
        (32, 4, 20, 5),
        (16, 8, 60, 2),
        (4, 8, 5, 50),
    ):
        labels = torch.arange(of_class * classes) % classes
        latents = noise(len(labels), channels, side, side)
        assert viv(latents, labels) == pytest.approx(math.pi / 2, rel=0.015)
    raw = math.pi / 2 * standard_deviations(latents[labels == 0].flatten(2)).mean().item()
    assert raw < 0.6 * math.pi / 2  # what is corrected: five images of 4 channels on 64 cells


def test_viv_is_lower_for_compact_classes_and_for_fewer_directions():
    labels = torch.arange(400) % 4
    spread = noise(400, 8, 4, 4)
    compact = 0.5 * spread + noise(4, 8, 4, 4, seed=1)[labels]
    assert viv(compact, labels) == pytest.approx(viv(spread, labels) / 2, rel=1e-4)  # class means do not count
    few = 2 * spread * (torch.arange(8) < 2)[:, None, None]  # two of eight channels, with the variance of eight
    assert viv(few, labels) == pytest.approx(viv(spread, labels) / 2, rel=0.03)  # sqrt(2 / 8)


def test_viv_of_latents_that_hardly_differ_from_cell_to_cell_is_a_number():
    """As of a tokenizer that was hardly trained: on 24 x 24 cells their covariance is singular but for rounding."""
    level = noise(48, 4, 1, 1) * torch.linspace(1, 1.1, 24)[:, None]
    assert 0 < viv(level + 1e-5 * noise(48, 4, 24, 24, seed=1), torch.arange(48) % 3) < 0.5


def test_viv_leaves_out_classes_of_one_image():
    latents, labels = noise(41, 2, 4, 4), torch.arange(41) % 2
    labels[40] = 9
    assert viv(latents, labels) == viv(latents[:40], labels[:40])
    assert viv(latents, torch.zeros(41, dtype=torch.int64)) > 0  # a single class
    with pytest.raises(ValueError, match="two images"):
        viv(latents, torch.arange(41))


def test_neighbours_of_mean_latents_by_hand():
    """Directions at 0, 10, 30 and 100 degrees; lengths and places of the latent do not matter."""
    angles = torch.tensor([0.0, 10, 30, 100]).deg2rad()
    means = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([1.0, 5, 2, 3])[:, None]
    latents = means[:, :, None, None] + torch.tensor([[1.0, -1], [-1, 1]])
    # nearest: 1, 0, 1, 2; second: 2, 2, 0, 1
    assert lnc(latents, torch.tensor([0, 0, 1, 1]), 1) == 3 / 4
    assert lnc(latents, torch.tensor([0, 0, 1, 1]), 2) == 3 / 8
    assert lnc(latents, torch.zeros(4, dtype=torch.int64), 3) == 1
    with pytest.raises(ValueError, match="more than 4 images, got 4"):
        lnc(latents, torch.zeros(4, dtype=torch.int64), 4)


def test_neighbours_of_more_images_than_are_compared_at_a_time(monkeypatch):
    latents, labels = noise(50, 4, 2, 2), torch.arange(50) % 3
    whole = lnc(latents, labels, 5)
    monkeypatch.setattr(diffusability, "ROWS", 7)
    assert lnc(latents, labels, 5) == whole
    assert lds_and_cds(latents) == pytest.approx(lds_and_cds(latents[torch.randperm(50)]))


def test_energy_by_hand():
    """A wave of each of two frequencies on 4 x 4 cells, the faster one with a third of the energy."""
    place = torch.arange(4) + 0.5
    slow, fast = (torch.cos(math.pi / 4 * frequency * place) for frequency in (1, 2))
    slow, fast = slow / slow.norm(), fast / fast.norm()
    wave = math.sqrt(2) * slow[:, None] * torch.full((4,), 0.5) + torch.outer(fast, fast)  # (1, 0) and (2, 2), of 6
    latents = wave.expand(3, 2, 4, 4)
    assert sec(latents, 0.25) == pytest.approx(1 / 3, rel=1e-4)  # above 1.5
    assert sec(latents, 0.1) == pytest.approx(1, rel=1e-4)
    assert sec(latents, 0.7) == pytest.approx(0, abs=1e-6)
    assert sec(torch.ones(2, 1, 4, 4), 0.25) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("side", "shares"), [(4, (13 / 16, 6 / 16)), (8, (54 / 64, 28 / 64))])
def test_energy_of_white_noise_is_the_share_of_high_frequencies(side, shares):
    white = noise(2000, 2, side, side)
    assert (sec(white, 0.25), sec(white, 0.5)) == pytest.approx(shares, rel=0.01)


def test_energy_needs_cells_and_variance():
    with pytest.raises(ValueError, match="more than one cell"):
        sec(noise(5, 3, 1, 1), 0.25)
    with pytest.raises(MetricError, match="not finite"):
        sec(torch.zeros(5, 3, 2, 2), 0.25)


def test_similarity_of_tokens_by_hand():
    """Columns of tokens, each turned by the same angle from the last: the cosine depends on the columns between."""
    turn = math.pi / 7
    angle = turn * torch.arange(4).expand(4, 4)
    latents = (
        torch.stack([angle.cos(), angle.sin()]).expand(3, 2, 4, 4) * torch.tensor([1.0, 2, 5])[:, None, None, None]
    )
    found = lds_and_cds(latents)
    near = (1 + math.cos(turn)) / 2  # as many pairs within a column as between columns
    # pairs of tokens by columns and rows between them: (4 - columns) * (4 - rows), twice where neither is 0
    pairs = {(x, y): (4 - x) * (4 - y) * (2 if x and y else 1) for x in range(4) for y in range(4)}
    far = {place: number for place, number in pairs.items() if sum(place) >= 2}
    distant = sum(number * math.cos(turn * x) for (x, _), number in far.items()) / sum(far.values())
    assert found["lds"] == pytest.approx(near - distant, rel=1e-5)
    two = {place: number for place, number in pairs.items() if sum(place) == 2}
    apart = sum(number * math.cos(turn * x) for (x, _), number in two.items()) / sum(two.values())
    assert found["cds"] == pytest.approx((near - apart) / 4, rel=1e-5)  # a cell is four sixteenths of the side


def test_on_a_grid_of_16_cells_distances_are_those_of_irepa():
    latents = smooth(4, 3, 16)
    tokens = torch.nn.functional.normalize(latents.flatten(2), dim=1)
    cosines = (tokens.transpose(1, 2) @ tokens).mean(dim=0)
    y, x = np.divmod(np.arange(256), 16)
    distance = torch.from_numpy(abs(y[:, None] - y) + abs(x[:, None] - x))
    means = [cosines[distance == apart].mean().item() for apart in range(1, 9)]
    expected = {"lds": means[0] - cosines[distance >= 6].mean().item(), "cds": -np.polyfit(range(1, 9), means, 1)[0]}
    assert lds_and_cds(latents) == pytest.approx(expected, rel=1e-4)


def test_similarity_on_small_grids():
    assert lds_and_cds(torch.ones(2, 3, 2, 2)) == pytest.approx({"lds": 0, "cds": 0}, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 x 2 cells, got 1 x 1"):
        lds_and_cds(noise(2, 3, 1, 1))


def pooled(pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 2)


def test_the_error_of_an_encoder_by_hand():
    pixels, std = [noise(3, 2, 8, 8), noise(2, 2, 8, 8, seed=1)], torch.ones(2, 1, 1)
    assert eq_error(pooled, pixels, std) == pytest.approx(0, abs=1e-6)  # it turns and shrinks with the picture

    def ramp(batch: torch.Tensor) -> torch.Tensor:  # a latent that has nothing to do with the picture: 1 and -1
        half = batch.shape[-1] // 4
        return torch.cat([torch.ones(half), -torch.ones(half)]).expand(len(batch), 2, 2 * half, 2 * half)

    # a half turn moves every cell by 2, a quarter half of them; halved it is the same
    assert eq_error(ramp, pixels, std) == pytest.approx(math.sqrt((2 + 4 + 2) / 3) / 2)
    assert eq_error(ramp, pixels, 2 * std) == pytest.approx(math.sqrt((2 + 4 + 2) / 3) / 4)
    with pytest.raises(ValueError, match=r"even sides, got \(3, 3\)"):
        eq_error(pooled, [noise(1, 2, 6, 6)], std)


@pytest.fixture(scope="module")
def pictures() -> ImageSet:
    packed = np.random.default_rng(0).integers(256, size=(60, 3, 8, 8), dtype=np.uint8)
    return ImageSet(packed=packed, order=np.arange(60), labels=np.arange(60) % 3)


def encoded(pictures: ImageSet, encode, rows: np.ndarray) -> Latents:
    """What the stage encode would hand on for these pictures, in this order."""
    sample = {"sample": encode(pictures.pixels(rows))[:, None].half()}
    mean, std = (torch.tensor(values)[:, None, None] for values in channel_statistics([shard_sums(sample)]).values())
    return Latents((sample,), torch.from_numpy(pictures.labels[rows]), mean, std)


def test_predictors_know_neither_scale_nor_order_of_channels_and_images(pictures):
    rows = np.arange(60)
    found = predictors(encoded(pictures, pooled, rows), pictures, pooled)
    assert found.keys() == set(PREDICTORS)

    def scaled(pixels):
        return 10 * pooled(pixels) + torch.tensor([3.0, -1, 0])[:, None, None]

    def permuted(pixels):
        return pooled(pixels)[:, [2, 0, 1]]

    for encode in (scaled, permuted):
        assert predictors(encoded(pictures, encode, rows), pictures, encode) == pytest.approx(found, rel=0.01, abs=0.01)
    order = np.random.default_rng(1).permutation(60)
    shuffled = ImageSet(packed=pictures.packed, order=order, labels=pictures.labels[order])
    assert predictors(encoded(shuffled, pooled, rows), shuffled, pooled) == pytest.approx(found, rel=1e-4, abs=1e-6)


def test_what_a_few_latents_do_not_allow_is_left_out(pictures, caplog):
    found = predictors(encoded(pictures, pooled, np.arange(8)), pictures, pooled)
    assert found.keys() == set(PREDICTORS) - {"lnc_10"} and "no lnc_10: LNC of 10 neighbours" in caplog.text
    broken = encoded(pictures, pooled, np.arange(8))
    broken.shards[0]["sample"][0] = torch.nan
    assert predictors(broken, pictures, pooled) == {} and "not finite" in caplog.text


def test_linear_algebra_that_fails_leaves_out_its_own_predictor(pictures, monkeypatch, caplog):
    def fails(*_):
        raise torch.linalg.LinAlgError("not positive-definite")

    monkeypatch.setattr(latent_diagnostics, "viv", fails)
    found = predictors(encoded(pictures, pooled, np.arange(60)), pictures, pooled)
    assert set(PREDICTORS) - set(found) == {"viv"}
    assert "no viv: not positive-definite" in caplog.text


def test_the_images_are_of_all_classes_and_of_a_hundred_where_there_are_more(monkeypatch):
    monkeypatch.setattr("study.judge.latent_diagnostics.PREDICTOR_IMAGES", 300)
    few = np.arange(900) % 7
    assert set(np.bincount(few[chosen_images(few)])) == {42, 43}
    many = np.arange(3000) % 250
    chosen = chosen_images(many)
    assert (
        len(chosen) == len(set(chosen)) == 300 and sorted(np.unique(many[chosen], return_counts=True)[1]) == [3] * 100
    )
    np.testing.assert_array_equal(chosen, chosen_images(many))
