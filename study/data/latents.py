"""Latents as an encode stage keeps them: shards on the disk, and the channel statistics that normalise them."""

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
LEAST_SPREAD = 1e-5  # of a channel, whose latents are about 1; a posterior that shrank to nothing still has 3e-7
# Shares of a channel's spread that statistics may differ by
SAME_FILES = 1e-6  # what sums of the same numbers differ by
SAME_ENCODING = 1e-3  # what processors and precisions differ by, and tokenizers by more


@dataclass(frozen=True)
class Latents:
    """Posteriors of the training images or samples of them, raw, and the statistics that normalise them.

    Args:
        shards: "mean" and "std", or "sample", of SHARD_IMAGES images each (the last may hold fewer), float16
            (n, views, d, h, w); the views are the image and, for data that may be flipped, its mirror. Tensors of a
            shard that was read are mapped from disk: ImageNet's do not fit into memory, and a batch touches only its
            own rows.
        labels: (N,) int64.
        channel_mean, channel_std: (d, 1, 1) float32, of posterior samples over all images.
    """

    shards: tuple[dict[str, Tensor], ...]
    labels: Tensor
    channel_mean: Tensor
    channel_std: Tensor

    @property
    def _any(self) -> Tensor:
        return next(tensor for name, tensor in self.shards[0].items() if name != "labels")

    @property
    def views(self) -> int:
        return self._any.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent: (d, h, w)."""
        return tuple(self._any.shape[2:])

    def rows(self, name: str, indices: np.ndarray, views: Tensor) -> Tensor:
        """float16 (B, d, h, w): the tensor of this name for these views of these images."""
        rows = torch.from_numpy(indices)
        if len(self.shards) == 1:
            return self.shards[0][name][rows, views]
        found = torch.empty(len(indices), *self.shape, dtype=torch.float16)
        number = rows // SHARD_IMAGES
        for index in torch.unique(number).tolist():
            here = number == index
            found[here] = self.shards[index][name][rows[here] - index * SHARD_IMAGES, views[here]]
        return found

    def sample(self, indices: np.ndarray, views: Tensor, noise: Tensor) -> Tensor:
        """Normalised posterior samples (B, d, h, w) float32 of these images: with this noise, or as they are stored."""
        return self.normalised(self.stored(indices, views), noise)

    def stored(self, indices: np.ndarray, views: Tensor) -> tuple[Tensor, ...]:
        """What is kept of these views of these images, each float16 (B, d, h, w): mean and spread, or a sample."""
        names = ("sample",) if "sample" in self.shards[0] else ("mean", "std")
        return tuple(self.rows(name, indices, views) for name in names)

    def normalised(self, stored: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Normalised latents (B, d, h, w) float32 of what is stored: the sample, else one drawn with this noise."""
        raw, *std = (half.float() for half in stored)
        if std:
            raw = raw + std[0] * noise
        return (raw - self.channel_mean) / self.channel_std

    def on(self, device: str) -> Latents:
        """The same with its statistics on a device; shards stay on the disk."""
        return replace(self, channel_mean=self.channel_mean.to(device), channel_std=self.channel_std.to(device))


def latent_statistics(stage: Stage) -> dict[str, Any]:
    """Of the latents that an encode stage left: mean and spread per channel, and the tokenizer's fingerprint."""
    record = stage.record()
    assert record is not None
    latent = record["latent"]
    return {"tokenizer": stage.inputs["tokenizer"].fingerprint, "mean": latent["mean"], "std": latent["std"]}


def same_statistics(one: dict[str, Any], other: dict[str, Any], within: float) -> bool:
    """Whether mean and spread agree in every channel, within this share of the spread."""
    if len(one["mean"]) != len(other["mean"]):
        return False
    (mean, std), (other_mean, other_std) = (
        (torch.tensor(s["mean"], dtype=torch.float64), torch.tensor(s["std"], dtype=torch.float64))
        for s in (one, other)
    )
    off = torch.maximum((mean - other_mean).abs(), (std - other_std).abs())
    return bool((off <= within * std).all())


def denormalise(latent: Tensor, stage: Stage) -> Tensor:
    """Normalised latents (B, d, h, w) back to the tokenizer's raw ones, with the statistics of an encode stage."""
    record = stage.record()
    assert record is not None
    mean, std = (torch.tensor(record["latent"][key], device=latent.device)[:, None, None] for key in ("mean", "std"))
    return latent * std + mean


def _shard(folder: Path, index: int) -> Path:
    return folder / f"latents-{index:05d}.safetensors"


