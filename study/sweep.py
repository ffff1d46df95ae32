"""python -m study.sweep: plan a study, run what is missing, write the table, draw the figures."""

from __future__ import annotations

import sys

import tyro

from study.core.distributed import rank_and_world_size
from study.submit.options import MANAGEMENT, Sweep


def main() -> None:
    """Entry point: a user error is one line on standard error and exit code 2."""
    # imported here: they load pandas and matplotlib, which takes seconds that --help does not need
    if sys.argv[1:2] and sys.argv[1] in MANAGEMENT:
        from study.manage import main as manage

        sys.exit(manage(sys.argv[1:]))
    options = tyro.cli(Sweep, prog="python -m study.sweep", config=(tyro.conf.FlagCreatePairsOff,))

    from study.report.ablation_list import print_list
    from study.report.carry_out import follow, run
    from study.submit.cluster import SlurmRefused
    from study.submit.prepare import prepare

    code = 2  # until there is a plan, every error is a user error
    try:
        if options.list:
            print_list(options)
            sys.exit(0)
        plan = prepare(options)
        code = 1
        code = run(options, plan) if rank_and_world_size()[0] == 0 else follow(plan)
    except (ValueError, OSError) as error:
        print(f"study.sweep: {error}", file=sys.stderr)
        code = 2 if isinstance(error, SlurmRefused) else code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
