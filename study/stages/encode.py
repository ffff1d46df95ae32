"""Stage encode: tokenizer, images -> latent shards with channel statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from study.compute import apply, autocast
from study.data import load
from study.files import load_tensors, read_tensors, save_tensors
from study.specs import Encode, Stage
from study.stages.fit_tokenizer import trained
from study.workspace import Record, Workspace, peak_memory_gib

SHARD_IMAGES = 8192
BATCH = 128


@dataclass(frozen=True)
class Latents:
    """Posteriors of the training images, raw, and the statistics that normalise them.

    Args:
        shards: mean and std of SHARD_IMAGES images each (the last may hold fewer), float16 (n, views, d, h, w); the
            views are the image and, for data that may be flipped, its mirror. Tensors of a shard that was read are
            mapped from disk: ImageNet's do not fit into memory, and a batch touches only its own rows.
        labels: (N,) int64.
        channel_mean, channel_std: (d, 1, 1) float32, of posterior samples over all images.
    """

    shards: tuple[dict[str, Tensor], ...]
    labels: Tensor
    channel_mean: Tensor
    channel_std: Tensor

    @property
    def views(self) -> int:
        return self.shards[0]["mean"].shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent: (d, h, w)."""
        return tuple(self.shards[0]["mean"].shape[2:])

    def posteriors(self, indices: np.ndarray, views: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread, each float16 (B, d, h, w), of these views of these images."""
        mean, std = (torch.empty(len(indices), *self.shape, dtype=torch.float16) for _ in range(2))
        rows = torch.from_numpy(indices)
        number = rows // SHARD_IMAGES
        for index in torch.unique(number).tolist():
            here = number == index
            row, view = rows[here] - index * SHARD_IMAGES, views[here]
            mean[here], std[here] = (self.shards[index][name][row, view] for name in ("mean", "std"))
        return mean, std

    def sample(self, indices: np.ndarray, views: Tensor, noise: Tensor) -> Tensor:
        """Normalised posterior samples (B, d, h, w) float32 of these images, with this noise and on its device."""
        device = noise.device
        mean, std = (half.to(device).float() for half in self.posteriors(indices, views))
        return (mean + std * noise - self.channel_mean.to(device)) / self.channel_std.to(device)


def denormalise(latent: Tensor, stage: Stage) -> Tensor:
    """Normalised latents (B, d, h, w) back to the tokenizer's raw ones, with the statistics of an encode stage."""
    record = stage.record()
    assert record is not None
    mean, std = (torch.tensor(record["latent"][key], device=latent.device)[:, None, None] for key in ("mean", "std"))
    return latent * std + mean


def _shard(folder: Path, index: int) -> Path:
    return folder / f"latents-{index:05d}.safetensors"


def run(spec: Encode, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Write mean and spread of every training image's posterior, shard by shard; whole shards are kept."""
    apply(spec.compute)
    tokenizer, images = trained(inputs["tokenizer"]), load(spec.data, "train")
    device, count = spec.compute.device, spec.train_images
    views = 2 if spec.data.flip else 1
    sums, squares = torch.zeros(2, tokenizer.config.z_channels, dtype=torch.float64)
    values = 0
    for index, start in enumerate(range(0, count, SHARD_IMAGES)):
        rows = np.arange(start, min(start + SHARD_IMAGES, count))
        shard = read_tensors(_shard(out.folder, index))
        if shard is None:
            means, stds = [], []
            for first in range(0, len(rows), BATCH):
                pixels = images.pixels(rows[first : first + BATCH]).to(device, memory_format=torch.channels_last)
                both = [pixels, pixels.flip(3)][:views]
                with torch.inference_mode(), autocast(spec.compute):
                    posteriors = [tokenizer.encode(view) for view in both]
                means.append(torch.stack([p.mean.half().cpu() for p in posteriors], dim=1))
                stds.append(torch.stack([p.std.half().cpu() for p in posteriors], dim=1))
                out.progress(int(rows[0]) + first + len(pixels), count)
                out.stop_if_asked()
            labels = torch.from_numpy(np.asarray(images.labels[rows], dtype=np.int64))
            shard = {"mean": torch.cat(means), "std": torch.cat(stds), "labels": labels}
            save_tensors(_shard(out.folder, index), shard)
        mean, std = shard["mean"].double(), shard["std"].double()
        sums = sums + mean.sum(dim=(0, 1, 3, 4))
        squares = squares + (mean.square() + std.square()).sum(dim=(0, 1, 3, 4))
        values += mean.numel() // mean.shape[2]
    channel_mean = sums / values
    channel_std = (squares / values - channel_mean.square()).clamp_min(0).sqrt()
    if not torch.isfinite(channel_std).all() or (channel_std == 0).any():
        raise ValueError("the latents have no spread in some channel: the tokenizer has collapsed")
    return {
        "latent": {"mean": channel_mean.tolist(), "std": channel_std.tolist(), "stored": "mean and spread, float16"},
        "images": count,
        "views": views,
        "cost": {"peak_memory_gib": round(peak_memory_gib(device), 3)},
    }


def read(stage: Stage) -> Latents:
    """The latents that an encode stage left, mapped from disk.

    Raises:
        ValueError: a shard of another shape than this stage writes.
    """
    record = stage.record()
    assert record is not None and isinstance(stage.spec, Encode)
    images, channels = stage.spec.train_images, len(record["latent"]["mean"])
    shards = []
    for index, start in enumerate(range(0, images, SHARD_IMAGES)):
        shard = load_tensors(_shard(stage.folder, index))
        expected = (min(SHARD_IMAGES, images - start), record["views"], channels)
        if any(shard[name].shape[:3] != expected or shard[name].dtype != torch.float16 for name in ("mean", "std")):
            raise ValueError(
                f"{_shard(stage.folder, index)} holds {shard['mean'].dtype} {tuple(shard['mean'].shape)}, expected "
                f"float16 {expected} and the grid: delete {stage.folder} to make it again"
            )
        shards.append(shard)
    channel_mean, channel_std = (torch.tensor(record["latent"][key])[:, None, None] for key in ("mean", "std"))
    return Latents(
        shards=tuple(shards),
        labels=torch.cat([shard["labels"] for shard in shards]),
        channel_mean=channel_mean,
        channel_std=channel_std,
    )