def _shards(spec: Encode) -> range:
    return range(-(-spec.train_images // SHARD_IMAGES))


def _rows(spec: Encode, index: int) -> range:
    return range(spec.train_images)[index * SHARD_IMAGES : (index + 1) * SHARD_IMAGES]


def _identity(stage: Stage, index: int) -> dict[str, Any]:
    """What a shard of a stage says of itself."""
    assert isinstance(stage.spec, Encode)
    rows = _rows(stage.spec, index)
    return {
        "tokenizer": stage.inputs["tokenizer"].fingerprint,
        "data": stage.spec.data.content,
        "stored": stage.spec.stored,
        "shard": index,
        "rows": [rows.start, rows.stop],
    }


def _about(path: Path) -> dict[str, Any] | None:
    """What a whole shard says of itself, with its sums; None where it says nothing, as the first ones did."""
    text = load_metadata(path).get("shard")
    return None if text is None else json.loads(text)


def _sums(shard: dict[str, Tensor]) -> dict[str, Any]:
    """Per channel, over all values of a shard: what posterior samples add up to and what their squares do."""
    if "sample" in shard:
        mean = shard["sample"].double()
        squares = mean.square()
    else:
        mean, std = shard["mean"].double(), shard["std"].double()
        squares = mean.square() + std.square()
    over = (0, 1, 3, 4)
    return {
        "sum": mean.sum(dim=over).tolist(),
        "squares": squares.sum(dim=over).tolist(),
        "values": mean.numel() // mean.shape[2],
    }


def _channel_statistics(shards: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean and spread of posterior samples, from the sums of all shards."""
    values = sum(shard["values"] for shard in shards)
    sums, squares = (
        sum(torch.tensor(shard[key], dtype=torch.float64) for shard in shards) for key in ("sum", "squares")
    )
    mean = sums / values
    std = (squares / values - mean.square()).clamp_min(0).sqrt()
    if not torch.isfinite(std).all() or (std < LEAST_SPREAD).any():
        raise ValueError("the latents have no spread in some channel: the tokenizer has collapsed")
    return {"mean": mean.tolist(), "std": std.tolist()}


def read_latents(stage: Stage) -> Latents:
    """The latents that an encode stage left, mapped from disk.

    Raises:
        SafetensorError, FileNotFoundError: a shard is torn or missing.
        ValueError: a shard of another tokenizer, data set or place, or of another shape than this stage writes; or the
            statistics of the record are not those of the shards.
    """
    return _mapped(stage, stage.folder, latent_statistics(stage))


def _mapped(stage: Stage, folder: Path, kept: dict[str, Any]) -> Latents:
    """The latents of a stage that lie in a folder, which must have these statistics; raises as `read_latents` does."""
    assert isinstance(stage.spec, Encode)
    shards, abouts = [], []
    for index in _shards(stage.spec):
        path = _shard(folder, index)
        shard = load_tensors(path)
        about = _about(path)
        _check(stage, path, index, shard, about)
        shards.append(shard)
        # the first shards said nothing of themselves: what they hold must then add up to the record's statistics
        abouts.append(about or _sums(shard))
    if not same_statistics(_channel_statistics(abouts), kept, SAME_FILES):
        raise ValueError(
            f"the mean and spread in {folder / 'record.json'} are not those of the latents beside it: "
            "delete the folder to make it again"
        )
    channel_mean, channel_std = (torch.tensor(kept[key])[:, None, None] for key in ("mean", "std"))
    return Latents(
        shards=tuple(shards),
        labels=torch.cat([shard["labels"] for shard in shards]),
        channel_mean=channel_mean,
        channel_std=channel_std,
    )


def _check(stage: Stage, path: Path, index: int, shard: dict[str, Tensor], about: dict[str, Any] | None) -> None:
    """ValueError unless a shard, read from this file, is this one of this stage."""
    expected = _identity(stage, index)
    for key, value in expected.items():
        if about is not None and about.get(key) != value:
            raise ValueError(
                f"{path} is not of this stage: its {key} is {about.get(key)}, expected {value}; "
                f"delete {path.parent} to make it again"
            )
    assert isinstance(stage.spec, Encode)
    fit = stage.inputs["tokenizer"].spec
    assert isinstance(fit, FitTokenizer)
    images, views = expected["rows"][1] - expected["rows"][0], 2 if stage.spec.data.flip else 1
    shape = (images, views, fit.architecture.z_channels, fit.architecture.grid, fit.architecture.grid)
    names = ("sample",) if stage.spec.stored == "sample" else ("mean", "std")
    form = {**{name: (torch.float16, shape) for name in names}, "labels": (torch.int64, (images,))}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in shard.items()}
    if found != form:
        described = [", ".join(f"{n} {str(t)[6:]} {s}" for n, (t, s) in sorted(f.items())) for f in (found, form)]
        raise ValueError(f"{path} holds {described[0]}; expected {described[1]}; delete {path.parent} to make it again")
