"""Diagnostics of finished tokenizers: how their latents lie, and the interpolated FID, where they are missing."""

from __future__ import annotations

from pathlib import Path

from study.core.files import write_json
from study.data.datasets import load_images
from study.data.latents import read_latents
from study.judge.diagnostics import describe_latents, picture_latents
from study.judge.finite import MetricError
from study.judge.latent_metrics import FEWEST_POINTS
from study.plan.specs import Encode
from study.plan.stage import DIAGNOSTICS, LATENT_MAP, LATENT_PICTURES, Stage
from study.report.refresh import StudyFiles
from study.stages.reconstruct import interpolated_distances
from study.submit.launches import launched_plans


def diagnose(study: str, points: int | None, out: Path | None = None) -> None:
    """Compute what is missing, a line for each tokenizer; then write the table and draw the figures.

    Args:
        study: its name; '' is the study that was started last.
        points: latent tokens on the t-SNE map, for every tokenizer anew; None keeps the maps that are there.
        out: folder that holds results/ and figures/; None is that of each sweep.

    Raises:
        ValueError: no such study was started here, or too few points.
    """
    if points is not None and points < FEWEST_POINTS:
        raise ValueError(f"--points {points}: t-SNE needs at least {FEWEST_POINTS}")
    plans = launched_plans(study)
    if not plans:
        raise ValueError("only searches of this study were started, no sweep")
    titles = {stage: job.title for _, plan in plans for job in plan.jobs for stage in job.stages}
    for stage, title in titles.items():
        if stage.kind in ("encode", "reconstruct") and stage.record() is not None:
            print(f"{title}: {_describe(stage, points)}", flush=True)
    for asked, plan in plans:
        collector = StudyFiles(plan, out or asked.out)
        collector.update()
        print(collector.table)
        for figure, reason in collector.skipped.items():
            print(f"no {figure}: {reason}")


def _describe(stage: Stage, points: int | None) -> str:
    """What a finished stage's diagnostics say, computed where they are missing; or why there are none."""
    found = stage.diagnostics()
    try:
        if stage.kind == "reconstruct":
            if not found:
                found = {"ifid": interpolated_distances(stage)}
                write_json(stage.folder / DIAGNOSTICS, found)
            return ", ".join(f"iFID {value:.4g} ({judge})" for judge, value in found["ifid"].items())
        assert isinstance(stage.spec, Encode)
        if stage.spec.given is not None:
            return "the statistics of its latents were given: there are no latents here"
        if not (stage.folder / LATENT_PICTURES).exists():
            picture_latents(read_latents(stage), load_images(stage.spec.data, "train"), stage.folder)
        if not (stage.folder / LATENT_MAP).exists() or points is not None:
            found = describe_latents(read_latents(stage), stage.folder, points or found.get("diagnostic_points"))
        names = ("density_cv", "gini", "normalized_entropy", "effective_rank")
        values = ", ".join(f"{name} {found[name]:.4g}" for name in names if name in found)
        return f"{values} of {found['diagnostic_points']:,} latents" if values else "too few latents to describe"
    except (ValueError, OSError, MetricError) as error:  # of one tokenizer; the others have theirs
        return f"none: {error}"
