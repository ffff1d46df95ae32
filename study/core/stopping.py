"""Asking a process to stop: signals set a flag, and loops look at it where nothing would be lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
KEPT_IGNORED = ("SIGINT", "SIGHUP")  # by nohup and the like; to the others a job of study/submit/slurm.py is born deaf

stop_requested = threading.Event()


class Interrupted(RuntimeError):
    """The work was asked to stop and has saved what it had; running it again goes on from there."""


def stop_if_asked(what: str = "the work") -> None:
    """Raise Interrupted when a signal asked this process to stop."""
    if stop_requested.is_set():
        raise Interrupted(f"{what} was asked to stop")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the signals that ask a process to stop into the flag; of KEPT_IGNORED those that are ignored stay so."""

    def ask(number: int, _frame: object) -> None:
        stop_requested.set()

    before = {}
    for name in STOP_SIGNALS:
        number = getattr(signal, name, None)
        if number is None or (name in KEPT_IGNORED and signal.getsignal(number) is signal.SIG_IGN):
            continue
        before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask_to_end(pid: int) -> None:
    """Ask a process of this machine to save and end, unless it has meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def raise_stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt
