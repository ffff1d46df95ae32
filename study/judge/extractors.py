"""The judges' networks, as torch-fidelity extractors: uint8 (B, 3, H, W) in, a tuple of features out."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from models.foundation import efficientnet_lite, folded
from models.weights import load_foreign
from study.core.files import load_tensors, save_tensors, write_json
from study.core.randomness import batch_indices, derive_seed, make_rng
from study.core.stopping import stop_if_asked
from study.data.datasets import ImageSet, load_images
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import classifier_images

PENULTIMATE = "penultimate"
REGISTERED = {
    "efficientnet_lite2": "study-efficientnet-lite2",
    "classifier": "study-classifier",
    "inception": "study-inception",
}
LAYERS = {"efficientnet_lite2": PENULTIMATE, "classifier": PENULTIMATE, "inception": "2048"}

CLASSIFIER_FILE = "classifier.safetensors"
CLASSIFIER_BATCH = 64
CLASSIFIER_RATE = 4e-3


class Penultimate(FeatureExtractorBase):
    """Base of our extractors: images are resized to `size` (bilinear, antialiased) and scaled to [-1, 1]."""

    def __init__(self, name: str, features_list: list[str], size: int) -> None:
        super().__init__(name, features_list)
        self.size = size

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (PENULTIMATE,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return PENULTIMATE

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def prepare(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        return prepared(images, self.size)


class EfficientNetLite2(Penultimate):
    """ImageNet's EfficientNet-Lite2: pooled features before the classifier, width 1280.

    Deviation from timm's recipe: bilinear, not bicubic, and a small input, see `study/judge/judges.py`. Batch norms
    are folded into their convolutions (features change by 1e-5 of their range; a third faster).
    """

    def __init__(self, name: str, features_list: list[str], size: int = 64, **_: Any) -> None:
        super().__init__(name, features_list, size)
        self.network: Any = folded(efficientnet_lite("lite2"))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        maps = self.network.forward_features(self.prepare(images))
        return (self.network.forward_head(maps, pre_logits=True),)


class Classifier(Penultimate):
    """The classifier that `train_classifier` trains: pooled features, width 128."""

    def __init__(self, name: str, features_list: list[str], size: int = 32, weights: Path | None = None, **_: Any):
        super().__init__(name, features_list, size)
        if weights is None:
            raise ValueError("the classifier needs the path of its weights")
        tensors = load_tensors(weights)
        self.trunk, self.head = classifier(len(tensors["head.bias"]))
        self.load_state_dict(tensors)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.trunk(self.prepare(images)),)


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception: pooled features (B, 2048) and, from the same pass, spatial ones (B, 2023), float32.

    The spatial features are the first SPATIAL_CHANNELS of the 192 channels of `mixed_6/conv` in TensorFlow's graph,
    after its ReLU: `Mixed_6d.branch1x1` by PyTorch's names. Their layout is channels last, 17 x 17 x 7, to match the
    statistics in ADM's reference files. torch-fidelity itself only gives 64, 192, 768 or 2048 pooled features.

    Source: sFID of Nash et al. 2021 (arXiv 2103.03841) as in `openai/guided-diffusion`, evaluations/evaluator.py
    (FID_SPATIAL_NAME, _create_feature_graph); the correspondence of names is in `toshas/torch-fidelity`,
    utils/util_convert_inception_weights.py.
    """

    SPATIAL_CHANNELS = 7

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list, **options)
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, maps: Tensor) -> None:
        self._maps = maps  # (B, 192, 17, 17)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (pooled,) = super().forward(images)
        spatial = self._maps[:, : self.SPATIAL_CHANNELS].permute(0, 2, 3, 1)  # (B, 17, 17, 7)
        return pooled, spatial.flatten(1).float()


_CLASSES = {"efficientnet_lite2": EfficientNetLite2, "classifier": Classifier, "inception": Inception}
for _name, _class in _CLASSES.items():
    if REGISTERED[_name] not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(REGISTERED[_name], _class)


def prepared(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [-1, 1], channels last."""
    grey = images.stride(1) == 0  # one channel that is seen as three: resized once
    pixels = images[:, :1].float() if grey else images.float()
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return (pixels / 127.5 - 1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def plain_weights(path: Path) -> io.BytesIO:
    """Inception's weights, read safely, in a buffer: torch-fidelity unpickles its argument, so it must not get the
    file."""
    buffer = io.BytesIO()
    torch.save(load_foreign(path), buffer)
    buffer.seek(0)
    return buffer


def class_scores(extractor: FeatureExtractorBase) -> Tensor:
    """Matrix (classes, D) from Inception's features to class scores without bias, on which its score is defined."""
    return extractor.fc.weight.detach().clone()


def classifier(classes: int) -> tuple[nn.Sequential, nn.Linear]:
    """Trunk, float (B, 3, S, S) to (B, 128), and last layer of a small convolutional classifier."""

    def block(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

    shapes = ((3, 24, 2), (24, 48, 2), (48, 48, 1), (48, 128, 2), (128, 128, 1))
    trunk = nn.Sequential(*(layer for shape in shapes for layer in block(*shape)))
    trunk.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return trunk, nn.Linear(128, classes)


def train_classifier(data: DataSpec, size: int, folder: Path) -> None:
    """Train the classifier on the training images; writes it and its test accuracy (`judge.json`) to `folder`.

    AdamW with a one-cycle rate; seeds are fixed, so the same machine and number of threads give the same bytes. The
    accuracy (0 to 1) is on at most 10,000 test images; it is recorded and not used.
    """
    started = time.monotonic()
    train, test = load_images(data, "train"), load_images(data, "test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, "classifier", 0))
        trunk, head = classifier(data.classes)
    network = nn.ModuleDict({"trunk": trunk, "head": head}).to(memory_format=torch.channels_last)
    steps = -(-classifier_images(data) // CLASSIFIER_BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), CLASSIFIER_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, CLASSIFIER_RATE, total_steps=max(steps, 2))
    for step in range(steps):
        stop_if_asked("training the judge")
        seen = step * CLASSIFIER_BATCH
        rows = batch_indices(derive_seed(0, "classifier", 1), data.train_images, seen, CLASSIFIER_BATCH)
        pixels = _batch(train, rows, size)
        if data.flip:
            mirror = torch.rand(len(rows), generator=make_rng(0, "classifier flip", seen)) < 0.5
            pixels = torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)
        loss = F.cross_entropy(head(trunk(pixels)), torch.from_numpy(train.labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    rows = np.arange(len(test.labels))[:: -(-len(test.labels) // 10_000)]
    correct = 0
    with torch.inference_mode():
        for batch in np.array_split(rows, -(-len(rows) // 250)):
            correct += int((head(trunk(_batch(test, batch, size))).argmax(1).numpy() == test.labels[batch]).sum())
    save_tensors(folder / CLASSIFIER_FILE, network.state_dict())
    accuracy = correct / len(rows)
    write_json(
        folder / "judge.json",
        {
            "accuracy": round(accuracy, 4),
            "test_images": len(rows),
            "images_seen": steps * CLASSIFIER_BATCH,
            "seconds": round(time.monotonic() - started, 1),
        },
    )


def _batch(images: ImageSet, rows: np.ndarray, size: int) -> Tensor:
    return prepared(torch.from_numpy(images.images(rows)).expand(-1, 3, -1, -1), size)
