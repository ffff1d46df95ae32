"""Where a search keeps its trials: Optuna's journal file, or any storage of Optuna by its URL.

The journal is Optuna's own format, which optuna-dashboard opens as it is. Two things differ from its file backend:

- The lock is one of the kernel (study/core/lease.py), which ends with its holder. Optuna's lock file outlives a holder
  that is killed, and is then broken by whoever has waited for 30 s, perhaps by two at once.
- A line that a killed writer left torn is set aside in `journal.log.torn`, where Optuna's backend raises from then on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages.journal._base import BaseJournalBackend

from study.core.lease import locked

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


JOURNAL = "journal.log"
FIRST = b'{"op_code":'  # how every line begins
NOTHING = b'{"op_code":1,"study_id":-1,"worker_id":""}'  # deletes a study that there is not: stands for a damaged line


class Journal(BaseJournalBackend):
    """Operations of many processes on one file, one JSON object a line.

    Raises:
        ValueError: the file is something else; it is left as it is.
        OSError: later, when the file was deleted or replaced, so that numbers of trials mean others.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._offsets = {0: 0}  # in bytes, of the operation with a number
        with locked(path.parent):
            path.touch()
            self._refuse_what_is_none()
            self._mend()
            self._file = _identity(path)

    def _refuse_what_is_none(self) -> None:
        with open(self.path, "rb") as file:
            lines = list(itertools.islice(file, 100))
        torn = lines and not lines[0].endswith(b"\n") and FIRST.startswith(lines[0].strip(b"\0")[: len(FIRST)])
        if lines and not torn and not any(map(_operation, lines)):
            raise ValueError(
                f"{self.path} is no journal of Optuna; a URL names another storage, as sqlite:///{self.path}"
            )

    def _refuse_another(self) -> None:
        if not self.path.exists() or _identity(self.path) != self._file:
            raise OSError(f"{self.path} was deleted or replaced; the same command goes on, once all workers have ended")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Whole lines from a number on; one that is damaged counts, and does nothing."""
        start = log_number_from if log_number_from in self._offsets else 0
        self._refuse_another()
        with open(self.path, "rb") as file:
            file.seek(self._offsets[start])
            for number, line in enumerate(file, start):
                if not line.endswith(b"\n"):  # being written, or torn
                    return
                self._offsets[number + 1] = self._offsets[number] + len(line)
                if number >= log_number_from:
                    yield _operation(line) or json.loads(NOTHING)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations, whole and in a row, onto the disk."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with locked(self.path.parent):
            self._refuse_another()
            self._set_tail_aside()
            with open(self.path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def _set_tail_aside(self) -> None:
        """Move what stands after the last whole line into the file of torn ones."""
        with open(self.path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read(1) in (b"", b"\n"):
                return
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            self._keep(content[whole:])
            file.truncate(whole)

    def _mend(self) -> None:
        """Set aside what is torn or damaged, in place: lines keep their numbers, which others have counted by."""
        self._set_tail_aside()
        with open(self.path, "rb+") as file:
            place = 0
            for line in file.read().splitlines(keepends=True):
                if _operation(line) is None and len(line) > len(NOTHING):  # a shorter one stays, and does nothing
                    self._keep(line.rstrip(b"\n"))
                    file.seek(place)
                    file.write(NOTHING.ljust(len(line) - 1))
                place += len(line)

    def _keep(self, torn: bytes) -> None:
        aside = self.path.with_name(f"{self.path.name}.torn")
        with open(aside, "ab") as file:
            file.write(torn + b"\n")


def _identity(path: Path) -> tuple[int, int]:
    """Names a file, whatever its path."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _operation(line: bytes) -> dict[str, Any] | None:
    """The operation of a line, or None when it holds none."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and {"op_code", "worker_id"} <= set(found):
            return found
    return None


def open_storage(where: str, workers: int = 1) -> BaseStorage:
    """The storage at a URL of Optuna, or the journal file at a path.

    Raises:
        ValueError: SQLite for several workers, a URL that Optuna does not know or a database that does not answer.
    """
    import optuna

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in where:
        return optuna.storages.JournalStorage(Journal(Path(where)))
    if where.startswith("sqlite") and workers > 1:
        raise ValueError(
            f"--storage {where} with {workers} workers: SQLite locks its whole file, and not at all on many network "
            "file systems, so trials get lost; leave --storage out for the journal, name a server, or give --workers 1"
        )
    try:
        return optuna.storages.get_storage(where)
    except Exception as error:  # whatever the database's driver raises
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", f"--storage {where}: {first}")) from None
