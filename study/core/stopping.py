"""Stop requests: a signal sets a flag, and loops check the flag where no work would be lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
# Left alone where they are ignored, as under nohup. A Slurm job starts with the other signals ignored
# (study/submit/slurm.py) and handles them from here on.
KEPT_IGNORED = ("SIGINT", "SIGHUP")

stop_requested = threading.Event()


class Interrupted(RuntimeError):
    """The work stopped on request after saving its state; running it again resumes from there."""


def stop_if_asked(what: str = "the work") -> None:
    """Raise Interrupted when a signal has requested a stop of this process."""
    if stop_requested.is_set():
        raise Interrupted(f"{what} was asked to stop")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Set `stop_requested` on STOP_SIGNALS within the block, except on those of KEPT_IGNORED that are ignored."""

    def set_flag(number: int, _frame: object) -> None:
        stop_requested.set()

    previous_handlers = {}
    for name in STOP_SIGNALS:
        number = getattr(signal, name, None)
        if number is None or (name in KEPT_IGNORED and signal.getsignal(number) is signal.SIG_IGN):
            continue
        previous_handlers[number] = signal.signal(number, set_flag)
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def ask_to_end(pid: int) -> None:
    """Ask a process of this machine to save and end; nothing happens if it has already ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def interrupt_on_signals() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, except where they are ignored (nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt
