"""Plans: every stage that an ablation needs, once each, and a one-line error for invalid runs."""

import dataclasses
from pathlib import Path

import pytest
from made_up import COMPUTE, Asking, data_spec

import ablations.frontier
import ablations.guidance
import ablations.system
from models.configs import TRANSFORMERS
from results.schema import SELECTION_SEED
from study.plan.checks import check_scale
from study.plan.estimate import estimated_seconds, has_rates, note_rate, stage_flops
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import SCALES
from study.plan.specs import Phase


def plan(scale, module=ablations.frontier, **changes):
    return make_plan("frontier", module, dataclasses.replace(scale, **changes), data_spec(), COMPUTE, "test")


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_plans_its_frontier(name):
    scale = SCALES[name]()
    found = plan(scale)
    tokenizers = len(scale.latent_channels) * (1 + len(scale.foundation_models))
    trained, repeats = len(scale.tokenizer_seeds), len(scale.seeds)
    assert [job.kind for job in found.jobs].count("tokenizer") == tokenizers * trained
    assert len(found.runs) == tokenizers * (trained + len(scale.generators) * repeats)
    marks, judges = len(scale.generator.snapshot_images), len(scale.judges)
    assert {len(job.stages) for job in found.jobs if job.kind == "generator"} == {1 + marks * (1 + judges)}
    assert all(job.after in {j.name for j in found.jobs} for job in found.jobs if job.kind == "generator")


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_plans_its_system(name):
    scale = SCALES[name]()
    found = plan(scale, ablations.system)
    assert len(found.runs) == (len(scale.tokenizer_seeds) + len(scale.seeds)) * len(scale.foundation_models)
    assert all(planned.fit.spec.foundation for planned in found.runs if planned.kind == "tokenizer")
    assert [job.kind for job in plan(scale, ablations.system, foundation_models=()).jobs].count("tokenizer") >= 1


