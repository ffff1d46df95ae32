"""Stage reconstruct: tokenizer, test images -> reconstructions, PSNR, SSIM, perceptual distance, a sheet of pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.autoencoder import Autoencoder
from study.core.compute import apply
from study.core.distributed import on_rank_zero
from study.core.randomness import make_rng
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.datasets import ImageSet, load_images, selected_images
from study.data.latents import MIN_STD
from study.data.picture_chunks import chunk_rows, first_pictures, read_chunk, write_chunk
from study.judge.judges import build_judge, features
from study.judge.metrics import (
    averaged,
    chroma_r2,
    chroma_sums,
    pairwise_metrics,
    reconstruction_distance,
    summed_shift,
)
from study.judge.references import balanced_choice, dataset_reference
from study.judge.sheets import save_sheet
from study.plan.judge_spec import JudgeSpec
from study.plan.specs import FitTokenizer, Reconstruct
from study.plan.stage import Stage
from study.plan.warnings import reconstruction_warnings
from study.stages.decoding import decoded, piece
from study.stages.fit_tokenizer import trained_tokenizer
from study.train.perceptual_net import perceptual_net

SHEET = "reconstructions.png"
SHEET_COLUMNS = 8
BATCH = 128  # latents at a time
SPREAD_OVER = 128  # pictures, evenly chosen, over which their spread is compared with that of the images
MIN_RELATIVE_STD = 0.01  # std over reconstructions / std over images; below it the tokenizer has collapsed
TRAINING_NEIGHBOURS = 10_000  # training images, at most, among which the released variant looks
NEAREST = 10  # of them, one of which it draws

log = logging.getLogger(__name__)


def run(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    """Reconstruct test images from their posterior means and compare the pairs; one process does it."""
    return on_rank_zero(lambda: _reconstruct(spec, sources, out))


def _reconstruct(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    apply(spec.compute)
    tokenizer, device = trained_tokenizer(sources["tokenizer"]), spec.compute.device
    rows = balanced_choice(load_images(spec.data, "test").labels, spec.images)
    perceptual = perceptual_net(spec.perceptual_net, spec.perceptual_size, spec.perceptual_weights).to(device)
    chunks = chunk_rows(spec)
    step = -(-len(rows) // SPREAD_OVER)
    distances, spread_over, shift = [], [], torch.zeros(spec.data.channels, dtype=torch.float64)
    chroma = torch.zeros(3, 2, dtype=torch.float64)
    for chunk, numbers in enumerate(chunks):
        (images,) = map(torch.from_numpy, selected_images(spec.data, "test", rows[numbers.start : numbers.stop]))
        reconstructions = read_chunk(out.folder, chunk)
        if reconstructions is None:
            reconstructions = _reconstructed(tokenizer, images, device)
            write_chunk(out.folder, chunk, reconstructions)
        distances.append(pairwise_metrics(images, reconstructions, perceptual))
        shift += summed_shift(images, reconstructions)
        if spec.data.channels == 3:
            chroma += chroma_sums(images, reconstructions)
        some = slice(-numbers.start % step, None, step)
        spread_over.append((images[some], reconstructions[some]))
        out.progress(numbers.stop, len(rows))
        out.stop_if_asked()
    _check_not_collapsed(*(torch.cat(pictures) for pictures in zip(*spread_over, strict=True)))
    (images,) = map(torch.from_numpy, selected_images(spec.data, "test", rows[:SHEET_COLUMNS]))
    pairs = torch.cat([images, first_pictures(spec, out.folder, SHEET_COLUMNS)])
    save_sheet(out.folder / SHEET, pairs, columns=SHEET_COLUMNS)
    pixels = len(rows) * spec.data.resolution**2
    shift /= pixels
    metrics = averaged(distances) | {"colour_shift": shift.abs().max().item()}
    if (explained := chroma_r2(chroma, pixels)) is not None:
        metrics["chroma_r2"] = explained
    fit = sources["tokenizer"].spec
    assert isinstance(fit, FitTokenizer)
    for line in reconstruction_warnings(
        psnr=metrics["psnr"], colour_shift=metrics["colour_shift"], pretrained=fit.pretrained is not None
    ):
        log.warning("%s: %s", out.title, line)
    return {
        "metrics": metrics,
        "colour_shift": shift.tolist(),  # by channel, with its sign
        "sheet": SHEET,
        "cost": {"peak_memory_gib": round(peak_memory_gib(device), 3)},
    }


def _reconstructed(tokenizer: Autoencoder, images: Tensor, device: str) -> Tensor:
    """Reconstructions uint8 (B, C, H, W) of images of that form, on the CPU."""
    parts = []
    with torch.inference_mode():
        for part in images.split(min(BATCH, piece(images.shape[-1]))):
            pixels = part.float().div_(127.5).sub_(1.0).to(device, memory_format=torch.channels_last)
            parts.append(decoded(tokenizer, tokenizer.encode(pixels).mean))
    return torch.cat(parts)


def interpolated_distances(stage: Stage, judges: Sequence[JudgeSpec], variant: str) -> dict[str, float]:
    """Interpolated FID of a reconstruct stage's tokenizer, by judge (Xu et al. 2026, arXiv 2603.05630).

    The latent (posterior mean) of every test image is moved halfway to a neighbour and decoded; the result is the
    Frechet distance of these pictures to the test images, as for rFID. The variants, IFIDS:

    - ifid, the paper in words: the neighbour is the nearest other test image by the Euclidean distance of raw latents,
      and halfway is the mean.
    - ifid_released, as the released evalvae.py: neighbours are training images, see `toward_neighbours`. Two
      deviations: latents are normalised per channel first, because the draw and the angles depend on scale and mean;
      and only TRAINING_NEIGHBOURS training images are looked at, a class-balanced choice, not all. Fewer images lie
      further away, so that the number is larger.

    The function is in this module because tokenizer and images are those of the stage; it is not part of `run`, which
    would take nearly twice as long with either.

    Raises:
        MetricError: see `frechet_distance`.
    """
    spec, fit = stage.spec, stage.inputs["tokenizer"].spec
    assert isinstance(spec, Reconstruct) and isinstance(fit, FitTokenizer)
    apply(spec.compute)
    tokenizer, test = trained_tokenizer(stage.inputs["tokenizer"]), load_images(spec.data, "test")
    rows, device = balanced_choice(test.labels, spec.images), spec.compute.device
    with torch.inference_mode():
        latents = _posterior_means(tokenizer, test, rows, device)
        if variant == "ifid":
            halfway = (latents + latents[nearest(latents.flatten(1))]) / 2
        else:
            train = load_images(spec.data, "train")
            labels = train.labels[: fit.train_images]
            among = balanced_choice(labels, min(TRAINING_NEIGHBOURS, len(labels)))
            others = _posterior_means(tokenizer, train, among, device)
            mean, std = others.mean((0, 2, 3), keepdim=True), others.std((0, 2, 3), keepdim=True).clamp_min(MIN_STD)
            moved = toward_neighbours(((latents - mean) / std).flatten(1), ((others - mean) / std).flatten(1))
            halfway = moved.view_as(latents) * std + mean
        pictures = torch.cat([decoded(tokenizer, part) for part in halfway.split(BATCH)])
    distances = {}
    for judge in judges:
        inputs = dataset_reference(judge, spec.data, "test", spec.images, device)
        found = features(build_judge(judge, spec.data, device), pictures)
        distances[judge.name] = reconstruction_distance(found, inputs)
    return distances


def _posterior_means(tokenizer: Autoencoder, images: ImageSet, rows: np.ndarray, device: str) -> Tensor:
    """Raw latents (N, d, h, w) of these images, on the device."""
    batch = min(BATCH, piece(tokenizer.config.resolution))
    batches = np.split(rows, range(batch, len(rows), batch))
    return torch.cat([tokenizer.encode(images.pixels(batch).to(device)).mean for batch in batches])


def toward_neighbours(points: Tensor, others: Tensor) -> Tensor:
    """Each point (N, D) moved halfway, on an arc, to one of its NEAREST neighbours among `others` (M, D): (N, D).

    As evalvae.py of arXiv 2603.05630 does: near is a large cosine; one of the nearest is drawn, with the softmax of
    less the mean squared difference as probability; and the arc is the spherical interpolation of vectors that keep
    their lengths. A fixed seed draws.
    """
    directions, moved = normalize(others, dim=1), []
    rng = make_rng(0, "interpolated", 0)
    for part in points.split(BATCH):
        near = (normalize(part, dim=1) @ directions.T).topk(min(NEAREST, len(others)), dim=1).indices
        weights = (-(part[:, None] - others[near]).square().mean(dim=2)).softmax(dim=1)
        drawn = torch.multinomial(weights.cpu(), 1, generator=rng).to(near.device)
        neighbour = others[near.gather(1, drawn)[:, 0]]
        cosine = (normalize(part, dim=1) * normalize(neighbour, dim=1)).sum(dim=1, keepdim=True)
        # at the middle both weights are sin(a / 2) / sin(a) = 1 / (2 cos(a / 2)) for the angle a
        moved.append((part + neighbour) / (2 + 2 * cosine).clamp_min(1e-6).sqrt())
    return torch.cat(moved)


def nearest(points: Tensor) -> Tensor:
    """Index (N,) of each point's nearest other point, the first if several are; points (N, D), at least two."""
    centred = points - points.mean(dim=0)  # changes no distance, and keeps digits in float32
    indices = []
    for start in range(0, len(points), BATCH):
        distances = torch.cdist(centred[start : start + BATCH], centred)
        own = torch.arange(len(distances), device=points.device)
        distances[own, start + own] = torch.inf
        indices.append(distances.argmin(dim=1))
    return torch.cat(indices)


def _check_not_collapsed(images: Tensor, reconstructions: Tensor) -> None:
    """ValueError when a tokenizer reconstructs nearly the same picture from every image.

    Args:
        images, reconstructions: uint8 (N, C, H, W).
    """
    image_std, reconstruction_std = (
        pixels.float().std(dim=0, correction=0).mean().item() for pixels in (images, reconstructions)
    )
    if reconstruction_std < MIN_RELATIVE_STD * image_std:
        raise ValueError(
            "the tokenizer has collapsed: its reconstructions are nearly the same picture; their standard deviation is "
            f"{reconstruction_std / image_std:.2%} of that of the images (required: at least {MIN_RELATIVE_STD:.0%})"
        )
