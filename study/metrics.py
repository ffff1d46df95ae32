"""Numbers that compare sets of images: Frechet distance, KID, precision, recall; PSNR, SSIM, perceptual; and numbers
that describe latents before anything is generated from them: uniformity, spectrum.

torch-fidelity's functions on our features; its cache stays off, because it unpickles. The Frechet distance is
computed by two formulas that must agree, since a matrix square root can go wrong without a word. A number
that is not finite is an error and never a result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from study.judges import Reference

NEIGHBOURS = 3  # of precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991)
KID_SUBSETS = 10
KID_SUBSET_IMAGES = 1000  # or all, when there are fewer
KID_SEED = 2020
RELATIVE_TOLERANCE = 1e-3  # between the two formulas
# And relative to both traces: eigenvalues of a product of singular covariances are 0 up to rounding, about
# 1e-16 of the largest, and their square roots, about 1e-8, add up over the features. Measured: up to 2e-7 of
# the traces.
TRACE_TOLERANCE = 1e-5
PSNR_CEILING = 100.0  # dB: an image that is reproduced exactly counts as this, not as infinity
PRC_FULL_IMAGES = 10_000  # up to here all pairs at once; above it in parts, which needs less memory
PERPLEXITY = 30  # of the t-SNE behind `uniformity`
FEWEST_POINTS = 3 * PERPLEXITY + 1  # t-SNE looks at so many neighbours, itself included

# mu float64 (D,), sigma float64 (D, D), and perhaps the square root of sigma, root
Statistics = Mapping[str, np.ndarray]


class MetricError(ArithmeticError):
    """A metric that cannot be trusted: not finite, or two formulas disagree."""


def comparable(samples: int, width: int) -> bool:
    """Whether a Frechet distance of so many samples means something: the covariance needs twice the width."""
    return samples >= 2 * width


def statistics(found: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance, both float64, of features (N, D). Raises MetricError when some are not finite."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    _check_finite(found, "features")
    if len(found) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(found)}")
    return fid_features_to_statistics(found.double().cpu())


def square_root(sigma: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance, float64; eigenvalues below 0 are rounding and count as 0."""
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(stats_a: Statistics, stats_b: Statistics) -> float:
    """Squared Frechet distance between two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    torch-fidelity's value, from the eigenvalues of the product of the covariances S_a S_b; checked against
    those of the symmetric root(S_b) S_a root(S_b), which are real and not negative. It may lie below 0 by
    rounding.

    Args:
        stats_a, stats_b: see Statistics; stats_b may hold its root, which then is not computed again.

    Raises:
        MetricError: a value that is not finite, or the formulas differ by more than RELATIVE_TOLERANCE of the
            distance and TRACE_TOLERANCE of the covariances' traces.
    """
    self_test()
    return _frechet(stats_a, stats_b)


def _frechet(stats_a: Statistics, stats_b: Statistics) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    for stats in (stats_a, stats_b):
        for name in ("mu", "sigma"):
            if not np.isfinite(stats[name]).all():
                raise MetricError(f"the statistics are not finite: {name}")
    a, b = ({name: stats[name] for name in ("mu", "sigma")} for stats in (stats_a, stats_b))
    distance = fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]
    root = stats_b["root"] if "root" in stats_b else square_root(b["sigma"])
    shared = np.sqrt(np.linalg.eigvalsh(root @ a["sigma"] @ root).clip(0)).sum()
    traces = float(np.trace(a["sigma"]) + np.trace(b["sigma"]))
    check = float(np.square(a["mu"] - b["mu"]).sum() + traces - 2 * shared)
    allowed = RELATIVE_TOLERANCE * max(abs(distance), abs(check)) + TRACE_TOLERANCE * traces
    if not abs(distance - check) <= allowed:  # also when one of them is not a number
        raise MetricError(f"two formulas of the Frechet distance disagree: {distance:.6g} and {check:.6g}")
    return distance


@functools.cache
def self_test() -> None:
    """Two Gaussians with diagonal covariances, one singular: |m_a - m_b|^2 + sum (s_a - s_b)^2. Runs once.

    Raises:
        MetricError: the linear algebra of this machine gives another number.
    """
    rng = np.random.default_rng(0)
    spread_a, spread_b = rng.uniform(0.5, 2, 32), rng.uniform(0.5, 2, 32)
    spread_a[20:] = 0
    rotation = np.linalg.qr(rng.normal(size=(32, 32)))[0]  # the distance is the same in any orthogonal frame
    mean_a, mean_b = rng.normal(size=32), rng.normal(size=32)
    expected = np.square(mean_a - mean_b).sum() + np.square(spread_a - spread_b).sum()
    a, b = (
        {"mu": rotation @ mean, "sigma": (rotation * spread**2) @ rotation.T}
        for mean, spread in ((mean_a, spread_a), (mean_b, spread_b))
    )
    found = _frechet(a, b)
    if not abs(found - expected) <= 1e-5 * expected:
        raise MetricError(f"the Frechet distance fails its self-test: {found!r}, expected {expected!r}")


