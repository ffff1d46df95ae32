"""Differences between runs: their resolved settings by name, grouped into the factors that an ablation declares.

A step of an ablation is confounded when it changes more than one factor. This is computed from the resolved settings of
the runs, so no ablation file can hide it. The file only declares which settings count as one factor (`FACTORS`) and the
label of the run that all others are compared with (`BASE`; by default, each run is compared with the previous one).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.configs import GENERATOR_OPTIONS, parse_generator, parse_tokenizer
from results.schema import Label
from study.plan.runs import Factors, Plan, Planned
from study.plan.specs import FitGenerator, FitTokenizer, Sample
from study.plan.stage import Stage


def resolved_settings(planned: Planned) -> dict[str, Any]:
    """All settings that determine a run's result, by name, except seeds and settings that the run does not use.

    Sizes that follow from other settings are left out too: those of pictures and latents in the generator's network.
    """
    fit = planned.fit.spec
    if isinstance(fit, FitTokenizer):
        return _tokenizer(planned.fit)
    assert isinstance(fit, FitGenerator)
    network, samples = fit.architecture, planned.results[-1].pictures.spec
    assert isinstance(samples, Sample)
    recipe, repa = _by_name("generator", fit.recipe), fit.recipe.repa
    recipe["generator.repa"] = repa.model if repa else "none"
    return {
        **_tokenizer(planned.fit.inputs["latents"].inputs["tokenizer"]),
        "size": parse_generator(network.name)[1],
        "patch": network.patch,
        "pretrained_generator": fit.pretrained.name if fit.pretrained else "",
        **{name: getattr(network, name) for name in GENERATOR_OPTIONS},
        **recipe,
        **(_by_name("generator.repa", repa) if repa else {}),
        **(_by_name("foundation", fit.foundation) if fit.foundation else {}),
        **_by_name("sampling", samples.sampling),
    }


def _tokenizer(stage: Stage) -> dict[str, Any]:
    fit = stage.spec
    assert isinstance(fit, FitTokenizer)
    name, shape = parse_tokenizer(fit.tokenizer), fit.architecture
    recipe = _by_name("tokenizer", fit.recipe)
    if name.foundation is None:
        recipe = {key: value for key, value in recipe.items() if ".vf_" not in key and key != "tokenizer.phases"}
    for part in ("cosine", "distance"):  # a margin of a part without weight is not used
        if not recipe.get(f"tokenizer.vf_{part}_weight"):
            recipe.pop(f"tokenizer.vf_{part}_margin", None)
    used = {} if fit.regularisation is None else fit.regularisation.used()
    if name.encoder or "spectrum" in used:
        del recipe["tokenizer.kl_weight"]  # follows from it
    strengths = {key: value for kind in used for key, value in _by_name(f"regularisation.{kind}", used[kind]).items()}
    return {
        "latent_channels": shape.z_channels,
        "foundation_model": name.family,
        "regularisers": "+".join(each for each in used if each in name.regularisers)
        or "none",  # a part of the VF loss is a setting of its own
        "train_images": fit.train_images,
        "pretrained_tokenizer": fit.pretrained.name if fit.pretrained else "",
        **{f"autoencoder.{key}": getattr(shape, key) for key in ("ch", "ch_mult", "num_res_blocks", "unshuffle")},
        **recipe,
        **strengths,
        **(_by_name("foundation", fit.foundation) if fit.foundation and not name.encoder else {}),
    }


def _by_name(prefix: str, spec: Any) -> dict[str, Any]:
    return {f"{prefix}.{field.name}": getattr(spec, field.name) for field in dataclasses.fields(spec)}


def changed_factors(before: Mapping[str, Any], after: Mapping[str, Any], factors: Factors) -> tuple[str, ...]:
    """Names of the factors in which two runs differ; a setting outside all factors is a factor of its own.

    Settings that only one of the runs has are ignored: they follow from a setting that both have, as the VF settings
    follow from the foundation model.
    """
    factor_of = {setting: factor for factor, settings in factors.items() for setting in settings}
    changed = [factor_of.get(name, name) for name in after if name in before and before[name] != after[name]]
    return tuple(dict.fromkeys(changed))


def run_labels(plan: Plan) -> dict[str, Label]:
    """The labels of a plan's runs in order, each with the factors in which its run differs from the one that it is
    compared with: the plan's `base`, or the previous run."""
    runs: dict[str, dict[str, Any]] = {}
    for planned in plan.runs:
        if planned.run.label and planned.run.label not in runs:  # the first seed stands for all
            runs[planned.run.label] = resolved_settings(planned)
    previous = dict(zip(list(runs)[1:], runs, strict=False))
    labels = {}
    for place, (text, settings) in enumerate(runs.items()):
        compared = runs.get(plan.base or previous.get(text, text), settings)
        changed = changed_factors(compared, settings, plan.factors)
        labels[text] = Label(ablation=plan.ablation, place=place, text=text, changed=changed)
    return labels


def varied_factors(plan: Plan) -> dict[str, list[Any]]:
    """The factors that differ among a plan's generators, with the values in order of a factor of one setting."""
    runs = [resolved_settings(planned) for planned in plan.runs if planned.kind == "generator"]
    names = dict.fromkeys(name for run in runs for name in run)
    values = {name: list(dict.fromkeys(run[name] for run in runs if name in run)) for name in names}
    factor_of = {setting: factor for factor, settings in plan.factors.items() for setting in settings}
    varied = [name for name in names if len(values[name]) > 1]
    return {factor_of.get(name, name): [] if name in factor_of else values[name] for name in varied}
