"""What a benchmark is asked for on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the parts of a study on this machine."""

    quick: bool = False
    """Only the generator's training step, against its matrix products alone."""
    scale: Annotated[str, arg(metavar="SCALE", help_behavior_hint="(default: desk)")] = "desk"
    """Whose shapes: the last of its generators, the middle of its latent widths, its batches."""
    batch: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Images of a generator's step. Default: the scale's; at imagenet256 what one GPU holds."""
    repeats: int = 15
    """Timed repeats of each; the median counts. Slow ones get fewer."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Threads of the process. Default: what the planner gives a job here."""
    compile: bool = False
    """Also a generator's step with its blocks through torch.compile."""
    against: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Instead, side by side with a checkout of hustvl/LightningDiT: generator step, sampling, loader. On a GPU three
    processes share its memory: give --batch."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the numbers to this JSON file."""