def test_the_papers_system():
    found = plan(SCALES["imagenet256-system"](), ablations.system)
    assert [planned.run.name for planned in found.runs] == ["f16d32-dinov2", "f16d32-dinov2 + LightningDiT-XL/1"]
    first, last = (result.pictures.spec for result in found.runs[1].results)
    assert [first.images_seen // 1024, last.images_seen // 1024] == [80_000, 1_000_000]  # 64 and 800 epochs
    assert first.sampling == last.sampling
    assert first.sampling.guidance_scale == 1


def test_every_foundation_model_at_every_width_is_planned():
    names = tuple(TRANSFORMERS)
    found = plan(SCALES["imagenet256"](), foundation_models=names)
    fits = [stage.spec for stage in found.stages if stage.kind == "fit_tokenizer"]
    wanted = [f"f16d{width}{model}" for width in (16, 32, 64) for model in ("", *(f"-{name}" for name in names))]
    assert sorted(spec.tokenizer for spec in fits) == sorted(wanted)
    for spec in fits:
        assert (spec.foundation is None) == ("-" not in spec.tokenizer)
        assert (spec.recipe.perceptual_net, spec.recipe.gan_weight, spec.recipe.betas) == ("vgg", 0.5, (0.5, 0.9))
        assert (spec.recipe.learning_rate, spec.recipe.kl_weight, spec.recipe.gan_start_images) == (1e-4, 1e-6, 640_256)
        assert (spec.recipe.budget_images, spec.recipe.batch_images) == (64_058_368, 256)  # 50 epochs


def test_what_a_tokenizer_does_not_use_leaves_its_fingerprint_alone():
    """A plain tokenizer ignores VF settings of phases, but not their starts, at which its optimizers restart."""
    scale = SCALES["smoke"]()

    def fingerprints(foundation=None, **recipe):
        changed = dataclasses.replace(
            scale,
            foundation=dataclasses.replace(scale.foundation, **(foundation or {})),
            tokenizer=dataclasses.replace(scale.tokenizer, **recipe),
        )
        jobs = plan(changed, Asking(*(Run(tokenizer=f"f4d4{model}") for model in ("", "-lite0", "-clip")))).jobs
        return [job.stages[0].fingerprint for job in jobs]

    def moved(before, after):
        return [a != b for a, b in zip(before, after, strict=True)]

    base = fingerprints()
    assert moved(base, fingerprints({"own_statistics": True})) == [False, False, True]
    assert moved(base, fingerprints({"stride": 8})) == [False, True, False]
    assert moved(base, fingerprints({"bfloat16": True})) == [False, True, True]
    assert fingerprints({"bfloat16": False}) == base
    assert moved(base, fingerprints(vf_weight=1.0)) == [False, True, True]
    one = fingerprints(phases=(Phase(from_images=128),))
    assert moved(base, one) == [True, True, True]
    assert moved(one, fingerprints(phases=(Phase(from_images=128, vf_weight=0.3),))) == [False, True, True]


@pytest.mark.parametrize(
    ("seeds", "tokenizer_seeds", "trained"),
    [
        ((0, 1), (0,), {(0, 0), (0, 1)}),
        ((0, 1), (0, 1), {(0, 0), (1, 1)}),
        ((0, 1, 2), (0, 5), {(0, 0), (5, 1), (0, 2)}),
    ],
)
def test_tokenizer_seeds_take_turns_under_the_generators_seeds(seeds, tokenizer_seeds, trained):
    found = plan(SCALES["smoke"](), seeds=seeds, tokenizer_seeds=tokenizer_seeds)
    generators = [planned.run for planned in found.runs if planned.kind == "generator"]
    assert {(run.tokenizer_seed, run.seed) for run in generators} == trained
    assert [job.kind for job in found.jobs].count("tokenizer") == 2 * len(tokenizer_seeds)
    assert len({job.title for job in found.jobs}) == len(found.jobs)  # titles are unique


def test_runs_that_share_a_tokenizer_train_it_once():
    runs = [Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", seed=seed) for seed in (0, 1)]
    found = plan(SCALES["smoke"](), Asking(*runs, runs[0]))
    assert [job.kind for job in found.jobs] == ["tokenizer", "generator", "generator"]
    assert len({stage.fingerprint for stage in found.stages}) == 4 + 2 * 5


def test_a_generators_change_leaves_its_tokenizer_as_it_is():
    base = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    runs = [
        base,
        dataclasses.replace(base, changes={"generator.direction_weight": 0.0}),
        dataclasses.replace(base, options={"rope": False}),
        dataclasses.replace(base, changes={"tokenizer.kl_weight": 1e-3}),
    ]
    found = plan(SCALES["smoke"](), Asking(*runs))
    assert [job.kind for job in found.jobs] == ["tokenizer"] * 2 + ["generator"] * 4


def test_the_objective_sets_learned_variance_and_unused_fields_change_no_fingerprint():
    diffusion = {"generator.objective": "gaussian-diffusion", "sampling.solver": "ddpm"}
    base = Run(tokenizer="f4d4", generator="DiT-XXS/2")
    ignored = {"generator.logit_normal": False, "generator.direction_weight": 0.0, "sampling.timestep_shift": 0.3}
    runs = [dataclasses.replace(base, changes=changes) for changes in ({}, diffusion, {**diffusion, **ignored})]
    found = [p for p in plan(SCALES["smoke"](), Asking(*runs)).runs if p.kind == "generator"]
    assert [p.fit.spec.architecture.learned_variance for p in found] == [False, True]  # the third is the second
    ended = dataclasses.replace(base, changes={"generator.logit_normal_end_images": 256})
    plain = {"generator.logit_normal": False}
    uniform = [dataclasses.replace(base, changes={**plain, **c}) for c in ({}, ended.changes)]
    found = [p for p in plan(SCALES["smoke"](), Asking(base, ended, *uniform)).runs if p.kind == "generator"]
    assert len(found) == 3


def test_one_training_judged_by_two_protocols_is_one_job():
    base = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    guided = dataclasses.replace(base, changes={"sampling.guidance_scale": 2.0})
    found = plan(SCALES["smoke"](), Asking(base, guided))
    generator = [job for job in found.jobs if job.kind == "generator"]
    assert len(generator) == 1
    assert [stage.kind for stage in generator[0].stages] == ["fit_generator"] + ["sample", "judge"] * 4


def test_a_sweep_over_guidance_trains_nothing_more_and_draws_every_scale_by_two_seeds():
    scale = SCALES["smoke"]()
    plain, swept = plan(scale), plan(scale, ablations.guidance)
    drawing = ("sample", "judge")
    trained = [stage for stage in swept.stages if stage.kind not in drawing or "reconstructions" in stage.inputs]
    assert trained == [s for s in plain.stages if s.kind not in drawing or "reconstructions" in s.inputs]
    drawn = [stage for stage in swept.stages if stage.kind == "sample"]
    assert {stage.spec.images_seen for stage in drawn} == {512}
    for seed in (0, SELECTION_SEED):
        found = [stage.spec.sampling.guidance_scale for stage in drawn if stage.spec.sampling.seed == seed]
        assert sorted(found) == sorted([1.0, 1.5, 3.0] * 2)
    assert len(set(drawn) & set(plain.stages)) == 2  # the unguided scores are those of the frontier
    names = [planned.run.name for planned in swept.runs]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("samples", "choosing"), [(50_000, 10_000), (3_000, 3_000)])
def test_at_most_10000_samples_choose(samples, choosing):
    scale = SCALES["smoke"]()
    swept = plan(scale, ablations.guidance, sampling=dataclasses.replace(scale.sampling, samples=samples, seed=7))
    drawn = [stage.spec.sampling for stage in swept.stages if stage.kind == "sample"]
    assert {(s.seed, s.samples) for s in drawn} == {(7, samples), (SELECTION_SEED + 7, choosing)}


def test_scales_of_guidance_hold_none_and_another():
    for scales in ((1.5, 2.0), (1.0,), (1.0, 1.0, 2.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="guidance_scales must be 1 and at least one other number"):
            check_scale(dataclasses.replace(SCALES["smoke"](), guidance_scales=scales))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run(tokenizer="f8d4"), "f8d4 downsamples 8 times, but scale smoke builds .* ask for f4d4"),
        (Run(tokenizer="f4d4-lite1"), "lite0"),
        (Run(tokenizer="f4d4", generator="LightningDit-XXS/2"), "LightningDiT"),
        (Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", options={"roep": False}), "rope"),
        (Run(tokenizer="f4d4", changes={"tokenizer.vf_wieght": 1}), "nearest: vf_weight"),
        (Run(tokenizer="f4d4", changes={"sampling.solver": "eulr"}), "nearest: euler"),
        (Run(tokenizer="f4d4", changes={"judges": ()}), "a run cannot change judges"),
        (Run(tokenizer="f4d4", changes={"sampling.solver": "ddpm"}), "ddpm cannot draw from .* rectified-flow"),
        (Run(tokenizer="f4d4", changes={"generator.objective": "gaussian-diffusion"}), "set sampling.solver to ddpm"),
        (
            Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", options={"learned_variance": True}),
            "unknown generator option 'learned_variance'",
        ),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(run, message):
    with pytest.raises(ValueError, match=message):
        plan(SCALES["smoke"](), Asking(run))


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("generator", {"snapshot_images": (100,)}, "must name multiples of generator.batch_images 32"),
        ("generator", {"snapshot_images": ()}, "snapshot_images"),
        ("generator", {"snapshot_images": (1024,)}, "none above generator.budget_images 512"),
        ("tokenizer", {"budget_images": 100}, "must be a multiple of tokenizer.batch_images 32"),
        (
            "tokenizer",
            {"phases": (Phase(from_images=100),)},
            "must start at multiples of .*_images 32, .* got 100",
        ),
        ("tokenizer", {"phases": (Phase(from_images=0),)}, "above 0 and below tokenizer.budget_images 256; got 0"),
        ("tokenizer", {"phases": (Phase(from_images=256),)}, "got 256"),
    ],
)
def test_inconsistent_budgets_are_refused(group, changes, message):
    scale = SCALES["smoke"]()
    with pytest.raises(ValueError, match=message):
        plan(scale, **{group: dataclasses.replace(getattr(scale, group), **changes)})


