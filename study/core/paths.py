"""Where things are kept. Nothing else in the package knows a path."""

from __future__ import annotations

import os
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def study_root() -> Path:
    """Folder of everything that is computed: `$STUDY_ROOT`, else the user's cache folder."""
    if root := os.environ.get("STUDY_ROOT"):
        return Path(root).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "latent-diffusion-study"


def stage_folder(stage: str, fingerprint: str) -> Path:
    """Folder of one stage of one run: checkpoints while it trains, its products and its record at the end."""
    return study_root() / "stages" / stage / fingerprint


def job_folder(job: str) -> Path:
    """Folder with the submissions of one job and their logs."""
    return study_root() / "jobs" / job


def require_writable(folder: Path) -> None:
    """Make a folder; ValueError, saying how to choose another, when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        hint = "set STUDY_ROOT" if folder == study_root() else "choose another with --out"
        raise ValueError(f"cannot write to {folder} ({error.strerror}): {hint}") from None