def generation_metrics(found: Tensor, reference: Reference, spatial: Tensor | None = None) -> dict[str, float]:
    """How samples compare with real images.

    Args:
        found: features of the samples, float32 (N, D), N at least 4.
        reference: of real images, by the same judge.
        spatial: Inception's spatial features of the same samples, float32 (N, 2023); None for other judges.

    Returns:
        gfid; kid (unbiased, polynomial kernel of degree 3, KID_SUBSETS subsets, not scaled; may be below 0);
        precision and recall with NEIGHBOURS neighbours, of all N against all of the reference; and when the judge is
        Inception inception_score (10 splits) and sfid, the distance of gfid between spatial features (Nash et al.
        2021, arXiv 2103.03841).

    Raises:
        ValueError: too few samples, or features of another width.
        MetricError: see `frechet_distance`; any number that is not finite.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    fewest = min(len(found), len(reference.features))
    if fewest <= NEIGHBOURS:
        raise ValueError(f"{NEIGHBOURS} neighbours need more than {NEIGHBOURS} images, got {fewest}")
    if found.ndim != 2 or found.shape[1] != reference.features.shape[1]:
        raise ValueError(f"features {tuple(found.shape)} do not fit the reference's width {len(reference.mu)}")
    target = {name: getattr(reference, name).numpy() for name in ("mu", "sigma", "root")}
    distance = frechet_distance(statistics(found), target)
    kid = kid_features_to_metric(
        found.double(),
        reference.features.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_IMAGES, fewest),
        rng_seed=KID_SEED,
        verbose=False,
    )
    centre = reference.mu.float()  # moves no distance, and keeps digits where distances are taken in float32
    neighbours = prc_features_to_metric(  # generated first, real second
        found - centre,
        reference.features - centre,
        prc_neighborhood=NEIGHBOURS,
        save_cpu_ram=max(len(found), len(reference.features)) > PRC_FULL_IMAGES,
        verbose=False,
    )
    values = {
        "gfid": distance,
        **_spatial_distance(spatial, reference),
        "kid": kid[KEY_METRIC_KID_MEAN],
        "precision": neighbours["precision"],
        "recall": neighbours["recall"],
    }
    if reference.head is not None:
        values["inception_score"] = inception_score(found @ reference.head.T)
    return _checked(values)


def _spatial_distance(spatial: Tensor | None, reference: Reference) -> dict[str, float]:
    """sfid, or nothing where a side has no spatial features."""
    if spatial is None or reference.spatial is None:
        return {}
    if spatial.ndim != 2 or spatial.shape[1] != len(reference.spatial["mu"]):
        width = len(reference.spatial["mu"])
        raise ValueError(f"spatial features {tuple(spatial.shape)} do not fit the reference's width {width}")
    target = {name: value.numpy() for name, value in reference.spatial.items()}
    return {"sfid": frechet_distance(statistics(spatial), target)}


def inception_score(scores: Tensor) -> float:
    """Inception score (Salimans et al. 2016, arXiv 1606.03498) of class scores (N, classes), at most 10
    splits."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    _check_finite(scores, "class scores")
    return isc_features_to_metric(scores, splits=min(10, len(scores)))[KEY_METRIC_ISC_MEAN]


def reconstruction_distance(found: Tensor, inputs: Reference) -> float:
    """rFID: Frechet distance between features of reconstructions (N, D) and those of their own inputs.

    Raises:
        MetricError: see `frechet_distance`.
    """
    target = {name: getattr(inputs, name).numpy() for name in ("mu", "sigma", "root")}
    return _checked({"rfid": frechet_distance(statistics(found), target)})["rfid"]