@pytest.mark.parametrize("resolution", [30, 36, 8])
def test_a_size_that_does_not_fit_the_grid_is_refused_with_those_that_do(resolution):
    with pytest.raises(
        ValueError, match=rf"pictures of {resolution} px do not fit .* multiples of 8 from 16 px\)"
    ) as error:
        make_plan("frontier", ablations.frontier, SCALES["smoke"](), data_spec(resolution), COMPUTE, "test")
    sizes = [int(text) for text in str(error.value).split("that fit: ")[1].split(" (")[0].split(", ")]
    for size in sizes:
        make_plan("frontier", ablations.frontier, SCALES["smoke"](), data_spec(size), COMPUTE, "test")


def test_options_of_a_scale_are_those_of_every_generator_unless_a_run_has_its_own():
    desk = SCALES["desk"]()
    run = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", options={"label_dropout": 0.2})

    def network(run, *options):
        return plan(desk, Asking(run), generator_options=options).runs[1].fit.spec.architecture

    plain = dataclasses.replace(run, options={})
    assert network(plain, "label_dropout=0.05", "rope=False") == network(
        dataclasses.replace(run, options={"label_dropout": 0.05, "rope": False})
    )
    assert network(run, "label_dropout=0.05").label_dropout == 0.2
    for wrong, message in (("rope", "takes NAME=VALUE"), ("rop=False", "nearest: rope"), ("rope=2", "True or False")):
        with pytest.raises(ValueError, match=message):
            network(plain, wrong)


