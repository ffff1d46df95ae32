"""Where a number comes from: the code, the packages, the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import socket
import subprocess

from study.core.compute import Compute, processor
from study.core.files import read_json
from study.core.paths import CHECKOUT

PACKAGES = ("torch", "timm", "torch-fidelity", "torchdiffeq", "numpy")
CODE = ("study", "models", "ablations", "results", "figures")  # our own

# beside a copy of the code (study/core/code_snapshot.py): the commit and the changes it was made from
SOURCE = "source.json"


def commit() -> str:
    """Commit of the code as it is now, with `+changes` when the code differs from it; empty where there is no
    checkout."""
    if source := read_json(CHECKOUT / SOURCE):
        return source["commit"]
    head = _git("rev-parse", "--verify", "--short=12", "HEAD")
    return head + ("+changes" if difference() else "")


def difference() -> str:
    """What the code has now that its commit has not, new modules included, as git shows it; empty where there is no
    checkout."""
    if source := read_json(CHECKOUT / SOURCE):
        return source["difference"]
    new = _git("ls-files", "--others", "--exclude-standard", "--", *(f"{package}/*.py" for package in CODE))
    added = [_git("diff", "--no-index", "--", "/dev/null", name) for name in new.splitlines()]
    return "\n".join(part for part in (_git("diff", "HEAD", "--", "*.py"), *added) if part)


def _git(*arguments: str) -> str:
    """What git says; nothing where it, or its repository, is not there."""
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        said = subprocess.run(command, capture_output=True, check=False, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.decode(errors="replace").strip()


@functools.cache
def _code() -> dict[str, str]:
    """Commit and difference of the code that this process runs, which began with it: the checkout may be edited."""
    return {"commit": commit(), "difference": difference()}


def provenance(compute: Compute) -> dict[str, str | int]:
    """What is recorded with every stage, and named in a figure's caption when it is mixed."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    if compute.device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    else:
        device = processor()
    return {
        **_code(),
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "device": device,
        "precision": compute.precision,
        "threads": compute.threads,
        "processes": compute.processes,
        "host": socket.gethostname(),
    }
