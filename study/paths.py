"""Where things are kept. Nothing else in the package knows a path."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


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
