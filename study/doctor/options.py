"""The command-line options of the doctor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say in a minute whether this machine, or a cluster, can do a study: what it has and what it lacks.

    Then a few real steps of every stage, at the scale's full size on made-up data: do they fit, and how fast are they?
    The rates are kept, and plans (study.sweep --dry-run) use them. On a processor, steps that would take too long are
    not tried.
    """

    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """At which scale (see study.sweep)."""
    cluster: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """What jobs request from Slurm, as for study.sweep: a job of at most ten minutes examines a node and makes the
    steps there."""
    data: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="")] = None
    """Data set or folder of pictures, as for study.sweep. Default: the scale's."""
    resolution: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the pictures in pixels, as for study.sweep."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Change a field of the scale, as for study.sweep."""
    steps: Annotated[bool, arg(help_behavior_hint="")] = True
    """Look only, and make no steps."""
