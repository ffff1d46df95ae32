"""Judges: frozen feature extractors in whose space images are compared, and the reference they compare with.

Two unrelated ones at small scales, an ImageNet network and a classifier trained here; a conclusion holds
when both agree. Neither is a network that a tokenizer is aligned to. Names and fingerprints are torch-free,
for the planner; the networks are in `study/extractors.py`.

Measured on Fashion-MNIST with EfficientNet-Lite2, 5,000 images against 5,000: Frechet distance of a
corrupted test set to the training set, over that of the test set itself. The smallest input separates best
and costs least.

    input   blurred   noise of 8/255   3 bits   a class missing   images/s (2 cores)
     64       4.4         13.9          3.3          1.6               600 to 800
     96       4.3          9.2          3.4          1.6               250 to 350
    128       4.0         10.7          3.3          1.5               about 190
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.assets import asset
from study.data import DataSpec, load
from study.files import fingerprint, load_tensors, save_tensors
from study.randomness import derive
from study.settings import nearest
from study.stopping import stop_if_asked
from study.weights import require

if TYPE_CHECKING:
    from torch import Tensor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

WIDTHS = {"efficientnet_lite2": 1280, "classifier": 128, "inception": 2048}
SPATIAL_WIDTH = 2023  # of Inception's spatial features, 17 x 17 x 7
NATIVE_SIZE = {"efficientnet_lite2": 260, "inception": 299}
CLASSIFIER_LARGEST = 64  # pixels: larger images are reduced, so that training it takes seconds
VERSIONS = {"efficientnet_lite2": 1, "classifier": 1, "inception": 1}  # raised when a judge's features move
REFERENCE_VERSION = 1

# Images at a time; on a CPU small batches stay in its cache: 25 ran 1.2 to 2 times faster than 200.
BATCH = {"cpu": 25, "cuda": 250}


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """Which extractor, at which input. The fingerprint also covers its version and what it was trained on."""

    name: str
    size: int  # pixels, height and width of what the network sees
    width: int  # features per image
    fingerprint: str


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


def judge_spec(name: str, size: int, data: DataSpec | None) -> JudgeSpec:
    """Resolve a judge.

    Args:
        name: 'efficientnet_lite2' (ImageNet, 1280 wide), 'classifier' (trained on the training images of
        `data`,
            128) or 'inception' (torch-fidelity's, 2048; needs its weights, see `study/weights.py`).
        size: pixels to which images are resized; 0 is the judge's own (260; the images' own, at most 64;
        299).
        data: what will be judged; None for pictures that belong to no data set of ours.

    Raises:
        ValueError: an unknown name, a size that the judge cannot have, or a classifier without data.
    """
    if name not in WIDTHS:
        raise ValueError(f"no judge {name!r}; {nearest(name, WIDTHS)}")
    if data is None and name == "classifier":
        raise ValueError(
            "the classifier is trained on the classes of a data set, and there is none here: "
            "compare with a data set, or choose efficientnet_lite2 or inception"
        )
    native = NATIVE_SIZE.get(name) or min(data.resolution if data else CLASSIFIER_LARGEST, CLASSIFIER_LARGEST)
    if name == "efficientnet_lite2":
        if size and size < 32:
            raise ValueError(f"efficientnet_lite2 reduces 32 times, so its input is at least 32 px, not {size}")
    elif size not in (0, native):
        raise ValueError(f"{name} sees {native} px here, not {size}: give {native}, or 0 for a judge's own size")
    size = size or native
    content: dict[str, Any] = {"name": name, "size": size, "version": VERSIONS[name]}
    if name == "classifier" and data:
        content["data"] = data.content
    return JudgeSpec(name=name, size=size, width=WIDTHS[name], fingerprint=fingerprint(content))


def build(spec: JudgeSpec, data: DataSpec | None, device: str = "cpu") -> FeatureExtractorBase:
    """The frozen extractor on `device`: uint8 (B, 3, H, W) in, a tuple that begins with features float32 (B, D) out.

    `data` is what `judge_spec` was given. The classifier is trained the first time it is asked for, which takes well
    under a minute on two cores.

    Raises:
        ValueError: weights that are missing or damaged.
    """
    from torch_fidelity.utils import create_feature_extractor

    from study import extractors

    options: dict[str, Any] = {"size": spec.size}
    if spec.name == "inception":
        options = {"feature_extractor_weights_path": extractors.plain_weights(require("inception"))}
    elif spec.name == "classifier":
        assert data is not None, "judge_spec gives no classifier without data"
        options["weights"] = _classifier(spec, data) / extractors.CLASSIFIER_FILE
    extractor = create_feature_extractor(
        extractors.REGISTERED[spec.name], [extractors.LAYERS[spec.name]], cuda=False, verbose=False, **options
    )
    return extractor.to(device)


def features(extractor: FeatureExtractorBase, images: np.ndarray | Tensor, batch_size: int | None = None) -> Tensor:
    """Features float32 (N, D), on the CPU, of uint8 images (N, 1 or 3, H, W); one channel is repeated to
    three.

    Independent of `batch_size` (images; None is what suits the device) up to the last float32 digits.

    Raises:
        ValueError: images of another type or shape.
    """
    return all_features(extractor, images, batch_size)[0]


def all_features(
    extractor: FeatureExtractorBase, images: np.ndarray | Tensor, batch_size: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """`features`, and of the same pass Inception's spatial ones, float32 (N, SPATIAL_WIDTH); None for other judges."""
    import torch

    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"images are uint8 (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if not len(images):
        raise ValueError("no images to judge")
    device = next(extractor.parameters()).device
    batch_size = batch_size or BATCH.get(device.type, 25)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            stop_if_asked("judging")
            batch = images[start : start + batch_size]
            if isinstance(batch, np.ndarray):
                batch = torch.from_numpy(batch.copy())
            found = extractor(batch.to(device).expand(-1, 3, -1, -1))
            parts.append([one.float().cpu() for one in found])
    pooled, *spatial = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return pooled, spatial[0] if spatial else None


