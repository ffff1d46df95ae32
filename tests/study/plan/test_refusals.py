"""Settings that cannot work together are refused in the plan, in one line that names them; what works is planned."""

import dataclasses

import pytest
from made_up import COMPUTE, Asking, data_spec

from study.core.settings import change
from study.plan.checks import check_data, check_grid, check_scale
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.scales import SCALES

ALIGNED = Run(tokenizer="f4d4-lite0", generator="LightningDiT-XXS/2")
PLAIN = dataclasses.replace(ALIGNED, tokenizer="f4d4")
MAE = Run(tokenizer="f4d4-mae", generator="LightningDiT-XXS/1")
PUBLISHED = Run(
    tokenizer="f16d32-dinov2",
    generator="LightningDiT-XL/1",
    pretrained_tokenizer=Pretrained(name="vavae-imagenet256-f16d32-dinov2", images_seen=1),
    pretrained_generator=Pretrained(name="lightningdit-xl-imagenet256-64ep", images_seen=1),
    pretrained_statistics="vavae-imagenet256-f16d32-dinov2-statistics",
)
OWN_FILE = dataclasses.replace(PLAIN, pretrained_tokenizer=Pretrained(name="mine.pt", images_seen=1))
SD_VAE = Run(tokenizer="sd-vae-f8d4", pretrained_tokenizer=Pretrained(name="sd-vae-ft-ema", images_seen=1))
RELEASED_FORM = {
    "autoencoder.unshuffle": "1", "autoencoder.ch": "32", "autoencoder.ch_mult": "1,1,1",
    "autoencoder.norm_groups": "32",
}  # fmt: skip
TINY_CELLS = {  # f2: pictures of 4 px are two cells wide
    "downsampling": "2", "autoencoder.ch_mult": "(1,)", "generators": "LightningDiT-XXS/1",
}  # fmt: skip
F2 = Run(tokenizer="f2d4", generator="LightningDiT-XXS/1")


def plan(run, sets=None, scale="smoke", data=None):
    """The plan of a run, with all checks that a command makes."""
    settings = SCALES[scale]()
    for field, value in (sets or {}).items():
        settings = change(settings, field, value)
    data = data or data_spec(settings.resolution)
    check_scale(settings)
    check_grid(settings, data.resolution)
    check_data(settings, data)
    return make_plan("asked", Asking(run), settings, data, COMPUTE, "test")


def with_options(run=PLAIN, **options):
    return dataclasses.replace(run, options=options)


