"""Where a number comes from: the code, the packages, the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import socket
import subprocess

from study.compute import Compute, processor
from study.files import read_json
from study.paths import CHECKOUT

PACKAGES = ("torch", "timm", "torch-fidelity", "torchdiffeq", "numpy")


SOURCE = "source.json"  # beside a copy of the code (study/snapshot.py): the commit and the changes it was made from


@functools.cache
def commit() -> str:
    """Commit of the code, with `+changes` when the tracked code differs from it; empty where there is no checkout."""
    if source := read_json(CHECKOUT / SOURCE):
        return source["commit"]
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+changes" if changed else "")


def difference() -> str:
    """What the tracked code has that its commit has not, as git shows it; empty where there is no checkout."""
    try:
        return _git("diff", "HEAD", "--", "*.py")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def provenance(compute: Compute) -> dict[str, str | int]:
    """What is recorded with every stage, and named in a figure's caption when it is mixed."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    if compute.device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    else:
        device = processor()
    return {
        "commit": commit(),
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "device": device,
        "precision": compute.precision,
        "threads": compute.threads,
        "processes": compute.processes,
        "host": socket.gethostname(),
    }
