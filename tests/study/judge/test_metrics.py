"""Metrics: closed forms, known cases, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from study.judge import frechet, metrics, neighbours
from study.judge.frechet import MetricError, frechet_distance, square_root, statistics
from study.judge.metrics import (
    averaged,
    chroma_r2,
    chroma_sums,
    comparable,
    generation_metrics,
    inception_score,
    pairwise_metrics,
    reconstruction_distance,
)
from study.judge.references import Reference


def gaussian(n, width, seed, shift=0.0, scale=1.0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * scale + shift


def as_reference(found, head=None):
    stats = statistics(found)
    tensors = {name: torch.from_numpy(value) for name, value in stats.items()}
    return Reference(
        features=found,
        root=torch.from_numpy(square_root(stats["sigma"])),
        head=head,
        hash="test",
        count=len(found),
        **tensors,
    )


def test_frechet_closed_form():
    """One dimension per feature: the distance of N(m, s^2) to N(m', s'^2) is (m - m')^2 + (s - s')^2.

    Here means differ by 1, 0, 2 and standard deviations by 1, 2, 0: 1 + 0 + 4 and 1 + 4 + 0, together 10.
    """
    a = {"mu": np.array([0.0, 0, 0]), "sigma": np.diag([1.0, 1, 9])}
    b = {"mu": np.array([1.0, 0, 2]), "sigma": np.diag([4.0, 9, 9])}
    assert frechet_distance(a, b) == pytest.approx(10, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(10, abs=1e-9)


@pytest.mark.parametrize("n", [40, 500])  # fewer and more than the width
def test_frechet_of_features(n):
    a, b = (statistics(gaussian(n, 64, seed, shift)) for seed, shift in ((0, 0.0), (1, 0.3)))
    trace = np.trace(a["sigma"])
    assert abs(frechet_distance(a, a)) < 1e-5 * trace
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, b) > 0.09 * 64  # the shift alone
    rooted = {**b, "root": square_root(b["sigma"])}
    assert frechet_distance(a, rooted) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_refuses_wrong_linear_algebra(monkeypatch):
    a, b = (statistics(gaussian(100, 8, seed)) for seed in (0, 1))
    root = square_root(b["sigma"])
    frechet_distance(a, {**b, "root": root})
    with pytest.raises(MetricError, match="the square of the root"):
        frechet_distance(a, {**b, "root": 1.01 * root})
    eigenvalues = np.linalg.eigvalsh
    for wrong in (lambda product: eigenvalues(product) * 1.01, lambda product: np.roll(product.diagonal(), 1)):
        monkeypatch.setattr(np.linalg, "eigvalsh", wrong)
        with pytest.raises(MetricError, match="the sum of the"):
            frechet_distance(a, b)
        frechet.self_test.cache_clear()
        with pytest.raises(MetricError):
            frechet.self_test()
    monkeypatch.undo()
    frechet.self_test()


@pytest.mark.parametrize("width", [16, 80])  # fewer and more than the images
def test_numbers_are_those_of_torch_fidelity(width):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    made, real = gaussian(60, width, 0, shift=3.2), gaussian(75, width, 1, shift=3.0)
    found = generation_metrics(made, as_reference(real))
    gaussians = [fid_features_to_statistics(each.double()) for each in (made, real)]
    fid = fid_statistics_to_metric(*gaussians, verbose=False)["frechet_inception_distance"]
    assert found["gfid"] == pytest.approx(fid, rel=1e-9 if width == 16 else 1e-5)
    kid = kid_features_to_metric(
        made.double(), real.double(), kid_subsets=10, kid_subset_size=60, rng_seed=metrics.KID_SEED, verbose=False
    )
    assert found["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)
    neighbours = prc_features_to_metric(made, real, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
    assert (found["precision"], found["recall"]) == pytest.approx((neighbours["precision"], neighbours["recall"]))
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_distributions_that_share_no_direction_are_no_error():
    """Their covariances' product is 0 up to rounding: (1 + 1) + (1 + 1) - 0."""
    rotation = np.linalg.qr(gaussian(4, 4, 0).double().numpy())[0]
    a, b = (
        {"mu": np.zeros(4), "sigma": (rotation * np.array(variances)) @ rotation.T}
        for variances in ((1, 1, 0, 0), (0, 0, 1, 1))
    )
    assert frechet_distance(a, b) == pytest.approx(4, abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_an_error(bad):
    found = gaussian(50, 8, 0)
    target = as_reference(found)
    broken = found.clone()
    broken[3, 2] = bad
    with pytest.raises(MetricError, match="1 of 50 images"):
        generation_metrics(broken, target)
    stats = statistics(found)
    with pytest.raises(MetricError, match="not finite: mu"):
        frechet_distance({**stats, "mu": stats["mu"] * bad}, stats)


def test_identical_sets():
    found = gaussian(300, 16, 0)
    values = generation_metrics(found, as_reference(found))
    assert set(values) == {"gfid", "kid", "precision", "recall"}
    assert abs(values["gfid"]) < 1e-6
    assert abs(values["kid"]) < 0.05
    assert values["precision"] == values["recall"] == 1


def test_precision_and_recall_are_not_swapped():
    """A generator of one good image has high precision and low recall; one that is too broad the reverse."""
    real = gaussian(400, 8, 0)
    collapsed = real.mean(0) + 0.01 * gaussian(400, 8, 1)
    values = generation_metrics(collapsed, as_reference(real))
    assert values["precision"] > 0.95
    assert values["recall"] < 0.05
    values = generation_metrics(torch.cat([real[:200], 30 * gaussian(200, 8, 2)]), as_reference(real))
    assert values["precision"] < 0.6
    assert values["recall"] > 0.8


def test_blocks_give_the_same_precision(monkeypatch):
    found, target = gaussian(200, 8, 0, shift=0.5), as_reference(gaussian(300, 8, 1))
    whole = generation_metrics(found, target)
    monkeypatch.setattr(neighbours, "BLOCK", 70)
    assert generation_metrics(found, target) == whole


def test_worse_is_worse():
    target = as_reference(gaussian(500, 16, 0))
    near, far = (generation_metrics(gaussian(500, 16, 1, shift), target) for shift in (0.1, 1.0))
    assert near["gfid"] < far["gfid"]
    assert near["kid"] < far["kid"]
    assert near["precision"] > far["precision"]
    assert generation_metrics(gaussian(500, 16, 1, 0.1), target) == near  # no randomness


@pytest.mark.parametrize("n", [4, 64])
def test_few_samples_are_finite(n):
    values = generation_metrics(gaussian(n, 128, 0), as_reference(gaussian(n + 3, 128, 1)))
    assert all(np.isfinite(list(values.values())))


def test_too_few_or_too_wide():
    target = as_reference(gaussian(50, 8, 0))
    with pytest.raises(ValueError, match="more than 3 images, got 3"):
        generation_metrics(gaussian(3, 8, 1), target)
    with pytest.raises(ValueError, match="width 8"):
        generation_metrics(gaussian(50, 9, 1), target)
    assert comparable(2560, 1280)
    assert not comparable(2559, 1280)


def test_inception_score():
    """Certain scores for one of 4 classes, equally often, give 4; scores without information give 1."""
    sure = 100 * torch.eye(4).repeat(100, 1)
    assert inception_score(sure) == pytest.approx(4, rel=0.05)  # splits are not quite balanced
    assert inception_score(torch.zeros(100, 4)) == pytest.approx(1)
    found = gaussian(100, 8, 0)
    assert generation_metrics(found, as_reference(found, head=torch.zeros(4, 8)))["inception_score"] == 1


def planted(means, stds, seed, n=600):
    """Features (n, D) whose sample mean and covariance are exactly these, the covariance a diagonal one."""
    noise = gaussian(n, len(means), seed).double()
    noise = noise - noise.mean(0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / (n - 1))).T
    return (white * torch.tensor(stds) + torch.tensor(means)).float()


