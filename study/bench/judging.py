"""Memory and time of judging as many pictures as the paper does: 50,000 of 256 px."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from study.core.workspace import peak_memory_gib
from study.data.picture_chunks import read_chunk, write_chunk
from study.judge.frechet import square_root, statistics
from study.judge.judges import all_features, build_judge
from study.judge.metrics import generation_metrics
from study.judge.references import Reference
from study.plan.judge_spec import judge_spec

JUDGE, SIZE = "efficientnet_lite2", 64
PICTURES, SIDE, CHUNK = 50_000, 256, 250
REFERENCE_IMAGES = 10_000  # as many as in ADM's reference files


@dataclass(frozen=True)
class Judging:
    pictures: int
    pixels: int  # height and width
    seconds: float
    gib_before: float  # resident memory of the process when its libraries and the judge are loaded
    gib_peak: float


def judging(pictures: int = PICTURES, side: int = SIDE, device: str = "cpu") -> Judging:
    """Judge made-up pictures that are read from the disk chunk by chunk, as a judge stage does.

    Raises:
        ValueError: the judge's weights are missing here.
    """
    spec = judge_spec(JUDGE, SIZE, None)
    rng = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_chunk(folder, 0, torch.randint(256, (CHUNK, 3, side, side), dtype=torch.uint8, generator=rng))

        def chunks() -> Iterator[Tensor]:
            for number in range(pictures // CHUNK):
                images = read_chunk(folder, 0)
                assert images is not None
                yield images + number  # uint8 goes round: each chunk has other pictures

        extractor = build_judge(spec, None, device)
        real = torch.randn(REFERENCE_IMAGES, spec.width, generator=rng)
        mu, sigma = (torch.from_numpy(value) for value in statistics(real).values())
        root = torch.from_numpy(square_root(sigma.numpy()))
        reference = Reference(features=real, mu=mu, sigma=sigma, root=root, head=None, hash="", count=len(real))
        before, started = peak_memory_gib("cpu"), time.monotonic()
        found, _ = all_features(extractor, chunks())
        generation_metrics(found, reference)
    seconds = time.monotonic() - started
    return Judging(
        pictures=len(found), pixels=side, seconds=seconds, gib_before=before, gib_peak=peak_memory_gib("cpu")
    )
