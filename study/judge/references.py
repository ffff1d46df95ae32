"""References: features of real images and their statistics, computed once and kept, that images are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.core.assets import asset
from study.core.files import fingerprint, load_tensors, save_tensors
from study.core.randomness import derive_seed
from study.data.datasets import load_images
from study.data.external_images import read_pictures, read_statistics
from study.judge.extractors import CLASSIFIER_FILE, class_scores
from study.judge.frechet import square_root, statistics
from study.judge.judges import all_features, build_judge, trained_classifier
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import SPATIAL_WIDTH, JudgeSpec
from study.plan.specs import ForeignFile
from study.plan.weight_files import REFERENCES, require_weights

if TYPE_CHECKING:
    from torch import Tensor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

REFERENCE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Features of real images and their statistics.

    features: float32 (N, D). mu: float64 (D,). sigma: float64 (D, D), unbiased. root: its symmetric square
    root.
    head: float32 (classes, D) of a judge whose class scores mean something (Inception), else None.
    spatial: mu, sigma and root, as above, of Inception's spatial features (SPATIAL_WIDTH wide); else None.
    hash names judge (weights included where they were trained here), data, split, count and choice of images.
    """

    features: Tensor
    mu: Tensor
    sigma: Tensor
    root: Tensor
    head: Tensor | None
    hash: str
    count: int
    spatial: dict[str, Tensor] | None = None


def balanced_choice(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices (count,) of a fixed, class-balanced choice; a smaller count takes a part of a larger one's.

    Each class is shuffled by a fixed seed and the classes take turns, until the small ones are used up.

    Raises:
        ValueError: more than there are, or fewer than 1.
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
    """Features and statistics of `count` real images of a split, computed once and kept as safetensors.

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
        "device": device,
    }
    if spec.name == "classifier":  # trained on another machine it is another judge
        weights = (trained_classifier(spec, data) / CLASSIFIER_FILE).read_bytes()
        key["weights"] = hashlib.sha256(weights).hexdigest()[:16]

    def pixels() -> np.ndarray:
        images = load_images(data, split)
        return np.ascontiguousarray(images.images[balanced_choice(images.labels, count)])

    return _kept_reference(spec, key, pixels, lambda: build_judge(spec, data, device))


def pictures_reference(
    spec: JudgeSpec,
    images: np.ndarray,
    digest: str,
    device: str = "cpu",
    given: dict[str, np.ndarray] | None = None,
) -> Reference:
    """The reference that images made elsewhere give: of all of them, computed once and kept.

    Args:
        spec: any judge but the classifier.
        images: uint8 (N, 1 or 3, H, W), N at least 2.
        digest: names them by their content.
        device: "cpu" or "cuda".
        given: float64 mu (2048,), sigma, mu_s (SPATIAL_WIDTH,), sigma_s of Inception's features over more images than
            these, which then take the place of their own; for Inception alone.

    Raises:
        ValueError: fewer than 2 images.
    """
    assert given is None or spec.name == "inception", "statistics belong to the network they were taken with"
    if len(images) < 2:
        raise ValueError(f"a reference needs at least 2 images to have a covariance, got {len(images)}")
    key: dict[str, Any] = {
        "judge": spec.fingerprint,
        "images": digest,
        "count": len(images),
        "version": REFERENCE_VERSION,
        "device": device,
    }
    if given is not None:
        known = hashlib.sha256(b"".join(given[name].tobytes() for name in sorted(given)))
        key["statistics"] = known.hexdigest()[:16]
    return _kept_reference(spec, key, lambda: images, lambda: build_judge(spec, None, device), given)


def _kept_reference(
    spec: JudgeSpec,
    key: dict[str, Any],
    pixels: Callable[[], np.ndarray],
    extractor: Callable[[], FeatureExtractorBase],
    given: dict[str, np.ndarray] | None = None,
) -> Reference:
    """The reference named by `key`, computed from `pixels()` by `extractor()` if it was not yet."""

    def fill(folder: Path) -> None:
        import torch

        network = extractor()
        found, spatial = all_features(network, pixels())
        gaussians = {"": statistics(found)}
        if spatial is not None:
            gaussians["spatial_"] = statistics(spatial)
        if given is not None:
            gaussians = {
                "": {"mu": given["mu"], "sigma": given["sigma"]},
                "spatial_": {"mu": given["mu_s"], "sigma": given["sigma_s"]},
            }
        tensors = {"features": found}
        for prefix, stats in gaussians.items():
            for name, value in {**stats, "root": square_root(stats["sigma"])}.items():
                tensors[prefix + name] = torch.from_numpy(value)
        if spec.name == "inception":
            tensors["head"] = class_scores(network)
        save_tensors(folder / "reference.safetensors", tensors)

    # Inception's once had no spatial part: those are made again, under the hash they had
    kept = {**key, "spatial": SPATIAL_WIDTH} if spec.name == "inception" else key
    tensors = load_tensors(asset("reference", kept, fill) / "reference.safetensors")
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


def published_reference(judge: JudgeSpec, given: ForeignFile, device: str) -> Reference:
    """The statistics of a published file, and its pictures for precision and recall, as study.evaluate takes them.

    Raises:
        ValueError: the file is missing, another than planned, or does not hold what REFERENCES says.
    """
    path, of = require_weights(given.name, given.sha256), REFERENCES[given.name]
    statistics, pictures = read_statistics(path), read_pictures(path)
    found = (len(pictures.pixels), *pictures.size)
    if statistics is None or found != (of.images, of.resolution, of.resolution):
        raise ValueError(
            f"{path} should hold statistics and {of.images} pictures of {of.resolution} px; it holds "
            f"{'no' if statistics is None else 'its'} statistics and {found[0]} pictures of {found[1]} x {found[2]} px"
        )
    return pictures_reference(judge, pictures.pixels, pictures.digest, device, statistics)
