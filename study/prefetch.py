"""python -m study.prefetch: download what a plan needs, so that nodes without a network can run it."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import tyro
from tyro.conf import arg

from results.numbers import disk_size
from study.core.command_line import exit_code, options_of
from study.data.download import fetch_weights
from study.plan.needs import needed_files
from study.plan.weight_files import find_weights, weight_file, weights_folder
from study.submit.options import DEFAULT_ABLATION, Sweep
from study.submit.prepare import prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefetch:
    """Download the weights, references and data of a plan, so that nodes without a network can run it.

    Weight files and references go to the folder named by STUDY_WEIGHTS (default: weights/ under $STUDY_ROOT),
    published data sets to $STUDY_ROOT, where a folder given with --data is packed too. A file whose publisher states
    its hash is checked against it; the hash of any other file is recorded when it is first downloaded and checked from
    then on. ImageNet is never downloaded.

    Give the same options as to the sweep, whose plan (--dry-run) prints this command where something is missing.
    """

    ablation: Annotated[tyro.conf.Positional[str], arg(metavar="[ABLATION]")] = DEFAULT_ABLATION
    """Which ablation's plan: a file of ablations/."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """At which scale (see study.sweep)."""
    data: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="")] = None
    """Data set or folder of pictures, as for study.sweep. Default: the scale's."""
    resolution: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the pictures in pixels, as for study.sweep."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Change a field of the scale, such as foundation_models=dinov2; may be given several times."""


def run(options: Prefetch) -> int:
    """Download what is missing and print a line per file; returns 0, or 1 if a download failed.

    Raises:
        ValueError: a wrong option, in one line.
    """
    sweep = Sweep(
        ablation=options.ablation, scale=options.scale, data=options.data, resolution=options.resolution,
        set=options.set,
    )  # fmt: skip
    plan = prepare(sweep)  # downloads the data set if it is published, and packs it
    print(f"{'there' if plan.data.content else 'missing':<8} data {plan.data.name} at {plan.data.resolution} px")
    code = 0
    for name in needed_files(plan.stages):
        weight, was_there = weight_file(name), find_weights(name) is not None
        try:
            path = fetch_weights(name)
        except (OSError, ValueError) as error:
            code = 1
            by_hand = f"\n         by hand: {weight.url} into {weights_folder()}" if weight.url else ""
            print(f"failed   {weight.file}: {error}{by_hand}")
        else:
            size = disk_size(path.stat().st_size)
            print(f"{'there' if was_there else 'fetched':<8} {path.name} ({size}, {weight.purpose})")
    return code


def main() -> int:
    """Entry point: the exit code, 1 if a download failed."""
    options = options_of(Prefetch, "study.prefetch")
    return exit_code("study.prefetch", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
