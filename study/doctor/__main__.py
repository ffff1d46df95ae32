"""python -m study.doctor: what a machine lacks for a study, whether its trainings fit, and how long they will take."""

from __future__ import annotations

import sys

from study.core.command_line import exit_code, options_of
from study.doctor.options import Doctor


def main() -> int:
    """Entry point: the exit code, 3 if something is lacking."""
    options = options_of(Doctor, "study.doctor")
    # imported here: it loads torch, which takes seconds that --help does not need
    from study.doctor.run import examine

    return exit_code("study.doctor", lambda: examine(options))


if __name__ == "__main__":
    sys.exit(main())
