"""Snapshots of the code: jobs run the code that was submitted, from a copy named by the hash of its content.

So a checkout can be edited, or switched to another commit, while jobs wait or run. The copy includes what modules read:
the last job of a sweep draws the published numbers next to its own, and writes the report by its templates.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from study.core.files import read_json, write_json
from study.core.paths import CHECKOUT, study_root
from study.core.provenance import CODE, SOURCE, commit, difference


def _sources() -> dict[str, bytes]:
    """Contents of all files of the code, by path relative to the checkout."""
    paths = sorted(path for pattern in CODE for path in CHECKOUT.glob(pattern))
    return {str(path.relative_to(CHECKOUT)): path.read_bytes() for path in paths}


def code_name() -> str:
    """Name of the snapshot of the current code."""
    return _name(_sources())


def _name(sources: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sources.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def snapshot() -> Path:
    """Folder with a copy of the current code, created if it does not exist yet."""
    sources, source = _sources(), {"commit": commit(), "difference": difference()}
    folder = study_root() / "code" / _name(sources)
    recorded = read_json(folder / SOURCE)
    if recorded is None:
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        for name, content in sources.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        write_json(partial / SOURCE, source)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    elif recorded != source:
        write_json(folder / SOURCE, source)  # same code, other commit: the earlier one may have been amended
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Environment variables with which a process imports from the snapshot, whatever its working directory contains."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{inherited}" if inherited else str(folder), "PYTHONSAFEPATH": "1"}