def chosen(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices (count,) of a fixed, class-balanced choice; a smaller count takes a part of a larger one's.

    Each class is shuffled by a fixed seed and the classes take turns, until the small ones are used up.

    Raises:
        ValueError: more than there are, or fewer than 1.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"asked for {count} of {len(labels)} images; give a count from 1 to {len(labels)}")
    shuffled = np.random.default_rng(derive(0, "reference", 0)).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # of each image within its class
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        turn[rows] = np.arange(len(rows))
    return np.lexsort((labels, turn))[:count]


def reference_name(data: DataSpec, split: str, count: int) -> str:
    """What a reference is called in the results table."""
    return f"{data.name} {split}, {count} images"


def reference(spec: JudgeSpec, data: DataSpec, split: str, count: int, device: str = "cpu") -> Reference:
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
        from study.extractors import CLASSIFIER_FILE

        weights = (_classifier(spec, data) / CLASSIFIER_FILE).read_bytes()
        key["weights"] = hashlib.sha256(weights).hexdigest()[:16]

    def pixels() -> np.ndarray:
        images = load(data, split)
        return np.ascontiguousarray(images.images[chosen(images.labels, count)])

    return _kept_reference(spec, key, pixels, lambda: build(spec, data, device))


def reference_of(
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
    return _kept_reference(spec, key, lambda: images, lambda: build(spec, None, device), given)


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

        from study.extractors import class_scores
        from study.metrics import square_root, statistics

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


def _classifier(spec: JudgeSpec, data: DataSpec) -> Path:
    """Folder with the trained classifier and `judge.json`, which holds its accuracy."""
    import torch

    from study.extractors import train_classifier

    # threads move the last bits of its weights, and it must not matter who trained it first
    key = {"judge": spec.fingerprint, "data": data.content, "size": spec.size, "threads": torch.get_num_threads()}
    return asset("classifier", key, lambda folder: train_classifier(data, spec.size, folder))
