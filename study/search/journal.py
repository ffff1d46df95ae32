"""The storage of a search's trials: an Optuna journal file, or any other Optuna storage given by its URL.

The journal has Optuna's own format, so optuna-dashboard can open it. Two things differ from Optuna's file backend:

- The lock is a kernel lock (study/core/lease.py), released when its holder ends. Optuna's lock file outlives a killed
  holder, and is then removed by a process that has waited for 30 s, possibly by two processes at once.
- An incomplete line left by a killed writer is moved to `journal.log.torn`; Optuna's backend would raise at every read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages.journal import BaseJournalBackend

from study.core.lease import locked

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


JOURNAL = "journal.log"
LINE_START = b'{"op_code":'  # of every line
SQLITE = "sqlite:///"  # followed by the path of a file
NO_OP = b'{"op_code":1,"study_id":-1,"worker_id":""}'  # deletes a study that does not exist; replaces a damaged line


class Journal(BaseJournalBackend):
    """A log file to which many processes append operations, one JSON object per line.

    Args:
        reading: the file exists and is only read.

    Raises:
        ValueError: the file is not a journal; it is left unchanged.
        OSError: later, when the file was deleted or replaced: a trial's number would then mean another trial.
    """

    def __init__(self, path: Path, reading: bool = False) -> None:
        self.path = path
        self._offsets = {0: 0}  # number of an operation: position of its line in bytes
        with contextlib.nullcontext() if reading else locked(path.parent):
            if not reading:
                path.touch()
            self._check_format()
            if not reading:
                self._blank_damaged_lines()
            self._file = _identity(path)

    def _check_format(self) -> None:
        with open(self.path, "rb") as file:
            lines = list(itertools.islice(file, 100))
        start = lines[0].strip(b"\0")[: len(LINE_START)] if lines else b""
        torn = lines and not lines[0].endswith(b"\n") and LINE_START.startswith(start)
        if lines and not torn and not any(map(_operation, lines)):
            raise ValueError(
                f"{self.path} is not an Optuna journal; name another kind of storage by a URL, as sqlite:///{self.path}"
            )

    def _check_same_file(self) -> None:
        if not self.path.exists() or _identity(self.path) != self._file:
            raise OSError(
                f"{self.path} was deleted or replaced; wait until all workers have ended, then run the same command "
                "again to continue"
            )

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Operations of the complete lines from a number on; a damaged line is read as one that does nothing."""
        start = log_number_from if log_number_from in self._offsets else 0
        self._check_same_file()
        with open(self.path, "rb") as file:
            file.seek(self._offsets[start])
            for number, line in enumerate(file, start):
                if not line.endswith(b"\n"):  # being written, or torn
                    return
                self._offsets[number + 1] = self._offsets[number] + len(line)
                if number >= log_number_from:
                    yield _operation(line) or json.loads(NO_OP)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations as consecutive lines and flush them to the disk."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with locked(self.path.parent):
            self._check_same_file()
            self._move_torn_tail()
            with open(self.path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def _move_torn_tail(self) -> None:
        """Move an incomplete last line to the file of torn lines."""
        with open(self.path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read(1) in (b"", b"\n"):
                return
            file.seek(0)
            content = file.read()
            end = content.rfind(b"\n") + 1
            self._save_torn(content[end:])
            file.truncate(end)

    def _blank_damaged_lines(self) -> None:
        """Replace damaged lines in place by NO_OP: line numbers stay valid for processes that have read further."""
        self._move_torn_tail()
        with open(self.path, "rb+") as file:
            position = 0
            for line in file.read().splitlines(keepends=True):
                if _operation(line) is None and len(line) > len(NO_OP):  # a shorter one stays; it is read as NO_OP
                    self._save_torn(line.rstrip(b"\n"))
                    file.seek(position)
                    file.write(NO_OP.ljust(len(line) - 1))
                position += len(line)

    def _save_torn(self, line: bytes) -> None:
        with open(self.path.with_name(f"{self.path.name}.torn"), "ab") as file:
            file.write(line + b"\n")


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode: they identify a file independently of its path."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _operation(line: bytes) -> dict[str, Any] | None:
    """The operation that a line holds, or None when it holds none."""
    with contextlib.suppress(ValueError):
        content = json.loads(line)
        if isinstance(content, dict) and {"op_code", "worker_id"} <= set(content):
            return content
    return None


def open_storage(location: str, workers: int = 1) -> BaseStorage:
    """Open an Optuna storage by its URL, or a journal file by its path.

    Raises:
        ValueError: SQLite for several workers, a URL unknown to Optuna, or a database that cannot be reached.
    """
    import optuna

    _check_location(location, workers)
    if "://" not in location:
        return optuna.storages.JournalStorage(Journal(Path(location)))
    return _database(location)


def read_storage(location: str, workers: int = 1) -> BaseStorage | None:
    """Open an Optuna storage for reading alone; None if there is none yet. Arguments and errors are those of
    `open_storage`."""
    import optuna

    _check_location(location, workers)
    if "://" not in location:
        path = Path(location)
        return optuna.storages.JournalStorage(Journal(path, reading=True)) if path.exists() else None
    if location.startswith(SQLITE):
        file, _, query = location.removeprefix(SQLITE).partition("?")
        if not Path(file).exists():  # which opening would create
            return None
        location = f"{SQLITE}file:{urllib.parse.quote(file)}?mode=ro&uri=true" + (f"&{query}" if query else "")
    return _database(location, reading=True)


def _check_location(location: str, workers: int) -> None:
    """ValueError for SQLite and several workers; silences Optuna, which warns of the journal."""
    import optuna

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if location.startswith("sqlite") and workers > 1:
        raise ValueError(
            f"--storage {location} with {workers} workers: SQLite locks its whole file, and not at all on many network "
            "file systems, so trials get lost; leave --storage out for the journal, name a server, or give --workers 1"
        )


def _database(location: str, reading: bool = False) -> Any:
    """The storage in a database; None if it has no tables and is only read. ValueError when it cannot be reached."""
    import optuna
    import sqlalchemy

    try:
        if reading and not sqlalchemy.inspect(sqlalchemy.create_engine(location)).has_table("studies"):
            return None
        return optuna.storages.RDBStorage(location, skip_table_creation=reading)
    except Exception as error:  # whatever the database's driver raises
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        message = f"--storage {location}: {first_line}"
        raise ValueError(re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", message)) from None  # without the password
