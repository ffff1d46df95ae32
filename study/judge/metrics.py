"""Numbers that compare sets of images: Frechet distance, KID, precision, recall; PSNR, SSIM, perceptual distance.

They are torch-fidelity's numbers up to rounding (a test compares them); what takes it long is computed faster here, in
study/judge/frechet.py and study/judge/neighbours.py. Its cache stays off, because it unpickles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from study.judge.finite import check_finite, checked
from study.judge.frechet import frechet_distance, statistics
from study.judge.neighbours import NEIGHBOURS, precision_and_recall, radii
from study.judge.references import Reference

KID_SUBSETS = 10
KID_SUBSET_IMAGES = 1000  # or all images, if there are fewer
KID_SEED = 2020
PSNR_CEILING = 100.0  # dB: an image that is reproduced exactly counts as this, not as infinity


def comparable(samples: int, width: int) -> bool:
    """Whether there are enough samples for a meaningful Frechet distance: the covariance needs twice the width."""
    return samples >= 2 * width


def generation_metrics(features: Tensor, reference: Reference, spatial: Tensor | None = None) -> dict[str, float]:
    """How samples compare with real images.

    Args:
        features: of the samples, float32 (N, D), N at least 4.
        reference: of real images, by the same judge.
        spatial: Inception's spatial features of the same samples, float32 (N, 2023); None for other judges.

    Returns:
        gfid; kid (unbiased, polynomial kernel of degree 3, KID_SUBSETS subsets, not scaled; may be below 0);
        precision and recall with NEIGHBOURS neighbours, of all N against all of the reference; for Inception also
        inception_score (10 splits) and sfid, the same distance as gfid but of spatial features (Nash et al. 2021, arXiv
        2103.03841).

    Raises:
        ValueError: too few samples, or features of another width.
        MetricError: see `frechet_distance`; or a number is not finite.
    """
    smaller = min(len(features), len(reference.features))
    if smaller <= NEIGHBOURS:
        raise ValueError(f"{NEIGHBOURS} neighbours need more than {NEIGHBOURS} images, got {smaller}")
    if features.ndim != 2 or features.shape[1] != reference.features.shape[1]:
        raise ValueError(f"features {tuple(features.shape)} do not fit the reference's width {len(reference.mu)}")
    target = {name: getattr(reference, name).numpy() for name in ("mu", "sigma", "root")}
    distance = frechet_distance(statistics(features), target)
    centre = reference.mu.float()  # changes no distance, and keeps digits when distances are computed in float32
    made, real = features - centre, reference.features - centre
    radii_of_real = radii(real) if reference.radii is None else reference.radii
    precision, recall = precision_and_recall(made, real, radii(made), radii_of_real)
    values = {
        "gfid": distance,
        **_spatial_distance(spatial, reference),
        "kid": kernel_distance(features, reference.features),
        "precision": precision,
        "recall": recall,
    }
    if reference.head is not None:
        values["inception_score"] = inception_score(features @ reference.head.T)
    return checked(values)


def _spatial_distance(spatial: Tensor | None, reference: Reference) -> dict[str, float]:
    """sfid, or nothing if either side has no spatial features."""
    if spatial is None or reference.spatial is None:
        return {}
    if spatial.ndim != 2 or spatial.shape[1] != len(reference.spatial["mu"]):
        width = len(reference.spatial["mu"])
        raise ValueError(f"spatial features {tuple(spatial.shape)} do not fit the reference's width {width}")
    target = {name: value.numpy() for name, value in reference.spatial.items()}
    return {"sfid": frechet_distance(statistics(spatial), target)}


def kernel_distance(made: Tensor, real: Tensor) -> float:
    """KID (Binkowski et al. 2018, arXiv 1801.01401) of features (N, D) and (M, D), computed in float64: the unbiased
    squared MMD of the kernel (x y / D + 1)^3, averaged over random subsets, which are those of torch-fidelity."""
    rng, size = np.random.RandomState(KID_SEED), min(KID_SUBSET_IMAGES, len(made), len(real))
    distances = []
    for _ in range(KID_SUBSETS):
        x, y = (each[rng.choice(len(each), size, replace=False)].double().numpy() for each in (made, real))
        within = sum(kernel.sum() - kernel.trace() for kernel in (_kernel(x, x), _kernel(y, y)))
        distances.append(within / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(distances))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # 30 times faster than base**3


def inception_score(scores: Tensor) -> float:
    """Inception score (Salimans et al. 2016, arXiv 1606.03498) of class scores (N, classes), with at most 10 splits."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    check_finite(scores, "class scores")
    return isc_features_to_metric(scores, splits=min(10, len(scores)))[KEY_METRIC_ISC_MEAN]


