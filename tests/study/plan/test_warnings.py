"""What is likely a mistake is warned of in the plan, once for all runs that have it; a sound plan has no warning."""

import dataclasses

import pytest
from made_up import COMPUTE, Asking, data_spec, finish

from study.core.files import read_json, write_json
from study.core.settings import change
from study.plan.ablation_files import ablation
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.scales import SCALES
from study.plan.specs import Phase
from study.plan.stage import RECORD
from study.plan.warnings import measured_warnings, plan_warnings
from study.report import console

RUN = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
SOUND = {"generator.ema_decay": "0.5"}
RELEASED_FORM = {
    "autoencoder__unshuffle": "1", "autoencoder__ch": "32", "autoencoder__ch_mult": "1,1,1",
    "autoencoder__norm_groups": "32",
}  # fmt: skip


def plan(*runs, scale="smoke", **sets):
    settings = SCALES[scale]()
    for field, value in {**SOUND, **{name.replace("__", "."): value for name, value in sets.items()}}.items():
        settings = change(settings, field, value)
    return make_plan("asked", Asking(*(runs or [RUN])), settings, data_spec(settings.resolution), COMPUTE, "test")


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_as_it_is_gives_no_false_alarm(name):
    scale = SCALES[name]()
    data = GIVEN_AS_FOLDER.get(scale.data) or data_spec()
    assert plan_warnings(make_plan("frontier", ablation("frontier"), scale, data, COMPUTE, "test")) == []


def test_too_few_test_pictures_for_a_judge_are_warned_of():
    def warned(test_images):
        data = dataclasses.replace(data_spec(), test_images=test_images)
        return plan_warnings(make_plan("frontier", ablation("frontier"), SCALES["desk"](), data, COMPUTE, "test"))

    (line,) = warned(264)
    assert line.startswith("rFID by efficientnet_lite2 is of the 264 test pictures that there are, and it takes 2,560 ")
    assert line.endswith("(4 runs)")  # tokenizers
    assert len(warned(255)) == 2  # the classifier has 128 features
    assert warned(2_560) == []


def test_a_generator_narrower_than_its_tokens_is_warned_of_once():
    wide = [dataclasses.replace(RUN, tokenizer=name) for name in ("f4d32", "f4d33", "f4d33-lite0")]
    (line,) = plan_warnings(plan(*wide))  # 32 channels with patch 2 are as many as its width
    assert line.startswith("LightningDiT-XXS/2 is 128 wide, less than the 132 values of a token (latent channels 33, ")
    assert line.endswith("(2 runs)")
    assert plan_warnings(plan(dataclasses.replace(wide[-1], generator="LightningDiT-XS/2"))) == []


def test_an_ema_that_keeps_initial_weights_is_warned_of():
    sets = {"generator__budget_images": "19200", "generator__snapshot_images": "19200"}  # 600 steps
    (line,) = plan_warnings(plan(generator__ema_decay="0.9999", **sets))
    assert "generator.ema_decay 0.9999 averages over 10,000 steps, and the training has 600" in line
    assert "its EMA keeps 94% of the initial weights" in line
    assert plan_warnings(plan(generator__ema_decay="0.9984", **sets))  # 625 steps
    assert plan_warnings(plan(generator__ema_decay="0.998", **sets)) == []  # 500
    assert plan_warnings(plan(generator__ema_decay="0.9999", sampling__weights="raw", **sets)) == []
    early = dataclasses.replace(RUN, judged_at=(256,))  # the steps count up to where samples are drawn last
    assert plan_warnings(plan(early, generator__ema_decay="0.9"))
    assert not plan_warnings(plan(generator__ema_decay="0.9"))


@pytest.mark.parametrize(("network", "budget"), [("tokenizer", 256), ("generator", 512)])
def test_a_learning_rate_that_stays_below_its_value_is_warned_of(network, budget):
    (line,) = plan_warnings(plan(**{f"{network}__warmup_images": str(budget)}))
    assert f"{network}.warmup_images {budget} is not below {network}.budget_images {budget}" in line
    assert plan_warnings(plan(**{f"{network}__warmup_images": str(budget - 1)})) == []


