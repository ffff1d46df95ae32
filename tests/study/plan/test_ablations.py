"""Ablations: each can be planned at every scale or states what the scale lacks; changed factors are computed."""

import dataclasses
import subprocess
import sys

import pytest
from made_up import COMPUTE, Asking, data_spec

from models.configs import VF_PARTS
from models.regularisation import REGULARISERS
from study.plan.ablation_files import ablation, ablation_names
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.factors import run_labels, varied_factors
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import SCALES

ALL = tuple(ablation_names())
PAPER = {  # tables and figures of the paper that an ablation reproduces
    "Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 1", "Figure 2", "Figure 4",
}  # fmt: skip
LACKING = {  # ablations that a scale cannot run
    ("released", "smoke"), ("released", "desk"), ("released", "desk-full"), ("released", "gpu"),
    ("baselines", "smoke"), ("baselines", "desk"), ("baselines", "desk-full"), ("baselines", "gpu"),
    ("scaling", "smoke"), ("scaling", "desk"), ("scaling", "imagenet256-system"),
    ("vf_loss", "imagenet256-system"), ("alignment", "imagenet256-system"),
    ("tokenizer_budget", "imagenet256-system"),
}  # fmt: skip


def plan(name, scale="smoke", module=None, **changes):
    scale = dataclasses.replace(SCALES[scale](), **changes)
    data = GIVEN_AS_FOLDER.get(scale.data) or data_spec(scale.resolution)
    return make_plan(name, module or ablation(name), scale, data, COMPUTE, "test")


def tokenizers(found):
    return [planned.run.tokenizer for planned in found.runs if planned.kind == "generator"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ALL)
def test_every_ablation_is_planned_or_states_what_the_scale_lacks(name, scale):
    if (name, scale) in LACKING:
        with pytest.raises(ValueError, match=f"^scale {scale} [^\n]+$"):
            plan(name, scale)
        return
    found = plan(name, scale)
    assert any(planned.kind == "generator" for planned in found.runs)
    named = [planned.run.label for planned in found.runs if planned.kind == "generator"]
    assert all(named) or not any(named)
    if any(named):  # no run occurs under two labels
        enough = len(found.scale.enough_repeats)
        repeats = {"latents": {1, enough}, "where_to_align": {enough}}.get(name, {len(found.scale.repeats)})
        assert {named.count(label) for label in named} == repeats


@pytest.mark.parametrize(
    "name",
    [
        "alignment",
        "convergence",
        "foundation_models",
        "repa",
        "tokenizer_budget",
        "uniformity",
        "vf_loss",
        "where_to_align",
    ],
)
def test_without_alignment_there_is_nothing_to_compare(name):
    with pytest.raises(ValueError, match="scale smoke "):
        plan(name, foundation_models=())


def test_every_table_and_figure_of_the_paper_has_an_ablation():
    sources = " ".join(ablation(name).SOURCE for name in ALL).replace("Figures 1, 2 and 4", "Figure 1, Figure 2")
    assert {source for source in PAPER if source not in sources} == set()


@pytest.mark.parametrize("name", ["convergence", "scaling", "uniformity"])
def test_ablations_within_the_frontier_train_nothing_more(name):
    whole = {stage.fingerprint for stage in plan("frontier", "imagenet256").stages}
    part = {stage.fingerprint for stage in plan(name, "imagenet256").stages}
    assert part < whole


def test_at_the_papers_scale_they_are_the_papers_runs():
    assert tokenizers(plan("foundation_models", "imagenet256")) == [
        "f16d32", "f16d32-mae", "f16d32-sam", "f16d32-clip", "f16d32-dinov2",
    ]  # fmt: skip
    assert tokenizers(plan("convergence", "imagenet256")) == ["f16d32", "f16d32-dinov2", "f16d64", "f16d64-dinov2"]
    assert tokenizers(plan("vf_loss", "imagenet256")) == ["f16d32", *["f16d32-dinov2"] * 4]
    of_six = [f"f16d{width}{model}" for width in (32, 64) for model in ("", "-mae", "-dinov2")]
    assert tokenizers(plan("uniformity", "imagenet256")) == of_six
    for name in ("convergence", "foundation_models", "vf_loss", "uniformity"):
        found = plan(name, "imagenet256")
        assert {p.run.generator for p in found.runs if p.kind == "generator"} == {"LightningDiT-B/1"}


def labels(found):
    return [planned.run.label for planned in found.runs if planned.kind == "generator"]


def test_latents_have_thirty_tokenizers_of_each_family_and_repeats_of_six():
    found = plan("latents", "desk")
    models = {p.run.label: p.run.tokenizer.partition("+")[0] for p in found.runs if p.kind == "generator"}
    plain = [label for label, base in models.items() if "-" not in base]
    aligned = [label for label, base in models.items() if base.endswith("-lite0")]
    assert len(plain) >= 30 and len(aligned) - 1 >= 30  # and the representation autoencoder
    assert {p.run.generator for p in found.runs if p.kind == "generator"} == {"LightningDiT-XXS/2"}
    repeated = [label for label in models if labels(found).count(label) == 3]
    assert repeated == ["f4d4", "f4d4-lite0", "f4d16", "f4d16+eq", "f4d16-lite0", "f4d16-lite0+eq"]
    fits = {p.fit.fingerprint for p in found.runs if p.kind == "tokenizer"}
    assert len(fits) == len(models) + 2 * 6  # each strength is another training
    assert all(f"+{name}" in " ".join(aligned) for name in (*VF_PARTS, *REGULARISERS))
    assert len(labels(plan("latents"))) <= 10  # a handful at smoke
    alone = labels(plan("latents", "desk", foundation_models=()))
    assert alone == [label for label in labels(found) if label in plain]


