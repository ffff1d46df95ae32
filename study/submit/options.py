"""Options of `python -m study.sweep`, and of the commands that manage what it started."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from study.core.paths import CHECKOUT
from study.core.study_name import StudyArgument, StudyOption

DEFAULT_ABLATION = "frontier"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Run a whole study: train tokenizers and generators, judge them, fill the results table, draw the figures.

    Without arguments: the frontier ablation at desk scale, on Fashion-MNIST, in about ten minutes on two
    cores. Run the same command again at any time: finished stages are kept, interrupted ones resume.

    Results are written to results/STUDY/table.csv and figures/STUDY/, intermediate files to $STUDY_ROOT
    (default: the user's cache folder).

    Instead of an ablation: status, watch, retry, cancel or clean, for studies that were started (each with --help).
    """

    ablation: Annotated[tyro.conf.Positional[str], arg(metavar="[ABLATION]")] = DEFAULT_ABLATION
    """Which ablation to run: a file of ablations/; --list prints them."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """How big: smoke (seconds, for tests), desk (minutes on a laptop), desk-full (three hours there), gpu (an hour on
    one GPU), imagenet256 (the paper's, on GPUs), imagenet256-system (the paper's best system, for the ablation
    system)."""
    data: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="")] = None
    """Data set (fashion-mnist, cifar10), or a folder: with one subfolder of pictures per class, or train/ and a test
    split with such subfolders, or the parquet files of the Hugging Face hub. Default: the scale's."""
    resolution: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the pictures in pixels. Default: the scale's; for a folder at a desk scale, the size of its pictures."""
    executor: Literal["local", "inline", "slurm"] = "local"
    """Where jobs run: processes of this machine, this process (for debugging), or a Slurm cluster."""
    cluster: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """What jobs request from Slurm, a TOML file: partition, account, minutes, memory_gb and others; all fields are in
    study/submit/cluster.py."""
    detach: Annotated[bool, arg(help_behavior_hint="")] = False
    """Submit to Slurm and return; a last job writes the table and draws the figures."""
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many jobs run at once on this machine. Default: as many as its cores or GPUs allow."""
    study: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the results. Default: the scale, with the data set and a hash of --set where they differ from it."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/ and figures/. Default: the checkout."""
    dry_run: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print the plan, its cost and what is missing on this machine, and stop (exit code 3 if anything is missing).
    Nothing is written: data that is not packed yet is planned without its content."""
    list: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print every ablation with its runs, what they vary and their cost at the scale, and stop."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Change a field of the scale, such as generator.budget_images=20000; may be given several times. All fields are in
    study/plan/scales.py and study/plan/specs.py."""


def prefetch_command(options: Sweep) -> str:
    """The command that brings what a sweep with these options needs to this machine."""
    words = ["python", "-m", "study.prefetch"]
    if options.ablation != DEFAULT_ABLATION:
        words.append(options.ablation)
    words += ["--scale", options.scale]
    if options.data is not None:
        words += ["--data", options.data]
    if options.resolution is not None:
        words += ["--resolution", str(options.resolution)]
    for text in options.set:
        words += ["--set", text]
    return shlex.join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """Show every run of a launched study, and the progress of its searches; write nothing.

    Of a run: state, progress, time left, host, job, attempts; if it failed, reason and log.
    """

    study: StudyArgument = ""
    """Name of the study. Default: the one that was started last."""
    named: StudyOption = ""
    """The same as STUDY."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch(Status):
    """Show the same as status every 5 seconds, until nothing waits or runs.

    Then write the table and draw the figures. Ctrl-C ends the watching; the jobs go on.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry(Status):
    """Submit the failed runs and those that wait for them again, and no others."""

    memory_gb: Annotated[float | None, arg(metavar="GB", help_behavior_hint="")] = None
    """On Slurm: request this much memory."""
    minutes: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """On Slurm: request this much time."""
    microbatch_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Of generators that ran out of memory: images of a batch that go through at a time; moves no result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cancel(Status):
    """End the jobs that wait or run; finished work stays, and the same sweep resumes from there."""

    yes: Annotated[bool, arg(help_behavior_hint="")] = False
    """Do not ask."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clean:
    """Delete what can be made again, of all studies under $STUDY_ROOT; ask before each kind:
    - files of stages that no table, no launched sweep and no trial refers to;
    - states of finished generators, from which a larger budget goes on;
    - pictures that were judged, which another judge needs.

    Records are kept, and so is what sweeps and trials that are not finished need.
    """

    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder whose results/ count in addition to those of launched sweeps. Default: the checkout."""
    yes: Annotated[bool, arg(help_behavior_hint="")] = False
    """Delete all three kinds without asking."""


MANAGEMENT: dict[str, type] = {"status": Status, "watch": Watch, "retry": Retry, "cancel": Cancel, "clean": Clean}
