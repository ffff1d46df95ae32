"""Provenance of a result: the code, the packages and the machine that computed it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import socket
import subprocess
from typing import Any

from study.core.compute import Compute, processor
from study.core.files import read_json
from study.core.paths import CHECKOUT

PACKAGES = ("torch", "timm", "torch-fidelity", "torchdiffeq", "numpy")

# how a stage was carried out: no part of its fingerprint, see study/core/compute.py
EXECUTION = ("threads", "processes", "microbatch_images", "checkpointing", "compile")

# files that are the code of this repository: modules, and what they read (in pyproject.toml: package-data)
CODE = (
    *(f"{package}/**/*.py" for package in ("study", "models", "ablations", "results", "figures")),
    *(f"study/report/html/templates/*.{suffix}" for suffix in ("html", "css", "js")),
    "study/bench/*.json",
    "results/paper/*.csv",
)

# file in a copy of the code (study/core/code_snapshot.py): the commit and the changes that it was copied from
SOURCE = "source.json"


def commit() -> str:
    """Commit of the current code, with `+changes` when the code differs from it; empty outside a git checkout."""
    if source := read_json(CHECKOUT / SOURCE):
        return source["commit"]
    head = _git("rev-parse", "--verify", "--short=12", "HEAD")
    return head + ("+changes" if difference() else "")


def difference() -> str:
    """Git diff of the current code against its commit, new files included; empty outside a git checkout."""
    if source := read_json(CHECKOUT / SOURCE):
        return source["difference"]
    code = [f":(glob){pattern}" for pattern in CODE]
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *code)
    added = [_git("diff", "--no-index", "--", "/dev/null", name) for name in untracked.splitlines()]
    return "\n".join(diff for diff in (_git("diff", "HEAD", "--", *code), *added) if diff)


def _git(*arguments: str) -> str:
    """Output of a git command; empty where git or a repository is missing."""
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        output = subprocess.run(command, capture_output=True, check=False, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return output.decode(errors="replace").strip()


@functools.cache
def _code() -> dict[str, str]:
    """Commit and difference of the code that this process runs, read once: the checkout may be edited later."""
    return {"commit": commit(), "difference": difference()}


def provenance(compute: Compute) -> dict[str, Any]:
    """What every stage's record states about its origin; a figure's caption mentions it when rows differ in it."""
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
        **{name: getattr(compute, name) for name in EXECUTION},
        "host": socket.gethostname(),
    }
