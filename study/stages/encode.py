"""Stage encode: tokenizer, images -> latent shards with channel statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.autoencoder import Autoencoder, Posterior
from study import given
from study.compute import apply, autocast
from study.data import ImageSet, crop, load
from study.diagnostics import describe_latents, picture_latents
from study.distributed import gathered, on_main, share
from study.files import load_metadata, load_tensors, save_tensors
from study.randomness import generator
from study.specs import Encode, FitTokenizer, Stage
from study.stages.fit_tokenizer import trained
from study.stopping import Interrupted
from study.workspace import Record, Workspace, peak_memory_gib

SHARD_IMAGES = 8192
BATCH = 128
STORED = {"posterior": "mean and spread, float16", "sample": "a posterior sample of each view, float16"}
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


def statistics(stage: Stage) -> dict[str, Any]:
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
    rngs = [generator(0, "latent", 2 * int(row) + view) for row in rows]
    return posterior.sample(torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(posterior.mean.device))


def run(spec: Encode, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Write what is kept of every training image, shard by shard; whole shards stay, and several processes share them.

    The statistics are over all images, where the released code takes 10,000 at random (LightningDiT,
    datasets/img_latent_dataset.py).
    """
    apply(spec.compute)
    if spec.given is not None:
        return on_main(lambda: given.statistics(spec, inputs))
    stage = Stage("encode", spec, inputs)
    tokenizer, images = trained(inputs["tokenizer"]), load(spec.data, "train")
    mine = share(_shards(spec))
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
        "crop": crop(spec.data),
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


def read(stage: Stage) -> Latents:
    """The latents that an encode stage left, mapped from disk.

    Raises:
        SafetensorError, FileNotFoundError: a shard is torn or missing.
        ValueError: a shard of another tokenizer, data set or place, or of another shape than this stage writes; or the
            statistics of the record are not those of the shards.
    """
    return _mapped(stage, stage.folder, statistics(stage))


def _mapped(stage: Stage, folder: Path, kept: dict[str, Any]) -> Latents:
    """The latents of a stage that lie in a folder, which must have these statistics; raises as `read` does."""
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
