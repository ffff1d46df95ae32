"""Features of a frozen foundation model over the training images, computed once and kept in bfloat16.

The VF loss and REPA need the same features in every epoch and for every aligned network; tokenizers and generators
share them. When they fit on the disk they are cached as a shared asset, else (ImageNet with a ViT-L would take 1.3 TB)
they are computed for each batch. Both compute in float32 whatever the precision of the training (in bfloat16 if the
recipe says so), and round to bfloat16, so the loss sees the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.configs import parse_tokenizer
from models.foundation import FoundationModel, foundation_model
from study.core.assets import asset
from study.core.compute import exact_convolutions
from study.core.files import create_array, load_tensors, read_json, save_tensors, write_json
from study.data.datasets import ImageSet, load_images
from study.plan.data_spec import DataSpec
from study.plan.features import CACHE_GIB, features_gib
from study.plan.specs import Encode, FitGenerator, FitTokenizer, FoundationRecipe
from study.plan.weight_files import FILES, network_hash, require_planned, require_weights

STATISTICS_IMAGES = 2048  # for the mean and standard deviation per channel
BATCH = {"cpu": 16, "cuda": 128}  # images; on a CPU small batches stay in its cache: 16 ran 1.7 times faster than 128


def frozen_foundation(name: str, recipe: FoundationRecipe, weights: str, device: str) -> FoundationModel:
    """This foundation model, on a device.

    Args:
        weights: SHA-256 in the plan.

    Raises:
        ValueError: its weights are missing or not the planned ones.
    """
    require_planned(f"the foundation model {name!r}", network_hash(name), weights)
    return foundation_model(
        name,
        weights=require_weights(name) if name in FILES else None,
        own_statistics=recipe.own_statistics,
        bfloat16=bool(recipe.bfloat16),
        input_size=recipe.input_size,
        stride=recipe.stride,
    ).to(device)


class FoundationFeatures:
    """Features of training images, standardised per channel if the recipe says so."""

    def __init__(
        self,
        name: str,
        recipe: FoundationRecipe,
        data: DataSpec,
        images: int,
        *,
        weights: str,
        device: str,
        report: Callable[[int, int], None],
    ) -> None:
        """Args:
        images: how many of the data's training images, from the first on.
        weights: SHA-256 of the model's weights in the plan.
        report: called with the images done and their total while features are computed.
        """
        self._recipe, self._count = recipe, images
        self._views = 2 if data.flip else 1  # plain, and mirrored
        self._images: ImageSet = load_images(data, "train")
        self._device, self._report = device, report
        self._batch = BATCH[self._device]
        self._model: FoundationModel | None = None
        self._load = functools.partial(frozen_foundation, name, recipe, weights, device)
        key: dict[str, Any] = {
            "foundation_model": name,
            "input_size": self._recipe.input_size,
            "stride": self._recipe.stride,
            "data": data.content,
            "resolution": data.resolution,
            "images": self._count,
            "views": self._views,
            "own_statistics": self._recipe.own_statistics,
            "weights": weights,
            **({"bfloat16": True} if self._recipe.bfloat16 else {}),
        }
        require_planned(f"the foundation model {name!r}", network_hash(name), weights)
        folder = asset("foundation-statistics", key, self._write_statistics)
        statistics = load_tensors(folder / "statistics.safetensors")
        self._mean, self._std = (statistics[name].to(self._device)[:, None, None] for name in ("mean", "std"))
        depth, height, width = (int(side) for side in statistics["shape"])
        self._shape = depth, height, width
        self._cache: np.ndarray | None = None
        if features_gib(self._shape, self._count, self._views) <= CACHE_GIB:
            folder = asset("foundation-features", key, self._write_features)
            self._cache = np.load(folder / "features.npy", mmap_mode="r")  # (N, views, D, h, w), bfloat16 bits
        else:
            self._network()  # loaded now, so that missing weights are reported before the training starts

    @property
    def width(self) -> int:
        """Channels D of the features."""
        return self._shape[0]

    def _network(self) -> FoundationModel:
        if self._model is None:
            self._model = self._load()
        return self._model

    def _forward(self, indices: np.ndarray, flipped: bool) -> Tensor:
        """Features bfloat16 (B, D, h, w) of these images on the CPU, all mirrored if `flipped`."""
        pixels = self._images.pixels(indices)
        return self._compute((pixels.flip(3) if flipped else pixels).to(self._device)).cpu()

    def _compute(self, pixels: Tensor) -> Tensor:
        """Features bfloat16 (B, D, h, w) of pixels on the model's device."""
        with exact_convolutions():
            return self._network()(pixels).to(torch.bfloat16)

    def _write_statistics(self, folder: Path) -> None:
        rows = np.unique(np.linspace(0, self._count - 1, STATISTICS_IMAGES).astype(int))
        batches = [rows[i : i + self._batch] for i in range(0, len(rows), self._batch)]
        features = torch.cat([self._forward(batch, False).double() for batch in batches])
        std, mean = torch.std_mean(features, dim=(0, 2, 3))
        save_tensors(
            folder / "statistics.safetensors",
            {"mean": mean.float(), "std": std.float().clamp_min(1e-6), "shape": torch.tensor(features.shape[1:])},
        )

    def _write_features(self, folder: Path) -> None:
        """Write all features, a batch at a time; an interrupted call is resumed from the last saved batch."""
        path, progress_file = folder / "features.npy", folder / "filled.json"
        shape = (self._count, self._views, *self._shape)
        done = read_json(progress_file) or 0
        if done and path.exists():
            bits = np.load(path, mmap_mode="r+")
        else:
            done, bits = 0, create_array(path, np.int16, shape)
        for start in range(done, self._count, self._batch):
            rows = np.arange(start, min(start + self._batch, self._count))
            for view in range(self._views):
                bits[rows, view] = self._forward(rows, bool(view)).view(torch.int16).numpy()
            self._report(int(rows[-1]) + 1, self._count)
            if start // self._batch % 64 == 63:
                bits.flush()
                write_json(progress_file, int(rows[-1]) + 1)
        bits.flush()

    def cached(self, indices: np.ndarray, flipped: Tensor) -> tuple[Tensor, ...]:
        """Cached features bfloat16 (B, D, h, w) of these images, mirrored where `flipped` (B,) bool; () without a
        cache."""
        if self._cache is None:
            return ()
        return (torch.from_numpy(self._cache[indices, flipped.long().numpy()]).view(torch.bfloat16),)

    def batch(self, pixels: Tensor, grid: int, cached: Tensor | None = None) -> Tensor:
        """Features (B, D, grid, grid) float32 on the device of the pixels.

        Args:
            pixels: (B, C, H, W), already mirrored where needed.
            cached: the cached features of these images (`cached`); None computes them from the pixels.
        """
        features = (self._compute(pixels) if cached is None else cached).float()
        if self._recipe.standardise:
            features = (features - self._mean) / self._std
        return resized(features, grid)

    def given(self, indices: np.ndarray, flipped: Tensor) -> Tensor:
        """What `of` takes for these images, on the CPU: their cached features, without a cache their pixels
        (B, C, H, W), either mirrored where `flipped` (B,) bool."""
        if cached := self.cached(indices, flipped):
            return cached[0]
        pixels = self._images.pixels(indices)
        return torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)

    def of(self, given: Tensor, grid: int) -> Tensor:
        """Features (B, D, grid, grid) float32 on the device of what was `given`."""
        return self.batch(given, grid, None if self._cache is None else given)


