"""From records to the results table: every planned row, with its numbers or the reason why it has none."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.configs import AutoencoderConfig, parse_tokenizer
from results.files import atomic
from results.runs import SEARCH
from results.schema import DIAGNOSTICS, METRICS, Label, Row, latents_file, measured_alike
from results.table import by_key, read, write_rows
from study.core.files import fingerprint
from study.core.lease import beating, locked
from study.core.provenance import EXECUTION
from study.plan.data_spec import DataSpec
from study.plan.estimate import training_flops
from study.plan.factors import run_labels
from study.plan.judge_spec import JudgeSpec, reference_name
from study.plan.runs import Plan, Planned, Result, judge_name
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Judge, Reconstruct, Sample
from study.plan.stage import IFIDS, LATENT_MAP, LATENT_PICTURES, Stage
from study.plan.weight_files import REFERENCES, weight_file
from study.submit.jobs import changes_between, log_of

Cells = dict[str, Any]  # some columns of a row
COSTS = ("train_seconds", "train_images_per_second", "peak_memory_gib", "parameters")  # from a training's record


def state_of(planned: Planned, judge: Stage) -> tuple[str, str, Stage]:
    """State and reason of one row, and the stage that measures it or that prevents it from being measured.

    Args:
        judge: the judge stage of the row, of one of the run's results.
    """
    (pictures,) = judge.inputs.values()
    if judge.record() is not None and pictures.record() is not None:
        return "done", "", judge
    chain = _upstream(judge)
    for stage in chain:
        if stage.record() is None and (failure := stage.failure()) is not None:
            own = stage in (judge, pictures, planned.fit)
            if own or planned.kind == "tokenizer":
                return failure["state"], failure["reason"], stage
            spec = stage.spec
            name = spec.tokenizer if isinstance(spec, (FitTokenizer, FitGenerator)) else stage.kind
            return "blocked", f"blocked by {name}: {failure['reason']}", stage
    waits_for = [stage for stage in chain if stage.record() is None]
    running = any(beating(stage.folder) is not None for stage in waits_for if stage in (planned.fit, pictures, judge))
    return ("running" if running else "pending"), "", judge


def _upstream(stage: Stage) -> list[Stage]:
    """All stages that a stage depends on, in order, and the stage itself last."""
    return [*(upstream for source in stage.inputs.values() for upstream in _upstream(source)), stage]


def protocol(judged: Stage) -> Cells:
    """Protocol columns of the row of a judge stage."""
    spec, (pictures,) = judged.spec, judged.inputs.values()
    assert isinstance(spec, Judge)
    judge, made = spec.judge, pictures.spec
    common = {"extractor": judge.name, "extractor_size": judge.size, "decode_precision": "float32"}
    if isinstance(made, Reconstruct):
        return {
            **common,
            "samples": made.images,
            "reference": "own inputs",
            "reference_hash": _reference(judge, made.data, "test", made.images),
            "perceptual_net": f"{made.perceptual_net} @ {max(made.perceptual_size, made.data.resolution)} px",
        }
    assert isinstance(made, Sample)
    sampling = made.sampling
    reference, reference_hash = _compared_with(spec)
    start, end = sampling.guidance_interval
    return {
        **common,
        "samples": sampling.samples,
        "chunk": sampling.chunk,
        "solver": sampling.solver,
        "steps": None if sampling.solver == "dopri5" else sampling.steps,
        "timestep_shift": sampling.timestep_shift,
        "guidance_scale": sampling.guidance_scale,
        "guidance_start": float(start),
        "guidance_end": float(end),
        "guidance_channels": sampling.guidance_channels,
        "label_scheme": sampling.label_scheme,
        "weights": sampling.weights,
        "reference": reference,
        "reference_hash": reference_hash,
    }


def measured_protocol(result: Result, judge: str) -> Cells:
    """Protocol columns of the row of a finished result by one judge."""
    measured = result.measured(judge)
    assert measured is not None
    return protocol(result.judge(judge)) | _protocol_from_metrics(measured)


def _protocol_from_metrics(metrics: dict[str, Any]) -> Cells:
    """Protocol columns known only after measuring: the hash covers the weights of a judge that is trained here."""
    return {"comparable": metrics["comparable"], "reference_hash": metrics["reference"][:12]}


def _compared_with(spec: Judge) -> tuple[str, str]:
    """The reference of samples as text, and its hash."""
    if spec.reference is None:
        images = spec.reference_images
        return reference_name(spec.data, "train", images), _reference(spec.judge, spec.data, "train", images)
    file, of = weight_file(spec.reference.name).file, REFERENCES[spec.reference.name]
    hash_ = fingerprint({"judge": spec.judge.fingerprint, "file": spec.reference.sha256}, 12)
    return f"{Path(file).stem}, its statistics and {of.images} images", hash_


def _reference(judge: JudgeSpec, data: DataSpec, split: str, images: int) -> str:
    """Hash of a reference from a data set: the data, the choice of images, and the judge with its version."""
    return fingerprint({"judge": judge.fingerprint, "data": data.content, "split": split, "images": images}, 12)


def _identity(plan: Plan, planned: Planned, label: Label | None) -> Cells:
    run, fit = planned.run, planned.fit
    name = parse_tokenizer(run.tokenizer)
    tokenizer = fit if planned.kind == "tokenizer" else fit.inputs["latents"].inputs["tokenizer"]
    pretrained = _pretrained_file(fit)
    tokenizer_seed = None if run.pretrained_tokenizer else run.tokenizer_seed
    return {
        "ablations": (plan.ablation,),
        "labels": (label,) if label else (),
        "kind": planned.kind,
        "run": run.name,
        "changes": run.training_changes,
        "fingerprint": fit.fingerprint,
        "tokenizer": run.tokenizer,
        "foundation_model": name.family,
        "latent_channels": _architecture(tokenizer).z_channels,
        "generator": run.generator or "",
        "tokenizer_seed": tokenizer_seed,
        "seed": None if pretrained else tokenizer_seed if planned.kind == "tokenizer" else run.seed,
        "pretrained_weights": pretrained,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "study": plan.study,
        "scale": plan.scale.name,
        "data": plan.data.name,
        "resolution": plan.data.resolution,
    }


def _architecture(tokenizer: Stage) -> AutoencoderConfig:
    assert isinstance(tokenizer.spec, FitTokenizer)
    return tokenizer.spec.architecture


def _pretrained_file(fit: Stage) -> str:
    """File and hash of pretrained weights; empty if the network is trained."""
    weights = fit.spec.pretrained if isinstance(fit.spec, (FitTokenizer, FitGenerator)) else None
    return f"{weight_file(weights.name).file} {weights.sha256[:12]}" if weights else ""


def rows_of(plan: Plan, sheets: Path) -> list[Row]:
    """Every row of a plan; copies picture sheets of finished stages and maps of latents into the folder `sheets`.

    Args:
        sheets: created if missing.
    """
    jobs = {stage: job for job in plan.jobs for stage in job.stages}
    encoded = [stage for stage in plan.stages if isinstance(stage.spec, Encode) and stage.spec.pretrained is None]
    latents = {stage.inputs["tokenizer"]: stage for stage in encoded}
    rows, labels = [], run_labels(plan)
    is_search = plan.ablation.startswith(SEARCH)  # the many sheets of its trials stay in the stages' folders
    for planned in plan.runs:
        identity = _identity(plan, planned, labels.get(planned.run.label))
        for result in planned.results:
            spec, made = result.pictures.spec, result.pictures.record()
            fit = result.pictures.inputs["generator" if planned.kind == "generator" else "tokenizer"].record()
            seed = spec.sampling.seed if isinstance(spec, Sample) else None
            seconds = sum(record["seconds"] for stage in result.stages if (record := stage.record()))
            sheet = "" if made is None else f"{Path(made['sheet']).stem}-{result.pictures.fingerprint}.png"
            if made is not None and not is_search:
                _copy(result.pictures.folder / made["sheet"], sheets / sheet)
                if planned.fit in latents and planned.kind == "tokenizer":
                    for name in (LATENT_MAP, LATENT_PICTURES):
                        target = latents_file(planned.fit.fingerprint, Path(name).suffix)
                        _copy(latents[planned.fit].folder / name, sheets / target)
            elif not (sheets / sheet).exists():
                sheet = ""
            for judge in result.judges:
                state, reason, deciding_stage = state_of(planned, judge)
                name, columns = judge_name(judge), protocol(judge)
                row: Cells = {
                    **identity,
                    "images_seen": result.images_seen,
                    "protocol": fingerprint({**measured_alike(columns), "sampling_seed": seed}, 12),
                    "sampling_seed": seed,
                    "state": state,
                    "reason": reason,
                    "log": log_of(jobs[deciding_stage]) if state not in ("done", "pending") else "",
                    **columns,
                    "flops_per_image": float(training_flops(planned.fit)),
                }
                if fit is not None:
                    row |= {key: value for key, value in fit["cost"].items() if key in COSTS}
                    if not identity["pretrained_weights"]:
                        row |= _carried_out(fit)
                if measured := result.measured(name):
                    origin = (judge.record() or {})["provenance"]
                    row |= {key: value for key, value in measured.items() if key in METRICS}
                    row |= {
                        "commit": origin["commit"],
                        "versions": origin["versions"],
                        "device": origin["device"],
                        "threads": origin["threads"],
                        "evaluate_seconds": round(seconds, 3),
                        "sheet": sheet,
                        **_protocol_from_metrics(measured),
                    }
                    if planned.kind == "tokenizer":
                        row |= _diagnostics(latents.get(planned.fit), result.pictures, name)
                rows.append(Row(**row))
    return rows


def _carried_out(fit: dict[str, Any]) -> Cells:
    """How a training was carried out, from its record: by its last attempt, and what differed in the earlier ones."""
    origin = fit["provenance"]
    return {
        "train_precision": origin["precision"],
        "train_device": origin["device"],
        **{name: origin[name] for name in EXECUTION if name != "threads"},
        "train_threads": origin["threads"],
        "attention": fit.get("attention", ""),
        "resumed": changes_between(fit["attempts"]),
    }


def _diagnostics(latents: Stage | None, reconstruct: Stage, judge: str) -> Cells:
    """The diagnostics of a tokenizer, see study/judge/latent_diagnostics.py."""
    of_latents = {} if latents is None else latents.diagnostics()
    row = {name: of_latents[name] for name in (*DIAGNOSTICS, "diagnostic_points") if name in of_latents}
    interpolated = reconstruct.diagnostics()
    return row | {name: interpolated[name][judge] for name in IFIDS if judge in interpolated.get(name, {})}


def _copy(source: Path, target: Path) -> None:
    if source.exists() and not (target.exists() and target.read_bytes() == source.read_bytes()):
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)


def update_table(plan: Plan, out: Path) -> Path:
    """Write the study's table: this plan's rows, and the rows that other plans have added.

    A measured row that this ablation no longer asks for stays in the table, without the ablation's name. An earlier
    result stays until the run that replaces it has one.

    Args:
        out: folder that holds `results/`.

    Returns:
        The path of `results/<study>/table.csv`.
    """
    path = out / "results" / plan.study / "table.csv"
    with locked(path.parent):
        _update(plan, path)
    return path


def _update(plan: Plan, path: Path) -> None:
    asked = by_key(rows_of(plan, path.parent / "sheets"))
    rows = by_key(read(path)) if path.exists() else {}
    for key, old in rows.items():
        ablations = set(old.ablations) - {plan.ablation}
        labels = [label for label in old.labels if label.ablation != plan.ablation]
        new = asked.pop(key, None)
        if new is not None:
            ablations.update(new.ablations)
            labels += new.labels
        if new is None or (old.state == "done" and new.state != "done"):
            new = old  # a result, from another machine for instance, stays until there is a new one
        labels.sort(key=lambda label: label.ablation)
        rows[key] = replace(new, ablations=tuple(sorted(ablations)), labels=tuple(labels))
    kept = [row for row in rows.values() if row.ablations or row.state == "done"]  # else nothing was measured
    write_rows([*kept, *asked.values()], path)
