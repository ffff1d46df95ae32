"""The environment of a running stage: its folder, its lease, and whether a stop was requested."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.lease import Lease
from study.core.stopping import stop_if_asked, stop_requested

log = logging.getLogger(__name__)

Record = dict[str, Any]


class Diverged(RuntimeError):
    """Training produced a number that is not finite."""


class Blocked(RuntimeError):
    """An input of this stage has no result."""


@dataclass
class Workspace:
    """Folder and lease of one running stage.

    Args:
        folder: of the stage; empty, or with files of an earlier attempt.
        lease: held while the stage runs; publishes the stage's progress. Of several processes only rank 0 holds it, for
            all of them.
        title: names the stage in progress lines.
        write_record: writes a stage's record of these measurements at a mark, given in images seen: for a stage that
            has a record at each mark. Rank 0 calls it.
    """

    folder: Path
    lease: Lease | None
    title: str
    write_record: Callable[[Record, int], None]
    _started: float = field(default_factory=time.monotonic)
    _first_done: int | None = None  # `done` at the first report, from which the rate is measured
    _logged: float = 0.0

    def progress(self, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Publish how far the stage is, with its rate in `unit`/s since this attempt began.

        Raises:
            LeaseLost: another process has taken over the folder.
        """
        if self.lease is None:
            return
        self.lease.check()
        if self._first_done is None:
            self._first_done, self._started = done, time.monotonic()
        elapsed = time.monotonic() - self._started
        rate = (done - self._first_done) / elapsed if elapsed > 0 else 0.0
        self.lease.progress = {
            "stage": self.title, "done": done, "total": total, "unit": unit, "rate": rate, "note": note,
        }  # fmt: skip
        if time.monotonic() - self._logged > 30:
            self._logged = time.monotonic()
            log.info("%s: %d of %d %s, %.1f/s %s", self.title, done, total, unit, rate, note)

    def preparing(self, what: str, done: int = 0, total: int = 0, unit: str = "images") -> None:
        """Publish progress of a step before the main work, such as computing frozen features."""
        self.stop_if_asked()
        title, self.title = self.title, f"{self.title}: {what}"
        try:
            self.progress(done, total, unit)
        finally:
            self.title = title
        if done >= total:
            self._first_done = None  # the rate of the next step is measured from its own start

    def stop_if_asked(self) -> None:
        """Raise Interrupted when a stop was requested; called where everything is saved."""
        stop_if_asked(self.title)

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested."""
        return stop_requested.is_set()


def restart_peak_memory() -> None:
    """Let `peak_memory_gib` count from here on; where the system cannot, it counts from the start of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib(device: str) -> float:
    """Peak memory of this process since its stage began, in GiB: GPU memory for "cuda", else resident memory."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
