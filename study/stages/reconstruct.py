"""Stage reconstruct: tokenizer, test images -> rFID, PSNR, SSIM, perceptual distance, a sheet of pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from study.core.compute import apply
from study.core.distributed import on_main
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
LEAST_SPREAD = 0.01  # of reconstructions over images, as a share of the images' own; below it a tokenizer has collapsed


def run(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    """Reconstruct test images from their posterior means and compare them with themselves; one process is enough."""
    return on_main(lambda: _judged(spec, sources, out))


def _judged(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:

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
    _check_spread(images, reconstructions)
    perceptual = perceptual_net(spec.perceptual_net, spec.perceptual_size).to(device)
    values = reconstruction_metrics(images, reconstructions, perceptual)
    metrics = {}
    for judge in spec.judges:
        out.preparing(f"judged by {judge.name}")
        inputs = dataset_reference(
            judge, spec.data, "test", spec.images, device
        )  # the same rows, once for all tokenizers
        found = features(build_judge(judge, spec.data, device), reconstructions)
        rfid = reconstruction_distance(found, inputs)
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

    Every test image's latent (posterior mean) is moved halfway to its nearest neighbour among the others, and the
    Frechet distance of what is decoded to the test images is taken, as for rFID. Here because everything it needs is
    the stage's: tokenizer, images, judges and their reference; but no part of `run`, which it would make nearly twice
    as long. Nearest by the Euclidean distance of raw latents.

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
    found = {}
    for judge in spec.judges:
        inputs = dataset_reference(judge, spec.data, "test", spec.images, device)
        found[judge.name] = reconstruction_distance(features(build_judge(judge, spec.data, device), pictures), inputs)
    return found


def nearest(points: Tensor) -> Tensor:
    """Index (N,) of each point's nearest other point; points (N, D), at least two. Of equally near ones the first."""
    centred = points - points.mean(dim=0)  # moves no distance, and keeps digits
    found = []
    for start in range(0, len(points), BATCH):
        distances = torch.cdist(centred[start : start + BATCH], centred)
        own = torch.arange(len(distances), device=points.device)
        distances[own, start + own] = torch.inf
        found.append(distances.argmin(dim=1))
    return torch.cat(found)


def _decoded(tokenizer: Autoencoder, latents: Tensor) -> Tensor:
    """Pictures (B, C, H, W) uint8 of raw latents, on the CPU."""
    return ((tokenizer.decode(latents) + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()


def _check_spread(images: Tensor, reconstructions: Tensor) -> None:
    """ValueError when a tokenizer draws (nearly) the same picture whatever it is shown.

    Args:
        images, reconstructions: uint8 (N, C, H, W).
    """
    some = slice(None, None, -(-len(images) // BATCH))  # enough to tell, and all of ImageNet's would fill the memory
    of_images, of_reconstructions = (
        pixels[some].float().std(dim=0, correction=0).mean().item() for pixels in (images, reconstructions)
    )
    if of_reconstructions < LEAST_SPREAD * of_images:
        raise ValueError(
            "the tokenizer has collapsed: its reconstructions are nearly the same picture, they differ "
            f"{of_reconstructions / of_images:.2%} as much as the images (at least {LEAST_SPREAD:.0%} is asked for)"
        )