def reconstruction_metrics(
    images: Tensor,
    reconstructions: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor],
    batch_size: int = 50,
) -> dict[str, float]:
    """How reconstructions compare with their own inputs.

    Args:
        images, reconstructions: uint8 (N, 1 or 3, H, W), in the same order.
        perceptual: two float batches in [-1, 1] to distances (B,).
        batch_size: images at a time.

    Returns:
        Averages over images of psnr (dB, data range 255, at most PSNR_CEILING each), ssim (data range 255,
        Gaussian window of 11 pixels) and perceptual.

    Raises:
        ValueError: shapes or types that do not fit.
        MetricError: a number that is not finite.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if images.shape != reconstructions.shape or {images.dtype, reconstructions.dtype} != {torch.uint8}:
        found = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in (images, reconstructions))
        raise ValueError(f"images and reconstructions are uint8 of one shape, got {found}")
    if min(images.shape[2:]) < 6 or len(images) < 2:
        raise ValueError(f"SSIM needs at least 6 pixels and 2 images, got {tuple(images.shape)}")
    weights = list(perceptual.parameters()) if isinstance(perceptual, torch.nn.Module) else []
    device = weights[0].device if weights else images.device
    parts = []
    with torch.inference_mode():
        for a, b in zip(images.split(batch_size), reconstructions.split(batch_size), strict=True):
            x, y = a.to(device).float(), b.to(device).float()
            error = (x - y).square().mean(dim=(1, 2, 3)).double()
            psnr = (10 * torch.log10(255**2 / error)).clamp(max=PSNR_CEILING)
            ssim = structural_similarity_index_measure(y, x, data_range=255.0, reduction="none")
            assert isinstance(ssim, Tensor)
            distance = perceptual(x / 127.5 - 1, y / 127.5 - 1)
            parts.append(torch.stack([psnr, ssim.reshape(-1).double(), distance.double()]).cpu())
    psnr, ssim, distance = torch.cat(parts, dim=1).mean(dim=1).tolist()
    return _checked({"psnr": psnr, "ssim": ssim, "perceptual": distance})


def uniformity(latents: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How evenly latent tokens lie (the paper's Table 6): how much their density varies on `density_map`.

    Returns density_cv, gini and normalized_entropy of the densities, see `unevenness`; raises as both do.
    """
    return unevenness(density_map(latents, seed)[1])


def density_map(latents: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latent tokens on a map in two dimensions, and how densely they lie there.

    t-SNE with perplexity PERPLEXITY, otherwise as scikit-learn has it (1,000 iterations from the principal components);
    then a Gaussian kernel density at the points, with scipy's bandwidth (Scott's rule) and each point's own kernel.
    On one thread, because several add up in any order: the same latents give the same numbers, on one processor.

    What it sees is that some places hold more than others. Clusters of one size, far apart, look even to it: t-SNE
    spreads each of them alike, and the bandwidth is that of the whole map.

    Args:
        latents: (N, d), normalised per channel; of independent images. The numbers depend on N.
        seed: of t-SNE.

    Returns:
        Places (N, 2) and densities (N,), float64.

    Raises:
        ValueError: fewer than FEWEST_POINTS points.
        MetricError: latents that are not finite, or that lie on a line or in a point.
    """
    from scipy.stats import gaussian_kde
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if latents.ndim != 2 or len(latents) < FEWEST_POINTS:
        raise ValueError(
            f"uniformity needs at least {FEWEST_POINTS} latent tokens (perplexity {PERPLEXITY}), got {latents.shape}"
        )
    _check_finite(torch.from_numpy(latents), "latents")
    if np.linalg.matrix_rank(latents - latents.mean(axis=0)) < 2:  # on one point scikit-learn's t-SNE ends the process
        raise MetricError("the latents lie on a line or in a point: there is no density in two dimensions")
    with threadpool_limits(1):
        places = TSNE(2, perplexity=PERPLEXITY, random_state=seed).fit_transform(latents).T.astype(np.float64)
        return places.T, gaussian_kde(places)(places)


def unevenness(weights: np.ndarray) -> dict[str, float]:
    """How far positive weights (N,) are from all equal.

    density_cv: spread over mean; 0 when equal. gini: 0 when equal, 1 - 1/N when one has everything.
    normalized_entropy: of the weights as shares, over log N; 1 when equal, 0 when one has everything.

    Raises:
        MetricError: one of them is not finite.
    """
    count, share = len(weights), np.sort(weights) / weights.sum()
    rank = np.arange(1, count + 1)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    found = {
        "density_cv": float(weights.std() / weights.mean()),
        "gini": float((2 * rank - count - 1) @ share / count),
        "normalized_entropy": float(-(share @ logs) / np.log(count)),
    }
    return _checked(found)


def spectrum(latents: np.ndarray) -> np.ndarray:
    """Eigenvalues (d,) float64 of the covariance of latent tokens (N, d), largest first.

    Raises:
        ValueError: fewer than 2 tokens.
        MetricError: latents that are not finite.
    """
    sigma = statistics(torch.from_numpy(latents))["sigma"]
    return np.linalg.eigvalsh(np.atleast_2d(sigma))[::-1].clip(0)


def effective_rank(eigenvalues: np.ndarray) -> float:
    """exp of the entropy of eigenvalues as shares: k when k of them are equal and the others 0 (Roy and Vetterli 2007,
    The effective rank, equation 4; there of singular values)."""
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    return _checked({"effective_rank": float(np.exp(-(share @ np.log(share))))})["effective_rank"]


def _check_finite(values: Tensor, what: str) -> None:
    bad = len(values) - int(torch.isfinite(values).all(dim=1).sum())
    if bad:
        raise MetricError(f"{what} of {bad} of {len(values)} images are not finite")


def _checked(values: dict[str, float]) -> dict[str, float]:
    for name, value in values.items():
        if not math.isfinite(value):
            raise MetricError(f"{name} is not finite: {value}")
    return values
