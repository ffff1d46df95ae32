"""References that images are compared with: features of real images and their statistics, computed once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.core.assets import asset
from study.core.files import fingerprint, load_tensors, save_tensors
from study.core.randomness import derive_seed
from study.data.datasets import load_images, selected_images
from study.data.external_images import read_pictures, read_statistics
from study.judge.extractors import CLASSIFIER_FILE, class_scores
from study.judge.frechet import square_root, statistics
from study.judge.judges import all_features, build_judge, trained_classifier
from study.judge.neighbours import NEIGHBOURS, radii
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import JudgeSpec
from study.plan.specs import ForeignFile
from study.plan.weight_files import REFERENCES, require_weights

if TYPE_CHECKING:
    from torch import Tensor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

REFERENCE_VERSION = 2
RADII_VERSION = 1
PART = 1000  # images that are read at a time


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Features of real images and their statistics.

    features: float32 (N, D). mu: float64 (D,). sigma: float64 (D, D), unbiased. root: its symmetric square root.
    head: float32 (classes, D), weights of the class scores, for Inception; else None.
    spatial: mu, sigma and root of Inception's spatial features (SPATIAL_WIDTH wide); else None.
    hash: covers judge (with its weights if trained here), data, split, count and choice of images.
    radii: float32 (N,), see study/judge/neighbours.py; None where nothing was asked that needs them.
    """

    features: Tensor
    mu: Tensor
    sigma: Tensor
    root: Tensor
    head: Tensor | None
    hash: str
    count: int
    spatial: dict[str, Tensor] | None = None
    radii: Tensor | None = None


def balanced_choice(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices (count,) of a fixed, class-balanced choice; a smaller choice is the beginning of a larger one.

    Each class is shuffled by a fixed seed and the classes take turns, until the small ones are used up.

    Raises:
        ValueError: `count` is below 1 or above the number of images.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"asked for {count} of {len(labels)} images; give a count from 1 to {len(labels)}")
    shuffled = np.random.default_rng(derive_seed(0, "reference", 0)).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # of each image within its class
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        turn[rows] = np.arange(len(rows))
    return np.lexsort((labels, turn))[:count]


def dataset_reference(spec: JudgeSpec, data: DataSpec, split: str, count: int, device: str = "cpu") -> Reference:
    """Features and statistics of `count` real images of a split, computed once and cached as safetensors.

    Raises:
        ValueError: more images than the split has, or fewer than 2.
    """
    if count < 2:
        raise ValueError(f"a reference needs at least 2 images to have a covariance, got {count}")
    key: dict[str, Any] = {
        "judge": spec.fingerprint,
        "data": data.content,
        "split": split,
        "count": count,
        "version": REFERENCE_VERSION,
    }
    if spec.name == "classifier":  # a classifier trained on another machine is another judge
        weights = (trained_classifier(spec, data) / CLASSIFIER_FILE).read_bytes()
        key["weights"] = hashlib.sha256(weights).hexdigest()[:16]

    def pixels() -> Iterator[np.ndarray]:
        return selected_images(data, split, balanced_choice(load_images(data, split).labels, count), PART)

    return _cached_reference(spec, key, pixels, lambda: build_judge(spec, data, device))


def pictures_reference(
    spec: JudgeSpec,
    images: np.ndarray,
    digest: str,
    device: str = "cpu",
    published: dict[str, np.ndarray] | None = None,
) -> Reference:
    """The reference made of all these images, which come from outside this study; computed once and cached.

    Args:
        spec: any judge but the classifier.
        images: uint8 (N, 1 or 3, H, W), N at least 2.
        digest: hash of their content.
        device: "cpu" or "cuda".
        published: float64 mu (2048,), sigma, mu_s (SPATIAL_WIDTH,), sigma_s of Inception's features over more images
            than these; they replace the statistics of these images. For Inception only.

    Raises:
        ValueError: fewer than 2 images.
    """
    assert published is None or spec.name == "inception", "statistics belong to the network that computed them"
    if len(images) < 2:
        raise ValueError(f"a reference needs at least 2 images to have a covariance, got {len(images)}")
    key: dict[str, Any] = {
        "judge": spec.fingerprint,
        "images": digest,
        "count": len(images),
        "version": REFERENCE_VERSION,
    }
    if published is not None:
        content = hashlib.sha256(b"".join(published[name].tobytes() for name in sorted(published)))
        key["statistics"] = content.hexdigest()[:16]
    return _cached_reference(spec, key, lambda: [images], lambda: build_judge(spec, None, device), published)


def _cached_reference(
    spec: JudgeSpec,
    key: dict[str, Any],
    pixels: Callable[[], Iterable[np.ndarray]],
    extractor: Callable[[], FeatureExtractorBase],
    published: dict[str, np.ndarray] | None = None,
) -> Reference:
    """The reference named by `key`, computed from `pixels()` by `extractor()` unless it is cached."""

    def fill(folder: Path) -> None:
        import torch

        network = extractor()
        pooled, spatial = all_features(network, pixels())
        gaussians = {"": statistics(pooled)}
        if spatial is not None:
            gaussians["spatial_"] = statistics(spatial)
        if published is not None:
            gaussians = {
                "": {"mu": published["mu"], "sigma": published["sigma"]},
                "spatial_": {"mu": published["mu_s"], "sigma": published["sigma_s"]},
            }
        tensors = {"features": pooled}
        for prefix, stats in gaussians.items():
            for name, value in {**stats, "root": square_root(stats["sigma"])}.items():
                tensors[prefix + name] = torch.from_numpy(value)
        if spec.name == "inception":
            tensors["head"] = class_scores(network)
        save_tensors(folder / "reference.safetensors", tensors)

    tensors = load_tensors(asset("reference", key, fill) / "reference.safetensors")
    spatial = {name: tensors[f"spatial_{name}"] for name in ("mu", "sigma", "root") if f"spatial_{name}" in tensors}
    return Reference(
        features=tensors["features"],
        mu=tensors["mu"],
        sigma=tensors["sigma"],
        root=tensors["root"],
        head=tensors.get("head"),
        hash=fingerprint(key),
        count=len(tensors["features"]),
        spatial=spatial or None,
    )


def with_radii(reference: Reference) -> Reference:
    """The reference with the radii of its images, for precision and recall; computed once and cached."""

    def fill(folder: Path) -> None:
        save_tensors(folder / "radii.safetensors", {"radii": radii(reference.features - reference.mu.float())})

    key = {"reference": reference.hash, "neighbours": NEIGHBOURS, "version": RADII_VERSION}
    return replace(reference, radii=load_tensors(asset("radii", key, fill) / "radii.safetensors")["radii"])


def published_reference(judge: JudgeSpec, file: ForeignFile, device: str) -> Reference:
    """The statistics of a published file, and its pictures for precision and recall, as in study.evaluate.

    Raises:
        ValueError: the file is missing, is not the planned one, or does not hold what REFERENCES says.
    """
    path, expected = require_weights(file.name, file.sha256), REFERENCES[file.name]
    published, pictures = read_statistics(path), read_pictures(path)
    count, (height, width) = len(pictures.pixels), pictures.size
    size = (expected.images, expected.resolution, expected.resolution)
    if published is None or (count, height, width) != size:
        raise ValueError(
            f"{path} should hold statistics and {expected.images} pictures of {expected.resolution} px; it holds "
            f"{'no' if published is None else 'its'} statistics and {count} pictures of {height} x {width} px"
        )
    return pictures_reference(judge, pictures.pixels, pictures.digest, device, published)
