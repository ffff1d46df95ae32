"""The scalars that a training logs, in its stage's folder: one line of JSON per point, for learning curves.

No result is read from it and no training depends on it: a point that cannot be written is left out. Each point occurs
once, even when the training was interrupted or fell back to a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.files import atomic
from study.core.distributed import average, rank

if TYPE_CHECKING:
    from torch import Tensor


FILE = "history.jsonl"
POINTS = 1000  # of a whole training, at most


class History:
    """Writes the history of a running training; only rank 0 writes."""

    def __init__(self, folder: Path, images_seen: int) -> None:
        self.folder = folder
        self.rewind_to(images_seen)

    def rewind_to(self, images_seen: int) -> None:
        """Delete the points after this number of images seen."""
        self._last = (images_seen, time.monotonic())
        if rank() == 0 and (self.folder / FILE).exists():
            kept = [point for point in read_history(self.folder) if point["images_seen"] <= images_seen]
            with contextlib.suppress(OSError), atomic(self.folder / FILE) as temporary:
                temporary.write_text("".join(json.dumps(point) + "\n" for point in kept))

    def log(self, images_seen: int, values: Mapping[str, Tensor | float], device: str) -> None:
        """Add a point: these scalars averaged over the processes, and images per second since the last point.

        A value that is not finite is written as null.
        """
        import torch

        scalars = average(*(torch.as_tensor(v, dtype=torch.float64, device=device) for v in values.values()))
        (before, then), now = self._last, time.monotonic()
        self._last = (images_seen, now)
        if rank() != 0:
            return
        measured = {name: scalar.item() for name, scalar in zip(values, scalars, strict=True)}
        measured["images_per_second"] = (images_seen - before) / max(now - then, 1e-9)
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        line = json.dumps({"images_seen": images_seen, "time": round(time.time(), 3), **finite})
        with contextlib.suppress(OSError), (self.folder / FILE).open("a") as file:
            file.write(line + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All points in a stage's folder, in order; incomplete lines are skipped. Empty when there is no file."""
    try:
        lines = (folder / FILE).read_text(errors="replace").splitlines()
    except OSError:
        return []
    points = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            point = json.loads(line)
            points.append({**point, "images_seen": int(point["images_seen"])})
    return points
