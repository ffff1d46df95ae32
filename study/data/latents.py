"""Latents written by an encode stage: shards on the disk, and the channel statistics that normalise them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from study.core.files import load_metadata, load_tensors
from study.plan.specs import Encode, FitTokenizer
from study.plan.stage import Stage

SHARD_IMAGES = 8192
MIN_STD = 1e-5  # of a channel; usual latents have about 1, and a posterior that shrank to a point still has 3e-7
# Tolerances when statistics are compared, as shares of a channel's standard deviation
SAME_FILES = 1e-6  # sums of the same numbers differ by less
SAME_ENCODING = 1e-3  # processors and precisions differ by less, tokenizers by more


@dataclass(frozen=True)
class Latents:
    """Posteriors of the training images, or samples from them, not normalised, and the statistics that normalise them.

    Args:
        shards: "mean" and "std", or "sample", of SHARD_IMAGES images each (the last may hold fewer), float16
            (n, views, d, h, w); the views are the image and, for data that may be flipped, its mirror image. Tensors
            of a shard file are memory-mapped: ImageNet's do not fit into memory, and a batch reads only its own rows.
        labels: (N,) int64.
        channel_mean, channel_std: (d, 1, 1) float32, of posterior samples over all images.
    """

    shards: tuple[dict[str, Tensor], ...]
    labels: Tensor
    channel_mean: Tensor
    channel_std: Tensor

    @property
    def _first_tensor(self) -> Tensor:
        return next(tensor for name, tensor in self.shards[0].items() if name != "labels")

    @property
    def views(self) -> int:
        return self._first_tensor.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent: (d, h, w)."""
        return tuple(self._first_tensor.shape[2:])

    def rows(self, name: str, indices: np.ndarray, views: Tensor) -> Tensor:
        """Rows of the stored tensor `name` for these images and views, float16 (B, d, h, w)."""
        rows = torch.from_numpy(indices)
        if len(self.shards) == 1:
            return self.shards[0][name][rows, views]
        result = torch.empty(len(indices), *self.shape, dtype=torch.float16)
        shard_of_row = rows // SHARD_IMAGES
        for index in torch.unique(shard_of_row).tolist():
            in_shard = shard_of_row == index
            result[in_shard] = self.shards[index][name][rows[in_shard] - index * SHARD_IMAGES, views[in_shard]]
        return result

    def sample(self, indices: np.ndarray, views: Tensor, noise: Tensor) -> Tensor:
        """Normalised posterior samples (B, d, h, w) float32: drawn with this noise, or the stored samples."""
        return self.normalised(self.stored(indices, views), noise)

    def stored(self, indices: np.ndarray, views: Tensor) -> tuple[Tensor, ...]:
        """Stored tensors for these images and views, each float16 (B, d, h, w): mean and std, or a sample."""
        names = ("sample",) if "sample" in self.shards[0] else ("mean", "std")
        return tuple(self.rows(name, indices, views) for name in names)

    def normalised(self, stored: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Normalised latents (B, d, h, w) float32 from stored tensors: the sample, else one drawn with this noise."""
        raw, *std = (tensor.float() for tensor in stored)
        if std:
            raw = raw + std[0] * noise
        return (raw - self.channel_mean) / self.channel_std

    def on(self, device: str) -> Latents:
        """A copy whose statistics are on a device; shards stay on the disk."""
        return replace(self, channel_mean=self.channel_mean.to(device), channel_std=self.channel_std.to(device))


def latent_statistics(stage: Stage) -> dict[str, Any]:
    """Channel statistics of an encode stage's latents: mean, std, and the fingerprint of the tokenizer."""
    record = stage.record()
    assert record is not None
    latent = record["latent"]
    return {"tokenizer": stage.inputs["tokenizer"].fingerprint, "mean": latent["mean"], "std": latent["std"]}


def same_statistics(expected: dict[str, Any], actual: dict[str, Any], tolerance: float) -> bool:
    """Whether mean and std agree in every channel, up to this share of the expected std."""
    if len(expected["mean"]) != len(actual["mean"]):
        return False
    (mean, std), (actual_mean, actual_std) = (
        (torch.tensor(s["mean"], dtype=torch.float64), torch.tensor(s["std"], dtype=torch.float64))
        for s in (expected, actual)
    )
    difference = torch.maximum((mean - actual_mean).abs(), (std - actual_std).abs())
    return bool((difference <= tolerance * std).all())


def denormalise(latent: Tensor, stage: Stage) -> Tensor:
    """Normalised latents (B, d, h, w) back to the tokenizer's raw ones, with the statistics of an encode stage."""
    record = stage.record()
    assert record is not None
    mean, std = (torch.tensor(record["latent"][key], device=latent.device)[:, None, None] for key in ("mean", "std"))
    return latent * std + mean


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"latents-{index:05d}.safetensors"


def shard_indices(spec: Encode) -> range:
    return range(-(-spec.train_images // SHARD_IMAGES))


def shard_rows(spec: Encode, index: int) -> range:
    return range(spec.train_images)[index * SHARD_IMAGES : (index + 1) * SHARD_IMAGES]


def shard_identity(stage: Stage, index: int) -> dict[str, Any]:
    """The metadata by which a shard is recognised as belonging to this stage."""
    assert isinstance(stage.spec, Encode)
    rows = shard_rows(stage.spec, index)
    return {
        "tokenizer": stage.inputs["tokenizer"].fingerprint,
        "data": stage.spec.data.content,
        "stored": stage.spec.stored,
        "shard": index,
        "rows": [rows.start, rows.stop],
    }


def shard_metadata(path: Path) -> dict[str, Any]:
    """Identity and sums from a shard file; empty where it has none, and so belongs to no stage."""
    return json.loads(load_metadata(path).get("shard", "{}"))


def shard_sums(shard: dict[str, Tensor]) -> dict[str, Any]:
    """Expected sum and sum of squares of posterior samples, per channel over a shard, and the number of values."""
    if "sample" in shard:
        mean = shard["sample"].double()
        squares = mean.square()
    else:
        mean, std = shard["mean"].double(), shard["std"].double()
        squares = mean.square() + std.square()
    dims = (0, 1, 3, 4)  # all but the channel
    return {
        "sum": mean.sum(dim=dims).tolist(),
        "squares": squares.sum(dim=dims).tolist(),
        "values": mean.numel() // mean.shape[2],
    }


def channel_statistics(shards: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean and std of posterior samples per channel, from the sums (`shard_sums`) of all shards."""
    values = sum(shard["values"] for shard in shards)
    sums, squares = (
        sum(torch.tensor(shard[key], dtype=torch.float64) for shard in shards) for key in ("sum", "squares")
    )
    mean = sums / values
    std = (squares / values - mean.square()).clamp_min(0).sqrt()
    if not torch.isfinite(std).all() or (std < MIN_STD).any():
        raise ValueError("the latents do not vary in some channel: the tokenizer has collapsed")
    return {"mean": mean.tolist(), "std": std.tolist()}


def read_latents(stage: Stage) -> Latents:
    """The latents that an encode stage wrote, memory-mapped.

    Raises:
        SafetensorError, FileNotFoundError: a shard is damaged or missing.
        ValueError: a shard belongs to another tokenizer, data set or position, or has another shape than this stage
            writes; or the statistics in the record are not those of the shards.
    """
    return map_latents(stage, stage.folder, latent_statistics(stage))


def map_latents(stage: Stage, folder: Path, statistics: dict[str, Any]) -> Latents:
    """The latents of a stage in this folder, which must have these statistics; raises like `read_latents`."""
    assert isinstance(stage.spec, Encode)
    shards, sums = [], []
    for index in shard_indices(stage.spec):
        path = shard_path(folder, index)
        shard = load_tensors(path)
        metadata = shard_metadata(path)
        _check_shard(stage, path, index, shard, metadata)
        shards.append(shard)
        sums.append(metadata)
    if not same_statistics(channel_statistics(sums), statistics, SAME_FILES):
        raise ValueError(
            f"the mean and std in {folder / 'record.json'} are not those of the latents in the same folder: "
            "delete the folder to encode again"
        )
    channel_mean, channel_std = (torch.tensor(statistics[key])[:, None, None] for key in ("mean", "std"))
    return Latents(
        shards=tuple(shards),
        labels=torch.cat([shard["labels"] for shard in shards]),
        channel_mean=channel_mean,
        channel_std=channel_std,
    )


def _check_shard(stage: Stage, path: Path, index: int, shard: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """ValueError unless a shard, read from this file, is shard `index` of this stage."""
    expected = shard_identity(stage, index)
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"{path} does not belong to this stage: its {key} is {metadata.get(key)}, expected {value}; "
                f"delete {path.parent} to encode again"
            )
    assert isinstance(stage.spec, Encode)
    fit = stage.inputs["tokenizer"].spec
    assert isinstance(fit, FitTokenizer)
    images, views = expected["rows"][1] - expected["rows"][0], 2 if stage.spec.data.flip else 1
    shape = (images, views, fit.architecture.z_channels, fit.architecture.grid, fit.architecture.grid)
    names = ("sample",) if stage.spec.stored == "sample" else ("mean", "std")
    layout = {**{name: (torch.float16, shape) for name in names}, "labels": (torch.int64, (images,))}
    actual = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in shard.items()}
    if actual != layout:
        described = [", ".join(f"{n} {str(t)[6:]} {s}" for n, (t, s) in sorted(d.items())) for d in (actual, layout)]
        raise ValueError(f"{path} holds {described[0]}; expected {described[1]}; delete {path.parent} to encode again")
