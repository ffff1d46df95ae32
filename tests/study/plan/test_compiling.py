"""Where blocks are compiled if nobody asks for it or against it."""

import dataclasses

import pytest
from made_up import COMPUTE, data_spec

import ablations.frontier
from study.core.settings import change
from study.plan import resolve
from study.plan.memory import stage_bytes
from study.plan.resolve import make_plan
from study.plan.scales import SCALES


def plan_of(scale, device, asked=None, **changes):
    base = change(SCALES[scale](), "execution.compile", asked)
    for field, value in changes.items():
        base = change(base, field.replace("__", "."), value)
    here = dataclasses.replace(COMPUTE, device=device, precision=base.precision)
    return make_plan("made", ablations.frontier, base, data_spec(base.resolution), here, "test")


def compiled_kinds(plan):
    return {stage.kind for stage in plan.stages if stage.spec.compute.compile}


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    monkeypatch.setattr(resolve, "no_compiler_because", lambda device: "")


def test_long_stages_of_a_gpu_are_compiled_and_no_others():
    assert compiled_kinds(plan_of("imagenet256", "cuda")) == {"fit_generator", "sample"}
    for scale in ("smoke", "desk", "desk-full", "gpu"):
        assert not compiled_kinds(plan_of(scale, "cuda"))
    assert not compiled_kinds(plan_of("imagenet256", "cpu"))


def test_each_stage_is_judged_by_its_own_length():
    few = plan_of("imagenet256", "cuda", sampling__samples=1000)
    assert compiled_kinds(few) == {"fit_generator"}


def test_without_a_compiler_none_is(monkeypatch):
    monkeypatch.setattr(resolve, "no_compiler_because", lambda device: "the package triton")
    assert not compiled_kinds(plan_of("imagenet256", "cuda"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_asked_is_done(device):
    assert compiled_kinds(plan_of("smoke", device, asked=True)) == {"fit_generator", "sample"}
    assert not compiled_kinds(plan_of("imagenet256", device, asked=False))


def test_the_estimate_of_memory_is_of_what_is_done_and_no_fingerprint_is():
    plans = [plan_of("imagenet256", "cuda", asked) for asked in (None, True, False)]
    chosen, compiled, eager = (
        max(stage_bytes(stage) for stage in plan.stages if stage.kind == "fit_generator") for plan in plans
    )
    assert chosen == compiled < 0.8 * eager
    assert len({tuple(stage.fingerprint for stage in plan.stages) for plan in plans}) == 1
