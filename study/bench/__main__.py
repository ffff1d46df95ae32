"""python -m study.bench: how fast the parts of a study run here, against what the machine can do at all."""

from __future__ import annotations

import tyro

from study.bench.options import Bench


def main() -> None:
    """Entry point: exit code 2 and one line on standard error for what cannot be measured here."""
    options = tyro.cli(Bench, prog="python -m study.bench", config=(tyro.conf.FlagCreatePairsOff,))
    # here, because it loads torch, which takes seconds that --help does not need
    from study.bench.run import bench

    bench(options)


if __name__ == "__main__":
    main()
