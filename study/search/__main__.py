"""python -m study.search: find the best settings; each trial is a run, and many workers share one storage."""

from __future__ import annotations

import sys

from study.core.command_line import exit_code, options_of
from study.core.distributed import rank_and_world_size
from study.search.options import Search


def main() -> int:
    """Entry point: the exit code."""
    options = options_of(Search, "study.search")
    # imported here: they load pandas, matplotlib and Optuna, which takes seconds that --help does not need
    from study.search.prepare import prepare
    from study.search.run import follow, run
    from study.search.trials import TrialsFailed

    def search() -> int:
        problem, missing = prepare(options)
        try:
            first = rank_and_world_size()[0] == 0
            return run(options, problem, missing) if first else follow(options, problem, missing)
        except TrialsFailed as error:
            print(f"study.search: {error}", file=sys.stderr)
            return 1

    return exit_code("study.search", search)


if __name__ == "__main__":
    sys.exit(main())
