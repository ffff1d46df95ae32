"""Generators aligned with a foundation model in plans: how that is asked for, what is refused, what it costs."""

import dataclasses

import pytest
from made_up import COMPUTE, Asking, data_spec

from models.configs import LITE0_WIDTHS, TRANSFORMERS
from models.foundation import efficientnet_lite, lite_trunk
from study.core.settings import change, identity, rebuild
from study.plan import estimate, needs, weight_files
from study.plan.checks import check_scale
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.factors import run_labels
from study.plan.features import features_gib, repa_flops
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.scales import SCALES
from study.plan.specs import REPA, Repa
from study.plan.stage import Stage
from study.stages.fit_generator import build

PLAIN = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
SMOKE = SCALES["smoke"]()
IMAGENET = {"scale": "imagenet256", "data": GIVEN_AS_FOLDER["imagenet"]}


def plan(*runs, scale="smoke", data=None, **changes):
    """The plan of runs at a scale with these changes, `__` for the dots of their names."""
    settings = SCALES[scale]()
    for field, value in changes.items():
        settings = change(settings, field.replace("__", "."), value)
    check_scale(settings)
    return make_plan("asked", Asking(*(runs or [PLAIN])), settings, data or data_spec(), COMPUTE, "test")


def fit(run=PLAIN, **options):
    """The stage of a run's generator."""
    (job,) = (job for job in plan(run, **options).jobs if job.kind == "generator")
    return job.stages[0]


def aligned(**changes):
    return dataclasses.replace(
        PLAIN, changes={f"generator.{name}".replace("__", "."): v for name, v in changes.items()}
    )


@pytest.mark.parametrize("name", REPA)
def test_a_published_set_is_a_name_in_the_scale_and_in_a_run(name):
    by_scale, by_run = fit(generator__repa=name).spec.recipe.repa, fit(aligned(repa=name)).spec.recipe.repa
    assert by_scale == by_run == dataclasses.replace(REPA[name], model="lite0", depth=1)


def test_a_field_turns_it_on_and_none_turns_it_off():
    assert fit(generator__repa__weight="0.2").spec.recipe.repa == Repa(weight=0.2, model="lite0", depth=1)
    both = aligned(repa="irepa", repa__spatial_norm=0.3)
    assert fit(both).spec.recipe.repa == dataclasses.replace(REPA["irepa"], spatial_norm=0.3, model="lite0", depth=1)
    assert fit(aligned(repa=None), generator__repa="irepa") == fit()


def test_without_weight_it_is_the_plain_training():
    assert fit(generator__repa__weight=0.0, generator__repa__depth=3) == fit()


def test_a_plain_generator_is_known_as_before_and_records_of_before_are_read():
    spec = fit().spec
    assert not {"foundation", "foundation_weights"} & set(identity(spec)) and "repa" not in identity(spec)["recipe"]
    content = dataclasses.asdict(spec)
    for name in ("foundation", "foundation_weights"):
        del content[name]
    del content["recipe"]["repa"]
    assert rebuild(type(spec), content) == spec
    used = fit(generator__repa="irepa")
    again = rebuild(type(spec), dataclasses.asdict(used.spec))
    assert Stage("fit_generator", again, used.inputs) == used


def test_its_settings_move_the_generator_alone_and_the_plain_one_is_moved_by_none():
    before = plan(PLAIN, aligned(repa="repa")).stages
    for field, value in (("repa__weight", 0.1), ("repa__depth", 2), ("repa__projector", "conv")):
        after = plan(PLAIN, aligned(repa="repa", **{field: value})).stages
        assert {stage.kind for stage in set(after) - set(before)} == {"fit_generator", "sample", "judge"}
    other = plan(PLAIN, aligned(repa="repa"), foundation__stride=8).stages
    assert {stage.kind for stage in set(other) - set(before)} == {"fit_generator", "sample", "judge"}
    assert fit(foundation__stride=8) == fit()


