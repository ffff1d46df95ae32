"""The steps of Table 1: each changes the settings that it claims to change, and no others."""

import dataclasses
from itertools import pairwise

import pytest
from made_up import COMPUTE, data_spec

import ablations.recipe
from study.plan.resolve import make_plan
from study.plan.scales import SCALES

CLAIMS = [  # settings that differ between step n and step n + 1
    {"recipe.objective", "architecture.learned_variance", "sampling.solver", "sampling.steps"},
    {"recipe.batch_images", "recipe.learning_rate"},
    {"recipe.betas"},
    {"recipe.logit_normal"},
    {"recipe.direction_weight"},
    {"architecture.swiglu"},
    {"architecture.rms_norm"},
    {"architecture.rope", "architecture.name"},
    {"architecture.patch", "architecture.name", "tokenizer", "tokenizer fingerprint"},  # two things at once: confounded
]


def settings(planned):
    """All settings that determine a step's result, by dotted name."""
    fit, result = planned.fit.spec, planned.results[-1]
    tokenizer = planned.fit.inputs["latents"].inputs["tokenizer"]
    flat = {"tokenizer": fit.tokenizer, "tokenizer fingerprint": tokenizer.fingerprint}
    for part in ("architecture", "recipe"):
        flat |= {f"{part}.{name}": value for name, value in dataclasses.asdict(getattr(fit, part)).items()}
    flat |= {f"sampling.{name}": value for name, value in dataclasses.asdict(result.pictures.spec.sampling).items()}
    flat |= {"images_seen": result.images_seen, "drawing": result.pictures.spec.compute}
    flat |= {"judges": [stage.spec for stage in result.judges]}
    return flat | {"seed": fit.seed, "training": fit.compute, "marks": len(planned.results)}


def ladder(name, **changes):
    scale = dataclasses.replace(SCALES[name](), **changes)
    plan = make_plan("recipe", ablations.recipe, scale, data_spec(scale.resolution), COMPUTE, "test")
    return plan, [planned for planned in plan.runs if planned.kind == "generator"]


@pytest.mark.parametrize("name", ["smoke", "desk", "imagenet256"])
def test_each_rung_changes_what_it_claims(name):
    plan, rungs = ladder(name)
    assert len(rungs) == len({rung.run.name for rung in rungs}) == 10
    assert [job.kind for job in plan.jobs].count("tokenizer") == 2
    found = [settings(rung) for rung in rungs]
    for (before, after), claims in zip(pairwise(found), CLAIMS, strict=True):
        assert {key for key in before if before[key] != after[key]} == claims
    first, last = found[0], found[-1]
    assert (first["recipe.batch_images"] * 4, first["recipe.betas"][1]) == (last["recipe.batch_images"], 0.999)
    assert len({rung["recipe.budget_images"] for rung in found}) == 1


def test_the_paper_scale_trains_the_papers_steps():
    _, rungs = ladder("imagenet256")
    recipes = [rung.fit.spec.recipe for rung in rungs]
    assert [recipe.budget_images // recipe.batch_images for recipe in recipes] == [400_000] * 2 + [100_000] * 8
    assert [recipe.learning_rate for recipe in recipes] == [1e-4] * 2 + [2e-4] * 8
    sampling = rungs[0].results[-1].pictures.spec.sampling
    assert (sampling.solver, sampling.steps) == ("ddpm", 250)
    assert rungs[0].fit.spec.architecture.name == "DiT-XL/2"


def test_the_last_step_is_a_run_of_the_frontier():
    import ablations.frontier

    scale = SCALES["desk"]()
    frontier = make_plan("frontier", ablations.frontier, scale, data_spec(), COMPUTE, "test")
    shared = {stage.fingerprint for stage in frontier.stages}
    _, rungs = ladder("desk")
    assert [rung.fit.fingerprint in shared for rung in rungs] == [False] * 8 + [True, False]
    names = {planned.fit.fingerprint: planned.run.name for planned in frontier.runs}
    assert names[rungs[8].fit.fingerprint] == rungs[8].run.name  # so its row keeps its name in the table


def test_seeds_repeat_the_ladder_and_without_alignment_it_ends_before():
    assert len(ladder("smoke", seeds=(0, 1))[1]) == 20
    assert len(ladder("smoke", foundation_models=())[1]) == 9
