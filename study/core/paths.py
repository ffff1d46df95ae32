"""Where files are stored. All other modules get their folders from here."""

from __future__ import annotations

import errno
import functools
import os
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def study_root() -> Path:
    """Folder of all computed files: `$STUDY_ROOT`, by default in the user's cache folder."""
    if root := os.environ.get("STUDY_ROOT"):
        return _path(root) if os.path.isabs(root) else Path(root).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "latent-diffusion-study"


_path = functools.cache(Path)  # a plan asks for folders 100,000 times


@functools.cache
def _inside(root: Path, stage: str, fingerprint: str) -> Path:
    return root.joinpath("stages", stage, fingerprint)


def stage_folder(stage: str, fingerprint: str) -> Path:
    """Folder of one stage of one run: checkpoints while it trains, its outputs and its record at the end."""
    return _inside(study_root(), stage, fingerprint)


def job_folder(job: str) -> Path:
    """Folder with the submissions of one job and their logs."""
    return study_root() / "jobs" / job


def require_writable(folder: Path, create: bool = True) -> None:
    """Create a folder; ValueError, which says how to choose another one, when it is not writable.

    Args:
        create: False only looks whether it is writable, or could be created.
    """
    try:
        if not create:
            nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        hint = "set STUDY_ROOT" if folder == study_root() else "choose another with --out"
        raise ValueError(f"cannot write to {folder} ({error.strerror}): {hint}") from None
