"""Representation autoencoders as they are trained: the frozen encoder, loaded when it is first needed, and the mean and
variance of its features."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.configs import parse_tokenizer
from models.foundation import FoundationModel
from models.representation_autoencoder import RepresentationAutoencoder
from study.core.assets import asset
from study.core.compute import exact_convolutions
from study.core.files import load_tensors, save_tensors
from study.data.datasets import load_images
from study.plan.specs import FitTokenizer
from study.train.foundation_features import BATCH, frozen_foundation

STATISTICS_IMAGES = 50_000  # at most; the mean is then known to 0.5% of a standard deviation


def representation_autoencoder(spec: FitTokenizer) -> RepresentationAutoencoder:
    """The tokenizer of this spec before its training, on the CPU: features are not normalised yet.

    Its encoder, on the device of the spec, is loaded by the first image that is encoded; ValueError then if its weights
    are missing or not the planned ones.
    """

    name, recipe = parse_tokenizer(spec.tokenizer).encoder, spec.foundation
    assert name is not None and recipe is not None

    @functools.cache
    def encoder() -> FoundationModel:
        return frozen_foundation(name, recipe, spec.foundation_weights, spec.compute.device)

    def features(pixels: Tensor) -> Tensor:
        with exact_convolutions():
            return torch.cat([encoder()(part) for part in pixels.split(BATCH[spec.compute.device])])

    return RepresentationAutoencoder(spec.architecture, features)


def feature_statistics(
    spec: FitTokenizer,
    tokenizer: RepresentationAutoencoder,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each of the encoder's features over training images, per channel and place: (d, h, w).

    Over all training images, unmirrored, or STATISTICS_IMAGES that are evenly chosen; the released code takes all
    (bytetriper/RAE, src/calculate_stat.py). Computed once and shared by trainings on the same images.

    Args:
        report: called with the images done and their total.
    """
    assert spec.foundation is not None
    count = spec.train_images

    def write(folder: Path) -> None:
        images = load_images(spec.data, "train")
        rows = np.unique(np.linspace(0, count - 1, min(count, STATISTICS_IMAGES)).astype(int))
        total: Tensor = torch.zeros(tokenizer.latent_mean.shape, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for start in range(0, len(rows), BATCH[spec.compute.device]):
            pixels = images.pixels(rows[start : start + BATCH[spec.compute.device]]).to(spec.compute.device)
            features = tokenizer.features(pixels).double()
            total += features.sum(0).cpu()
            squares += features.square().sum(0).cpu()
            report(start + len(pixels), len(rows))
        mean = total / len(rows)
        variance = (squares / len(rows) - mean.square()).clamp_min(0)
        save_tensors(folder / "statistics.safetensors", {"mean": mean.float(), "variance": variance.float()})

    key = {
        "foundation_model": spec.architecture.frozen_encoder,
        "input_size": spec.foundation.input_size,
        "stride": spec.foundation.stride,
        "own_statistics": spec.foundation.own_statistics,
        "weights": spec.foundation_weights,
        "data": spec.data.content,
        "resolution": spec.data.resolution,
        "images": count,
    }
    found = load_tensors(asset("feature-statistics", key, write) / "statistics.safetensors")
    return found["mean"], found["variance"]
