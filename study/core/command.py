"""How a command ends: a user's error is one line on standard error, and so no traceback is one."""

from __future__ import annotations

import sys
from collections.abc import Callable

from safetensors import SafetensorError

USER_ERRORS = (ValueError, OSError, SafetensorError)  # a wrong setting, a file that cannot be read, a damaged one


def exit_code(command: str, run: Callable[[], int | None]) -> int:
    """Run a command to its end.

    Args:
        command: its name, such as `study.sample`, which begins the line.
        run: does the work and returns the exit code; None is 0.

    Returns:
        That code; 2 after a user's error; 130 if Ctrl-C stopped it.
    """
    try:
        return run() or 0
    except USER_ERRORS as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
