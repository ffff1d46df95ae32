"""Files computed once and shared by many runs: frozen features, reference statistics, the trained judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from results.files import remove_partial
from study.core.files import fingerprint, read_json, write_json
from study.core.lease import lease
from study.core.paths import study_root


def asset(kind: str, spec: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Folder that `build(folder)` filled once for this `spec`; later and concurrent calls get the same folder.

    Args:
        kind: type of asset, the name of a folder under `$STUDY_ROOT/assets`.
        spec: everything that the content depends on, JSON-serialisable.
        build: fills the folder; called again from the start when an earlier call did not finish, so it must
            overwrite or reuse what it finds there.

    Returns:
        The filled folder, which also holds `spec.json`, written last.
    """
    folder = study_root() / "assets" / kind / fingerprint(spec)
    if read_json(folder / "spec.json") is None:
        with lease(folder):
            if read_json(folder / "spec.json") is None:
                remove_partial(folder)
                build(folder)
                write_json(folder / "spec.json", spec)
    return folder