def with_changes(run=PLAIN, **changes):
    return dataclasses.replace(run, changes={name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("run", "sets", "message"),
    [
        (
            with_options(label_dropout=0.0),
            {"sampling.guidance_scale": "2"},
            "sampling.guidance_scale 2 needs a generator that was trained with label dropout, and its option",
        ),
        (with_options(with_changes(sampling__guidance_scale=1.5), label_dropout=0), {}, "guidance_scale 1.5 needs"),
        (PLAIN, {"sampling.guidance_channels": "5"}, "guidance_channels 5 is more than the 4 channels of the latent"),
        (with_options(mlp_ratio=-1), {}, "mlp_ratio -1 leaves the MLP without width; the default is 4"),
        (with_options(mlp_ratio="4"), {}, "generator option mlp_ratio must be a number, got '4'"),
        (with_options(mlp_ratio=float("inf")), {}, "generator option mlp_ratio must be a number, got inf"),
        (with_options(label_dropout="0.1"), {}, "generator option label_dropout must be a number"),
        (with_options(rope="no"), {}, "generator option rope must be True or False, got 'no'"),
        (
            PLAIN,
            {"autoencoder.ch": "8", "autoencoder.ch_mult": "2,4", "autoencoder.norm_groups": "16"},
            r"8 channels \(ch 8 x 1\) do not split into norm_groups=16; choose a divisor of 8",
        ),
        (
            ALIGNED,
            {"tokenizer.vf_cosine_weight": "0", "tokenizer.vf_distance_weight": "0"},
            "tokenizer.vf_cosine_weight and tokenizer.vf_distance_weight are both 0, which leaves f4d4-lite0 nothing",
        ),
        (
            with_changes(ALIGNED, tokenizer__vf_cosine_weight=0.0),
            {"tokenizer.vf_distance_weight": "0"},
            "are both 0, which leaves f4d4-lite0 nothing to align by",
        ),
        (PLAIN, {"tokenizer.l1_weight": "0"}, "tokenizer.l2_weight and tokenizer.perceptual_weight are all 0"),
        (PLAIN, {"sampling.seed": "-1"}, "sampling.seed must be 0 or more"),
        (PLAIN, {"sampling.seed": "1000000"}, "sampling.seed must be below 1000000, got 1000000: samples with seeds"),
        (PLAIN, {"generator.logit_normal_mean": "1e400"}, "generator.logit_normal_mean must be a finite number"),
        (OWN_FILE, {}, "autoencoder.unshuffle 1 and autoencoder.norm_groups 32, planned are 2 and 8: set them"),
        (SD_VAE, {}, "sd-vae-ft-ema is a network with in_channels 3, planned is 1: use the scale, the pictures and"),
        (
            with_changes(evaluation__reference="adm-imagenet256"),
            {"judges": "('inception', 0),"},
            "adm-imagenet256 has 1000 classes at 256 px, made has 10 at 32 px",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_together_is_refused(run, sets, message):
    with pytest.raises(ValueError, match=message) as refused:
        plan(run, sets)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("run", "sets", "resolution", "message"),
    [
        (
            MAE,
            {"generators": "LightningDiT-XXS/1"},
            28,
            "mae takes pictures in multiples of 16 px, not 28: .* 16 or 32",
        ),
        (F2, TINY_CELLS, 4, "pictures of 4 px are too small for SSIM, which needs 6"),
        (
            F2,
            {**TINY_CELLS, "evaluation.perceptual_net": "vgg", "evaluation.perceptual_size": "12"},
            8,
            r"evaluation.perceptual_net vgg needs 16 px, .* evaluation.perceptual_size 12: set it to 16 or more",
        ),
        (
            F2,
            {
                **TINY_CELLS,
                "tokenizer.perceptual_weight": "1",
                "tokenizer.perceptual_net": "vgg",
                "tokenizer.perceptual_size": "8",
            },
            8,
            "tokenizer.perceptual_net vgg needs 16 px",
        ),
        (PLAIN, {"tokenizer.gan_weight": "0.5"}, 16, "the discriminator needs pictures of at least 24 px, not 16"),
    ],
)
def test_pictures_that_a_network_cannot_take_are_refused(run, sets, resolution, message):
    with pytest.raises(ValueError, match=message):
        plan(run, sets, data=data_spec(resolution))


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        ({"data": {"channels": 1}}, "vavae-imagenet256-f16d32-dinov2 is a network with in_channels 3, planned is 1"),
        ({"data": {"classes": 10}}, "lightningdit-xl-imagenet256-64ep is .* num_classes 1000, planned is 10"),
        ({"sets": {"autoencoder.ch": "64"}}, "is a network with ch 128, planned is 64"),
        ({"run": {"options": {"rope": False}}}, "is a network with rope True, planned is False"),
        ({"run": {"options": {"label_dropout": 0.0}}}, "is a network with null label True, planned is False"),
        (
            {"sets": {"generator.objective": "gaussian-diffusion", "sampling.solver": "ddpm"}},
            "is a network with learned_variance False, planned is True",
        ),
    ],
)
def test_published_weights_of_another_network_are_refused(change_of, message):
    run = dataclasses.replace(PUBLISHED, **change_of.get("run", {}))
    data = dataclasses.replace(GIVEN_AS_FOLDER["imagenet"], **change_of.get("data", {}))
    with pytest.raises(ValueError, match=message):
        plan(run, change_of.get("sets"), scale="imagenet256", data=data)


@pytest.mark.parametrize("setting", [{"options": {"rope": False}}, {"judged_at": (256,)}])
def test_settings_of_a_generator_need_one(setting):
    with pytest.raises(ValueError, match="options and judged_at are a generator's, so generator must be set"):
        Run(tokenizer="f4d4", **setting)


@pytest.mark.parametrize(
    ("run", "sets", "resolution"),
    [
        (with_options(label_dropout=0.0), {}, 32),
        (PLAIN, {"sampling.guidance_scale": "2"}, 32),
        (with_options(mlp_ratio=1, rope=False, qk_norm=True), {}, 32),
        (PLAIN, {"tokenizer.vf_cosine_weight": "0", "tokenizer.vf_distance_weight": "0"}, 32),  # plain: not used
        (ALIGNED, {"tokenizer.vf_cosine_weight": "0", "tokenizer.vf_weight": "0"}, 32),
        (PLAIN, {"tokenizer.l1_weight": "0", "tokenizer.l2_weight": "1"}, 32),
        (PLAIN, {"tokenizer.perceptual_net": "vgg", "tokenizer.perceptual_size": "8"}, 32),
        (MAE, {"generators": "LightningDiT-XXS/1"}, 32),
        (dataclasses.replace(MAE, tokenizer="f4d4-dinov2"), {"generators": "LightningDiT-XXS/1"}, 28),
        (F2, {**TINY_CELLS, "autoencoder.unshuffle": "2"}, 8),
        (PLAIN, {"autoencoder.ch_mult": "(1,)", "autoencoder.unshuffle": "4"}, 32),
        (OWN_FILE, RELEASED_FORM, 32),
        (with_changes(PLAIN, sampling__seed=1_000_000), {}, 32),  # as the ablation guidance chooses a scale
    ],
)
def test_what_works_is_planned(run, sets, resolution):
    assert plan(run, sets, data=data_spec(resolution)).jobs


def test_published_weights_are_planned_where_they_fit():
    assert plan(PUBLISHED, scale="imagenet256", data=GIVEN_AS_FOLDER["imagenet"]).jobs
    colour = dataclasses.replace(data_spec(64), channels=3)
    assert plan(SD_VAE, data=colour).jobs  # pictures of any size and class, in colour
