"""Stage reconstruct: tokenizer, test images -> reconstructions, PSNR, SSIM, perceptual distance, a sheet of pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from study.core.compute import apply
from study.core.distributed import on_rank_zero
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.datasets import load_images, selected_images
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


def interpolated_distances(stage: Stage, judges: Sequence[JudgeSpec]) -> dict[str, float]:
    """Interpolated FID of a reconstruct stage's tokenizer, by judge (Xu et al. 2026, arXiv 2603.05630).

    The latent (posterior mean) of every test image is moved halfway to its nearest neighbour among the others and
    decoded; the result is the Frechet distance of these pictures to the test images, as for rFID. Neighbours are found
    by the Euclidean distance of raw latents. The function is in this module because tokenizer and images are those of
    the stage; it is not part of `run`, which would take nearly twice as long.

    Raises:
        MetricError: see `frechet_distance`.
    """
    spec = stage.spec
    assert isinstance(spec, Reconstruct)
    apply(spec.compute)
    tokenizer, test = trained_tokenizer(stage.inputs["tokenizer"]), load_images(spec.data, "test")
    rows, device = balanced_choice(test.labels, spec.images), spec.compute.device
    batch = min(BATCH, piece(spec.data.resolution))
    with torch.inference_mode():
        batches = np.split(rows, range(batch, len(rows), batch))
        latents = torch.cat([tokenizer.encode(test.pixels(batch).to(device)).mean for batch in batches])
        halfway = (latents + latents[nearest(latents.flatten(1))]) / 2
        pictures = torch.cat([decoded(tokenizer, part) for part in halfway.split(batch)])
    distances = {}
    for judge in judges:
        inputs = dataset_reference(judge, spec.data, "test", spec.images, device)
        found = features(build_judge(judge, spec.data, device), pictures)
        distances[judge.name] = reconstruction_distance(found, inputs)
    return distances


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
