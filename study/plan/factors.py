"""In what two runs differ: their resolved settings by name, and the factors that an ablation makes of them.

A ladder's step is confounded where it changes more than one factor. That is found by comparing what the runs resolve
to, so no file can claim it away; an ablation only says which settings change as one (`FACTORS`), and which run the
others are compared with where it is not the one before (`BASE`, its label).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.specs import GENERATOR_OPTIONS, parse_generator, parse_tokenizer
from results.labels import Label
from study.plan.runs import Factors, Plan, Planned
from study.plan.specs import FitGenerator, FitTokenizer, Generate
from study.plan.stage import Stage


def resolved_settings(planned: Planned) -> dict[str, Any]:
    """What makes a run's number, by name; seeds, and what the run does not use, are left out.

    So are sizes that follow from others: of pictures and of the latent in the generator's network.
    """
    fit = planned.fit.spec
    if isinstance(fit, FitTokenizer):
        return _tokenizer(planned.fit)
    assert isinstance(fit, FitGenerator)
    network, result = fit.architecture, planned.results[-1].spec
    assert isinstance(result, Generate)
    return {
        **_tokenizer(planned.fit.inputs["latents"].inputs["tokenizer"]),
        "size": parse_generator(network.name)[1],
        "patch": network.patch,
        "given_generator": fit.given.name if fit.given else "",
        **{name: getattr(network, name) for name in GENERATOR_OPTIONS},
        **_named("generator", fit.recipe),
        **_named("sampling", result.sampling),
    }


def _tokenizer(stage: Stage) -> dict[str, Any]:
    fit = stage.spec
    assert isinstance(fit, FitTokenizer)
    name, shape = parse_tokenizer(fit.tokenizer), fit.architecture
    recipe = _named("tokenizer", fit.recipe)
    if name.foundation is None:
        recipe = {key: value for key, value in recipe.items() if ".vf_" not in key and key != "tokenizer.phases"}
    return {
        "latent_channels": shape.z_channels,
        "foundation_model": name.foundation or "none",
        "train_images": fit.train_images,
        "given_tokenizer": fit.given.name if fit.given else "",
        **{f"autoencoder.{key}": getattr(shape, key) for key in ("ch", "ch_mult", "num_res_blocks", "unshuffle")},
        **recipe,
        **(_named("foundation", fit.foundation) if fit.foundation else {}),
    }


def _named(part: str, spec: Any) -> dict[str, Any]:
    return {f"{part}.{field.name}": getattr(spec, field.name) for field in dataclasses.fields(spec)}


def changed_factors(before: Mapping[str, Any], after: Mapping[str, Any], factors: Factors) -> tuple[str, ...]:
    """Names of the factors in which two runs' settings differ; a setting that no factor claims is one by itself.

    Settings that only one of them has follow from one that both have, as VF settings do from the foundation model.
    """
    of = {setting: name for name, together in factors.items() for setting in together}
    found = [of.get(name, name) for name in after if name in before and before[name] != after[name]]
    return tuple(dict.fromkeys(found))


def run_labels(plan: Plan) -> dict[str, Label]:
    """The labels of a plan's runs in order, each with the factors in which it differs from the run that it is compared
    with: the plan's `base`, or the one before."""
    runs: dict[str, dict[str, Any]] = {}
    for planned in plan.runs:
        if planned.run.label and planned.run.label not in runs:  # or another seed's
            runs[planned.run.label] = resolved_settings(planned)
    before = dict(zip(list(runs)[1:], runs, strict=False))
    found = {}
    for place, (text, here) in enumerate(runs.items()):
        other = runs.get(plan.base or before.get(text, text), here)
        found[text] = Label(place, text, changed_factors(other, here, plan.factors))
    return found


def varied_factors(plan: Plan) -> dict[str, list[Any]]:
    """The factors in which a plan's generators differ and, for a factor of one setting, its values in order."""
    runs = [resolved_settings(planned) for planned in plan.runs if planned.kind == "generator"]
    names = dict.fromkeys(name for run in runs for name in run)
    values = {name: list(dict.fromkeys(run[name] for run in runs if name in run)) for name in names}
    of = {setting: name for name, together in plan.factors.items() for setting in together}
    several = [name for name in names if len(values[name]) > 1]
    return {of.get(name, name): [] if name in of else values[name] for name in several}
