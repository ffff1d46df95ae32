"""python -m study.sweep: plan a study, run what is missing, write the table, draw the figures."""

from __future__ import annotations

import sys
from typing import Any

from study.core.command_line import options_of
from study.core.distributed import rank_and_world_size
from study.submit.cluster import SlurmRefused
from study.submit.executors import follow
from study.submit.options import MANAGEMENT, Sweep
from study.submit.prepare import prepare


def main() -> None:
    """Entry point: a user error is one line on standard error and exit code 2."""
    name = sys.argv[1] if sys.argv[1:2] else ""
    if name in MANAGEMENT:
        sys.exit(manage(sys.argv[1:]))
    options = options_of(Sweep, "study.sweep")
    code = 2  # until there is a plan, every error is a user error
    try:
        # imported here: they load pandas and matplotlib, which takes seconds that --help does not need
        from study.report.ablation_list import print_list
        from study.report.carry_out import run

        if options.list:
            print_list(options)
            sys.exit(0)
        plan = prepare(options)
        code = 1
        code = run(options, plan) if rank_and_world_size()[0] == 0 else follow(options, plan)
    except (ValueError, OSError) as error:
        print(f"study.sweep: {error}", file=sys.stderr)
        code = 2 if isinstance(error, SlurmRefused) else code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def manage(arguments: list[str]) -> int:
    """Run a command that manages launched studies: its name, then its options; returns the exit code."""
    name, *rest = arguments
    options: Any = options_of(MANAGEMENT[name], f"study.sweep {name}", rest)
    # imported here: it loads pandas, matplotlib and Optuna, which takes seconds that --help does not need
    from study.manage import manage as run_command

    return run_command(name, options)


if __name__ == "__main__":
    main()
