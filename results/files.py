"""Atomic file writes: a file is written under a temporary name in its folder, then renamed, so it is never partial."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success the file written there replaces `path`.

    The content is flushed to disk before the rename, so a power cut leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Delete temporary files that killed writers left in a folder; only the holder of its lease may call this."""
    for path in folder.glob(".*.*.????????"):
        if not path.name.startswith(".lease.json."):  # the lease file that the holder is just writing
            path.unlink(missing_ok=True)
