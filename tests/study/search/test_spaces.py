"""What a search varies: every corner of every space is a run at every scale."""

import dataclasses

import pytest
from made_problems import make_problem
from made_up import COMPUTE, data_spec

import ablations.system
from study.core.settings import change
from study.plan.resolve import make_plan
from study.plan.runs import Setting
from study.plan.scales import SCALES, smoke
from study.search.outcome import CHOOSING, SCORING
from study.search.problem import Problem
from study.search.spaces import Choice, Number, space, spaces


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", spaces())
def test_every_space_has_the_default_of_every_scale_and_all_its_corners_are_runs(name, scale):
    made = SCALES[scale]()
    setting = Setting(scale=made, data=data_spec(made.resolution), compute=COMPUTE, study="made")
    problem = Problem(space=name, setting=setting, budget=1, seed=0, storage="", workers=1, out=None)
    dimensions, default = problem.dimensions(), problem.default()
    unchanged = problem.run(default, scored=True).changes
    assert set(unchanged) <= {"sampling.solver", "sampling.seed"}  # Euler where the scale's solver is adaptive
    for dimension_name, dimension in dimensions.items():
        ends = dimension.choices if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in ends:
            assert problem.plan([problem.run({**default, dimension_name: value})]).jobs


def test_the_default_trial_of_the_generator_is_a_run_of_the_frontier():
    import ablations.frontier
    from study.plan.resolve import make_plan

    problem = make_problem("generator")
    s = problem.setting
    frontier = make_plan("frontier", ablations.frontier, s.scale, s.data, s.compute, s.study)
    assert set(problem.plan([problem.run(problem.default())]).stages) <= set(frontier.stages)


def test_a_search_of_tokenizers_begins_with_those_of_the_frontier():
    import ablations.frontier

    problem = make_problem("tokenizer", latent_channels=(4, 16), foundation_models=("lite0",))
    s = problem.setting
    frontier = make_plan("frontier", ablations.frontier, s.scale, s.data, s.compute, s.study)
    runs = [problem.run(values) for values in problem.first()]
    assert [run.tokenizer for run in runs] == ["f4d4", "f4d4-lite0", "f4d16", "f4d16-lite0"]
    assert set(problem.plan(runs).stages) <= set(frontier.stages)
    assert make_problem("sampling").first() == []


def test_guidance_ends_after_it_starts():
    problem = make_problem("sampling")
    for start in (0.0, 0.3, 0.6):
        for share in (0.1, 1.0):
            values = {**problem.default(), "guidance_scale": 2.0, "guidance_start": start, "guidance_share": share}
            low, high = problem.run(values).changes.get("sampling.guidance_interval", (0.0, 1.0))
            assert 0 <= low < high <= 1


def test_seeds_that_choose_score_nothing():
    problem = make_problem("sampling")
    seeds = [problem.run(problem.default(), repeat).changes["sampling.seed"] for repeat in (0, *CHOOSING)]
    assert seeds == [1_000_000, 1_000_001, 1_000_002]
    assert [problem.run(problem.default(), r, True).changes["sampling.seed"] for r in SCORING] == list(SCORING)


@pytest.mark.parametrize(("drawn", "value"), [(0.12345, 0.12), (0.1, 0.1), (0.3333333333, 1 / 3), (0.999, 0.99)])
def test_a_number_has_two_digits_and_the_default_is_as_it_is(drawn, value):
    assert Number(label="x", low=0.1, high=0.99, default=1 / 3).value(drawn) == pytest.approx(value)


def test_a_default_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="x: the scale's 2 is not within 0 to 1"):
        Number(label="x", low=0, high=1, default=2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match="x: no range from"):
        Number(label="x", low=low, high=high, default=1.0, log=True)


def test_a_default_outside_of_a_space_names_its_file():
    guided = dataclasses.replace(smoke().sampling, guidance_scale=9.5)
    with pytest.raises(ValueError, match=r"not within 1.0 to .*; ranges are in ablations/spaces/sampling.py"):
        make_problem("sampling", sampling=guided).dimensions()


def test_an_unknown_space_names_the_nearest():
    with pytest.raises(ValueError, match="unknown space 'samplings'; nearest: sampling"):
        space("samplings")


def test_an_end_of_a_range_that_makes_no_run_is_refused_before_a_trial():
    scale = smoke()
    sampling = dataclasses.replace(scale.sampling, solver="ddpm", steps=600)
    generator = dataclasses.replace(scale.generator, objective="gaussian-diffusion")
    problem = make_problem("sampling", sampling=sampling, generator=generator)
    with pytest.raises(
        ValueError, match=r"^steps 1200 cannot be tried: sampling.steps must be 2 to 1000 .*sampling.py$"
    ):
        problem.extremes()
    fine = make_problem("sampling", sampling=dataclasses.replace(sampling, steps=500), generator=generator)
    assert len(fine.extremes()) == 1 + 2 * 5  # the default, and both ends of five ranges


def test_a_search_warns_of_what_one_of_its_values_does(capsys, tmp_path, monkeypatch):
    from study.search import run as command
    from study.search.options import Search

    monkeypatch.setattr(command, "data_notes", lambda source, data: [])
    wide = make_problem("tokenizer", latent_channels=(4, 16, 36), out=tmp_path)  # 36 channels have 144 values a token
    assert command.run(Search(space="tokenizer", scale="smoke", dry_run=True), wide, []) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: LightningDiT-XXS/2 is 128 wide, less than the 144 values of a token" in told


def test_what_a_search_of_generators_finds_can_be_swept_by_flags():
    problem = make_problem("generator")
    values = {name: dimension.low for name, dimension in problem.dimensions().items()}
    run = problem.run(values)
    changed = [f"{name}={value}" for name, value in run.changes.items()]
    options = [f"generator_options={name}={value}" for name, value in run.options.items()]
    scale = problem.setting.scale
    for text in (*changed, *options):  # as --set reads them
        name, _, value = text.partition("=")
        scale = change(scale, name, value)
    swept = make_plan("system", ablations.system, scale, problem.setting.data, COMPUTE, "made")
    assert run.options and swept.runs[1].fit.fingerprint == problem.plan([run]).runs[1].fit.fingerprint
    again = dataclasses.replace(problem, setting=dataclasses.replace(problem.setting, scale=scale))
    assert again.default()["label_dropout"] == values["label_dropout"]
    assert again.run(again.default()).options == {} != again.run({**again.default(), "label_dropout": 0.1}).options
