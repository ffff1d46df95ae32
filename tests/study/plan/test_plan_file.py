"""A plan comes back from its JSON content as it was, also in another version of the code."""

import dataclasses
import json

import pytest
from made_up import COMPUTE, Asking, data_spec

from study.plan.ablation_files import ablation, ablation_names
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.plan_file import plan_content, plan_from
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import SCALES
from study.plan.stage import VERSIONS
from study.report.table_rows import rows_of


def planned(name, scale):
    data = GIVEN_AS_FOLDER["imagenet"] if scale.data == "imagenet" else data_spec()
    return make_plan(name, ablation(name), scale, data, COMPUTE, "test")


def read_again(plan):
    return plan_from(json.loads(json.dumps(plan_content(plan))))


@pytest.mark.parametrize("scale", ["smoke", "desk", "imagenet256"])
@pytest.mark.parametrize("name", ablation_names())
def test_every_ablation_comes_back(name, scale, tmp_path):
    try:
        plan = planned(name, SCALES[scale]())
    except ValueError:
        pytest.skip("the scale cannot ask it")
    back = read_again(plan)
    assert back == plan
    assert [one.run.name for one in back.runs] == [one.run.name for one in plan.runs]
    assert [job.name for job in back.jobs] == [job.name for job in plan.jobs]
    assert [stage.spec for stage in back.stages] == [stage.spec for stage in plan.stages]
    assert [stage.inputs for stage in back.stages] == [stage.inputs for stage in plan.stages]
    assert rows_of(back, tmp_path) == rows_of(plan, tmp_path)


def test_changes_keep_their_types():
    changes = {"sampling.guidance_scale": 2.0, "sampling.guidance_interval": (0.25, 1.0)}
    phases = {"tokenizer.phases": ({"from_images": 64, "vf_weight": 0.1},)}
    runs = [Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", changes=one) for one in (changes, phases)]
    plan = make_plan("made", Asking(*runs), SCALES["smoke"](), data_spec(), COMPUTE, "test")
    back = read_again(plan)
    assert [one.run for one in back.runs] == [one.run for one in plan.runs]
    assert any("interval=(0.25, 1.0)" in one.run.name for one in back.runs)


def test_fingerprints_are_those_of_the_version_that_planned(monkeypatch):
    plan = planned("frontier", SCALES["smoke"]())
    fingerprints = [stage.fingerprint for stage in plan.stages]
    content = json.loads(json.dumps(plan_content(plan)))
    monkeypatch.setitem(VERSIONS, "fit_tokenizer", 99)
    back = plan_from(content)
    assert [stage.fingerprint for stage in back.stages] == fingerprints
    assert not set(fingerprints) & {stage.fingerprint for stage in planned("frontier", SCALES["smoke"]()).stages}


def test_equal_stages_with_other_specs_stay_apart():
    """What no fingerprint hashes may differ between stages of one fingerprint."""
    plan = planned("frontier", SCALES["smoke"]())
    job = plan.jobs[0]
    fit = job.stages[0]
    compute = dataclasses.replace(fit.spec.compute, threads=7)
    other = dataclasses.replace(fit, spec=dataclasses.replace(fit.spec, compute=compute))
    assert other == fit
    jobs = (job, dataclasses.replace(job, stages=(other, *job.stages[1:])))
    back = read_again(dataclasses.replace(plan, jobs=jobs))
    assert [job.stages[0].spec.compute.threads for job in back.jobs] == [1, 7]


@pytest.mark.parametrize("damage", [lambda c: c.pop("scale"), lambda c: c["stages"][0]["spec"].update(new=1)])
def test_what_another_version_wrote_is_refused(damage):
    content = json.loads(json.dumps(plan_content(planned("frontier", SCALES["smoke"]()))))
    damage(content)
    with pytest.raises((KeyError, TypeError)):
        plan_from(content)
