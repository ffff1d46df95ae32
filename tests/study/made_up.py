"""Pictures, data, ablations, records and small sweeps for tests."""

import numpy as np
from PIL import Image

from study.core.cards import Card
from study.core.compute import Compute
from study.core.files import write_json
from study.plan.data_spec import DataSpec
from study.plan.stage import RECORD, mark_record

COMPUTE = Compute(device="cpu", precision="float32", threads=1)
ORIGIN = {
    "commit": "c", "versions": "v", "device": "d", "precision": "float32", "threads": 1, "processes": 1,
    "microbatch_images": 0, "checkpointing": False, "compile": False,
}  # fmt: skip

# options of a sweep that takes seconds
TINY = [
    "--scale", "smoke",
    "--set", "train_images=48", "--set", "autoencoder.ch=8", "--set", "autoencoder.norm_groups=4",
    "--set", "tokenizer.budget_images=64", "--set", "tokenizer.batch_images=8",
    "--set", "generator.budget_images=64", "--set", "generator.snapshot_images=32,64",
    "--set", "generator.batch_images=8", "--set", "sampling.samples=12", "--set", "sampling.chunk=6",
    "--set", "sampling.steps=2", "--set", "evaluation.reference_images=24",
    "--set", "evaluation.reconstruct_images=8", "--set", "judges=('classifier', 0),",
]  # fmt: skip


def data_spec(resolution=32):
    """A data set that can be planned for, and has no pictures."""
    return DataSpec(
        name="made", resolution=resolution, channels=1, classes=10, train_images=60_000, test_images=10_000,
        content="0" * 16, flip=False, class_names=tuple("abcdefghij"),
    )  # fmt: skip


def made_cards(count, gib=80.0, **about):
    """GPUs that nobody has."""
    return tuple(
        Card(**{"visible": str(i), "name": "Made GPU", "memory_gib": gib, "bfloat16": True, **about})
        for i in range(count)
    )


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


def finish(stage, **metrics):
    """Leave a record as the stage would."""
    if stage.kind == "judge":
        values = {"gfid": 9.0} if "samples" in stage.inputs else {"rfid": 1.0}
        values |= {**metrics, "comparable": False, "reference": "f" * 16}
    else:
        values = (
            {"psnr": 20.0, "ssim": 0.5, "perceptual": 0.1, "colour_shift": 0.3} if stage.kind == "reconstruct" else {}
        )
    record = {
        "fingerprint": stage.fingerprint,
        "cost": {"train_seconds": 1.0, "parameters": 10, "peak_memory_gib": 0.5, "train_images_per_second": 2.0},
        "seconds": 2.0,
        "sheet": "sheet.png",
        "provenance": ORIGIN,
        "attempts": [ORIGIN],
        "metrics": values,
    }
    for name in map(mark_record, stage.marks) if stage.marks else [RECORD]:
        write_json(stage.folder / name, record)
    (stage.folder / "sheet.png").write_bytes(b"picture")
