"""One writer at a time in a folder, over processes and machines that share a file system.

The writer keeps `lease.json` in the folder: who it is and a beat that grows every few seconds, with its
progress. A lease is stale when its process is known to be gone (same machine) or when the beat has not grown
for `STALE_SECONDS` on the *reader's* clock, so clocks that differ between machines do not matter.
A short file lock makes taking over one step; a writer whose lease was taken notices at its next beat and stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study.core.files import read_json, write_json
from study.core.stopping import stop_if_asked

BEAT_SECONDS = 2.0
STALE_SECONDS = 60.0


class LeaseLost(RuntimeError):
    """Another process took the lease over: this one must stop writing."""


def _process_start(pid: int) -> str | None:
    """Start time of a live process as the kernel counts it, or None; tells a reused pid from the same process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _boot() -> str:
    """Names this machine since it was started, and the space of its pids: they only mean something within it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        space = os.readlink("/proc/self/ns/pid")  # a container counts its processes anew
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{boot}/{space}"


def this_process(pid: int | None = None) -> dict[str, Any]:
    """Names a process of this machine for good: pid, start time, boot."""
    pid = os.getpid() if pid is None else pid
    return {"pid": pid, "start": _process_start(pid), "boot": _boot()}


def process_alive(process: dict[str, Any]) -> bool:
    """Whether a process named by `this_process` surely runs, here."""
    return _known_alive(process)


def _known_gone(lease: dict[str, Any]) -> bool:
    """Whether the holder surely no longer runs; False where that cannot be told (another machine)."""
    boot = lease.get("boot", "")
    if boot == _boot():
        return lease.get("start") is not None and _process_start(lease["pid"]) != lease["start"]
    here, there = _boot().split("/"), boot.split("/")
    return here[0] == there[0] != "localhost" and here[1] != there[1]  # this machine, before it was started anew


def _known_alive(lease: dict[str, Any]) -> bool:
    """Whether the holder surely runs: a process of this machine, perhaps suspended, whose beat may stand still."""
    return lease.get("boot") == _boot() and lease.get("start") == _process_start(lease["pid"]) is not None


def holder(folder: Path) -> dict[str, Any] | None:
    """The lease of `folder` unless its holder is known to be gone; its `progress` is what the holder reports."""
    lease = read_json(folder / "lease.json")
    return None if lease is None or _known_gone(lease) else lease


class Watcher:
    """Tells live leases from stale ones by watching their beats on this process's own clock."""

    def __init__(self, stale_seconds: float = STALE_SECONDS) -> None:
        self.stale_seconds = stale_seconds
        self._seen: dict[Path, tuple[tuple, float]] = {}

    def live(self, folder: Path) -> dict[str, Any] | None:
        """The lease of `folder` when its holder may be alive, else None."""
        lease = holder(folder)
        if lease is None:
            self._seen.pop(folder, None)
            return None
        if _known_alive(lease):
            return lease
        now, beat = time.monotonic(), (lease["token"], lease["beat"])
        if self._seen.get(folder, (None,))[0] != beat:
            self._seen[folder] = (beat, now)
        return lease if now - self._seen[folder][1] < self.stale_seconds else None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's file lock, for a moment."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lease:
    """Held right to write in a folder. `progress` (JSON-able) is published with each beat."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: dict[str, Any] = {}
        self._identity = {"token": uuid.uuid4().hex, **this_process()}
        self._beat = 0
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def _write(self) -> None:
        self._beat += 1
        content = {**self._identity, "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID", "")}
        write_json(self.folder / "lease.json", {**content, "beat": self._beat, "progress": dict(self.progress)})

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                with locked(self.folder):
                    lease = read_json(self.folder / "lease.json")
                    if lease is None or lease["token"] != self._identity["token"]:
                        self._lost = True
                        return
                    self._write()
            except OSError:  # a full disk or a file server away for a moment: the next beat tries again
                continue

    def check(self) -> None:
        """Raise LeaseLost when another process has taken over; called once a step, costs nothing."""
        if self._lost:
            raise LeaseLost(f"another process took over {self.folder}")

    def release(self) -> None:
        """Stop beating and remove the lease if it is still ours."""
        self._stop.set()
        self._thread.join()
        with locked(self.folder):
            lease = read_json(self.folder / "lease.json")
            if lease is not None and lease["token"] == self._identity["token"]:
                (self.folder / "lease.json").unlink(missing_ok=True)


@contextlib.contextmanager
def lease(folder: Path, stale_seconds: float = STALE_SECONDS, poll_seconds: float = 0.5) -> Iterator[Lease]:
    """Wait until no live process writes in `folder`, then hold its lease for the block.

    Args:
        folder: made when missing.
        stale_seconds: how long a beat may stand still before its holder counts as gone.
        poll_seconds: pause between two looks.

    Raises:
        Interrupted: asked to stop while waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    watcher = Watcher(stale_seconds)
    held = Lease(folder)
    while True:
        if watcher.live(folder) is None:
            with locked(folder):
                if watcher.live(folder) is None:  # nobody else took it between the look and the lock
                    held._write()
                    break
        stop_if_asked("waiting for another process")
        time.sleep(poll_seconds)
    held._thread.start()
    try:
        yield held
    finally:
        held.release()
