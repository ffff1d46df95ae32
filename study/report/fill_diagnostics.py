"""Diagnostics of finished tokenizers, computed if missing: those of their latents and the interpolated FIDs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.core.compute import apply
from study.core.files import write_json
from study.data.datasets import load_images
from study.data.latents import Latents, read_latents
from study.judge.finite import MetricError
from study.judge.latent_diagnostics import PREDICTORS, describe_latents, picture_latents, predictors
from study.judge.latent_metrics import MIN_POINTS
from study.plan.judge_spec import JudgeSpec
from study.plan.specs import Encode
from study.plan.stage import DIAGNOSTICS, IFIDS, LATENT_MAP, LATENT_PICTURES, Stage, stage_from_record
from study.report.refresh import StudyFiles
from study.stages.encode import mean_encoder
from study.stages.fit_tokenizer import trained_tokenizer
from study.stages.reconstruct import interpolated_distances
from study.submit.launches import launched_plans


def diagnose(study: str, points: int | None, out: Path | None = None) -> None:
    """Compute the missing diagnostics and print a line per tokenizer; then write the table and draw the figures.

    Args:
        study: its name; '' is the study that was started last.
        points: latent tokens on the t-SNE map, which is then recomputed for every tokenizer; None keeps existing maps.
        out: folder that holds results/ and figures/; None is that of each sweep.

    Raises:
        ValueError: no such study was started here, or too few points.
    """
    if points is not None and points < MIN_POINTS:
        raise ValueError(f"--points {points}: t-SNE needs at least {MIN_POINTS}")
    plans = launched_plans(study)
    if not plans:
        raise ValueError("only searches of this study were started, no sweep")
    titles = {stage: job.title for _, plan in plans for job in plan.jobs for stage in job.stages}
    results = [result for _, plan in plans for planned in plan.runs for result in planned.results]
    judges = {result.pictures: [stage.spec.judge for stage in result.judges] for result in results}  # type: ignore[union-attr]
    for stage, title in titles.items():
        if stage.kind in ("encode", "reconstruct") and stage.record() is not None:
            print(f"{title}: {_describe(stage, judges.get(stage, []), points)}", flush=True)
    for options, plan in plans:
        files = StudyFiles(plan, out or options.out)
        files.update()
        print(files.table)
        for figure, reason in files.skipped.items():
            print(f"no {figure}: {reason}")


def _describe(stage: Stage, judges: Sequence[JudgeSpec], points: int | None) -> str:
    """A finished stage's diagnostics as text, computed if they are missing; or why there are none."""
    diagnostics = stage.diagnostics()
    try:
        if stage.kind == "reconstruct":
            for variant in IFIDS:
                if not {judge.name for judge in judges} <= diagnostics.get(variant, {}).keys():
                    here = stage_from_record(stage.kind, stage.fingerprint)  # the plan may be of another machine
                    diagnostics[variant] = interpolated_distances(here, judges, variant)
                    write_json(stage.folder / DIAGNOSTICS, diagnostics)
            found = {
                f"{variant} ({judge})": value for variant in IFIDS for judge, value in diagnostics[variant].items()
            }
            return ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        assert isinstance(stage.spec, Encode)
        if stage.spec.pretrained is not None:
            return "its latent statistics are published ones: there are no latents here"
        if not (stage.folder / LATENT_PICTURES).exists():
            picture_latents(read_latents(stage), load_images(stage.spec.data, "train"), stage.folder)
        if not (stage.folder / LATENT_MAP).exists() or points is not None:
            number = points or diagnostics.get("diagnostic_points")
            kept = {name: diagnostics[name] for name in PREDICTORS if name in diagnostics}
            diagnostics = kept | describe_latents(read_latents(stage), stage.folder, number)
            write_json(stage.folder / DIAGNOSTICS, diagnostics)
        if not diagnostics.keys() >= set(PREDICTORS):
            diagnostics |= _predictors(read_latents(stage), stage)
            write_json(stage.folder / DIAGNOSTICS, diagnostics)
        names = ("density_cv", "gini", "normalized_entropy", "effective_rank")
        values = ", ".join(f"{name} {diagnostics[name]:.4g}" for name in names if name in diagnostics)
        return f"{values} of {diagnostics['diagnostic_points']:,} latents" if values else "too few latents to describe"
    except (ValueError, OSError, MetricError) as error:  # concerns this tokenizer only; continue with the others
        return f"none: {error}"


def _predictors(latents: Latents, stage: Stage) -> dict[str, float]:
    """PREDICTORS of a finished encode stage, with the tokenizer on this machine."""
    here = stage_from_record(stage.kind, stage.fingerprint)
    assert isinstance(here.spec, Encode)
    apply(here.spec.compute)
    encode = mean_encoder(trained_tokenizer(here.inputs["tokenizer"]), here.spec.compute.device)
    return predictors(latents, load_images(here.spec.data, "train"), encode)
