"""From the options of a command to a plan: every user error is reported before a job starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from study.core import compute
from study.core.cards import cards, no_card_because
from study.core.distributed import rank_and_world_size
from study.core.files import fingerprint
from study.core.paths import require_writable, study_root
from study.core.settings import change
from study.data.datasets import native_resolution, resolve_data
from study.data.named_datasets import NAMED_DATASETS
from study.plan.ablation_files import ablation
from study.plan.checks import check_data, check_grid, check_reference, check_scale, check_study
from study.plan.data_spec import GIVEN_AS_FOLDER, DataSpec
from study.plan.needs import missing_here
from study.plan.resolve import make_plan
from study.plan.runs import Plan, Setting
from study.plan.scales import Scale, named_scale
from study.plan.weight_files import FILES, find_weights, keep_hashes
from study.submit.cluster import read_profile, require_slurm
from study.submit.options import MANAGEMENT, Sweep


def resolve_scale(options: Sweep) -> Scale:
    """The scale that the options name, with their --set changes and its `fallbacks` here; ValueError for an unknown
    name or field."""
    scale = named_scale(options.scale)
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {text!r}")
        scale = change(scale, key.strip(), value.strip())
    values: dict[str, Any] = {field: value for field, (value, _) in fallbacks(scale, options).items()}
    return dataclasses.replace(scale, **values)


def fallbacks(scale: Scale, options: Sweep) -> dict[str, tuple[Any, str]]:
    """Fields of a scale that this machine cannot have as they are: their value here, and why. Those that --set names
    stay; without a GPU here a plan is for one that multiplies in bfloat16."""
    named = {text.partition("=")[0].strip() for text in options.set}
    found: dict[str, tuple[Any, str]] = {}
    slow = [card.name for card in cards() if not card.bfloat16] if scale.fallback_precision else []
    if slow:
        reason = f"{slow[0]} does not multiply in {scale.precision}: generators in {scale.fallback_precision}"
        found["precision"] = scale.fallback_precision, reason
    models = [model for model in scale.foundation_models if model in FILES and find_weights(model) is None]
    if scale.fallback_models and models:
        fetch = f"python -m study.prefetch --scale {scale.name} --set foundation_models={','.join(models)}"
        reason = f"weights of {', '.join(models)} are not here ({fetch}): aligned with "
        found["foundation_models"] = scale.fallback_models, reason + ", ".join(scale.fallback_models)
    return {field: each for field, each in found.items() if field not in named}


def _study_name(options: Sweep, scale: Scale, data: DataSpec) -> str:
    if options.study is not None:
        return options.study
    parts = [options.scale]
    if (data.name, data.resolution) != (scale.data, scale.resolution):
        parts.append(f"{data.name}-{data.resolution}")
    if options.set:  # results of changed settings must not be mixed with the scale's own
        parts.append(fingerprint(sorted(options.set), 6))
    return "-".join(parts)


def prepare(options: Sweep) -> Plan:
    """Resolve and check all options before a job starts; downloads and packs the data set if it is missing.

    A dry run writes nothing: data that is not packed yet is planned without its content.

    Raises:
        ValueError: a user error, in one line.
    """
    module, setting = ablation(options.ablation, also_valid=MANAGEMENT), prepare_setting(options)
    plan = make_plan(options.ablation, module, setting.scale, setting.data, setting.compute, setting.study)
    if not options.dry_run:
        keep_hashes()
    return dataclasses.replace(plan, missing=(*setting.missing, *missing_here(plan.stages)))


def prepare_setting(options: Sweep) -> Setting:
    """Everything that `prepare` resolves, except the ablation."""
    scale = resolve_scale(options)
    world_size = rank_and_world_size()[1]
    if world_size > 1 and (options.executor, scale.execution.processes) != ("inline", world_size):
        raise ValueError(
            f"{world_size} processes were started together: they need --executor inline --set "
            f"execution.processes={world_size}"
        )
    if options.study is not None:
        check_study(options.study)  # before the data, which may have to be fetched and packed
    if options.executor == "slurm":
        require_slurm()
        read_profile(options.cluster)
    elif options.detach or options.cluster is not None:
        raise ValueError("--detach and --cluster are for --executor slurm")
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    if options.jobs is not None and options.executor == "slurm":
        raise ValueError("--jobs is for this machine; on Slurm `parallel` in the profile sets how many run at once")
    for folder in (study_root(), options.out / "results", options.out / "figures"):
        require_writable(folder, create=not options.dry_run)
    data, missing = find_data(options, scale)
    resolved = compute.resolve(scale.device, scale.precision)
    here, processes = len(cards()) if resolved.device == "cuda" else 0, scale.execution.processes
    if resolved.device == "cuda" and options.executor != "slurm" and not here:
        missing.append(
            f"a GPU: this machine has none, for {no_card_because()} (--executor slurm for a cluster that does; "
            "--set device=cpu)"
        )
    if 0 < here < processes and options.executor != "slurm":
        missing.append(
            f"a GPU for each of execution.processes {processes}: this machine has {here} (--executor slurm for a "
            f"cluster that has more; --set execution.processes={here})"
        )
    no_compiler = compute.no_compiler_because(resolved.device) if options.executor != "slurm" else ""
    if scale.execution.compile and no_compiler:
        missing.append(f"{no_compiler}: execution.compile needs it (--set execution.compile=False)")
    study = _study_name(options, scale, data)
    return Setting(scale=scale, data=data, compute=resolved, study=study, missing=tuple(missing))


def find_data(options: Sweep, scale: Scale) -> tuple[DataSpec, list[str]]:
    """The data set, and a line if the user must supply it; checks the scale first. It is downloaded and packed if
    necessary, but not for a dry run or a list."""
    check_scale(scale)
    source = options.data or scale.data
    if source not in NAMED_DATASETS and source not in GIVEN_AS_FOLDER:
        source = str(Path(source).expanduser())
    resolution = options.resolution
    if resolution is None:
        own_size = scale.data in GIVEN_AS_FOLDER or scale.device == "cuda"  # a GPU's scale, sized by its pixels
        use_native = source not in NAMED_DATASETS and not own_size and Path(source).is_dir()
        resolution = native_resolution(Path(source)) if use_native else scale.resolution
    check_grid(scale, resolution)
    missing = []
    if source in GIVEN_AS_FOLDER:
        data = dataclasses.replace(GIVEN_AS_FOLDER[source], resolution=resolution)
        missing.append(
            f"the data: give {source} as a folder (--data): train/ and val/, one subfolder per class in each, or the "
            "hub's parquet files",
        )
    else:
        pack = not (options.dry_run or options.list)
        data = resolve_data(source, resolution, pack=pack, upright=scale.turns_pictures)
    check_data(scale, data)
    check_reference(scale, data)
    return data, missing