def resized(features: Tensor, grid: int) -> Tensor:
    """Features (B, D, h, w) on a grid of cells: (B, D, grid, grid), bilinear, averaged where that is coarser."""
    if features.shape[-1] == grid:
        return features
    return F.interpolate(features, size=(grid, grid), mode="bilinear", antialias=True)


def tokenizer_features(
    spec: FitTokenizer, report: Callable[[int, int], None] = lambda done, total: None
) -> FoundationFeatures:
    """The features that an aligned tokenizer is trained with."""
    name = parse_tokenizer(spec.tokenizer).foundation
    assert spec.foundation is not None and name is not None
    return FoundationFeatures(
        name, spec.foundation, spec.data, spec.train_images,
        weights=spec.foundation_weights, device=spec.compute.device, report=report,
    )  # fmt: skip


def generator_features(
    spec: FitGenerator, latents: Encode, report: Callable[[int, int], None] = lambda done, total: None
) -> FoundationFeatures | None:
    """The features that a generator is aligned with, of the images whose latents these are, in their order; None
    without REPA."""
    repa = spec.recipe.repa
    if repa is None:
        return None
    assert spec.foundation is not None and spec.foundation_weights is not None
    return FoundationFeatures(
        repa.model, spec.foundation, latents.data, latents.train_images,
        weights=spec.foundation_weights, device=spec.compute.device, report=report,
    )  # fmt: skip
