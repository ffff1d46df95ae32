"""Stage reconstruct: tokenizer, test images -> rFID, PSNR, SSIM, perceptual distance, a sheet of pairs."""

from __future__ import annotations

import numpy as np
import torch

from study.compute import apply
from study.data import load
from study.distributed import on_main
from study.specs import Reconstruct, Stage
from study.stages.fit_tokenizer import trained
from study.workspace import Record, Workspace, peak_memory_gib

SHEET = "reconstructions.png"
SHEET_COLUMNS = 8
BATCH = 128


def run(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    """Reconstruct test images from their posterior means and compare them with themselves; one process is enough."""
    return on_main(lambda: _judged(spec, sources, out))


def _judged(spec: Reconstruct, sources: dict[str, Stage], out: Workspace) -> Record:
    from study.judges import build, chosen, features, reference
    from study.metrics import comparable, reconstruction_distance, reconstruction_metrics
    from study.perceptual import perceptual_net
    from study.sheets import save_sheet

    apply(spec.compute)
    tokenizer, test = trained(sources["tokenizer"]), load(spec.data, "test")
    device = spec.compute.device
    rows = chosen(test.labels, spec.images)
    images = torch.from_numpy(np.ascontiguousarray(test.images[rows]))
    parts = []
    for start in range(0, len(rows), BATCH):
        pixels = test.pixels(rows[start : start + BATCH]).to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            decoded = tokenizer.decode(tokenizer.encode(pixels).mean)
        parts.append(((decoded + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu())
        out.progress(start + len(pixels), len(rows))
        out.stop_if_asked()
    reconstructions = torch.cat(parts).contiguous()
    out.preparing("PSNR, SSIM and perceptual distance")
    perceptual = perceptual_net(spec.perceptual_net, spec.perceptual_size).to(device)
    values = reconstruction_metrics(images, reconstructions, perceptual)
    metrics = {}
    for judge in spec.judges:
        out.preparing(f"judged by {judge.name}")
        inputs = reference(judge, spec.data, "test", spec.images, device)  # the same rows, once for all tokenizers
        found = features(build(judge, spec.data, device), reconstructions)
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
