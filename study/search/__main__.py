"""python -m study.search: find the best settings; each trial is a run, and many workers share one storage."""

from __future__ import annotations

import sys

import tyro

from study.core.distributed import rank_and_world_size
from study.search.options import Search


def main() -> None:
    """Entry point: a user error is one line on standard error and exit code 2."""
    options = tyro.cli(Search, prog="python -m study.search", config=(tyro.conf.FlagCreatePairsOff,))
    # imported here: they load pandas, matplotlib and Optuna, which takes seconds that --help does not need
    from study.search.prepare import prepare
    from study.search.run import follow, run

    code = 2
    try:
        problem, missing = prepare(options)
        code = run(options, problem, missing) if rank_and_world_size()[0] == 0 else follow(options, problem, missing)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"study.search: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
