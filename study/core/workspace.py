"""What a running stage sees of the world: its folder, its lease, and whether it is asked to stop."""

from __future__ import annotations

import logging
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.lease import Lease
from study.core.stopping import stop_if_asked, stop_requested

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Training produced a number that is not finite."""


class Blocked(RuntimeError):
    """A stage that this one reads from has no result."""


@dataclass
class Workspace:
    """Folder and lease of one running stage.

    Args:
        folder: the stage's, empty or with what an earlier attempt left.
        lease: held while the stage runs; carries the progress that others see. Of several processes the first holds
            it, and speaks for all.
        title: names the stage in progress lines.
        pause_at: images seen at which a training saves and stops; it goes on with the same bits.
    """

    folder: Path
    lease: Lease | None
    title: str
    pause_at: int | None = None
    _started: float = field(default_factory=time.monotonic)
    _first: int | None = None
    _logged: float = 0.0

    def progress(self, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Publish how far the stage is, with its rate in `unit`/s since this attempt began; stop if asked to.

        Raises:
            LeaseLost: another process has taken the folder over.
        """
        if self.lease is None:
            return
        self.lease.check()
        if self._first is None:
            self._first, self._started = done, time.monotonic()
        elapsed = time.monotonic() - self._started
        rate = (done - self._first) / elapsed if elapsed > 0 else 0.0
        self.lease.progress = {
            "stage": self.title, "done": done, "total": total, "unit": unit, "rate": rate, "note": note,
        }  # fmt: skip
        if time.monotonic() - self._logged > 30:
            self._logged = time.monotonic()
            log.info("%s: %d of %d %s, %.1f/s %s", self.title, done, total, unit, rate, note)

    def preparing(self, what: str, done: int = 0, total: int = 0, unit: str = "images") -> None:
        """Publish that the stage is making something it needs first, such as frozen features."""
        self.stop_if_asked()
        title, self.title = self.title, f"{self.title}: {what}"
        try:
            self.progress(done, total, unit)
        finally:
            self.title = title
        if done >= total:
            self._first = None  # what follows has a rate of its own

    def stop_if_asked(self) -> None:
        """Raise Interrupted when this process was asked to stop; called where everything is saved."""
        stop_if_asked(self.title)

    @property
    def stopping(self) -> bool:
        return stop_requested.is_set()


def peak_memory_gib(device: str) -> float:
    """Largest memory this process has held so far, in GiB: the GPU's where it runs on one."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


Record = dict[str, Any]
