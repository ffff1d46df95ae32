"""python -m study.search: which settings are best, by trials that are runs, of many workers on one storage."""

from __future__ import annotations

import sys

import tyro

from study.core.distributed import rank_and_count
from study.search.options import Search


def main() -> None:
    """Entry point: errors of the caller are one line on standard error and exit code 2."""
    options = tyro.cli(Search, prog="python -m study.search", config=(tyro.conf.FlagCreatePairsOff,))
    # here, because they load pandas, matplotlib and Optuna, seconds that --help does not need
    from study.search.prepare import prepare
    from study.search.run import follow, run

    code = 2
    try:
        problem, missing = prepare(options)
        code = run(options, problem, missing) if rank_and_count()[0] == 0 else follow(options, problem, missing)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"study.search: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
