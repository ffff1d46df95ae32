"""Tokenizers with regularisers in plans: who they are, what is refused, what they cost."""

import dataclasses

import pytest
from made_up import COMPUTE, Asking, data_spec

import ablations.frontier
from models.configs import VF_PARTS
from models.regularisation import REGULARISERS, Regularisation
from study.core.settings import change
from study.plan.checks import check_scale
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.estimate import training_flops
from study.plan.factors import run_labels, varied_factors
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import SCALES
from study.plan.stage import Stage


def plan(*tokenizers, scale="smoke", data=None, module=None, labels=False, **changes):
    """The plan of tokenizers at a scale with these changes, `__` for the dots of their names."""
    settings = SCALES[scale]()
    for field, value in changes.items():
        settings = change(settings, field.replace("__", "."), value)
    check_scale(settings)
    labelled = {"generator": "LightningDiT-XXS/2"} if labels else {}
    runs = [Run(tokenizer=name, label=name if labels else "", **labelled) for name in tokenizers]
    data = data or data_spec(settings.resolution)
    return make_plan("asked", module or Asking(*runs), settings, data, COMPUTE, "test")


def fit(tokenizer, **options):
    return plan(tokenizer, **options).jobs[0].stages[0]


@pytest.mark.parametrize("name", [*REGULARISERS, "+".join(REGULARISERS)])
def test_every_name_plans_at_imagenet256_plain_and_aligned(name):
    size = {"scale": "imagenet256", "data": GIVEN_AS_FOLDER["imagenet"]}
    found = plan(f"f16d32+{name}", f"f16d32-dinov2+{name}", f"f16d32-dinov2+cosine+{name}", **size)
    assert len(found.jobs) == 3
    for job in found.jobs:
        assert list(job.stages[0].spec.regularisation.used()) == name.split("+")


def test_a_strength_moves_the_tokenizers_that_have_it_and_no_others():
    names = "f4d4", "f4d4-lite0", "f4d4+noise", "f4d4+noise+eq", "f4d4+eq"
    before, after = (
        [job.stages[0] for job in plan(*names, regularisation__noise__strength=strength).jobs]
        for strength in (0.8, 0.4)
    )
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False, True]


def test_a_plain_tokenizer_is_known_as_before_there_were_regularisers(monkeypatch):
    """Its spec has no part of them, so that another one moves nothing."""
    from study.core.settings import identity

    for name in ("f4d4", "f4d4-lite0", "f4d4+noise"):
        spec = fit(name).spec
        found = identity(spec).get("regularisation")
        assert found == ({"noise": {"strength": 0.8, "interpolate": False}} if "+" in name else None)
        assert ("regularisation" in identity(spec)) == ("+" in name)


def test_a_part_of_the_vf_loss_is_the_loss_without_the_other():
    def recipe(tokenizer, **changes):
        return fit(tokenizer, **changes).spec.recipe

    for part, other in (VF_PARTS, VF_PARTS[::-1]):
        alone = recipe(f"f4d4-lite0+{part}")
        assert alone == recipe("f4d4-lite0", **{f"tokenizer__vf_{other}_weight": 0.0})
        assert alone != recipe("f4d4-lite0")


def test_spectrum_matching_replaces_the_kl_divergence_and_shrunk_images_stay_small_for_the_perceptual_net():
    assert fit("f4d4+spectrum").spec.recipe.kl_weight == 0
    plain = fit("f4d4").spec.recipe
    assert fit("f4d4+spectrum", regularisation__spectrum__weight=0.0).spec.recipe == plain
    seen = {"tokenizer__perceptual_weight": 1.0, "tokenizer__perceptual_size": 16}
    sizes = {name: fit(name, **seen).spec.recipe.perceptual_size for name in ("f4d4", "f4d4+noise", "f4d4+eq")}
    assert sizes == {"f4d4": 32, "f4d4+noise": 32, "f4d4+eq": 16}


