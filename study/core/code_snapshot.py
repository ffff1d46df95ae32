"""The code that was submitted is the code that runs: a copy of the package, named by its content.

The published tables go along: the last job of a sweep draws them beside its own.

Jobs import from the copy, so that a checkout may be edited, or moved to another commit, while they wait or run.
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
    """All modules of the package, and the published tables, by their place in the checkout."""
    paths = sorted(path for package in CODE for path in (CHECKOUT / package).rglob("*.py"))
    paths += sorted((CHECKOUT / "results" / "paper").glob("*.csv"))
    return {str(path.relative_to(CHECKOUT)): path.read_bytes() for path in paths}


def code_name() -> str:
    """What a snapshot of the code as it is now is called."""
    return _name(_sources())


def _name(sources: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sources.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def snapshot() -> Path:
    """The folder with a copy of the code as it is now, made if there is none yet."""
    sources, source = _sources(), {"commit": commit(), "difference": difference()}
    folder = study_root() / "code" / _name(sources)
    known = read_json(folder / SOURCE)
    if known is None:
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        for name, content in sources.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        write_json(partial / SOURCE, source)
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    elif known != source:
        write_json(folder / SOURCE, source)  # the same code in another commit: the earlier one may have been amended
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Variables under which a process imports from the snapshot, whatever its working directory holds."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{others}" if others else str(folder), "PYTHONSAFEPATH": "1"}