def test_a_discriminator_that_never_plays_is_warned_of():
    gan = {"tokenizer__gan_weight": "0.5", "tokenizer__gan_start_images": "256"}
    (line,) = plan_warnings(plan(**gan))
    assert "tokenizer.gan_start_images 256 is not below tokenizer.budget_images 256" in line
    assert plan_warnings(plan(**{**gan, "tokenizer__gan_start_images": "224"})) == []
    phased = plan(dataclasses.replace(RUN, changes={"tokenizer.phases": (Phase(from_images=128),)}), **gan)
    assert plan_warnings(phased) == []  # it plays from the first later phase on


def test_classes_that_are_not_drawn_are_warned_of():
    (line,) = plan_warnings(plan(sampling__samples="9"))
    assert "sampling.samples 9 is fewer than the 10 classes" in line
    assert plan_warnings(plan(sampling__samples="10")) == []
    assert plan_warnings(plan(sampling__samples="9", sampling__label_scheme="random")) == []


def test_pretrained_weights_have_no_training_to_warn_of():
    run = Run(
        tokenizer="f4d4",
        generator="LightningDiT-XXS/2",
        pretrained_tokenizer=Pretrained(name="t.pt", images_seen=64),
        pretrained_generator=Pretrained(name="g.pt", images_seen=64),
        pretrained_statistics="s.pt",
    )
    assert plan_warnings(plan(run, generator__ema_decay="0.9999", **RELEASED_FORM)) == []


def test_a_plan_prints_its_warnings(capsys):
    console.print_plan(plan(sampling__samples="9"), 1)
    assert "warning: sampling.samples 9 is fewer than the 10 classes" in " ".join(capsys.readouterr().out.split())


# Of measured tokenizers


def reconstructed(found, **metrics):
    """The plan with a record of its reconstruct stage, whose metrics are changed to these."""
    stage = next(stage for stage in found.stages if stage.kind == "reconstruct")
    finish(stage)
    record = read_json(stage.folder / RECORD)
    write_json(stage.folder / RECORD, {**record, "metrics": {**record["metrics"], **metrics}})
    return found


def pretrained_plan():
    run = Run(tokenizer="f4d4", pretrained_tokenizer=Pretrained(name="mine.pt", images_seen=64))
    return plan(run, **RELEASED_FORM)


def test_a_pretrained_tokenizer_below_15_db_is_a_likely_mismatch():
    (line,) = measured_warnings(reconstructed(pretrained_plan(), psnr=14.9).stages)
    assert line.startswith("tokenizer pretrained mine.pt: its reconstructions reach 14.9 dB PSNR, below 15")
    assert "another range or normalisation" in line
    assert measured_warnings(reconstructed(pretrained_plan(), psnr=15.1).stages) == []


def test_a_trained_tokenizer_may_be_poor():
    assert measured_warnings(reconstructed(plan(), psnr=9.0).stages) == []


def test_a_colour_shift_is_named_from_2_of_255_on():
    (line,) = measured_warnings(
        reconstructed(plan(dataclasses.replace(RUN, tokenizer_seed=3)), colour_shift=2.1).stages
    )
    assert line.startswith("tokenizer f4d4 (seed 3): ") and "2.1/255" in line
    assert measured_warnings(reconstructed(plan(), colour_shift=1.9).stages) == []
    assert measured_warnings(plan(sampling__seed="1", tokenizer__kl_weight="1").stages) == []  # not measured yet


def test_what_is_measured_is_in_the_next_plan_and_in_the_status(capsys):
    from study import manage

    found = reconstructed(pretrained_plan(), psnr=12.0)
    console.print_plan(found, 1)
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: tokenizer pretrained mine.pt: its reconstructions reach 12.0 dB" in told
    console.console.print(manage.status_table("made", manage.states_of(found)))
    assert "warning: tokenizer pretrained mine.pt" in " ".join(capsys.readouterr().out.split())