@pytest.mark.parametrize(
    ("tokenizer", "changes", "message"),
    [
        (
            "f4d4+eq",
            {"tokenizer__gan_weight": 0.5},
            r"f4d4\+eq: eq shrinks pictures to 8 px, and the discriminator needs 24: set .*eq.smallest to 0.75, or",
        ),
        ("f4d4+scale", {"regularisation__scale__factors": "2,3"}, "factors 3 does not divide the grid of 8 x 8 cells"),
        ("f4d4+eq", {"regularisation__eq__smallest": 0.9}, "eq shrinks a grid of 8 x 8 cells to 8 at most, so nothing"),
        ("f4d4+mask", {"regularisation__mask__ratios": "0.5,0.75"}, "needs as many regularisation.mask.probabilities"),
        (
            "f4d4+scale+eq",
            {"tokenizer__perceptual_weight": 1.0, "tokenizer__perceptual_net": "vgg", "tokenizer__perceptual_size": 8},
            "vgg needs 16 px, and regularisers shrink pictures to 4 px: set tokenizer.perceptual_size to 16 or more",
        ),
        ("f4d4", {"regularisation__mask__probabilities": "0.5,0.1"}, "probabilities must be numbers .* add up to 1"),
        ("f4d4", {"regularisation__noise__strength": -1.0}, "regularisation.noise.strength must be 0 or more"),
        ("f4d4", {"regularisation__prefix__fewest": 0.0}, "regularisation.prefix.fewest must be above 0 and at most 1"),
        ("f4d4", {"regularisation__nois__strength": 1.0}, "no field 'nois' in Regularisation; nearest: noise"),
        (
            "f4d4-lite0+cosine+eq",
            {"tokenizer__vf_cosine_weight": 0.0},
            r"leaves f4d4-lite0\+cosine\+eq nothing to align by: set one above 0, or ask for f4d4\+eq",
        ),
    ],
)
def test_what_cannot_work_together_is_one_line(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        plan(tokenizer, **changes)
    assert len(str(refused.value).splitlines()) == 1


def test_a_check_of_another_tokenizer_says_nothing():
    assert plan("f4d4+noise", tokenizer__gan_weight=0.5, regularisation__scale__factors="3,").jobs


def test_regularisers_are_one_factor_and_their_strengths_others():
    found = plan("f4d4", "f4d4+noise", "f4d4+spectrum", "f4d4-lite0+spectrum", labels=True)
    changed = [label.changed for label in run_labels(found).values()]
    assert changed == [(), ("regularisers",), ("regularisers",), ("foundation_model",)]
    weak = Run(tokenizer="f4d4+noise", generator="LightningDiT-XXS/2", label="weak")
    strong = dataclasses.replace(weak, label="strong", changes={"regularisation.noise.strength": 2.0})
    both = plan(module=Asking(weak, strong))
    assert run_labels(both)["strong"].changed == ("regularisation.noise.strength",)


def test_the_frontier_has_each_regulariser_with_each_alignment():
    found = plan(module=ablations.frontier, regularisers="noise,noise+eq")
    names = {one.run.tokenizer for one in found.runs}
    assert names == {f"f4d4{model}{more}" for model in ("", "-lite0") for more in ("", "+noise", "+noise+eq")}
    assert varied_factors(found)["regularisers"] == ["none", "noise", "noise+eq"]


def test_an_estimate_knows_what_is_decoded_again_or_smaller():
    flops = {name: training_flops(fit(f"f4d4{name}")) for name in ("", "+noise", "+scale", "+eq")}
    assert flops["+noise"] == flops[""]
    assert flops[""] < flops["+scale"] < 1.16 * flops[""]
    assert 0.6 * flops[""] < flops["+eq"] < 0.9 * flops[""]


def test_a_record_of_before_is_read_with_regularisers_that_it_lacks():
    from study.core.settings import rebuild

    spec = fit("f4d4+noise").spec
    content = dataclasses.asdict(spec)
    without = {**content, "regularisation": {"noise": content["regularisation"]["noise"]}}
    assert rebuild(type(spec), without) == spec
    assert Stage("fit_tokenizer", rebuild(type(spec), without)) == fit("f4d4+noise")
    assert spec.regularisation != Regularisation()
