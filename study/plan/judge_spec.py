"""Judges as the planner sees them: names, input sizes and fingerprints.

Does not import torch; the networks are in study/judge/judges.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.names import nearest
from study.core.files import fingerprint
from study.plan.data_spec import DataSpec
from study.plan.weight_files import network_hash

WIDTHS = {"efficientnet_lite2": 1280, "classifier": 128, "inception": 2048}
SPATIAL_WIDTH = 2023  # of Inception's spatial features, 17 x 17 x 7
NATIVE_SIZE = {"efficientnet_lite2": 260, "inception": 299}
CLASSIFIER_LARGEST = 64  # pixels: larger images are downsized, so that its training takes minutes at most
# Images seen in the classifier's training: one epoch of Fashion-MNIST, about five of CIFAR-10, where four times as many
# lift its accuracy from 65% to 76%, and gFIDs of two trainings of one run differ by 2% instead of 6%
CLASSIFIER_IMAGES = 60_000
CLASSIFIER_IMAGES_IN_COLOUR = 240_000  # at 32 px, and in inverse proportion to the pixels of larger ones
CLASSIFIER_EPOCHS = 40  # at most, for small folders
# of a forward pass; of EfficientNet and Inception from their published 0.9 and 5.7 billion multiply-adds
FLOPS_PER_PIXEL = {"efficientnet_lite2": 26_000, "classifier": 20_000, "inception": 128_000}
VERSIONS = {"efficientnet_lite2": 1, "classifier": 2, "inception": 1}  # increased when a judge's features change


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """A feature extractor and its input size. The fingerprint also covers its version and its training data."""

    name: str
    size: int  # pixels, height and width of the network's input
    width: int  # features per image
    weights: str  # SHA-256 of its pretrained weights; empty: trained here, or not here yet
    fingerprint: str


def judge_spec(name: str, size: int, data: DataSpec | None) -> JudgeSpec:
    """Resolve a judge.

    Args:
        name: 'efficientnet_lite2' (trained on ImageNet, 1280 features), 'classifier' (trained on the training images of
            `data`, 128 features) or 'inception' (torch-fidelity's, 2048 features; needs its weights, see
            `study/plan/weight_files.py`).
        size: pixels to which images are resized; 0 is the judge's own size: 260 px for efficientnet_lite2, that of the
            images but at most 64 px for the classifier, 299 px for inception.
        data: data set of the judged images; None for pictures that belong to none.

    Raises:
        ValueError: an unknown name, a size that the judge does not accept, or a classifier without data.
    """
    if name not in WIDTHS:
        raise ValueError(f"unknown judge {name!r}; {nearest(name, WIDTHS)}")
    if data is None and name == "classifier":
        raise ValueError(
            "the classifier is trained on the classes of a data set, and none was given: "
            "compare with a data set, or choose efficientnet_lite2 or inception"
        )
    native = NATIVE_SIZE.get(name) or min(data.resolution if data else CLASSIFIER_LARGEST, CLASSIFIER_LARGEST)
    if name == "efficientnet_lite2":
        if size and size < 32:
            raise ValueError(f"efficientnet_lite2 downsamples 32 times, so it needs at least 32 px, not {size}")
    elif size not in (0, native):
        raise ValueError(f"{name} needs images of {native} px here, not {size}; set {native}, or 0 for its own size")
    size = size or native
    weights = "" if name == "classifier" else network_hash(name)
    content: dict[str, Any] = {"name": name, "size": size, "version": VERSIONS[name], "weights": weights}
    if name == "classifier" and data:
        content["data"] = data.content
    return JudgeSpec(name=name, size=size, width=WIDTHS[name], weights=weights, fingerprint=fingerprint(content))


def classifier_images(data: DataSpec) -> int:
    """Images seen in the training of this data set's classifier."""
    images = CLASSIFIER_IMAGES
    if data.channels > 1:
        side = max(32, min(data.resolution, CLASSIFIER_LARGEST))
        images = CLASSIFIER_IMAGES_IN_COLOUR * 32**2 // side**2
    return min(images, CLASSIFIER_EPOCHS * data.train_images)


def reference_name(data: DataSpec, split: str, count: int) -> str:
    """Name of a reference in the results table."""
    return f"{data.name} {split}, {count} images"
