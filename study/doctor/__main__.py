"""python -m study.doctor: what a machine lacks for a study, whether its trainings fit, and how long they will take."""

from __future__ import annotations

import sys

import tyro

from study.doctor.options import Doctor


def main() -> None:
    """Entry point: exit code 0, 2 for a user error in one line, 3 if something is lacking, 130 if stopped."""
    options = tyro.cli(Doctor, prog="python -m study.doctor")
    code = 2
    try:
        # imported here: it loads torch, which takes seconds that --help does not need
        from study.doctor.run import examine

        code = examine(options)
    except (ValueError, OSError) as error:
        print(f"study.doctor: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
