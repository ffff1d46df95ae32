"""Stage encode: tokenizer, images -> latent shards with channel statistics (their form: study/data/latents.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.autoencoder import Autoencoder, Posterior
from study.core.compute import apply, autocast
from study.core.distributed import gathered, on_main, own_share
from study.core.files import save_tensors
from study.core.randomness import make_rng
from study.core.stopping import Interrupted
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.datasets import ImageSet, crop_method, load_images
from study.data.latents import Latents, _about, _channel_statistics, _identity, _mapped, _rows, _shard, _shards, _sums
from study.judge.diagnostics import describe_latents, picture_latents
from study.plan.specs import Encode
from study.plan.stage import Stage
from study.stages.fit_tokenizer import trained_tokenizer
from study.train import pretrained

BATCH = 128
STORED = {"posterior": "mean and spread, float16", "sample": "a posterior sample of each view, float16"}


def _encode(spec: Encode, tokenizer: Autoencoder, images: ImageSet, rows: np.ndarray) -> dict[str, Tensor]:
    """What is kept of these images, by name: float16 (rows, views, d, h, w)."""
    pixels = images.pixels(rows).to(spec.compute.device, memory_format=torch.channels_last)
    both = [pixels, pixels.flip(3)] if spec.data.flip else [pixels]
    with torch.inference_mode(), autocast(spec.compute):
        posteriors = [tokenizer.encode(view) for view in both]
    if spec.stored == "sample":
        kept = {"sample": [_sampled(p, rows, view) for view, p in enumerate(posteriors)]}
    else:
        kept = {"mean": [p.mean for p in posteriors], "std": [p.std for p in posteriors]}
    return {name: torch.stack([view.half().cpu() for view in views], dim=1) for name, views in kept.items()}


def _sampled(posterior: Posterior, rows: np.ndarray, view: int) -> Tensor:
    """A sample whose noise depends on the image and the view alone."""
    shape = posterior.mean.shape[1:]
    rngs = [make_rng(0, "latent", 2 * int(row) + view) for row in rows]
    return posterior.sample(torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(posterior.mean.device))


def run(spec: Encode, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Write what is kept of every training image, shard by shard; whole shards stay, and several processes share them.

    The statistics are over all images, where the released code takes 10,000 at random (LightningDiT,
    datasets/img_latent_dataset.py).
    """
    apply(spec.compute)
    if spec.given is not None:
        return on_main(lambda: pretrained.statistics(spec, inputs))
    stage = Stage("encode", spec, inputs)
    tokenizer, images = trained_tokenizer(inputs["tokenizer"]), load_images(spec.data, "train")
    mine = own_share(_shards(spec))
    done, total, stopped = 0, sum(len(_rows(spec, index)) for index in mine), False
    try:
        for index in mine:
            path, identity, rows = _shard(out.folder, index), _identity(stage, index), _rows(spec, index)
            if not _is_whole(path, identity):
                parts = []
                for batch in (rows[first : first + BATCH] for first in range(0, len(rows), BATCH)):
                    parts.append(_encode(spec, tokenizer, images, np.asarray(batch)))
                    out.progress(done + batch.stop - rows.start, total)
                    out.stop_if_asked()
                shard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                labels = torch.from_numpy(np.asarray(images.labels[rows.start : rows.stop], dtype=np.int64))
                # one entry: safetensors writes several in any order, and the same shard should be the same file
                about = {"shard": json.dumps({**identity, **_sums(shard)})}
                save_tensors(path, {**shard, "labels": labels}, about)
            done += len(rows)
    except Interrupted:
        stopped = True
    if any(gathered(stopped)):  # nobody goes on before all shards are there
        raise Interrupted(f"{out.title} was asked to stop")
    shards = [_about(_shard(out.folder, index)) or {} for index in _shards(spec)]
    latent = _channel_statistics(shards)
    out.preparing("how latents lie")
    on_main(lambda: _describe(_mapped(stage, out.folder, latent), images, out.folder))
    return {
        "latent": {**latent, "stored": STORED[spec.stored]},
        "images": spec.train_images,
        "views": 2 if spec.data.flip else 1,
        "shards": len(shards),
        "crop": crop_method(spec.data),
        "cost": {"peak_memory_gib": round(peak_memory_gib(spec.compute.device), 3)},
    }


def _describe(latents: Latents, images: ImageSet, folder: Path) -> None:
    picture_latents(latents, images, folder)
    describe_latents(latents, folder)


def _is_whole(path: Path, identity: dict[str, Any]) -> bool:
    try:
        about = _about(path) or {}
    except (FileNotFoundError, SafetensorError):
        return False
    return identity.items() <= about.items()
