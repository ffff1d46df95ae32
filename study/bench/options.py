"""The command-line options of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the parts of a study on this machine.

    Trainings' steps, sampling, encoding, loading and FID; medians of interleaved repeats.
    """

    quick: Annotated[bool, arg(help_behavior_hint="")] = False
    """Only the generator's training step, compared with its matrix products alone."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """Scale that gives the shapes: its last generator, its middle latent width, its batch sizes."""
    batch: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Images per generator step. Default: the scale's batch; at imagenet256 as many as one GPU holds."""
    repeats: Annotated[int, arg(metavar="N")] = 15
    """Timed repeats of each case; the median counts. Slow cases get fewer."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Threads of the process. Default: as many as a job of a sweep gets here."""
    precision: Annotated[str, arg(metavar="DTYPE", help_behavior_hint="")] = ""
    """float32 or bfloat16, of all trainings and of sampling. Default: the scale's."""
    compile: Annotated[bool, arg(help_behavior_hint="")] = False
    """Also time a generator's step and sampling with blocks that go through torch.compile. On a GPU that can compile
    they always are."""
    against: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Compare with a checkout of hustvl/LightningDiT instead: generator step, sampling, loader. On a GPU three
    processes share its memory: give --batch."""
    judging: Annotated[bool, arg(help_behavior_hint="")] = False
    """Instead, judge 50,000 made-up pictures of 256 px, which takes minutes, and say how much memory that needs."""
    study: Annotated[bool, arg(help_behavior_hint="")] = False
    """Instead, run a small study, which takes minutes, and say how many core seconds each stage took, beside those
    that are kept for this kind of machine in study/bench/core_seconds.json."""
    keep: Annotated[bool, arg(help_behavior_hint="")] = False
    """With --study: keep its numbers there."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the numbers to this JSON file."""
