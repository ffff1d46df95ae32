"""From records to the results table: every planned row, with its numbers or the reason why it has none."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.configs import parse_tokenizer
from results.files import atomic
from results.runs import SEARCH
from results.schema import DIAGNOSTICS, METRICS, Label, Row, latents_file
from results.table import by_key, read, write_rows
from study.core.files import fingerprint
from study.core.lease import holder, locked
from study.core.provenance import EXECUTION
from study.plan.data_spec import DataSpec
from study.plan.estimate import training_flops
from study.plan.factors import run_labels
from study.plan.judge_spec import JudgeSpec, reference_name
from study.plan.runs import Plan, Planned
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Generate, Reconstruct
from study.plan.stage import LATENT_MAP, LATENT_PICTURES, Stage
from study.plan.weight_files import REFERENCES, weight_file
from study.submit.jobs import changes_between, log_of

Cells = dict[str, Any]  # some columns of a row
COSTS = ("train_seconds", "train_images_per_second", "peak_memory_gib", "parameters")  # from a training's record


def state_of(planned: Planned, result: Stage) -> tuple[str, str, Stage]:
    """State and reason of one row, and the stage that measures it or that prevents it from being measured."""
    if result.record() is not None:
        return "done", "", result
    chain = _upstream(result)
    for stage in chain:
        if stage.record() is None and (failure := stage.failure()) is not None:
            own = stage.fingerprint in (result.fingerprint, planned.fit.fingerprint)
            if own or planned.kind == "tokenizer":
                return failure["state"], failure["reason"], stage
            spec = stage.spec
            name = spec.tokenizer if isinstance(spec, (FitTokenizer, FitGenerator)) else stage.kind
            return "blocked", f"blocked by {name}: {failure['reason']}", stage
    waits_for = [stage for stage in chain if stage.record() is None]
    running = any(holder(stage.folder) is not None for stage in waits_for if stage in (planned.fit, result))
    return ("running" if running else "pending"), "", result


def _upstream(stage: Stage) -> list[Stage]:
    """All stages that a stage depends on, in order, and the stage itself last."""
    return [*(upstream for source in stage.inputs.values() for upstream in _upstream(source)), stage]


def protocols(stage: Stage) -> dict[str, Cells]:
    """Protocol columns of the rows of a stage, by judge."""
    spec = stage.spec
    assert isinstance(spec, (Reconstruct, Generate))
    rows: dict[str, Cells] = {}
    for judge in spec.judges:
        common = {"extractor": judge.name, "extractor_size": judge.size, "decode_precision": "float32"}
        if isinstance(spec, Reconstruct):
            rows[judge.name] = {
                **common,
                "samples": spec.images,
                "reference": "own inputs",
                "reference_hash": _reference(judge, spec.data, "test", spec.images),
                "perceptual_net": f"{spec.perceptual_net} @ {max(spec.perceptual_size, spec.data.resolution)} px",
            }
            continue
        sampling = spec.sampling
        reference, reference_hash = _compared_with(judge, spec)
        start, end = sampling.guidance_interval
        rows[judge.name] = {
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
    return rows


def measured_protocol(stage: Stage, judge: str) -> Cells:
    """Protocol columns of the row of a finished stage by one judge."""
    record = stage.record()
    assert record is not None
    return protocols(stage)[judge] | _protocol_from_metrics(record["metrics"][judge])


def _protocol_from_metrics(metrics: dict[str, Any]) -> Cells:
    """Protocol columns known only after measuring: the hash covers the weights of a judge that is trained here."""
    return {"comparable": metrics["comparable"], "reference_hash": metrics["reference"][:12]}


def _compared_with(judge: JudgeSpec, spec: Generate) -> tuple[str, str]:
    """The reference of samples as text, and its hash."""
    if spec.reference is None:
        images = spec.reference_images
        return reference_name(spec.data, "train", images), _reference(judge, spec.data, "train", images)
    file, of = weight_file(spec.reference.name).file, REFERENCES[spec.reference.name]
    hash_ = fingerprint({"judge": judge.fingerprint, "file": spec.reference.sha256}, 12)
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
        "foundation_model": name.foundation or "none",
        "latent_channels": name.channels,
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
            spec, record = result.spec, result.record()
            fit = result.inputs["generator" if planned.kind == "generator" else "tokenizer"].record()
            state, reason, deciding_stage = state_of(planned, result)
            images_seen = spec.images_seen if isinstance(spec, Generate) else planned.fit.spec.recipe.budget_images  # type: ignore[union-attr]
            sheet, seed = "", spec.sampling.seed if isinstance(spec, Generate) else None
            if record is not None:
                sheet = f"{Path(record['sheet']).stem}-{result.fingerprint}.png"
                if not is_search:
                    _copy(result.folder / record["sheet"], sheets / sheet)
                elif not (sheets / sheet).exists():
                    sheet = ""
                if planned.fit in latents and planned.kind == "tokenizer" and not is_search:
                    for name in (LATENT_MAP, LATENT_PICTURES):
                        target = latents_file(planned.fit.fingerprint, Path(name).suffix)
                        _copy(latents[planned.fit].folder / name, sheets / target)
            for judge, protocol in protocols(result).items():
                row: Cells = {
                    **identity,
                    "images_seen": images_seen,
                    "protocol": fingerprint({**protocol, "sampling_seed": seed}, 12),
                    "sampling_seed": seed,
                    "state": state,
                    "reason": reason,
                    "log": log_of(jobs[deciding_stage]) if state not in ("done", "pending") else "",
                    **protocol,
                    "flops_per_image": float(training_flops(planned.fit)),
                }
                if fit is not None:
                    row |= {key: value for key, value in fit["cost"].items() if key in COSTS}
                    if not identity["pretrained_weights"]:
                        row |= _carried_out(fit)
                if record is not None:
                    measured = dict(record["metrics"][judge])
                    origin = record["provenance"]
                    row |= {key: value for key, value in measured.items() if key in METRICS}
                    row |= {
                        "commit": origin["commit"],
                        "versions": origin["versions"],
                        "device": origin["device"],
                        "threads": origin["threads"],
                        "evaluate_seconds": record["seconds"],
                        "sheet": sheet,
                        **_protocol_from_metrics(measured),
                    }
                    if planned.kind == "tokenizer":
                        row |= _diagnostics(latents.get(planned.fit), result, judge)
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
    ifid = reconstruct.diagnostics().get("ifid", {})
    return row | ({"ifid": ifid[judge]} if judge in ifid else {})


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
