"""Which judge sees images at which size: names and fingerprints, for the planner.

Torch-free; the networks are in study/judge/judges.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from study.core.files import fingerprint
from study.core.settings import nearest
from study.plan.data_spec import DataSpec

WIDTHS = {"efficientnet_lite2": 1280, "classifier": 128, "inception": 2048}
SPATIAL_WIDTH = 2023  # of Inception's spatial features, 17 x 17 x 7
NATIVE_SIZE = {"efficientnet_lite2": 260, "inception": 299}
CLASSIFIER_LARGEST = 64  # pixels: larger images are reduced, so that training it takes seconds
VERSIONS = {"efficientnet_lite2": 1, "classifier": 1, "inception": 1}  # raised when a judge's features move


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """Which extractor, at which input. The fingerprint also covers its version and what it was trained on."""

    name: str
    size: int  # pixels, height and width of what the network sees
    width: int  # features per image
    fingerprint: str


def judge_spec(name: str, size: int, data: DataSpec | None) -> JudgeSpec:
    """Resolve a judge.

    Args:
        name: 'efficientnet_lite2' (ImageNet, 1280 wide), 'classifier' (trained on the training images of
        `data`,
            128) or 'inception' (torch-fidelity's, 2048; needs its weights, see `study/plan/weight_files.py`).
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


def reference_name(data: DataSpec, split: str, count: int) -> str:
    """What a reference is called in the results table."""
    return f"{data.name} {split}, {count} images"