def test_the_bytes_of_its_models_weights_identify_it(monkeypatch, tmp_path):
    before, plain = fit(aligned(repa="repa")), fit()
    own = weight_files._lite_file
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(weight_files, "_lite_file", lambda n: tmp_path / "other.pth" if n == "lite0" else own(n))
    assert fit(aligned(repa="repa")) != before
    assert fit() == plain


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        (PLAIN, {"generator__repa__depth": 5}, "repa.depth 5 is more than the 4 blocks of LightningDiT-XXS/2"),
        (
            PLAIN,
            {"generator__repa": "repo"},
            "repa must be one of repa, irepa, or None, got 'repo'; or set one of its w",
        ),
        (PLAIN, {"generator__repa__gamma": 1}, "no field 'gamma' in Repa"),
        (PLAIN, {"generator__repa__model": "resnet"}, "generator.repa.model must be one of dinov2"),
        (PLAIN, {"generator__repa": "repa", "foundation_models": ""}, "needs a foundation model, .* to one of dinov2"),
        (
            dataclasses.replace(PLAIN, generator="LightningDiT-XXS/8"),
            {"generator__repa": "irepa"},
            "has one token for a grid of 8 x 8: set it to 0, or choose a smaller patch",
        ),
        (
            PLAIN,
            {"generator__repa__model": "mae", "data": data_spec(40)},
            "the foundation model mae takes pictures in multiples of 16 px, not 40",
        ),
        (
            Run(
                tokenizer="f16d32-dinov2",
                generator="LightningDiT-XL/1",
                pretrained_tokenizer=Pretrained(name="vavae-imagenet256-f16d32-dinov2", images_seen=1),
                pretrained_generator=Pretrained(name="lightningdit-xl-imagenet256-64ep", images_seen=1),
                pretrained_statistics="vavae-imagenet256-f16d32-dinov2-statistics",
            ),
            {"generator__repa": "repa", **IMAGENET},
            "a pretrained generator is not trained, so it cannot have generator.repa: leave it out",
        ),
    ],
)
def test_what_cannot_work_together_is_one_line(run, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        plan(run, **changes)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", REPA)
def test_it_plans_at_imagenet256_as_published(name):
    sizes = {"B": 4, "L": 8, "XL": 8}
    runs = [Run(tokenizer="f16d32", generator=f"LightningDiT-{size}/1") for size in sizes]
    found = plan(*runs, generator__repa=name, **IMAGENET)
    fits = [job.stages[0].spec for job in found.jobs if job.kind == "generator"]
    assert [spec.recipe.repa.depth for spec in fits] == list(sizes.values())
    assert {spec.recipe.repa.model for spec in fits} == {"dinov2"}
    assert (fits[0].foundation.input_size, fits[0].foundation.stride) == (0, 0)
    assert "dinov2" in needs.needed_files(found.stages)
    plain = plan(*runs, **IMAGENET)
    assert "dinov2" not in needs.needed_files(plain.stages)


def test_a_model_without_weights_here_leaves_the_plans_identity_open(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    found = plan(generator__repa__model="mae")
    assert "of weights that are missing" in needs.identity_unknown(found.stages)
    assert any("the foundation model 'mae'" in line for line in needs.missing_here(found.stages))


def test_alignments_of_a_study_are_told_apart_in_names_in_factors_and_in_changes():
    runs = [
        dataclasses.replace(run, label=label)
        for label, run in {
            "plain": PLAIN, "repa": aligned(repa="repa"), "weak": aligned(repa="repa", repa__weight=0.1),
        }.items()
    ]  # fmt: skip
    found = plan(*runs)
    assert [label.changed for label in run_labels(found).values()] == [
        (), ("generator.repa",), ("generator.repa.weight",),
    ]  # fmt: skip
    assert runs[1].name == "f4d4 + LightningDiT-XXS/2 + generator.repa=repa"
    assert runs[2].training_changes == {"generator.repa": "repa", "generator.repa.weight": 0.1}
    assert len([job for job in found.jobs if job.kind == "tokenizer"]) == 1


def test_estimates_know_the_projector_and_features_that_are_too_many_for_a_cache():
    plain, small = fit(), fit(generator__repa="repa")
    assert plain.spec.recipe.repa is None
    assert 1.1 < estimate.training_flops(small) / estimate.training_flops(plain) < 1.3
    assert repa_flops(small.spec, small.inputs["latents"].spec) == 0
    run = Run(tokenizer="f16d32", generator="LightningDiT-XL/1")
    before, after = (fit(run, **{**IMAGENET, **more}) for more in ({}, {"generator__repa": "repa"}))
    gib = features_gib((1024, 16, 16), 1_281_167, 1)
    assert gib > 600
    images = after.spec.recipe.budget_images
    features = (estimate.stage_flops(after) / images) - estimate.training_flops(after)
    assert features == pytest.approx(2 * 304e6 * 256, rel=0.01)
    assert estimate.stage_flops(before) == estimate.training_flops(before) * images


def test_an_estimate_of_the_states_on_the_disk_is_what_they_hold():
    for name in REPA:
        stage = fit(generator__repa=name)
        state = build(stage.spec)
        trained = [p for key in ("generator", "projector") for p in state[key].parameters()]
        generators = sum(p.numel() for p in state["generator"].parameters())
        expected = 4 * (generators + 3 * sum(p.numel() for p in trained))
        assert estimate.kept_state_bytes(stage) == pytest.approx(expected, rel=1e-3)


def test_features_are_as_wide_as_planned():
    network = efficientnet_lite("lite0", pretrained=False)
    assert {stride: lite_trunk(network, stride)[1] for stride in LITE0_WIDTHS} == LITE0_WIDTHS
    assert {name: model.width for name, model in TRANSFORMERS.items()} == {
        "dinov2": 1024, "mae": 1024, "sam": 256, "clip": 1024,
    }  # fmt: skip