def test_a_smoke_run_on_a_slow_machine_leaves_no_rates():
    """It would be its start-up that a desk study is estimated by."""
    found = plan(SCALES["smoke"]())
    for stage in found.stages:
        note_rate(stage, 60.0, "a slow machine")
    encode = next(stage for stage in plan(SCALES["desk"]()).stages if stage.kind == "encode")
    assert not has_rates(found.stages[:1], "a slow machine")
    note_rate(encode, 60.0, "a slow machine")
    assert has_rates([encode], "a slow machine")
    assert estimated_seconds([encode], "a slow machine") == pytest.approx(60.0)


# GFLOP/s of a GPU of 16 GB as docs/gpu.md states them; judging is mostly eigenvalues on the processor
OF_16_GB = {
    "fit_tokenizer": 6e3, "reconstruct": 3e3, "encode": 10e3, "fit_generator": 35e3, "sample": 35e3, "judge": 200,
}  # fmt: skip


def test_the_scale_of_one_gpu_is_an_hour_by_the_rates_that_it_is_sized_by():
    found = plan(SCALES["gpu"](), foundation_models=("lite0",))
    seconds = sum(stage_flops(stage) / OF_16_GB[stage.kind] / 1e9 for stage in found.stages)
    assert 0.75 < seconds / 3600 <= 1.0
    rates = Path(__file__).parents[3].joinpath("docs/gpu.md").read_text()
    for kind, gflops in OF_16_GB.items():
        assert f"| `{kind}` | {gflops / 1e3:g} |" in rates
    generators = [planned.fit.spec.architecture.name for planned in found.runs if planned.kind == "generator"]
    assert len(generators) == 3 * 2 * 2 * 3 and set(generators) == {"LightningDiT-S/1", "LightningDiT-B/1"}
