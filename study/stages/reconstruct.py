"""Stage reconstruct: tokenizer, test images -> rFID, PSNR, SSIM, perceptual distance, a sheet of pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from study.core.compute import apply
from study.core.distributed import on_rank_zero
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.datasets import load_images
from study.judge.judges import build_judge, features
from study.judge.metrics import comparable, reconstruction_distance, reconstruction_metrics
from study.judge.references import balanced_choice, dataset_reference
from study.judge.sheets import save_sheet
from study.plan.specs import Reconstruct
from study.plan.stage import Stage
from study.stages.fit_tokenizer import trained_tokenizer
from study.train.perceptual_net import perceptual_net

SHEET = "reconstructions.png"
SHEET_COLUMNS = 8
BATCH = 128
MIN_RELATIVE_STD = 0.01  # std over reconstructions / std over images; below it the tokenizer has collapsed


def run(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    """Reconstruct test images from their posterior means and compare both; one process does it."""
    return on_rank_zero(lambda: _judge(spec, sources, out))


def _judge(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    apply(spec.compute)
    tokenizer, test = trained_tokenizer(sources["tokenizer"]), load_images(spec.data, "test")
    device = spec.compute.device
    rows = balanced_choice(test.labels, spec.images)
    images = torch.from_numpy(np.ascontiguousarray(test.images[rows]))
    parts = []
    for start in range(0, len(rows), BATCH):
        pixels = test.pixels(rows[start : start + BATCH]).to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            parts.append(_decoded(tokenizer, tokenizer.encode(pixels).mean))
        out.progress(start + len(pixels), len(rows))
        out.stop_if_asked()
    reconstructions = torch.cat(parts).contiguous()
    out.preparing("PSNR, SSIM and perceptual distance")
    _check_not_collapsed(images, reconstructions)
    perceptual = perceptual_net(spec.perceptual_net, spec.perceptual_size, spec.perceptual_weights).to(device)
    values = reconstruction_metrics(images, reconstructions, perceptual)
    metrics = {}
    for judge in spec.judges:
        out.preparing(f"judged by {judge.name}")
        # features of the same rows, computed once for all tokenizers
        inputs = dataset_reference(judge, spec.data, "test", spec.images, device)
        rfid = reconstruction_distance(features(build_judge(judge, spec.data, device), reconstructions), inputs)
        metrics[judge.name] = {
            "rfid": rfid,
            **values,
            "comparable": comparable(len(rows), judge.width),
            "reference": inputs.hash,
        }
    pairs = torch.cat([images[:SHEET_COLUMNS], reconstructions[:SHEET_COLUMNS]])
    save_sheet(out.folder / SHEET, pairs, columns=SHEET_COLUMNS)
    return {
        "metrics": metrics,
        "samples": len(rows),
        "sheet": SHEET,
        "cost": {"peak_memory_gib": round(peak_memory_gib(device), 3)},
    }


def interpolated_distances(stage: Stage) -> dict[str, float]:
    """Interpolated FID of a reconstruct stage's tokenizer, by judge (Xu et al. 2026, arXiv 2603.05630).

    The latent (posterior mean) of every test image is moved halfway to its nearest neighbour among the others and
    decoded; the result is the Frechet distance of these pictures to the test images, as for rFID. Neighbours are found
    by the Euclidean distance of raw latents. The function is in this module because tokenizer, images, judges and
    reference are those of the stage; it is not part of `run`, which would take nearly twice as long.

    Raises:
        MetricError: see `frechet_distance`.
    """
    spec = stage.spec
    assert isinstance(spec, Reconstruct)
    apply(spec.compute)
    tokenizer, test = trained_tokenizer(stage.inputs["tokenizer"]), load_images(spec.data, "test")
    rows, device = balanced_choice(test.labels, spec.images), spec.compute.device
    with torch.inference_mode():
        batches = np.split(rows, range(BATCH, len(rows), BATCH))
        latents = torch.cat([tokenizer.encode(test.pixels(batch).to(device)).mean for batch in batches])
        halfway = (latents + latents[nearest(latents.flatten(1))]) / 2
        pictures = torch.cat([_decoded(tokenizer, batch) for batch in halfway.split(BATCH)]).contiguous()
    distances = {}
    for judge in spec.judges:
        inputs = dataset_reference(judge, spec.data, "test", spec.images, device)
        decoded = features(build_judge(judge, spec.data, device), pictures)
        distances[judge.name] = reconstruction_distance(decoded, inputs)
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


def _decoded(tokenizer: Autoencoder, latents: Tensor) -> Tensor:
    """Pictures (B, C, H, W) uint8 of raw latents, on the CPU."""
    return ((tokenizer.decode(latents) + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()


def _check_not_collapsed(images: Tensor, reconstructions: Tensor) -> None:
    """ValueError when a tokenizer reconstructs nearly the same picture from every image.

    Args:
        images, reconstructions: uint8 (N, C, H, W).
    """
    subset = slice(None, None, -(-len(images) // BATCH))  # enough for this; all of ImageNet would fill the memory
    image_std, reconstruction_std = (
        pixels[subset].float().std(dim=0, correction=0).mean().item() for pixels in (images, reconstructions)
    )
    if reconstruction_std < MIN_RELATIVE_STD * image_std:
        raise ValueError(
            "the tokenizer has collapsed: its reconstructions are nearly the same picture; their standard deviation is "
            f"{reconstruction_std / image_std:.2%} of that of the images (required: at least {MIN_RELATIVE_STD:.0%})"
        )
