"""Stage encode: tokenizer, images -> latent shards with channel statistics (format: study/data/latents.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.autoencoder import Autoencoder, Posterior
from study.core.compute import apply
from study.core.distributed import all_gather, on_rank_zero, own_share
from study.core.files import save_tensors, write_json
from study.core.randomness import make_rng
from study.core.stopping import Interrupted
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.datasets import ImageSet, crop_method, load_images
from study.data.latents import (
    Latents,
    channel_statistics,
    map_latents,
    shard_identity,
    shard_indices,
    shard_metadata,
    shard_path,
    shard_rows,
    shard_sums,
)
from study.judge.latent_diagnostics import describe_latents, picture_latents, predictors
from study.plan.specs import Encode
from study.plan.stage import DIAGNOSTICS, Stage
from study.stages.fit_tokenizer import trained_tokenizer
from study.train import pretrained

BATCH = 128
STORED = {"posterior": "mean and spread, float16", "sample": "a posterior sample of each view, float16"}


def _encode(spec: Encode, tokenizer: Autoencoder, images: ImageSet, rows: np.ndarray) -> dict[str, Tensor]:
    """The tensors that are stored for these images, by name: float16 (rows, views, d, h, w)."""
    pixels = images.pixels(rows).to(spec.compute.device, memory_format=torch.channels_last)
    pixel_views = [pixels, pixels.flip(3)] if spec.data.flip else [pixels]
    with torch.inference_mode():
        posteriors = [tokenizer.encode(view) for view in pixel_views]
    if spec.stored == "sample":
        stored = {"sample": [_sample(p, rows, view) for view, p in enumerate(posteriors)]}
    else:
        stored = {"mean": [p.mean for p in posteriors], "std": [p.std for p in posteriors]}
    return {name: torch.stack([view.half().cpu() for view in views], dim=1) for name, views in stored.items()}


def _sample(posterior: Posterior, rows: np.ndarray, view: int) -> Tensor:
    """A posterior sample whose noise depends on the image and the view alone."""
    shape = posterior.mean.shape[1:]
    rngs = [make_rng(0, "latent", 2 * int(row) + view) for row in rows]
    return posterior.sample(torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(posterior.mean.device))


def run(spec: Encode, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Write the latents of all training images, shard by shard; complete shards are kept, and processes share the work.

    The statistics are over all images; the released code takes 10,000 at random (LightningDiT,
    datasets/img_latent_dataset.py).
    """
    apply(spec.compute)
    if spec.pretrained is not None:
        return on_rank_zero(lambda: pretrained.statistics_record(spec, inputs))
    stage = Stage("encode", spec, inputs)
    tokenizer, images = trained_tokenizer(inputs["tokenizer"]), load_images(spec.data, "train")
    own_shards = own_share(shard_indices(spec))
    done, total, stopped = 0, sum(len(shard_rows(spec, index)) for index in own_shards), False
    try:
        for index in own_shards:
            path, rows = shard_path(out.folder, index), shard_rows(spec, index)
            identity = shard_identity(stage, index)
            if not _is_complete(path, identity):
                parts = []
                for batch in (rows[first : first + BATCH] for first in range(0, len(rows), BATCH)):
                    parts.append(_encode(spec, tokenizer, images, np.asarray(batch)))
                    out.progress(done + batch.stop - rows.start, total)
                    out.stop_if_asked()
                shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                labels = torch.from_numpy(np.asarray(images.labels[rows.start : rows.stop], dtype=np.int64))
                # a single entry, because safetensors writes several in any order and equal shards should be equal files
                metadata = {"shard": json.dumps({**identity, **shard_sums(shard)})}
                save_tensors(path, {**shard, "labels": labels}, metadata)
            done += len(rows)
    except Interrupted:
        stopped = True
    if any(all_gather(stopped)):  # no process continues before all shards are written
        raise Interrupted(f"{out.title} was asked to stop")
    shards = [shard_metadata(shard_path(out.folder, index)) for index in shard_indices(spec)]
    latent = channel_statistics(shards)
    out.preparing("latent diagnostics")
    encode = mean_encoder(tokenizer, spec.compute.device)
    on_rank_zero(lambda: _describe(map_latents(stage, out.folder, latent), images, encode, out.folder))
    return {
        "latent": {**latent, "stored": STORED[spec.stored]},
        "images": spec.train_images,
        "views": 2 if spec.data.flip else 1,
        "shards": len(shards),
        "crop": crop_method(spec.data),
        "cost": {"peak_memory_gib": round(peak_memory_gib(spec.compute.device), 3)},
    }


def _describe(latents: Latents, images: ImageSet, encode: Callable[[Tensor], Tensor], folder: Path) -> None:
    picture_latents(latents, images, folder)
    write_json(folder / DIAGNOSTICS, describe_latents(latents, folder) | predictors(latents, images, encode))


def mean_encoder(tokenizer: Autoencoder, device: str) -> Callable[[Tensor], Tensor]:
    """Pixels (B, C, H, W) to posterior means (B, d, h, w), both on the CPU, by a tokenizer on this device."""

    def encode(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return tokenizer.encode(pixels.to(device, memory_format=torch.channels_last)).mean.cpu()

    return encode


def _is_complete(path: Path, identity: dict[str, Any]) -> bool:
    try:
        metadata = shard_metadata(path)
    except (FileNotFoundError, SafetensorError):
        return False
    return identity.items() <= metadata.items()
