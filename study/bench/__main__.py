"""python -m study.bench: how fast the parts of a study run here, compared with the machine's peak rate."""

from __future__ import annotations

from study.bench.options import Bench
from study.core.command_line import options_of


def main() -> None:
    """Entry point: exit code 2 and one line on standard error if something cannot be measured here."""
    options = options_of(Bench, "study.bench")
    # imported here: it loads torch, which takes seconds that --help does not need
    from study.bench.run import bench

    bench(options)


if __name__ == "__main__":
    main()
