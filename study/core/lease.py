"""Leases: one writer at a time in a folder, among processes and machines that share a file system.

The writer keeps `lease.json` in the folder: its identity, its progress and a heartbeat counter (`beat`) that grows
every few seconds. A lease is stale when its process is known to be gone (same machine) or when the counter has not
grown for `STALE_SECONDS` on the *reader's* clock, so clocks may differ between machines.
A short file lock makes a takeover atomic; a writer that lost its lease notices at its next heartbeat and stops.
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
    """Another process took over the lease: this one must stop writing."""


def _process_start(pid: int) -> str | None:
    """Start time of a live process in the kernel's clock ticks, or None; distinguishes processes that reuse a pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _boot() -> str:
    """Host name, boot id and pid namespace of this process: a pid is unique only within them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # a container has its own pids
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{boot}/{namespace}"


def this_process(pid: int | None = None) -> dict[str, Any]:
    """Unique identity of a process of this machine: pid, start time, boot; default: this process."""
    pid = os.getpid() if pid is None else pid
    return {"pid": pid, "start": _process_start(pid), "boot": _boot()}


def process_alive(process: dict[str, Any]) -> bool:
    """Whether a process, as identified by `this_process`, certainly runs on this machine."""
    return _known_alive(process)


def _known_gone(lease: dict[str, Any]) -> bool:
    """Whether the holder certainly no longer runs; False where that is unknown (another machine)."""
    boot = lease.get("boot", "")
    if boot == _boot():
        return lease.get("start") is not None and _process_start(lease["pid"]) != lease["start"]
    own, holders = _boot().split("/"), boot.split("/")
    same_host = own[0] == holders[0] != "localhost"
    return same_host and own[1] != holders[1]  # rebooted since; a damaged lease has no second part


def _known_alive(lease: dict[str, Any]) -> bool:
    """Whether the holder certainly runs on this machine; it may be suspended, without heartbeats."""
    return lease.get("boot") == _boot() and lease.get("start") == _process_start(lease["pid"]) is not None


def holder(folder: Path) -> dict[str, Any] | None:
    """The lease of `folder`, None when its holder is known to be gone; `progress` is what the holder reports."""
    lease = read_json(folder / "lease.json")
    return None if lease is None or _known_gone(lease) else lease


def beating(folder: Path) -> dict[str, Any] | None:
    """The lease of `folder` if its holder seems to run: of another machine, if it beat within `STALE_SECONDS`.

    For what is shown at once. It trusts the clocks of this machine and of the file system; before a takeover `Watcher`
    looks for itself.
    """
    lease = holder(folder)
    if lease is None or _known_alive(lease):
        return lease
    try:
        age = time.time() - (folder / "lease.json").stat().st_mtime
    except OSError:  # released a moment ago
        return None
    return lease if age < STALE_SECONDS else None


class Watcher:
    """Distinguishes live leases from stale ones by observing their heartbeats on this process's own clock."""

    def __init__(self, stale_seconds: float = STALE_SECONDS) -> None:
        self.stale_seconds = stale_seconds
        self._last_beat: dict[Path, tuple[tuple, float]] = {}  # token and beat, and when they were first seen

    def live(self, folder: Path) -> dict[str, Any] | None:
        """The lease of `folder` when its holder may be alive, else None."""
        lease = holder(folder)
        if lease is None:
            self._last_beat.pop(folder, None)
            return None
        if _known_alive(lease):
            return lease
        now, beat = time.monotonic(), (lease["token"], lease["beat"])
        if self._last_beat.get(folder, (None,))[0] != beat:
            self._last_beat[folder] = (beat, now)
        return lease if now - self._last_beat[folder][1] < self.stale_seconds else None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's file lock for the block, which should be short."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lease:
    """A held lease: the right to write in a folder. `progress` (JSON-serialisable) is published with each heartbeat."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: dict[str, Any] = {}
        self._identity = {"token": uuid.uuid4().hex, **this_process()}
        self._beat = 0
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    def _write(self) -> None:
        self._beat += 1
        content = {**self._identity, "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID", "")}
        write_json(self.folder / "lease.json", {**content, "beat": self._beat, "progress": dict(self.progress)})

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                with locked(self.folder):
                    lease = read_json(self.folder / "lease.json")
                    if lease is None or lease["token"] != self._identity["token"]:
                        self._lost = True
                        return
                    self._write()
            except OSError:  # a full disk, or a file server that is unreachable for a moment: retried at the next beat
                continue

    def check(self) -> None:
        """Raise LeaseLost when another process has taken over; cheap enough to call at every step."""
        if self._lost:
            raise LeaseLost(f"another process took over {self.folder}")

    def release(self) -> None:
        """Stop the heartbeat and remove the lease if this process still holds it."""
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
        folder: created when missing.
        stale_seconds: time without a heartbeat after which a holder counts as gone.
        poll_seconds: pause between two checks.

    Raises:
        Interrupted: asked to stop while waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    watcher = Watcher(stale_seconds)
    held = Lease(folder)
    while True:
        if watcher.live(folder) is None:
            with locked(folder):
                if watcher.live(folder) is None:  # no other process took it before the lock
                    held._write()
                    break
        stop_if_asked("waiting for another process")
        time.sleep(poll_seconds)
    held._thread.start()
    try:
        yield held
    finally:
        held.release()
