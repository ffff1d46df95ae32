"""python -m study.diagnose: measures of finished tokenizers that may predict how well a generator trains on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from study.core.command_line import exit_code, options_of
from study.core.study_name import StudyArgument, StudyOption, one_study


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Compute the missing diagnostics of a study's finished tokenizers, then update its table and its figures.

    The diagnostics are those of the latents, if their stage has not computed them (their distribution with its map,
    VIV, LNC, SEC, LDS, CDS, EQ error), and both variants of the interpolated FID, which no sweep computes: each takes
    about as long as judging the reconstructions. Existing diagnostics are kept, and nothing is trained.
    """

    study: StudyArgument = ""
    """Name of the study. Default: the one that was started last."""
    named: StudyOption = ""
    """The same as STUDY."""
    points: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Latent tokens on the t-SNE map, one per image; the map of every tokenizer is then recomputed. Default: 10,000, on
    data sets with fewer than 100,000 training images 1,500."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder that holds results/ and figures/. Default: that of the sweep."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: the exit code."""
    options = options_of(Diagnose, "study.diagnose", arguments)
    # imported here: it loads torch, which takes seconds that --help does not need
    from study.report.fill_diagnostics import diagnose

    def run() -> None:
        diagnose(one_study(options.study, options.named), options.points, options.out)

    return exit_code("study.diagnose", run)


if __name__ == "__main__":
    sys.exit(main())
