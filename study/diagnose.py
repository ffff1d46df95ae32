"""python -m study.diagnose: numbers of finished tokenizers that may foretell how well they generate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg

from study.specs import DIAGNOSTICS, LATENT_MAP, LATENT_PICTURES, Encode, Stage


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Fill in the diagnostics of a study's finished tokenizers, then its table and its figures.

    How latents lie, with their map, where their stage did not tell it yet, and the interpolated FID, which no sweep
    computes: it takes about as long as judging the reconstructions. What is there already is kept, and nothing is
    trained.
    """

    study: Annotated[tyro.conf.Positional[str], arg(metavar="[STUDY]", help_behavior_hint="")] = ""
    """Name of the study; default: the one that was started last."""
    points: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Latent tokens, one of each image, on the t-SNE map, for every tokenizer anew. Default: 10,000, and on data sets
    of fewer than 100,000 training images 1,500."""


def diagnose(options: Diagnose) -> None:
    """Compute what is missing, a line for each tokenizer; then write the table and draw the figures.

    Raises:
        ValueError: no such study was started here, or too few points.
    """
    from study.collector import Collector
    from study.metrics import FEWEST_POINTS
    from study.started import plans_of

    if options.points is not None and options.points < FEWEST_POINTS:
        raise ValueError(f"--points {options.points}: t-SNE needs at least {FEWEST_POINTS}")
    plans = plans_of(options.study)
    if not plans:
        raise ValueError("only searches of this study were started, no sweep")
    titles = {stage: job.title for _, plan in plans for job in plan.jobs for stage in job.stages}
    for stage, title in titles.items():
        if stage.kind in ("encode", "reconstruct") and stage.record() is not None:
            print(f"{title}: {_describe(stage, options.points)}", flush=True)
    for asked, plan in plans:
        collector = Collector(plan, asked.out)
        collector.update()
        print(collector.table)
        for figure, reason in collector.skipped.items():
            print(f"no {figure}: {reason}")


def _describe(stage: Stage, points: int | None) -> str:
    """What a finished stage's diagnostics say, computed where they are missing; or why there are none."""
    from study.data import load
    from study.diagnostics import describe_latents, picture_latents
    from study.files import write_json
    from study.metrics import MetricError
    from study.stages import encode, reconstruct

    found = stage.diagnostics()
    try:
        if stage.kind == "reconstruct":
            if not found:
                found = {"ifid": reconstruct.interpolated_distances(stage)}
                write_json(stage.folder / DIAGNOSTICS, found)
            return ", ".join(f"iFID {value:.4g} ({judge})" for judge, value in found["ifid"].items())
        assert isinstance(stage.spec, Encode)
        if stage.spec.given is not None:
            return "the statistics of its latents were given: there are no latents here"
        if not (stage.folder / LATENT_PICTURES).exists():
            picture_latents(encode.read(stage), load(stage.spec.data, "train"), stage.folder)
        if not (stage.folder / LATENT_MAP).exists() or points is not None:
            found = describe_latents(encode.read(stage), stage.folder, points or found.get("diagnostic_points"))
        names = ("density_cv", "gini", "normalized_entropy", "effective_rank")
        values = ", ".join(f"{name} {found[name]:.4g}" for name in names if name in found)
        return f"{values} of {found['diagnostic_points']:,} latents" if values else "too few latents to describe"
    except (ValueError, OSError, MetricError) as error:  # of one tokenizer; the others have theirs
        return f"none: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 done; 2 and one line on standard error for bad input."""
    options = tyro.cli(
        Diagnose, prog="python -m study.diagnose", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        diagnose(options)
    except (ValueError, OSError) as error:
        print(f"study.diagnose: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