def reconstruction_distance(features: Tensor, inputs: Reference) -> float:
    """rFID: Frechet distance between features (N, D) of reconstructions and those of their inputs.

    Raises:
        MetricError: see `frechet_distance`.
    """
    target = {name: getattr(inputs, name).numpy() for name in ("mu", "sigma", "root")}
    return checked({"rfid": frechet_distance(statistics(features), target)})["rfid"]


def pairwise_metrics(
    images: Tensor,
    reconstructions: Tensor,
    perceptual: Callable[[Tensor, Tensor], Tensor],
    batch_size: int = 64,
) -> Tensor:
    """How each reconstruction compares with its input.

    Args:
        images, reconstructions: uint8 (N, 1 or 3, H, W), in the same order.
        perceptual: two float batches in [-1, 1] to distances (B,).
        batch_size: images at a time.

    Returns:
        float64 (3, N): psnr (dB, data range 255, at most PSNR_CEILING), ssim (data range 255, Gaussian window of 11
        pixels) and perceptual; see `averaged`.

    Raises:
        ValueError: shapes or types do not fit.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if images.shape != reconstructions.shape or {images.dtype, reconstructions.dtype} != {torch.uint8}:
        actual = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in (images, reconstructions))
        raise ValueError(f"images and reconstructions must be uint8 of one shape, got {actual}")
    if min(images.shape[2:]) < 6:
        raise ValueError(f"SSIM needs at least 6 pixels, got {tuple(images.shape)}")
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
    return torch.cat(parts, dim=1)


def summed_shift(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Sum over all pixels of reconstruction minus image, by channel: float64 (C,), in 1/255. Divided by the number of
    pixels it is the mean shift of a colour, which neither PSNR nor a Frechet distance shows by itself.

    Args:
        images, reconstructions: uint8 (N, C, H, W), in the same order.
    """
    after, before = (pixels.sum(dim=(0, 2, 3), dtype=torch.int64) for pixels in (reconstructions, images))
    return (after - before).double()


def chroma_sums(images: Tensor, reconstructions: Tensor) -> Tensor:
    """What `chroma_r2` needs of these pairs, float64 (3, 2) over the planes Cb and Cr: the sum of the images' values,
    of their squares, and of the squared differences. Sums of several parts add up.

    Args:
        images, reconstructions: uint8 (N, 3, H, W), in the same order.
    """
    before, after = (_chroma(pixels) for pixels in (images, reconstructions))
    return torch.stack([before.sum(dim=1), before.square().sum(dim=1), (after - before).square().sum(dim=1)])


def chroma_r2(sums: Tensor, pixels: int) -> float | None:
    """Share of the variance of chroma that reconstructions explain, from `chroma_sums` over this number of pixels: 1
    where all colours are right, 0 where they are as good as one tint for all pixels; None where the images are grey."""
    total, squares, errors = sums
    variance = (squares - total.square() / pixels).sum()
    if variance <= 1e-9 * pixels:  # rounding alone
        return None
    return 1 - (errors.sum() / variance).item()


def _chroma(pixels: Tensor) -> Tensor:
    """Cb and Cr of ITU-R BT.601, as in JPEG, without their offset: float64 (2, N * H * W)."""
    red, green, blue = pixels.double().transpose(0, 1).flatten(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402])


def averaged(parts: Sequence[Tensor]) -> dict[str, float]:
    """Averages of psnr, ssim and perceptual over all pairs, from parts of `pairwise_metrics`.

    Raises:
        MetricError: a number is not finite.
    """
    psnr, ssim, distance = torch.cat(list(parts), dim=1).mean(dim=1).tolist()
    return checked({"psnr": psnr, "ssim": ssim, "perceptual": distance})
