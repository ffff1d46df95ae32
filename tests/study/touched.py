"""Which files this process opens, lists and changes, of which Python tells its audit hooks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC  # flags of an opened file
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime")
READS = ("os.listdir", "os.scandir")


@dataclass
class Touched:
    """Absolute paths: opened for reading or listed, and changed."""

    read: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)

    def read_below(self, *folders: Path) -> list[Path]:
        return [path for path in self.read if any(path.is_relative_to(folder) for folder in folders)]


_now: list[Touched] = []  # a hook cannot be removed


def _note(event: str, arguments: tuple) -> None:
    if not _now or event not in ("open", *CHANGES, *READS) or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = Path(os.path.abspath(os.fsdecode(arguments[0])))
    changes = event in CHANGES or (event == "open" and arguments[2] & CHANGING)
    for one in _now:
        (one.changed if changes else one.read).append(path)


sys.addaudithook(_note)


@contextlib.contextmanager
def touched() -> Iterator[Touched]:
    """What is touched in the block."""
    one = Touched()
    _now.append(one)
    try:
        yield one
    finally:
        _now.remove(one)


def tree(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything below a folder: time of the last change, and content of files."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}
