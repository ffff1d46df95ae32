"""Pictures, data and ablations for tests."""

import numpy as np
from PIL import Image

from study.compute import Compute
from study.data import DataSpec

COMPUTE = Compute(device="cpu", precision="float32", threads=1)


def data_spec(resolution=32):
    """A data set that can be planned for, and has no pictures."""
    return DataSpec(
        name="made", resolution=resolution, channels=1, classes=10, train_images=60_000, test_images=10_000,
        content="0" * 16, flip=False, class_names=tuple("abcdefghij"),
    )  # fmt: skip


class Asking:
    """An ablation made of these runs."""

    QUESTION = "?"

    def __init__(self, *runs):
        self._runs = list(runs)

    def runs(self, scale):
        return self._runs


def draw_pictures(folder, *, classes=3, per_class=24, side=16):
    """Pictures that differ by class: stripes of another width and colour in each, with noise."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(per_class):
            x = np.arange(side)[None, :, None] + rng.integers(side)
            stripes = ((x // (label + 1)) % 2) * np.array([200, 80 * label, 255 - 80 * label])
            pixels = np.broadcast_to(stripes, (side, side, 3)) + rng.integers(0, 40, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"class{label}" / f"{number:03}.png")
    return folder
