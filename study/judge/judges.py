"""Judges: frozen feature extractors in whose space images are compared.

Small scales use two unrelated judges, an ImageNet network and a classifier trained here; a conclusion holds when both
agree. Tokenizers are never aligned with either of these networks. Planning uses study/plan/judge_spec.py; the networks
are in study/judge/extractors.py, and the references that images are compared with in study/judge/references.py.

Measured on Fashion-MNIST with EfficientNet-Lite2, 5,000 images against 5,000: Frechet distance of a corrupted test set
to the training set, divided by that of the unchanged test set. The smallest input separates best and costs least.

    input   blurred   noise of 8/255   3 bits   a class missing   images/s (2 cores)
     64       4.4         13.9          3.3          1.6               600 to 800
     96       4.3          9.2          3.4          1.6               250 to 350
    128       4.0         10.7          3.3          1.5               about 190
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.core.assets import asset
from study.core.stopping import stop_if_asked
from study.judge import extractors
from study.judge.extractors import train_classifier
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import JudgeSpec
from study.plan.weight_files import network_hash, require_planned, require_weights

if TYPE_CHECKING:
    from torch import Tensor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

# Images at a time; on a CPU small batches stay in its cache: 25 ran 1.2 to 2 times faster than 200.
BATCH = {"cpu": 25, "cuda": 250}


def build_judge(spec: JudgeSpec, data: DataSpec | None, device: str = "cpu") -> FeatureExtractorBase:
    """The frozen extractor on `device`: uint8 (B, 3, H, W) in, a tuple that begins with features float32 (B, D) out.

    `data` is the same as for `judge_spec`. The classifier is trained on first use, which takes half a minute
    of one core on grey pictures and two minutes on colour ones.

    Raises:
        ValueError: weights are missing or damaged.
    """
    from torch_fidelity.utils import create_feature_extractor

    options: dict[str, Any] = {"size": spec.size}
    if spec.name == "inception":
        path = require_weights("inception", spec.weights)
        options = {"feature_extractor_weights_path": extractors.plain_weights(path)}
    elif spec.name == "classifier":
        assert data is not None, "judge_spec gives no classifier without data"
        options["weights"] = trained_classifier(spec, data) / extractors.CLASSIFIER_FILE
    else:
        require_planned(f"the judge {spec.name!r}", network_hash(spec.name), spec.weights)
    extractor = create_feature_extractor(
        extractors.REGISTERED[spec.name], [extractors.LAYERS[spec.name]], cuda=False, verbose=False, **options
    )
    return extractor.to(device)


def features(extractor: FeatureExtractorBase, images: np.ndarray | Tensor, batch_size: int | None = None) -> Tensor:
    """Features float32 (N, D), on the CPU, of uint8 images (N, 1 or 3, H, W); one channel is repeated to three.

    Independent of `batch_size` (images; None: BATCH for the device) up to the last float32 digits.

    Raises:
        ValueError: images of another type or shape.
    """
    return all_features(extractor, [images], batch_size)[0]


def all_features(
    extractor: FeatureExtractorBase, images: Iterable[np.ndarray | Tensor], batch_size: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """`features` of images that come in parts, and Inception's spatial features from the same pass, float32
    (N, SPATIAL_WIDTH); else None. How they are parted changes nothing."""
    import torch

    device = next(extractor.parameters()).device
    parts = []
    with torch.inference_mode():
        for batch in _batches(images, batch_size or BATCH.get(device.type, 25)):
            stop_if_asked("judging")
            outputs = extractor(batch.to(device).expand(-1, 3, -1, -1))
            parts.append([output.float().cpu() for output in outputs])
    if not parts:
        raise ValueError("no images to judge")
    pooled, *spatial = (torch.cat(batches) for batches in zip(*parts, strict=True))
    return pooled, spatial[0] if spatial else None


def _batches(parts: Iterable[np.ndarray | Tensor], size: int) -> Iterator[Tensor]:
    """The images of all parts in batches of this size, the last one being smaller."""
    import torch

    rest: Tensor | None = None
    for part in parts:
        if part.ndim != 4 or part.shape[1] not in (1, 3) or part.dtype not in (np.uint8, torch.uint8):
            raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), got {part.dtype} {tuple(part.shape)}")
        for start in range(0, len(part), size):
            piece = part[start : start + size]
            images = torch.from_numpy(piece.copy()) if isinstance(piece, np.ndarray) else piece
            images = images if rest is None else torch.cat([rest, images])
            if len(images) >= size:
                yield images[:size]
            rest = images[size:] if len(images) > size else None if len(images) == size else images
    if rest is not None:
        yield rest


def trained_classifier(spec: JudgeSpec, data: DataSpec) -> Path:
    """Folder with the trained classifier and `judge.json`, which holds its accuracy.

    Trained once under a study root, whatever the machine: its weights are in the hash of every reference.
    """
    key = {"judge": spec.fingerprint, "data": data.content, "size": spec.size}
    return asset("classifier", key, lambda folder: train_classifier(data, spec.size, folder))
