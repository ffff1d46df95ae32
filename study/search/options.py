"""The command-line options of a search."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from study.core.paths import CHECKOUT

TRIALS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Search for the best settings in a space (a file of ablations/spaces/): sampling, generator or tokenizer.

    A trial is a run like any other, and finished stages are never repeated: run the same command again at any time to
    continue. When all trials are done the best five are repeated with other seeds. The winner is scored on seeds that
    did not take part in choosing it.

    Results are written to results/STUDY/search/SPACE.csv and .json, and the runs to results/STUDY/table.csv.
    """

    space: Annotated[tyro.conf.Positional[str], arg(metavar="SPACE")]
    """The space to search: sampling, generator or tokenizer."""
    trials: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Total number of trials, earlier ones included. Default: the number given last time, or 20."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """The scale, as for study.sweep."""
    data: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="")] = None
    """Data set or folder of pictures, as for study.sweep. Default: the scale's."""
    resolution: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the pictures in pixels, as for study.sweep."""
    executor: Literal["local", "inline", "slurm"] = "local"
    """Where workers run: processes of this machine, this process (one worker), or a Slurm cluster."""
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many trials run at once. Default: as many as the cores or GPUs allow; on Slurm 4."""
    cluster: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Slurm resources of a worker, as for study.sweep: the fields for generators."""
    detach: Annotated[bool, arg(help_behavior_hint="")] = False
    """Submit the workers to Slurm and return."""
    storage: Annotated[str, arg(metavar="URL", help_behavior_hint="")] = ""
    """Where Optuna stores the trials: a URL, or the path of a journal. Default: journal.log in
    $STUDY_ROOT/searches/STUDY-SPACE. All workers need the same $STUDY_ROOT in any case."""
    study: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the results, as for study.sweep."""
    seed: int = 0
    """Seed for proposing new trials; existing trials are kept."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/. Default: the checkout."""
    dry_run: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print the space, the progress and the cost of a trial, then stop (exit code 3: something is missing)."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Change a field of the scale, as for study.sweep."""