def with_spatial(found, spatial):
    stats = statistics(spatial)
    parts = {**stats, "root": square_root(stats["sigma"])}
    return dataclasses.replace(as_reference(found), spatial={name: torch.from_numpy(v) for name, v in parts.items()})


def test_sfid_is_the_distance_of_the_spatial_features():
    """Means differ by 1, 0, 2 and standard deviations by 1, 2, 0, as above: 10; pooled features are unrelated."""
    real, made = planted([0.0, 0, 0], [1.0, 1, 3], 0), planted([1.0, 0, 2], [2.0, 3, 3], 1)
    pooled = gaussian(600, 4, 2)
    target = with_spatial(pooled, real)
    values = generation_metrics(pooled, target, made)
    assert values["sfid"] == pytest.approx(10, rel=1e-4)
    assert abs(values["gfid"]) < 1e-6
    assert generation_metrics(pooled, target, real)["sfid"] == pytest.approx(0, abs=1e-4)


def test_sfid_is_absent_where_a_judge_has_no_spatial_features():
    found = gaussian(50, 4, 0)
    assert "sfid" not in generation_metrics(found, as_reference(found), found)
    assert "sfid" not in generation_metrics(found, with_spatial(found, found))
    with pytest.raises(ValueError, match=r"spatial features .* do not fit the reference's width 4"):
        generation_metrics(found, with_spatial(found, found), found[:, :3])
    broken = found.clone()
    broken[7, 1] = float("nan")
    with pytest.raises(MetricError, match="1 of 50 images"):
        generation_metrics(found, with_spatial(found, found), broken)