def test_tokenizers_without_regularisers_are_those_of_the_frontier():
    frontier = {stage.fingerprint for stage in plan("frontier", "desk").stages}
    for name in ("latents", "where_to_align"):
        shared = {stage.fingerprint for stage in plan(name, "desk").stages}
        assert frontier <= shared


def test_where_to_align_repeats_what_repa_asks_at_two_widths():
    found = plan("where_to_align", "imagenet256")
    assert list(dict.fromkeys(tokenizers(found))) == ["f16d32", "f16d32-dinov2", "f16d64", "f16d64-dinov2"]
    assert labels(found)[:6] == [f"d32: {label}" for label in labels(plan("repa", "imagenet256"))]
    asked = {stage.fingerprint for stage in found.stages}
    assert {stage.fingerprint for stage in plan("repa", "imagenet256").stages} < asked
    assert {len(label.changed) for label in list(run_labels(found).values())[1:]} == {1}
    more = plan("where_to_align", "desk", seeds=(0, 1, 2, 7), tokenizer_seeds=(0,))
    assert {(p.run.tokenizer_seed, p.run.seed) for p in more.runs if p.kind == "generator"} == {
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 7),
    }


@pytest.mark.parametrize(("own", "enough"), [((0,), [(0, 0), (1, 1), (2, 2)]), ((1, 5), [(0, 1), (0, 5), (0, 0)])])
def test_more_repeats_are_independent_ones(own, enough):
    assert dataclasses.replace(SCALES["desk"](), seeds=own).enough_repeats == enough


def test_the_last_run_of_vf_loss_changes_the_margins():
    for scale, label, margins in (("smoke", "without margins", (0, 0)), ("desk", "with margins", (0.5, 0.25))):
        *_, last = plan("vf_loss", scale).runs
        fit = last.fit.inputs["latents"].inputs["tokenizer"].spec.recipe
        assert (last.run.label, fit.vf_cosine_margin, fit.vf_distance_margin) == (label, *margins)


def test_tokenizers_of_all_budgets_but_one_are_other_trainings():
    found = plan("tokenizer_budget", "desk")
    fits = [p.fit.inputs["latents"].inputs["tokenizer"] for p in found.runs if p.kind == "generator"]
    budgets = [2_400, 4_800, 9_600, 19_200]
    assert [fit.spec.recipe.budget_images for fit in fits] == [*budgets, *reversed(budgets)]
    frontier = {stage.fingerprint for stage in plan("frontier", "desk").stages}
    assert [fit.fingerprint in frontier for fit in fits] == [False, False, True, False, False, True, False, False]
    assert [len(run.changed) for run in run_labels(found).values()] == [0] + [1] * 7


def test_only_the_ladders_last_step_is_confounded():
    for scale in ("smoke", "imagenet256"):
        steps = run_labels(plan("recipe", scale)).values()
        assert [len(step.changed) for step in steps] == [0, *[1] * 8, 2]
        assert set(list(steps)[-1].changed) == {"foundation_model", "patch"}
    for name in ("foundation_models", "vf_loss", "tokenizer_settings", "alignment"):
        compared = run_labels(plan(name, "imagenet256")).values()
        assert sorted(len(run.changed) for run in compared) == [0, *[1] * (len(compared) - 1)]


def test_a_difference_that_no_file_declares_is_found():
    first = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", label="a")
    second = dataclasses.replace(first, label="b", changes={"generator.ema_decay": 0.5, "sampling.steps": 3})
    found = plan("asked", module=Asking(first, second))
    assert run_labels(found)["b"].changed == ("generator.ema_decay", "sampling.steps")
    assert varied_factors(found) == {"generator.ema_decay": [0.9, 0.5], "sampling.steps": [4, 3]}


def test_a_label_moves_no_fingerprint_and_no_name():
    run = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2", seed=1)
    named = dataclasses.replace(run, label="+ something")
    before, after = (plan("asked", module=Asking(asked)) for asked in (run, named))
    assert [stage.fingerprint for stage in before.stages] == [stage.fingerprint for stage in after.stages]
    assert named.name == run.name and named.title == "+ something (seed 1)" and run.title == run.name
    assert after.jobs[-1].title == named.title
    for label in (" a", "a\nb"):
        with pytest.raises(ValueError, match="must be one line"):
            Run(tokenizer="f4d4", label=label)


def test_the_list_has_every_ablation_and_needs_no_torch():
    code = (
        "import sys\nfrom study.report.ablation_list import print_list\nfrom study.submit.options import Sweep\n"
        "print_list(Sweep(scale='imagenet256', list=True))\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    blocks = {block.split()[0]: block for block in done.stdout.split("\n\n") if block.split()}
    assert set(ALL) <= set(blocks)
    assert "Table 5" in blocks["vf_loss"] and "GPU h" in blocks["vf_loss"]