def l1(a, b):
    return (a - b).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction(channels):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (20, channels, 16, 16), generator=rng, dtype=torch.uint8)
    brighter = images + 10
    values = averaged([pairwise_metrics(images, brighter, l1, batch_size=7)])
    assert values["psnr"] == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-5)
    assert values["perceptual"] == pytest.approx(10 / 127.5, rel=1e-4)
    assert 0.9 < values["ssim"] < 1
    other = averaged([pairwise_metrics(images, brighter, l1, batch_size=20)])
    assert other["ssim"] == pytest.approx(values["ssim"], abs=1e-6)
    perfect = averaged([pairwise_metrics(images, images, l1)])
    assert perfect["psnr"] == metrics.PSNR_CEILING
    assert perfect["ssim"] == pytest.approx(1)


def test_chroma_is_explained_wholly_half_or_not_at_all():
    """Red and blue pixels: kept, halved towards grey (a quarter of the variance is missed), and all grey."""
    pictures = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    pictures[0, 0], pictures[1, 2] = 200, 200
    grey = pictures.float().mean(dim=(0, 2, 3), keepdim=True).expand_as(pictures)
    halved = ((pictures.float() + grey) / 2).to(torch.uint8)
    found = [chroma_r2(chroma_sums(pictures, made), 32) for made in (pictures, halved, grey.to(torch.uint8))]
    assert found == pytest.approx([1, 0.75, 0], abs=1e-9)
    parts = sum(chroma_sums(pictures[n : n + 1], halved[n : n + 1]) for n in range(2))
    assert chroma_r2(parts, 32) == pytest.approx(0.75)
    luma = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8).expand(-1, 3, -1, -1)
    assert chroma_r2(chroma_sums(luma, pictures), 32) is None


def test_rfid_of_shifted_features_is_the_square_of_the_shift():
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 3, generator=rng)
    stats = {name: torch.from_numpy(value) for name, value in frechet.statistics(inputs).items()}
    root = torch.from_numpy(frechet.square_root(stats["sigma"].numpy()))
    reference = Reference(features=inputs, **stats, root=root, head=None, hash="", count=500)
    assert reconstruction_distance(inputs + 10, reference) == pytest.approx(3 * 100, rel=1e-4)


def test_reconstruction_refuses():
    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="must be uint8 of one shape"):
        pairwise_metrics(images, images.float(), l1)
    with pytest.raises(ValueError, match="must be uint8 of one shape"):
        pairwise_metrics(images, images[:2], l1)
    with pytest.raises(MetricError, match="perceptual is not finite"):
        averaged([pairwise_metrics(images, images, lambda a, b: torch.full((len(a),), float("nan")))])
